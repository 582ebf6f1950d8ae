"""`dolake verify [TABLE]`: holds logs and tables against the invariants; a sentence for each breach, exit 1 on any."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from dolake.cli.options import Config, Data, Json, settings_from
from dolake.errors import ConfigurationError, Mistake
from dolake.model import TableName

app = typer.Typer(add_completion=False)

_BREACH = 1


@app.command()
def verify(
    table: Annotated[str | None, typer.Argument(help="One table; all of them unless given.")] = None,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Check the invariants over the logs, the catalog and every file. Reads only; the daemon may run."""
    from dolake.clock import real_runtime
    from dolake.iceberg.lake import open_catalog, open_warehouse
    from dolake.storage.disk import LocalDisk
    from dolake.verify import verify_lake

    settings = settings_from(data, config)
    only = _table(table)
    store = open_warehouse(settings)
    catalog = open_catalog(settings, store, real_runtime())
    if only is not None and only not in catalog.list_tables():
        raise ConfigurationError([Mistake("TABLE", str(only), "no such table; `dolake tables` lists them")])
    breaches = []
    for breach in verify_lake(
        disk=LocalDisk(), directories=settings.log.directories, catalog=catalog, store=store, only=only, progress=_show_progress
    ):
        breaches.append(breach)
        if not as_json:
            print(breach, flush=True)
    if as_json:
        print(json.dumps([asdict(breach) for breach in breaches], ensure_ascii=False))
    elif not breaches:
        print("no breach")
    return _BREACH if breaches else 0


def _table(text: str | None) -> TableName | None:
    if text is None:
        return None
    try:
        return TableName.parse(text)
    except ValueError as error:
        raise ConfigurationError([Mistake("TABLE", text, str(error))]) from None


def _show_progress(subject: str) -> None:
    if sys.stderr.isatty():
        print(f"verifying {subject} …", file=sys.stderr)

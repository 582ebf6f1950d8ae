"""`dolake verify [TABLE]`: holds logs and tables against the invariants; a sentence for each breach, exit 1 on any.

What others have done to a table is noted, and no breach.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from dolake.cli.options import Config, Data, Json, settings_from

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
    from dolake.cli.lake import open_lake
    from dolake.config import TableNames
    from dolake.storage.disk import LocalDisk
    from dolake.verify import verify_lake

    settings = settings_from(data, config)
    lake = open_lake(settings)
    names = [loaded.name for loaded in (lake.tables() if table is None else [lake.table(table)])]
    breaches = []
    for breach in verify_lake(
        disk=LocalDisk(),
        data=settings.data,
        directories=settings.log.directories,
        catalog=lake.catalog,
        store=lake.store,
        names=names,
        progress=_show_progress,
        table_of=TableNames(settings).of,
        key_of=lambda name: settings.settings_for(name).primary_key,
        note=lambda note: print(note, file=sys.stderr if as_json else sys.stdout),
    ):
        breaches.append(breach)
        if not as_json:
            try:
                print(breach, flush=True)
            except BrokenPipeError:  # Its reader has seen enough, of a lake that has a breach all the same.
                return _BREACH
    if as_json:
        print(json.dumps([asdict(breach) for breach in breaches], ensure_ascii=False))
    elif not breaches:
        print("no breach")
    return _BREACH if breaches else 0


def _show_progress(subject: str) -> None:
    if sys.stderr.isatty():
        print(f"verifying {subject} …", file=sys.stderr)

"""`dolake sources`: where each source stands: its log, its numbering, what of it is committed."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import typer

from dolake.cli.options import Config, Data, Json, settings_from

app = typer.Typer(add_completion=False)


@app.command()
def sources(data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """List the sources: log, epoch, last sequence and event, lsn, what is committed, and whether they are connected.

    From the daemon that runs on DIR; without one from the log's files, which are only read.
    """
    import orjson

    from dolake.cli.lake import require_data
    from dolake.cli.standing import ask_or_none, committed_offsets, standing_from_files
    from dolake.clock import real_runtime

    settings, runtime = settings_from(data, config), real_runtime()
    require_data(settings)
    standing = asyncio.run(ask_or_none(settings, runtime))
    if standing is None:
        print("dolake: no daemon answers on this data directory; this is what the log's files say", file=sys.stderr)
        standing = standing_from_files(settings, committed_offsets(settings), runtime.clock.now_ms())
    if as_json:
        print(orjson.dumps(standing["sources"], option=orjson.OPT_INDENT_2).decode())
    else:
        _print(standing["sources"])
    return 0


def _print(found: list[dict[str, Any]]) -> None:
    from dolake.cli.screen import source_table, stdout_console

    stdout_console().print(source_table(found) if found else "no sources yet")

"""`dolake flush [TABLE]`: commits what the log holds now, and says what came of it."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from dolake.cli.options import Config, Data, Json, settings_from
from dolake.errors import ConfigurationError, Mistake
from dolake.model import TableName

app = typer.Typer(add_completion=False)

_NOT_DONE = 6


@app.command()
def flush(
    table: Annotated[str | None, typer.Argument(help="One table; all of them unless given.")] = None,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Commit everything that is in the log now, and wait until it is. Asks the daemon that runs on DIR."""
    from dolake.clock import real_runtime
    from dolake.control import ask_once

    settings = settings_from(data, config)
    tables = None if table is None else [_table(table)]
    answer = asyncio.run(ask_once(settings.control_path, "flush", runtime=real_runtime(), timeout_s=None, tables=tables, reason="manual"))
    result = answer["result"]
    print(json.dumps(result) if as_json else _in_words(result))
    return 0 if result["success"] else _NOT_DONE


def _table(text: str) -> str:
    try:
        return str(TableName.in_lake(text))
    except ValueError as error:
        raise ConfigurationError([Mistake("TABLE", text, str(error))]) from None


def _in_words(result: dict[str, Any]) -> str:
    if not result["success"]:
        return f"not flushed: {result.get('error', 'no reason was given')}"
    if not result["eventsFlushed"]:
        return "nothing to flush"
    return (
        f"flushed {result['eventsFlushed']:,} events into {len(result['paths'])} files,"
        f" {result['bytesWritten']:,} bytes, in {result['durationMs']:,} ms"
    )

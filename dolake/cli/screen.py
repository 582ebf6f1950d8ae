"""What commands show to people: rich tables, as wide as they need where nobody's screen sets a width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dolake.cli import values

if TYPE_CHECKING:
    from dolake.query import Result

_PIPE_WIDTH = 4_000


class _StdoutConsole(Console):
    def on_broken_pipe(self) -> None:
        """The library would end the program with 1; what it means that a reader has gone is decided in one place."""
        raise


def stdout_console() -> Console:
    """Into a pipe nothing is cut or coloured. Raises BrokenPipeError when its reader has gone."""
    console = _StdoutConsole(highlight=False)
    return console if console.is_terminal else _StdoutConsole(highlight=False, width=_PIPE_WIDTH)


class Fitted:
    """As much as a window shows of something, and what is said of the rest: else it would look as if that were all."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options.update(height=None))
        height = options.height or options.max_height
        if len(lines) > height:
            more = f"… {len(lines) - height + 1:,} more lines: a taller window shows them, or the command without --watch"
            lines = [*lines[: height - 1], *console.render_lines(Text(more, style="bold"), options.update(height=1))]
        for place, line in enumerate(lines):
            if place:
                yield Segment.line()
            yield from line


def plain_table(headers: Sequence[str], *, right: Sequence[str] = (), title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for header in headers:
        table.add_column(Text(header), justify="right" if header in right else "left", overflow="fold")
    return table


def log_table(logs: Sequence[Mapping[str, Any]]) -> Table:
    """The logs of a standing (`dolake.cli.standing`)."""
    headers = ["log", "directory", "state", "backlog", "limit", "low", "synced end"]
    table = plain_table(headers, right=headers[3:], title="\nlogs")
    for log in logs:
        state = Text("serves") if log["serving"] else Text(log["trouble"] or "does not serve", style="bold red" if log["trouble"] else "")
        sizes = ("" if log[key] is None else byte_size(log[key]) for key in ("backlogBytes", "backlogBytesMax"))
        table.add_row(Text(log["log"] or ""), Text(log["directory"]), state, *sizes, _number(log["low"]), _number(log["syncedEnd"]))
    return table


def source_table(sources: Sequence[Mapping[str, Any]]) -> Table:
    """The sources of a standing."""
    headers = ["source", "log", "epoch", "last sequence", "last event", "lsn", "persisted", "pending", "connected"]
    table = plain_table(headers, right=["last sequence", "last event", "persisted", "pending"], title="\nsources")
    for source in sources:
        numbers = (_number(source[key]) for key in ("lastSequence", "lastEventSequence"))
        rest = _number(source["persistedSequence"]), _number(source["pendingBatches"]), "yes" if source["connected"] else "no"
        name = Text(source["source"].encode("unicode_escape").decode() if not source["source"].isprintable() else source["source"])
        table.add_row(name, source["log"] or "", Text(source["epoch"]), *numbers, Text(source["lastLsn"] or ""), *rest)
    return table


def standing_table(tables: Sequence[Mapping[str, Any]]) -> Table:
    """The tables of a standing; why one has stopped says `dolake tables`."""
    headers = ["table", "mode", "rows", "pending", "uncommitted", "since", "state", "committed"]
    table = plain_table(headers, right=headers[2:6], title="\ntables")
    for one in tables:
        offsets = ", ".join(f"{log} < {offset}" for log, offset in sorted(one["offsets"].items()))
        state = Text(one["state"] or "", style="bold red" if one["stopped"] else "")
        numbers = (_number(one[key]) for key in ("rows", "pendingRows", "uncommittedEvents"))
        since = f"{one['uncommittedSeconds']:,.1f} s" if one["uncommittedEvents"] and one["uncommittedSeconds"] is not None else ""
        table.add_row(Text(one["table"]), one["mode"] or "", *numbers, since, state, offsets)
    return table


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def result_table(result: Result, rows_max: int) -> tuple[Table, str]:
    """A query's result, and how many rows it has; those past `rows_max` are only counted."""
    schema = result.schema
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    names = values.column_names(schema)
    right = [name for name, field in zip(names, schema, strict=True) if any(test(field.type) for test in numbers)]
    table = plain_table(names, right=right)
    count = 0
    for batch in result.batches():
        for row in values.rows(batch):
            count += 1
            if count <= rows_max:
                table.add_row(*(Text("null", style="dim") if value is None else Text(values.as_text(value)) for value in row))
    more = f", the first {rows_max:,} shown; --csv and --json give them all" if count > rows_max else ""
    return table, f"{count:,} row{'' if count == 1 else 's'}{more}"


def moment(milliseconds: int | None) -> str:
    """UTC, to the second."""
    if milliseconds is None:
        return "never"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def byte_size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"

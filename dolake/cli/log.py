"""`dolake log inspect|verify`: the segment files of the log, read without touching them, daemon running or not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.options import Config, Data, Json, settings_from
from dolake.errors import LogCorrupt, LogRefused

if TYPE_CHECKING:
    from dolake.buffer.inspect import SegmentView
    from dolake.model import Record

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look into the log's segment files, or verify them.")


@app.command("inspect")
def inspect(
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
    records: Annotated[bool, typer.Option("--records", help="Show every record, not only the segments.")] = False,
) -> int:
    """Show each segment of each log: offsets, size, state, tables; never a row. With --json one object a line."""
    from dolake.buffer.inspect import inspect_log
    from dolake.storage.disk import LocalDisk

    damaged = False
    for directory in _directories(data, config):
        if not as_json:
            print(directory)
        for segment in inspect_log(LocalDisk(), directory):
            damaged = damaged or bool(segment.problem)
            print(json.dumps(_segment(segment)) if as_json else "  " + _segment_in_words(segment))
            for record in segment.records if records else ():
                print(json.dumps(_record(record)) if as_json else "    " + _record_in_words(record))
    return LogCorrupt.exit_code if damaged else 0


@app.command("verify")
def verify(data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """Check every byte of every log; one sentence for each breach, naming file and bytes. Exit 4 on any."""
    from dolake.buffer.inspect import verify_log
    from dolake.storage.disk import LocalDisk

    breaches = [breach for directory in _directories(data, config) for breach in verify_log(LocalDisk(), directory)]
    if as_json:
        print(json.dumps(breaches))
    else:
        print("\n".join(breaches) if breaches else "every record verifies")
    return LogCorrupt.exit_code if breaches else 0


def _directories(data: str | None, config: str | None) -> list[str]:
    from dolake.storage.disk import LocalDisk

    directories = list(settings_from(data, config).log.directories)
    for directory in directories:
        if not LocalDisk().exists(directory):
            raise LogRefused(f"{directory}: there is no log here; give the --data directory of a daemon that has run")
    return directories


def _segment(segment: SegmentView) -> dict[str, Any]:
    return {
        "segment": segment.path,
        "state": segment.state,
        "log": segment.log_id,
        "first_offset": segment.first_offset,
        "end": segment.end,
        "size_bytes": segment.size_bytes,
        "plain_bytes": segment.plain_bytes,
        "torn": segment.torn,
        "tables": segment.tables,
        "problem": segment.problem,
    }


def _segment_in_words(segment: SegmentView) -> str:
    words = (
        f"{segment.path.rsplit('/', 1)[-1]}  {segment.state}, offsets {segment.first_offset} to {segment.end}, {segment.size_bytes:,} bytes"
    )
    if segment.plain_bytes != segment.size_bytes:
        words += f" ({segment.plain_bytes:,} plain)"
    if segment.torn:
        words += ", torn at its end as a crash leaves it"
    if segment.tables:
        words += "; tables " + ", ".join(f"{table} to {last}" for table, last in sorted(segment.tables.items()))
    return words + (f"\n    {segment.problem}" if segment.problem else "")


def _record(record: Record) -> dict[str, Any]:
    entry = record.entry
    return {
        "offset": record.offset,
        "kind": entry.kind.name.lower(),
        "source": entry.source,
        "epoch": entry.epoch,
        "sequence": entry.sequence,
        "event_count": entry.event_count,
        "tables": dict(entry.tables),
        "last_lsn": entry.last_lsn,
        "codec": record.codec.name.lower(),
        "size_bytes": record.size_bytes,
        "stored_bytes": record.stored_bytes,
    }


def _record_in_words(record: Record) -> str:
    entry = record.entry
    words = f"{record.offset}  {entry.kind.name.lower()}"
    if entry.source:
        words += f" of {entry.source!r}{f' epoch {entry.epoch!r}' if entry.epoch else ''}, sequence {entry.sequence}"
    if entry.tables:
        words += "; " + ", ".join(f"{table}: {count} events" for table, count in entry.tables.items())
    packed = f", {record.codec.name.lower()} {record.stored_bytes:,}" if record.stored_bytes != record.size_bytes else ""
    return f"{words}; {record.size_bytes:,} bytes{packed}"

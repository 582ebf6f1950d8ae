"""`dolake log inspect|verify|init`: the segment files of the log, looked into without touching them; a lost one given up."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.confirm import Yes, confirmed
from dolake.cli.options import Config, Data, Json, settings_from
from dolake.errors import LogCorrupt, LogRefused

if TYPE_CHECKING:
    from dolake.buffer.inspect import SegmentView
    from dolake.buffer.renewal import GivenUp
    from dolake.model import Record

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look into the log's segment files, verify them, give a lost log up.")


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
    with contextlib.suppress(BrokenPipeError):  # Its reader has seen enough; what was found is said by the exit code all the same.
        print(json.dumps(breaches) if as_json else "\n".join(breaches) if breaches else "every record verifies")
    return LogCorrupt.exit_code if breaches else 0


@app.command("init")
def init(
    directories: Annotated[list[str], typer.Argument(metavar="DIR...", help="Log directories whose log is gone for good.")],
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
) -> int:
    """Give up logs that are gone for good, and begin new ones in their place. Only while no daemon runs.

    What was acked in them and is not committed is lost; the sources of these logs are told when they come back.
    """
    from dolake.buffer.logs import init_logs
    from dolake.buffer.renewal import look_at_log, plan_renewal
    from dolake.buffer.wal import LogSettings
    from dolake.cli.standing import committed_offsets
    from dolake.clock import real_runtime
    from dolake.storage.disk import LocalDisk

    settings = settings_from(data, config, writing=True)
    named = [os.path.normpath(os.path.abspath(directory)) for directory in directories]
    found = [look_at_log(LocalDisk(), directory) for directory in settings.log.directories]
    given_up = plan_renewal(found, named)
    _refuse_if_used([one.directory for one in found if one.log_id])
    if given_up:
        offsets = committed_offsets(settings)
        if not confirmed("\n".join(_loss(one, offsets) for one in given_up), yes=yes):
            print("nothing was changed", file=sys.stderr)
            return LogRefused.exit_code
        init_logs(LocalDisk(), settings.log.directories, LogSettings(settings.log.segment_bytes), real_runtime().random)
    ids = {one.directory: look_at_log(LocalDisk(), one.directory).log_id for one in given_up if one.renewed}
    if as_json:
        done = [{"directory": one.directory, "givenUp": one.log_id, "log": ids.get(one.directory)} for one in given_up]
        print(json.dumps(done))
    elif not given_up:
        print("nothing to give up: no log is missed in these directories; `dolake serve` makes one where there is none")
    for one in () if as_json else given_up:
        print(f"{one.directory}: " + (f"log {ids[one.directory]} begins here" if one.renewed else "is no longer expected"))
    return 0


def _loss(one: GivenUp, committed: Mapping[str, Mapping[str, int]]) -> str:
    """What giving up a log means, for whoever has to decide."""
    furthest = max((offsets.get(one.log_id, 0) for offsets in committed.values()), default=0)
    kept = (
        f"Its records below offset {furthest} are in the tables as far as each had committed"
        if furthest
        else "No table has committed any of it"
    )
    return (
        f"{one.directory}: log {one.log_id} is given up for good. {kept}; everything else that was acked in it is lost. "
        "Its sources are told so when they connect, and must send again what they still have."
    )


def _refuse_if_used(directories: list[str]) -> None:
    from dolake.buffer.wal import LOCK
    from dolake.storage.disk import LocalDisk

    for directory in directories:
        try:
            LocalDisk().lock(f"{directory}/{LOCK}").release()
        except BlockingIOError:
            raise LogRefused(f"{directory}: a daemon uses this log; stop it first") from None


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

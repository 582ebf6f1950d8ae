"""`dolake send FILE|-`: a file or a pipe of changes into a daemon, resumed where the last run stopped."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dolake.cli.format_options import (
    BinaryModeOption,
    FormatName,
    FormatOption,
    FormatOptions,
    KeyOption,
    NanosecondsOption,
    ResumeBy,
    ResumeOption,
    TableOption,
    TypesOption,
    UnavailableOption,
)
from dolake.cli.options import Ca, Certificate, CertificateKey, Data, Json, Token, dial_with, settings_from
from dolake.errors import ConfigurationError, DaemonUnreachable, DolakeError, Mistake

if TYPE_CHECKING:
    from dolake.cdc.client import Producer
    from dolake.cli.sending import Sending, Summary

app = typer.Typer(add_completion=False)


class Wait(StrEnum):
    DURABLE = "durable"
    PERSISTED = "persisted"


@app.command()
def send(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The changes, one a line: plain, gzip or zstd. `-` is standard input.")],
    source: Annotated[str, typer.Option("--source", metavar="NAME", help="The source's name; sending is resumed by it.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="URL", help="ws(s)://host:port/cdc; DIR/ready.json says it unless given.")
    ] = None,
    data: Data = None,
    format: FormatOption = FormatName.NATIVE,
    table: TableOption = None,
    key: KeyOption = None,
    types: TypesOption = None,
    unavailable: UnavailableOption = None,
    nanoseconds: NanosecondsOption = None,
    binary_mode: BinaryModeOption = None,
    resume: ResumeOption = ResumeBy.PLACE,
    batch_events: Annotated[int, typer.Option("--batch-events", min=1, help="Most events in a batch.")] = 1_000,
    rate: Annotated[float, typer.Option("--rate", min=0.0, help="Events a second; 0 is as fast as it goes.")] = 0.0,
    wait: Annotated[Wait, typer.Option("--wait", help="End when all is on the daemon's disk, or committed to tables.")] = Wait.DURABLE,
    epoch: Annotated[str, typer.Option("--epoch", help="A name for a new life of the source's numbering; the one before ends.")] = "",
    retry_s: Annotated[float, typer.Option("--retry-s", min=0.0, help="How long to try for a connection, or a commit.")] = 30.0,
    keep_on: Annotated[
        bool, typer.Option("--continue", help="Leave out lines that cannot be read, name each of them, and end with 6.")
    ] = False,
    token: Token = None,
    ca: Ca = None,
    certificate: Certificate = None,
    certificate_key: CertificateKey = None,
    as_json: Json = False,
) -> int:
    """Send changes to a daemon. Sent again, also with other --batch-events, they change nothing: what is there is skipped."""
    from dolake.cdc.client import Producer
    from dolake.cdc.formats.lines import LineInput
    from dolake.cdc.formats.wal2json import Wal2json
    from dolake.cli.sending import Sending
    from dolake.clock import real_runtime

    runtime = real_runtime()
    options = FormatOptions(format, table, key or (), types or (), unavailable, nanoseconds, binary_mode, resume)
    decoder = options.decoder(runtime.clock.now_ms())
    url = to or url_of(data)
    dial = dial_with(url, token, ca, certificate, certificate_key)
    try:
        lines = LineInput(file)
    except OSError as error:
        raise ConfigurationError([Mistake("FILE", file, error.strerror or str(error))]) from None
    with contextlib.closing(lines), _progress(lines.size_bytes) as progress:
        by_lsn = decoder.resume if isinstance(decoder, Wal2json) and resume is ResumeBy.LSN else None
        sending = Sending(runtime, lines, decoder, batch_events, rate, retry_s, progress, _complain if keep_on else None, by_lsn)
        try:
            connect = functools.partial(Producer, url, source, epoch=epoch, unreachable_s_max=retry_s, runtime=runtime, dial=dial)
            asyncio.run(_run(sending, connect, wait.value))
        finally:
            if as_json or sending.summary.batches or not isinstance(sys.exc_info()[1], DolakeError):
                with contextlib.suppress(BrokenPipeError):  # Whoever read our output is gone; how sending ended stays as it was.
                    _report(sending.summary, as_json)
    return 0


async def _run(sending: Sending, connect: Callable[[], Producer], wait: Literal["durable", "persisted"]) -> None:
    await sending.run(connect(), wait)


def url_of(data: str | None, config: str | None = None) -> str:
    """Where the daemon of a data directory listens. Raises DaemonUnreachable."""
    path = settings_from(data, config).ready_path
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file)["cdc"])
    except FileNotFoundError:
        raise DaemonUnreachable(f"there is no {path}, so no daemon runs there; start one with `dolake serve`, or say --to") from None


def _complain(trouble: str) -> None:
    print(f"dolake: {trouble}", file=sys.stderr)


def _report(summary: Summary, as_json: bool) -> None:
    for note in summary.notes:
        _complain(note)
    counts = asdict(summary)
    del counts["notes"]
    if as_json:
        print(json.dumps(counts | {"seconds": round(summary.seconds, 3)}))
        return
    skipped = f", {summary.skipped:,} were there already" if summary.skipped else ""
    again = f", {summary.duplicates:,} batches had to be sent again" if summary.duplicates else ""
    speed = f" ({summary.events / summary.seconds:,.0f} events/s)" if summary.events and summary.seconds else ""
    bad = f", {summary.bad:,} lines were left out" if summary.bad else ""
    print(f"sent {summary.events:,} events in {summary.batches:,} batches in {summary.seconds:.1f} s{speed}{skipped}{again}{bad}")


@contextlib.contextmanager
def _progress(size_bytes: int | None) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere. Also where the log lines of the connection go: stderr."""
    from dolake.daemon.diagnostics import configure_logging

    if not sys.stderr.isatty():
        configure_logging("send")
        yield lambda position, events: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        configure_logging("send")
        task = bar.add_task("0 events", total=size_bytes)
        yield lambda position, events: bar.update(task, completed=position, description=f"{events:,} events")

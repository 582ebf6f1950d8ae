"""`dolake demo`: the whole of it in a minute, on a temporary folder that is gone afterwards.

A daemon as anybody would start it, a sample of a real database's changes, both halves killed on the way, and SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from dolake.errors import DaemonUnreachable

if TYPE_CHECKING:
    from rich.console import Console

    from dolake.cli.sending import Summary
    from dolake.clock import Runtime

app = typer.Typer(add_completion=False)

SAMPLE = "shop.wal2json.ndjson.gz"
SAMPLE_EVENTS = 5_821
EVENTS_A_SECOND = 4_000  # So that the kill below comes in the middle of something.
READY_S_MAX = 45.0
STOP_S_MAX = 20.0
PIPE_WIDTH = 120

NEWEST = "QUALIFY row_number() OVER (PARTITION BY id ORDER BY _cdc_log DESC, _cdc_offset DESC, _cdc_index DESC) = 1"
CONFIGURATION = """# The current row of every key, and beside each table every change that it had.
[tables."*"]
mode = "both"
"""
QUERIES = (
    (
        "Each table is the source's, whatever was killed: updated, deleted, emptied. Beside it is every change.",
        """WITH rows AS (
  SELECT 'customers' AS "table", count(*) AS rows FROM public.customers UNION ALL
  SELECT 'orders', count(*) FROM public.orders UNION ALL
  SELECT 'order_lines', count(*) FROM public.order_lines UNION ALL
  SELECT 'page_views', count(*) FROM public.page_views
), changes AS (
  SELECT 'customers' AS "table", count(*) AS changes FROM public.customers__changes UNION ALL
  SELECT 'orders', count(*) FROM public.orders__changes UNION ALL
  SELECT 'order_lines', count(*) FROM public.order_lines__changes UNION ALL
  SELECT 'page_views', count(*) FROM public.page_views__changes
) SELECT * FROM rows JOIN changes USING ("table")""",
    ),
    (
        "The orders as they are now.",
        "SELECT status, count(*) AS orders, sum(total) AS total FROM public.orders GROUP BY status ORDER BY orders DESC",
    ),
    (
        "The same orders as they were at 15:30:20, from their changes.",
        f"""SELECT status, count(*) AS orders, sum(total) AS total FROM (
  SELECT * FROM public.orders__changes WHERE _cdc_timestamp <= TIMESTAMPTZ '2026-11-20 15:30:20+00'
  {NEWEST}
) WHERE _cdc_operation <> 'DELETE' GROUP BY status ORDER BY orders DESC""",
    ),
    (
        "One customer's whole history, exact to the cent and the emoji.",
        """SELECT _cdc_operation AS operation, _cdc_timestamp AS at, balance, vip, tags, profile ->> 'emoji' AS emoji
FROM public.customers__changes WHERE id = (SELECT id FROM public.customers__changes GROUP BY id ORDER BY count(*) DESC, id LIMIT 1)
ORDER BY _cdc_log, _cdc_offset, _cdc_index LIMIT 6""",
    ),
)


@dataclass(frozen=True)
class _Daemon:
    """`dolake serve` as a process of its own over `data`."""

    data: str
    process: subprocess.Popen[bytes]
    output: str

    def ready(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(self.data, "ready.json"), "rb") as file:
                content: dict[str, Any] = orjson.loads(file.read())
            return content
        return None

    def said(self) -> str:
        with open(self.output, encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-15:])


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder, to look around in it.")] = False,
) -> int:
    """See it work: a daemon on a temporary folder, a sample of changes, kill -9 on the way, a few queries."""
    from rich.console import Console

    from dolake.clock import real_runtime

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # In CI nobody's screen sets a width.
        console.width = PIPE_WIDTH
    runtime = real_runtime()
    began_s = runtime.clock.monotonic_s()
    folder = tempfile.mkdtemp(prefix="dolake-demo-")
    try:
        with _serving(os.path.join(folder, "data"), os.path.join(folder, "serve.log")) as daemon:
            _show(console, runtime, daemon)
        console.print(f"\nThe daemon has stopped, after {runtime.clock.monotonic_s() - began_s:.0f} s in all.")
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    _say_what_next(console, os.path.join(folder, "data") if keep else None)
    return 0


def _show(console: Console, runtime: Runtime, daemon: _Daemon) -> None:
    _step(
        console, "1", "A daemon that mirrors tables and keeps their changes: two halves with a log between them, and one process for HTTP."
    )
    _command(console, f"dolake serve --data {daemon.data} --port 0 --http-port 0")
    ready = asyncio.run(_until_ready(runtime, daemon))
    console.print(f"   listening at {ready['cdc']}, {', '.join(f'{role} is process {pid}' for role, pid in ready['pids'].items())}")

    _step(console, "2", f"{SAMPLE_EVENTS:,} changes of a shop's PostgreSQL; half way, kill -9 both halves.")
    _command(console, f"dolake send {SAMPLE} --data {daemon.data} --source shop-db --format wal2json --wait persisted")
    summary = asyncio.run(_send(runtime, daemon, console, kill=True))
    console.print(
        f"   {summary.events:,} events durable and committed in {summary.seconds:.1f} s; batches sent twice: {summary.duplicates}"
    )

    _step(console, "3", "The same file again changes nothing, also cut otherwise.")
    summary = asyncio.run(_send(runtime, daemon, console, batch_events=77))
    console.print(f"   {summary.events} events sent, {summary.skipped:,} were there already")

    _step(console, "4", "SQL over the Iceberg tables. Any reader of Iceberg sees the same; this is DuckDB.")
    _run_queries(console, daemon.data)


@contextlib.contextmanager
def _serving(data: str, output: str) -> Iterator[_Daemon]:
    """Ends with the daemon, which flushes first; on an error says what it printed last."""
    from dolake.config import process_environment

    os.makedirs(data)
    with open(os.path.join(data, "dolake.toml"), "w", encoding="utf-8") as settings:
        settings.write(CONFIGURATION)
    environment = {name: value for name, value in process_environment().items() if not name.startswith(("DOLAKE_", "AWS_"))}
    command = [sys.executable, "-m", "dolake", "serve", "--data", data, "--port", "0", "--http-port", "0"]
    with open(output, "wb") as log:
        process = subprocess.Popen(command, cwd=data, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    daemon = _Daemon(data, process, output)
    try:
        yield daemon
    except Exception:
        print(daemon.said(), file=sys.stderr)
        raise
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until_ready(runtime: Runtime, daemon: _Daemon) -> dict[str, Any]:
    end_s = runtime.clock.monotonic_s() + READY_S_MAX
    while runtime.clock.monotonic_s() < end_s and daemon.process.poll() is None:
        ready = daemon.ready()
        if ready is not None:
            return ready
        await runtime.clock.sleep(0.05)
    raise DaemonUnreachable(f"the demo's daemon was not ready within {READY_S_MAX:.0f} s; what it said is above")


async def _send(runtime: Runtime, daemon: _Daemon, console: Console, *, batch_events: int = 200, kill: bool = False) -> Summary:
    from dolake.cdc.client import Producer
    from dolake.cdc.formats.lines import LineInput
    from dolake.cdc.formats.wal2json import Wal2json
    from dolake.cli.sending import Sending

    killed: list[int] = [] if kill else [0]

    def kill_once(position: int, events: int) -> None:
        ready = daemon.ready()
        if killed or events < SAMPLE_EVENTS // 2 or ready is None:
            return
        for role in ("ingest", "writer"):
            killed.append(ready["pids"][role])
            os.kill(ready["pids"][role], signal.SIGKILL)
        console.print(f"   after {events:,} events: kill -9 {' '.join(str(pid) for pid in killed)}", style="bold red")

    ready = await _until_ready(runtime, daemon)
    with _quiet(), as_file(files("dolake").joinpath("demo", SAMPLE)) as path, contextlib.closing(LineInput(str(path))) as lines:
        sending = Sending(runtime, lines, Wal2json(), batch_events, EVENTS_A_SECOND if kill else 0.0, READY_S_MAX, kill_once)
        return await sending.run(Producer(ready["cdc"], "shop-db", unreachable_s_max=READY_S_MAX, runtime=runtime), "persisted")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The producer's own log lines say what the demo says better."""
    from dolake.daemon.diagnostics import configure_logging

    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        configure_logging("demo", nowhere)
        yield


def _run_queries(console: Console, data: str) -> None:
    from dolake.cli.lake import open_lake
    from dolake.cli.screen import result_table
    from dolake.config import load_settings
    from dolake.query import open_connection, run_query

    lake = open_lake(load_settings({"data": data}, environment={}))
    connection = open_connection(lake.catalog, lake.store)
    try:
        for title, sql in QUERIES:
            console.print(f"\n   {title}", style="bold")
            console.print("\n".join(f"   {line}" for line in sql.splitlines()), style="cyan", markup=False)
            table, _ = result_table(run_query(connection, sql), 20)
            console.print(table)
    finally:
        connection.close()


def _step(console: Console, number: str, text: str) -> None:
    console.print(f"\n[bold]{number}. {text}[/]")


def _command(console: Console, text: str) -> None:
    console.print(f"   $ {text}", style="cyan", markup=False)


def _say_what_next(console: Console, data: str | None) -> None:
    console.print("\n[bold]What to try next[/]")
    lines = [
        ("dolake serve --data lake", "a daemon of your own; then, in another terminal:"),
        ("dolake send changes.ndjson --data lake --source my-db", "your own events, or wal2json with --format wal2json"),
        ("dolake tables --data lake", "what is committed, and whether something has stopped"),
        ('dolake query "SHOW ALL TABLES" --data lake', "SQL, with the daemon running or not; --json, --csv"),
        ("dolake verify --data lake", "every invariant, checked over log, catalog and files"),
    ]
    if data is not None:
        lines = [(command.replace("--data lake", f"--data {data}"), about) for command, about in lines]
    for command, about in lines:
        console.print(f"   [cyan]{command}[/]")
        console.print(f"       {about}")

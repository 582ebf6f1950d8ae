"""`dolake status`: one screen that says how a daemon stands; with `--watch` again and again, with rates."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.options import Config, Data, Json, settings_from

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dolake.clock import Runtime
    from dolake.config import Settings

app = typer.Typer(add_completion=False)

_UNREACHABLE = 3


@app.command()
def status(
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C; with --json an object a line.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks of --watch.")] = 1.0,
) -> int:
    """Show processes, readiness, logs, sources, tables and rates.

    Without a daemon it shows what the files say, and ends with 3.
    """
    from dolake.cli.lake import require_data
    from dolake.clock import real_runtime

    settings, runtime = settings_from(data, config), real_runtime()
    require_data(settings)
    if watch:
        asyncio.run(_watch(settings, runtime, interval, as_json))
    standing = asyncio.run(_look(settings, runtime))
    with contextlib.suppress(BrokenPipeError):  # Its reader has seen enough; whether there is a daemon is said all the same.
        _print(standing, as_json)
    if not standing["running"]:
        print(f"dolake: no daemon answers at {settings.control_path}; start one with `dolake serve`", file=sys.stderr)
        return _UNREACHABLE
    return 0


def _print(standing: dict[str, Any], as_json: bool) -> None:
    from dolake.cli.screen import stdout_console

    if as_json:
        _print_json(standing, indent=True)
    else:
        stdout_console().print(_screen(standing))


async def _look(settings: Settings, runtime: Runtime) -> dict[str, Any]:
    from dolake.cli.standing import ask_or_none, committed_offsets, standing_from_files

    standing = await ask_or_none(settings, runtime)
    if standing is not None:
        return standing
    offsets = await runtime.tasks.run(committed_offsets, settings)
    return await runtime.tasks.run(standing_from_files, settings, offsets, runtime.clock.now_ms())


async def _watch(settings: Settings, runtime: Runtime, interval_s: float, as_json: bool) -> None:
    """Until interrupted. A daemon that is away is looked for again."""
    from rich.live import Live

    from dolake.cli.screen import Fitted, stdout_console
    from dolake.cli.standing import with_rates

    console = stdout_console()
    live = Live(console=console, screen=True, auto_refresh=False) if console.is_terminal and not as_json else None
    before: dict[str, Any] | None = None
    if live is not None:
        live.start()
    try:
        while True:
            standing = await _look(settings, runtime)
            shown = with_rates(standing, before)
            if as_json:
                _print_json(shown, indent=False)
            elif live is not None:
                live.update(Fitted(_screen(shown)), refresh=True)
            else:
                console.print(_screen(shown))
            before = standing
            await runtime.clock.sleep(interval_s)
    finally:
        if live is not None:
            live.stop()


def _print_json(standing: dict[str, Any], *, indent: bool) -> None:
    import orjson

    print(orjson.dumps(standing, option=orjson.OPT_INDENT_2 if indent else 0).decode(), flush=True)


def _screen(standing: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape

    from dolake.cli.screen import log_table, moment, source_table, standing_table

    processes = ", ".join(
        f"{role} {one['pid'] or ''} {'runs' if one['running'] else 'is away'}".replace("  ", " ")
        for role, one in standing["processes"].items()
    )
    lines = [f"{escape(standing['data'])}  {moment(standing['time'])}", f"processes   {processes}"]
    lines += [f"{name:<11} {escape(value)}" for name, value in standing["addresses"].items() if value]
    for name, key in (("can ack", "ready"), ("can commit", "readyWriter")):
        said = standing[key]
        lines.append(f"{name:<11} " + ("yes" if said["ready"] else "[bold red]no[/]: " + escape("; ".join(said["reasons"]))))
    lines += [f"{part:<11} [bold red]{_circuit(said)}[/]" for part, said in standing["readyWriter"]["circuits"].items() if said["failures"]]
    if standing["rates"] is not None:
        acked, committed = (_rate(standing["rates"][key]) for key in ("ackedEventsPerSecond", "committedEventsPerSecond"))
        lines.append(f"events/s    {acked} acked, {committed} committed")
    parts: list[RenderableType] = ["\n".join(lines), log_table(standing["logs"])]
    parts.append(source_table(standing["sources"]) if standing["sources"] else "no sources yet")
    parts.append(standing_table(standing["tables"]) if standing["tables"] else "no tables yet")
    return Group(*parts)


def _circuit(said: dict[str, Any]) -> str:
    """How the store or the catalog is asked, which has failed."""
    text = f"circuit {said['state']}, failing for {said['failingSeconds']:.0f} s, {said['failures']} times in a row"
    if said["nextTrySeconds"] is not None:
        text += f", next try in {said['nextTrySeconds']:.1f} s"
    return text + (f" ({said['code']})" if said["code"] else "")


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"

"""The frame around one half: a process that is told its settings, says when it is ready, stops when asked, and reports how.

A supervised child (`python -m dolake ROLE --supervised CHANNEL [LISTENER]`) gets its settings as one line of JSON over the
channel, a socket to its supervisor, answers `ready`, hears of reloads by further lines (see `handover`), and ends at once
when the other end closes: everything here survives a kill, so nothing is gained by outliving the one who would restart it.
Alone (`dolake ingest`, `dolake writer`, `dolake catalog`) the same half runs with settings from the command line, reads tokens and
certificates again on SIGHUP, and stops at the first SIGINT or SIGTERM, at once at the second.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from dolake import failpoints
from dolake.auth.gate import REFUSED, Gate
from dolake.clock import SystemClock, real_runtime
from dolake.config import Settings, process_environment
from dolake.daemon.channel import Channel
from dolake.daemon.diagnostics import configure_logging
from dolake.daemon.handover import Handover, LoadSettings, RefusedReload, from_line
from dolake.daemon.listening import address_of, bind
from dolake.daemon.reload import Reloading, announce
from dolake.errors import ConfigurationError, DolakeError, Mistake

ROLES = ("ingest", "writer", "http")
# Which setting is the port of what runs alone and lets people in.
_PORTS = {"ingest": "port", "catalog": "http_port"}
_LISTENS = {"ingest": ("cdc", "ws", "/cdc"), "catalog": ("catalog", "http", "")}
INTERRUPTED = 130

# `run_ingest` and its like: settings, keyword arguments `ready`, `stop`, `listen` and `gate` where there is a socket; the exit code.
Half = Callable[..., Coroutine[Any, Any, int]]

log = structlog.get_logger("dolake.daemon")


def main(arguments: list[str]) -> int:
    """Runs a supervised child. `arguments` are ROLE, `--supervised`, the channel's descriptor and the listener's, if any."""
    for number in (signal.SIGINT, signal.SIGHUP):  # A Ctrl-C or a reload is the supervisor's; it asks, or tells what is new.
        signal.signal(number, signal.SIG_IGN)
    role, channel = arguments[0], Channel(socket.socket(fileno=int(arguments[2])))
    listen = socket.socket(fileno=int(arguments[3])) if len(arguments) > 3 else None
    configure_logging(role)
    half = load_half(role)  # Before the settings: a spare waits here, with everything imported, until it is needed.
    handover = Handover.from_line(channel.first_line())
    settings, gate = handover.settings, handover.gate(SystemClock())
    configure_logging(role, level=settings.log_level, format=settings.log_format)

    def prepare(stop: asyncio.Event) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        channel.listen(lambda line: _take_reload(gate, from_line(line)))

    return _run(role, half, settings, listen, gate, ready=channel.tell_ready, prepare=prepare)


def run_alone(role: str, load: LoadSettings) -> int:
    """Runs one half without a supervisor, until a signal. Raises ConfigurationError."""
    handover = Handover.read(load()) if role in _PORTS else Handover(load()).without_access()
    settings, runtime = handover.settings, real_runtime()
    configure_logging(role, level=settings.log_level, format=settings.log_format)
    gate = handover.gate(runtime.clock)
    listen = bind(settings, key=_PORTS[role]) if role in _PORTS else None
    os.makedirs(settings.data, exist_ok=True)

    def ready() -> None:
        if listen is None:
            log.info("ready")
            return
        announce(settings)
        name, scheme, path = _LISTENS[role]
        log.info("ready", **{name: f"{handover.scheme(scheme)}://{address_of(listen)}{path}"})

    def prepare(stop: asyncio.Event) -> None:
        def interrupt() -> None:
            if stop.is_set():
                os._exit(INTERRUPTED)
            log.info("stopping; once more to stop at once")
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        if listen is not None:
            loop.add_signal_handler(signal.SIGHUP, Reloading(runtime, handover, load, lambda news: _take_reload(gate, news)).ask)
        else:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # It lets nobody in, so that there is nothing to read again.

    return _run(role, load_half(role), settings, listen, gate, ready=ready, prepare=prepare)


def _take_reload(gate: Gate, news: Handover | RefusedReload) -> None:
    if isinstance(news, RefusedReload):
        gate.on_reload(REFUSED)
        return
    try:
        news.apply(gate)
    except ValueError as error:
        log.error("reload refused: what was in force stays so", reason=str(error))
        gate.on_reload(REFUSED)


def arm_failpoints() -> None:
    """Arms what the environment asks for. Raises ConfigurationError."""
    environment = process_environment()
    try:
        failpoints.arm_from_environment(environment)
    except ValueError as error:
        raise ConfigurationError([Mistake("DOLAKE_FAILPOINTS", environment["DOLAKE_FAILPOINTS"], str(error))]) from None


def _run(
    role: str,
    half: Half,
    settings: Settings,
    listen: socket.socket | None,
    gate: Gate,
    *,
    ready: Callable[[], None],
    prepare: Callable[[asyncio.Event], None],
) -> int:
    def is_ready() -> None:
        ready()
        _spare_the_collector()

    async def work() -> int:
        stop = asyncio.Event()
        prepare(stop)
        if listen is None:
            return await half(settings, ready=is_ready, stop=stop)
        return await half(settings, listen=listen, gate=gate, ready=is_ready, stop=stop)

    try:
        arm_failpoints()
        with asyncio.Runner(loop_factory=_loop_factory(role)) as runner:
            return runner.run(work())
    except DolakeError as error:
        log.error("ended", reason=str(error), exit_code=error.exit_code)
        return error.exit_code
    except Exception:  # The supervisor of this process's work: it says once what happened, and stops.
        log.exception("ended by an error that nobody expected", exit_code=1)
        return 1


def _spare_the_collector() -> None:
    """What is there by now stays: looking through all of it again and again would stop everybody for 10-20 ms each time, and garbage
    would wait until there is a quarter as much of it."""
    gc.collect()
    gc.freeze()


def load_half(role: str) -> Half:
    """Imports what this half needs and nothing else: the time until it is ready again counts."""
    module, name = {
        "ingest": ("dolake.ingest.main", "run_ingest"),
        "writer": ("dolake.writer.main", "run_writer"),
        "http": ("dolake.http.app", "run_http"),
        "catalog": ("dolake.http.alone", "run_catalog"),
    }[role]
    # Modules are made of many objects and no garbage: looking for some takes a sixth of the time (measured).
    gc.disable()
    try:
        if role == "writer":  # Before Arrow is there, which reads once how it is to take memory.
            importlib.import_module("dolake.writer.allocation").settle_allocation()
        half: Half = getattr(importlib.import_module(module), name)
    finally:
        gc.enable()
    return half


def _loop_factory(role: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if role != "ingest" or sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop

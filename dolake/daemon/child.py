"""The frame around one half: a process that is told its settings, says when it is ready, stops when asked, and reports how.

A supervised child (`python -m dolake ROLE --supervised CHANNEL [LISTENER]`) gets its settings as one line of JSON over the
channel, a socket to its supervisor, answers `ready`, and ends at once when the other end closes: everything here survives
a kill, so nothing is gained by outliving the one who would restart it. Alone (`dolake ingest`, `dolake writer`) the same
half runs with settings from the command line and stops at the first SIGINT or SIGTERM, at once at the second.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from dolake import failpoints
from dolake.config import Settings, process_environment
from dolake.daemon.diagnostics import configure_logging
from dolake.daemon.listening import address_of, bind
from dolake.errors import ConfigurationError, DolakeError, Mistake

ROLES = ("ingest", "writer", "http")
_LINE_BYTES_MAX = 1024 * 1024
_SUPERVISOR_GONE = 3
INTERRUPTED = 130

# `run_ingest` and its like: settings, keyword arguments `ready`, `stop`, and `listen` where there is a socket; the exit code.
Half = Callable[..., Coroutine[Any, Any, int]]

log = structlog.get_logger("dolake.daemon")


def main(arguments: list[str]) -> int:
    """Runs a supervised child. `arguments` are ROLE, `--supervised`, the channel's descriptor and the listener's, if any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's; it asks with SIGTERM.
    role, channel = arguments[0], socket.socket(fileno=int(arguments[2]))
    listen = socket.socket(fileno=int(arguments[3])) if len(arguments) > 3 else None
    configure_logging(role)
    half = load_half(role)  # Before the settings: a spare waits here, with everything imported, until it is needed.
    channel.setblocking(True)
    settings = Settings.from_json(_read_line(channel))
    channel.setblocking(False)
    configure_logging(role, level=settings.log_level, format=settings.log_format)

    def prepare(stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_reader(channel.fileno(), _end_with_supervisor, channel)

    return _run(role, half, settings, listen, ready=lambda: _tell_ready(channel), prepare=prepare)


def run_alone(role: str, settings: Settings) -> int:
    """Runs one half without a supervisor, until a signal."""
    configure_logging(role, level=settings.log_level, format=settings.log_format)
    listen = bind(settings, key="port") if role == "ingest" else None
    os.makedirs(settings.data, exist_ok=True)

    def ready() -> None:
        log.info("ready", **({"cdc": f"ws://{address_of(listen)}/cdc"} if listen is not None else {}))

    def prepare(stop: asyncio.Event) -> None:
        def interrupt() -> None:
            if stop.is_set():
                os._exit(INTERRUPTED)
            log.info("stopping; once more to stop at once")
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupt)

    return _run(role, load_half(role), settings, listen, ready=ready, prepare=prepare)


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
    *,
    ready: Callable[[], None],
    prepare: Callable[[asyncio.Event], None],
) -> int:
    async def work() -> int:
        stop = asyncio.Event()
        prepare(stop)
        if listen is None:
            return await half(settings, ready=ready, stop=stop)
        return await half(settings, listen=listen, ready=ready, stop=stop)

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


def load_half(role: str) -> Half:
    """Imports what this half needs and nothing else: the time until it is ready again counts."""
    module, name = {
        "ingest": ("dolake.ingest.main", "run_ingest"),
        "writer": ("dolake.writer.main", "run_writer"),
        "http": ("dolake.http.app", "run_http"),
    }[role]
    half: Half = getattr(importlib.import_module(module), name)
    return half


def _loop_factory(role: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if role != "ingest" or sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _read_line(channel: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        try:
            piece = channel.recv(65_536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            sys.exit(_SUPERVISOR_GONE)
        line += piece
    return line


def _tell_ready(channel: socket.socket) -> None:
    try:
        channel.send(b"ready\n")
    except OSError:
        _end_with_supervisor(channel)


def _end_with_supervisor(channel: socket.socket, *_: Any) -> None:
    """The supervisor says nothing after the settings: what can be read is that it has gone."""
    log.warning("the supervisor has gone, ending")
    os._exit(_SUPERVISOR_GONE)

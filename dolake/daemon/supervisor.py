"""`dolake serve`: keeps the three processes of a daemon running, and ends them in order.

It binds the sockets once and hands them down, so that an address outlives the process behind it. It decides nothing about
restarts itself (`plan`), holds no data, and may be killed like everything else: its children end when their channel to it
closes. Beside each half a spare of it waits, a process that has imported everything and has no settings yet: importing takes
longer (0.3 s and 0.9 s of processor time) than all the rest of a restart.

On SIGHUP tokens and certificates are read again, here, and told to the children that let people in.

On SIGTERM or SIGINT the ingest half stops accepting and finishes its answers, then the writer half flushes what the log
holds, then `http` goes; the second signal ends everything at once, which loses nothing that was acked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence

import structlog

from dolake.clock import Runtime, real_runtime
from dolake.daemon.child import INTERRUPTED, ROLES, arm_failpoints
from dolake.daemon.diagnostics import configure_logging, report_surprise
from dolake.daemon.handover import Handover, LoadSettings, RefusedReload
from dolake.daemon.listening import address_of, bind
from dolake.daemon.plan import QUICK_DEATH_S, Death, End, plan_restart
from dolake.daemon.ready import ReadyFile
from dolake.daemon.reload import Reloading, announce
from dolake.errors import LogRefused
from dolake.storage.disk import LocalDisk, Lock

# How long each child may take to end once asked. The writer's is the time of a last flush of everything.
_DRAIN_S_MAX = {"ingest": 10.0, "writer": 60.0, "http": 3.0}
_PARTLY_DONE = 6
_SPARED = ("ingest", "writer")
_SPARE_AFTER_S = 5.0  # Once the half itself is ready: what does not live that long has no use for one.

log = structlog.get_logger("dolake.daemon")

Command = Callable[[str, Sequence[int]], Sequence[str]]


def serve(load: LoadSettings) -> int:
    """Runs a whole daemon in the foreground, with what `load` gives, asked again on SIGHUP; returns the exit code."""
    handover = Handover.read(load())
    settings = handover.settings
    configure_logging("supervisor", level=settings.log_level, format=settings.log_format)
    sys.excepthook = report_surprise
    arm_failpoints()
    with contextlib.ExitStack() as held:
        listeners = {"ingest": held.enter_context(bind(settings, key="port")), "http": held.enter_context(bind(settings, key="http_port"))}
        os.makedirs(settings.data, exist_ok=True)
        held.callback(_lock(settings.data).release)
        supervisor = Supervisor(handover, listeners, real_runtime(), load=load)
        announce(settings)

        async def work() -> int:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, supervisor.interrupt)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.reload)
            return await supervisor.run()

        return asyncio.run(work())


def child_command(role: str, descriptors: Sequence[int]) -> list[str]:
    """How a child is started: the same interpreter, never a `dolake` folder that happens to lie in the working directory."""
    return [sys.executable, "-P", "-m", "dolake", role, "--supervised", *map(str, descriptors)]


class Supervisor:
    """The children of one daemon. `command` says how to start one, given its role and the descriptors it inherits; `load`
    gives the settings as they are by now."""

    def __init__(
        self,
        handover: Handover,
        listeners: dict[str, socket.socket],
        runtime: Runtime,
        *,
        load: LoadSettings,
        command: Command = child_command,
    ) -> None:
        self._listeners, self._runtime, self._command = listeners, runtime, command
        self._reloading = Reloading(runtime, handover, load, self._tell)
        self._children: dict[str, _Child] = {}
        self._spares: dict[str, _Child] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._ever_ready: set[str] = set()
        self._all_ready = False
        self._stopping = asyncio.Event()
        self._end: End | None = None
        cdc, http = address_of(listeners["ingest"]), address_of(listeners["http"])
        self._addresses = {"cdc": f"{handover.scheme('ws')}://{cdc}/cdc", "http": f"{handover.scheme('http')}://{http}"}
        self._ready_file = ReadyFile(handover.settings.ready_path, **self._addresses)

    def interrupt(self) -> None:
        """The first time: drain and stop. The second: at once."""
        if self._stopping.is_set():
            log.warning("stopping at once; everything acked is in the log")
            for child in self._children.values():
                child.send(signal.SIGKILL)
            self._ready_file.remove()
            os._exit(INTERRUPTED)
        log.info("stopping; once more to stop at once")
        self._stopping.set()

    def reload(self) -> None:
        """Reads again who may come in, and tells the children; those that start later hear it from the start."""
        self._reloading.ask()

    def _tell(self, news: Handover | RefusedReload) -> None:
        for role in self._listeners:
            if role in self._children:
                self._children[role].tell(news.to_line())

    async def run(self) -> int:
        """Starts the children, keeps them running until interrupted or one cannot be helped; returns the exit code."""
        self._ready_file.remove()  # Left by a daemon that was killed.
        keepers = [self._runtime.tasks.spawn(f"keep-{role}", self._keep(role)) for role in ROLES]
        stopping = self._runtime.tasks.spawn("stopping", self._stopping.wait())
        try:
            await asyncio.wait((stopping, *keepers), return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            drained = await self._drain()
            tasks = [*keepers, *self._preparing.values()]
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._ready_file.remove()
            await self._drop_spares()
        for outcome in outcomes[: len(keepers)]:
            if isinstance(outcome, Exception):
                raise outcome
        if self._end is not None:
            return self._end.exit_code
        return 0 if drained else _PARTLY_DONE

    async def _keep(self, role: str) -> None:
        """One child after the other, until the daemon stops or a restart is of no use."""
        quick_deaths = 0
        while not self._stopping.is_set():
            child = await self._start(role)
            exit_code = await child.wait()
            if self._stopping.is_set():
                return
            lived_s = self._runtime.clock.monotonic_s() - child.ready_s if child.ready_s is not None else 0.0
            quick_deaths = quick_deaths + 1 if lived_s < QUICK_DEATH_S else 1
            decision = plan_restart(Death(role, exit_code, role in self._ever_ready, quick_deaths))
            if isinstance(decision, End):
                log.error("ending: a process cannot go on", role=role, exit_code=exit_code, reason=decision.reason)
                self._end = decision
                return
            log.warning("process ended, restarting", role=role, child=child.pid, exit_code=exit_code, delay_s=decision.delay_s)
            if decision.delay_s:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), decision.delay_s)

    async def _start(self, role: str) -> _Child:
        child = await self._take_spare(role) or await self._spawn(role)
        self._children[role] = child
        if self._all_ready:
            self._write_ready()
        handover = self._reloading.current if role in self._listeners else self._reloading.current.without_access()
        child.watch(self._runtime, handover.to_line(), lambda: self._became_ready(role, child))
        return child

    async def _spawn(self, role: str) -> _Child:
        ours, theirs = socket.socketpair()
        listener = self._listeners.get(role)
        descriptors = [theirs.fileno(), *([listener.fileno()] if listener is not None else [])]
        child = None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(role, descriptors),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
                process_group=0,  # A Ctrl-C in the terminal reaches the supervisor alone.
            )
            child = _Child(process, ours)
            return child
        finally:
            theirs.close()
            if child is None:
                ours.close()

    async def _take_spare(self, role: str) -> _Child | None:
        spare = self._spares.pop(role, None)
        if spare is not None and not spare.is_running:
            await spare.wait()
            return None
        return spare

    async def _prepare_spare(self, role: str) -> None:
        await self._runtime.clock.sleep(_SPARE_AFTER_S)
        spare = await self._take_spare(role)
        if not self._stopping.is_set():
            self._spares[role] = spare or await self._spawn(role)

    async def _drop_spares(self) -> None:
        while self._spares:
            _, spare = self._spares.popitem()
            spare.send(signal.SIGKILL)
            await spare.wait()

    def _became_ready(self, role: str, child: _Child) -> None:
        child.ready_s = self._runtime.clock.monotonic_s()
        self._ever_ready.add(role)
        if role in _SPARED and (role not in self._preparing or self._preparing[role].done()):
            self._preparing[role] = self._runtime.tasks.spawn(f"spare-{role}", self._prepare_spare(role))
        if not self._all_ready and all(role in self._children and self._children[role].ready_s is not None for role in ROLES):
            self._all_ready = True
            self._write_ready()
            log.info("ready", **self._addresses)
        else:
            log.info("process ready", child=child.pid, role=role)

    def _write_ready(self) -> None:
        self._ready_file.write({role: child.pid for role, child in self._children.items()})

    async def _drain(self) -> bool:
        """Ends the children in order. False if one had to be killed or ended badly; the log keeps what it did not do."""
        clean = True
        await self._drop_spares()  # They hold the sockets too.
        for role in ROLES:
            child = self._children.get(role)
            if child is None:
                continue
            child.send(signal.SIGTERM)
            try:
                exit_code = await asyncio.wait_for(child.wait(), _DRAIN_S_MAX[role])
            except TimeoutError:
                log.error("process did not end in time, killed", role=role, seconds=_DRAIN_S_MAX[role])
                child.send(signal.SIGKILL)
                exit_code = await child.wait()
            # It had not begun, so there was nothing to finish; unless it follows a writer that had.
            early = exit_code == -signal.SIGTERM and child.ready_s is None and not (role == "writer" and role in self._ever_ready)
            clean = clean and (exit_code == 0 or early)
            if (listener := self._listeners.get(role)) is not None:
                listener.close()  # Nobody will answer there any more: who comes now is refused and does not wait.
        if not clean:
            log.warning("not everything was flushed; what was acked is in the log and is committed after the next start")
        return clean


class _Child:
    """A process that was started, and the channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket) -> None:
        self._process, self._channel = process, channel
        self.pid = process.pid
        self.ready_s: float | None = None
        self._talking: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._news: asyncio.Queue[bytes] = asyncio.Queue()

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    def watch(self, runtime: Runtime, handover: bytes, ready: Callable[[], None]) -> None:
        """Hands over the first line, then what `tell` is given, and waits for the child's word."""
        self._channel.setblocking(False)
        self.tell(handover)

        async def talk() -> None:
            with contextlib.suppress(OSError):  # A child that died early: `wait` tells.
                if await asyncio.get_running_loop().sock_recv(self._channel, 64):
                    ready()

        async def tell_all() -> None:
            with contextlib.suppress(OSError):
                while True:
                    await asyncio.get_running_loop().sock_sendall(self._channel, await self._news.get())

        self._talking = runtime.tasks.spawn(f"channel-{self.pid}", talk())
        self._telling = runtime.tasks.spawn(f"news-{self.pid}", tell_all())

    def tell(self, line: bytes) -> None:
        """Sends a line, behind those before it."""
        self._news.put_nowait(line)

    async def wait(self) -> int:
        exit_code = await self._process.wait()
        if self._talking is not None and self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._talking, self._telling, return_exceptions=True)
        self._channel.close()
        return exit_code

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def _lock(data: str) -> Lock:
    path = os.path.join(data, "serve.lock")
    try:
        return LocalDisk().lock(path)
    except BlockingIOError:
        raise LogRefused(f"{data}: another `dolake serve` runs on this directory; stop it first, or give another --data") from None

"""What goes wrong, and when: a schedule from a seed, and the hands that do it.

A trouble begins, lasts and ends; several may last at once. Kills are over when they have happened. Each says afterwards whether it
changed anything, as far as that can be known, and is counted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.harness.daemon import HALVES, Daemon
from tests.harness.fault_proxy import TcpProxy
from tests.harness.faults import Fault
from tests.harness.http_faults import HttpProxy, requests

# Armed from the start; each fails for as long as its file is there.
FAILING = {
    "sync of the log": ("wal.before_sync", "EIO"),
    "write of the log": ("wal.before_write", "EIO"),
    "a full disk": ("wal.before_write", "ENOSPC"),
    "a data file": ("flush.before_put", "EIO"),
    "a manifest": ("commit.before_manifest", "EIO"),
    "the names of files": ("commit.before_settle", "EIO"),
    "the catalog before its swap": ("catalog.before_swap", "EIO"),
    "the catalog's answer": ("catalog.after_swap", "EIO"),
    "a trim": ("trim.before_unlink", "EIO"),
}
KILLS = (("ingest",), ("writer",), ("ingest", "writer"), ("http",), ("supervisor",), ())
STORE = (
    Fault("black_hole"),
    Fault("refuse"),
    Fault("latency", seconds=0.3),
    Fault("status", status=503, code="SlowDown", chance=0.4),
    Fault("status", status=500, code="InternalError", chance=0.4),
    Fault("lose_answer", when=requests("PUT"), chance=0.4),
    Fault("late", when=requests("PUT"), chance=0.4, seconds=2.0),
    Fault("reset_before", chance=0.3),
    Fault("truncate", when=requests("GET"), chance=0.3),
)
NETWORK = (Fault("black_hole"), Fault("refuse"), Fault("latency", seconds=0.1), Fault("reset", chance=0.02), Fault("half_open"))


class Trouble(Protocol):
    """`begin` returns what ends it."""

    @property
    def name(self) -> str: ...

    def begin(self, hands: Hands) -> Callable[[], None]: ...


@dataclass(frozen=True)
class Planned:
    """`at_s` after the round began, for so long."""

    at_s: float
    lasts_s: float
    trouble: Trouble


@dataclass
class Hands:
    """What trouble is made with. `store` and `network` are proxies, where there are any."""

    daemon: Daemon
    folder: Path
    store: HttpProxy | None = None
    network: TcpProxy | None = None
    counts: Counter[str] = field(default_factory=Counter)
    unnoticed: Counter[str] = field(default_factory=Counter)

    def failpoints(self) -> str:
        """For DOLAKE_FAILPOINTS. Two failures of one moment are told apart by their files: the later one is armed for another path."""
        arms: dict[str, str] = {}
        for name, (point, error) in FAILING.items():
            arms.setdefault(point if point not in arms else f"{point}@/", f"errno({error}, {self.file_of(name)})")
        return ";".join(f"{point}={action}" for point, action in arms.items())

    def file_of(self, name: str) -> Path:
        return self.folder / name.replace(" ", "-").replace("'", "")


@dataclass(frozen=True)
class Kill:
    roles: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"kill {'+'.join(self.roles) or 'everything'}"

    def begin(self, hands: Hands) -> Callable[[], None]:
        hands.daemon.kill(*self.roles)
        if not self.roles or "supervisor" in self.roles:
            hands.daemon.start(wait=False)
        return lambda: None


@dataclass(frozen=True)
class Stop:
    """SIGSTOP, and SIGCONT at the end: a machine that slept, a zombie."""

    role: str

    @property
    def name(self) -> str:
        return f"stop {self.role}"

    def begin(self, hands: Hands) -> Callable[[], None]:
        ready = hands.daemon.ready()
        pid = ready.pids.get(self.role, 0) if ready else 0
        if not pid:
            return lambda: None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        return end


@dataclass(frozen=True)
class Fail:
    """Errors of the system, where `FAILING` says."""

    what: str

    @property
    def name(self) -> str:
        return f"fail {self.what}"

    def begin(self, hands: Hands) -> Callable[[], None]:
        path = hands.file_of(self.what)
        path.touch()
        return lambda: path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Break:
    """A fault of the store or of the network between sources and daemon."""

    where: str
    fault: Fault

    @property
    def name(self) -> str:
        return f"{self.where}: {self.fault.kind}{f' {self.fault.status}' if self.fault.status else ''}"

    def begin(self, hands: Hands) -> Callable[[], None]:
        proxy = hands.store if self.where == "store" else hands.network
        assert proxy is not None
        installed = proxy.install(self.fault)

        def end() -> None:
            proxy.remove(installed)
            if not installed.hit_count:  # Nothing came by meanwhile; a proxy would take that for a test's mistake.
                proxy.faults.installed.remove(installed)
                hands.unnoticed[self.name] += 1

        return end


def plan(seed: int, seconds: float, *, store: bool, network: bool) -> list[Planned]:
    """About one trouble in two seconds, each for up to five; the same for the same seed."""
    chance = random.Random(f"troubles {seed}")
    kinds: list[Callable[[], Trouble]] = [
        lambda: Kill(chance.choice(KILLS)),
        lambda: Stop(chance.choice(HALVES)),
        lambda: Fail(chance.choice(sorted(FAILING))),
    ]
    if store:
        kinds.append(lambda: Break("store", chance.choice(STORE)))
    if network:
        kinds.append(lambda: Break("network", chance.choice(NETWORK)))
    planned, at_s = [], chance.uniform(0.5, 1.5)
    while at_s < seconds - 1:
        planned.append(Planned(at_s, min(chance.uniform(0.3, 5.0), seconds - at_s), chance.choice(kinds)()))
        at_s += chance.expovariate(0.5)
    return planned


def in_order(planned: list[Planned]) -> Iterator[tuple[float, Planned, bool]]:
    """(when, which, whether it begins): what there is to do, one thing after another."""
    moments = [(one.at_s, one, True) for one in planned] + [(one.at_s + one.lasts_s, one, False) for one in planned]
    yield from sorted(moments, key=lambda moment: moment[0])

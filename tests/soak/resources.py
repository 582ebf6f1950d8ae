"""Memory, descriptors and files of a running daemon: samples, and what must stay bounded."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.daemon import Daemon, rss_bytes

MIB = 1 << 20
DESCRIPTORS_MAX = 200  # of one process; a dozen sources, a few dozen files
LOG_BYTES_MAX = 128 * MIB  # of a drained log: some sealed segments that wait for the next trim
SLOPE_MIB_PER_MIN_MAX = 1.0
GROWN_BYTES_MAX = 64 * MIB
ROLES = ("ingest", "writer", "http")


@dataclass
class Samples:
    """(seconds, bytes) of each process, as long as it is the same one."""

    series: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)
    descriptors: dict[str, int] = field(default_factory=dict)  # the most seen, by role

    def take(self, daemon: Daemon, now_s: float) -> None:
        ready = daemon.ready()
        for role in ROLES:
            pid = ready.pids.get(role, 0) if ready else 0
            with contextlib.suppress(OSError, ProcessLookupError):
                count = len(os.listdir(f"/proc/{pid}/fd"))
                self.roles[pid] = role
                self.series.setdefault(pid, []).append((now_s, rss_bytes(pid)))
                self.descriptors[role] = max(count, self.descriptors.get(role, 0))

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """(second, MiB) of each role's longest-lived process, some thirty of them: for whoever wonders about a slope."""
        found = {}
        for pid, series in sorted(self.series.items(), key=lambda item: len(item[1])):
            found[self.roles[pid]] = [(round(at_s), round(size / MIB, 1)) for at_s, size in series[:: max(1, len(series) // 30)]]
        return found

    def slopes(self, warm_up_s: float) -> dict[str, float]:
        """MiB a minute of each role's longest-lived process, after its warm-up; none where it did not live twice as long."""
        found = {}
        for pid, series in sorted(self.series.items(), key=lambda item: len(item[1])):
            kept = [(at_s, size) for at_s, size in series if at_s >= series[0][0] + warm_up_s]
            if len(kept) > 2 and kept[-1][0] - kept[0][0] >= warm_up_s:
                found[self.roles[pid]] = slope(kept)
        return found


def slope(series: Sequence[tuple[float, int]]) -> float:
    """The median over all pairs (Theil and Sen), so that a moment's buffer is no trend; MiB a minute."""
    thinned = series[:: max(1, len(series) // 200)]
    pairs = [(later, earlier) for place, later in enumerate(thinned) for earlier in thinned[:place] if later[0] > earlier[0]]
    return statistics.median((later[1] - earlier[1]) / (later[0] - earlier[0]) for later, earlier in pairs) * 60 / MIB


def folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total

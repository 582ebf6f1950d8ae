"""What the figures were measured on, and what processes use while they are measured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.daemon import rss_bytes

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def machine_id() -> dict[str, str | int]:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def use_cores(count: int) -> None:
    """Keeps this process and all it starts to the first `count` cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@dataclass
class Memory:
    """Resident bytes (without pages of files) of processes, sampled: (seconds since the start, bytes)."""

    samples: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def bytes_max(self, role: str) -> int:
        return max((size for _, size in self.samples.get(role, [])), default=0)

    def grown_bytes(self, role: str) -> int:
        """How much higher the last third of the run went than the middle one: about nothing where memory is flat."""
        sizes = [size for _, size in self.samples.get(role, [])]
        third = len(sizes) // 3
        return max(sizes[-third:]) - max(sizes[third : 2 * third]) if third else 0


@contextlib.asynccontextmanager
async def sampled_memory(pids: Callable[[], Mapping[str, int]], interval_s: float = 0.25) -> AsyncIterator[Memory]:
    memory, began = Memory(), time.monotonic()

    async def sample() -> None:
        while True:
            for role, pid in pids().items():
                memory.samples.setdefault(role, []).append((time.monotonic() - began, rss_bytes(pid)))
            await asyncio.sleep(interval_s)

    sampling = asyncio.get_running_loop().create_task(sample())
    try:
        yield memory
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling

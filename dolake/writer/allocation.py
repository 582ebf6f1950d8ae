"""How the writer process takes memory from the system: little processor time, and back to the system what a flush has freed.

Measured with the writer's own work, per event: Arrow's default pool hands pages back and faults them in again all the
time, a fifth of all processor time. glibc's allocator costs nothing like that, but keeps an arena for each thread, each
with holes of its own; two arenas, and large blocks by themselves, halve what a busy writer holds beyond its rows. The holes
that are left grow for hours; now and then their pages are given back, which takes milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

import pyarrow as pa

from dolake.clock import Runtime

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MIB = 1 << 20
_GIVE_BACK_S = 10.0


def settle_allocation() -> None:
    """For the whole process; once, before there is anything to allocate. Where the C library has no such knobs it changes less."""
    pa.set_memory_pool(pa.system_memory_pool())
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):  # Another C library than glibc.
        adjust = ctypes.CDLL(None).mallopt
        adjust(_M_ARENA_MAX, 2)
        adjust(_M_MMAP_THRESHOLD, 4 * _MIB)
        adjust(_M_TRIM_THRESHOLD, 32 * _MIB)


def give_back() -> None:
    """To the system, every page that nothing is on. Blocks, without the interpreter's lock."""
    with contextlib.suppress(AttributeError, OSError):  # Another C library than glibc.
        ctypes.CDLL(None).malloc_trim(0)


async def give_back_regularly(runtime: Runtime) -> None:
    while True:
        await runtime.clock.sleep(_GIVE_BACK_S)
        await runtime.tasks.run(give_back)

"""How the writer process takes memory from the system: little processor time, and back to the system what a flush has freed.

Measured with the writer's own work, per event: Arrow's default pool hands pages back and faults them in again all the
time, a fifth of all processor time, and what it keeps are huge pages, ten megabytes more or less from one second to the next.
glibc's allocator costs nothing like that, but keeps an arena for each thread, each with holes of its own; two arenas, and
large blocks by themselves, halve what a busy writer holds beyond its rows. The holes that are left grow for hours; now and
then their pages are given back, which takes milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

from dolake.clock import Runtime
from dolake.config import process_environment

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MIB = 1 << 20
_GIVE_BACK_S = 10.0
# Arrow reads it when it is imported, and nothing else says to all of it which allocator it is to use.
_ARROW_POOL = "ARROW_DEFAULT_MEMORY_POOL"


def settle_allocation() -> None:
    """For the whole process; once, before Arrow is imported. Where the C library has no such knobs it changes less."""
    if _ARROW_POOL not in process_environment():
        os.putenv(_ARROW_POOL, "system")
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

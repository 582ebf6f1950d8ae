"""Port numbers for what cannot be given port 0: no two tests get the same one, in whatever process they run.

They lie outside the range from which the system gives ports of its own accord, so that no client's connection takes one in
the moment before it is used. A block of them belongs to one process at a time: it holds a name that only one can hold, and
that goes with it, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_LOWEST, _HIGHEST = 10_000, 65_535
_BLOCK = 100


class Ports:
    """Allocates ports on this machine, each once. A context manager: leaving it gives the blocks back."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        self._numbers = self._free_numbers()

    def allocate(self) -> int:
        """A port on which nobody listens. Raises RuntimeError when there are none left."""
        for number in self._numbers:
            return number
        raise RuntimeError(f"all ports from {_LOWEST} that the system does not give itself are taken by other test runs")

    def _free_numbers(self) -> Iterator[int]:
        first_given, last_given = _given_by_the_system()
        for start in range(_LOWEST, _HIGHEST - _BLOCK + 2, _BLOCK):
            if start + _BLOCK > first_given and start <= last_given:
                continue
            holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                holder.bind(f"\0test-ports-{start}")  # Abstract: in no directory.
            except OSError:
                holder.close()
                continue
            self._held.append(holder)
            yield from filter(is_free, range(start, start + _BLOCK))

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *_: object) -> None:
        self._numbers = iter(())
        for holder in self._held:
            holder.close()
        self._held.clear()


def is_free(number: int) -> bool:
    """Whether a port can be bound now."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", number))
        return True
    return False


def _given_by_the_system() -> tuple[int, int]:
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(first), int(last)


_OF_THIS_PROCESS: dict[int, Ports] = {}


def free_port() -> int:
    """A port on which nobody listens, and that nobody else is given while this process runs."""
    return _OF_THIS_PROCESS.setdefault(os.getpid(), Ports()).allocate()


def own_address(number: int) -> str:
    """A loopback address for one of many daemons that are killed at once, 15 million of them.

    A port that one has let go of the system gives to another in that moment, and a source that comes back asks the wrong one.
    """
    return f"127.{1 + number // 62_500 % 250}.{number // 250 % 250}.{1 + number % 250}"

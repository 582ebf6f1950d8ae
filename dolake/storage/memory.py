"""Large files that are made in memory, before they are put."""

from __future__ import annotations

import mmap

_ROOM_BYTES = 1024 * 1024


class GrownBytes:
    """A file in memory that is only appended to. Where it needs room it is moved by the page table, not by copying.

    Arrow's own stream copies what it has into twice the room: a large file is written twice, and memory touched for it three times.
    """

    def __init__(self) -> None:
        self._room = _mapped(_ROOM_BYTES)
        self._size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        end = self._size + len(data)
        if end > len(self._room):
            self._grow(max(end, 2 * len(self._room)))
        self._room[self._size : end] = data
        self._size = end
        return len(data)

    def _grow(self, size: int) -> None:
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._room.resize(size)
        except SystemError:  # A system that cannot.
            room = _mapped(size)
            room[: self._size] = self._room[: self._size]
            self._room = room

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.closed = True

    def view(self) -> memoryview:
        """All that was written. Nothing more can be, once this was asked for."""
        return memoryview(self._room)[: self._size].toreadonly()


def _mapped(size: int) -> mmap.mmap:
    """Private: what is shared cannot grow."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

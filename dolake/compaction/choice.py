"""What a plan says of one rewrite, or of files that are left alone: as values, and in words for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from dolake.iceberg.contents import LiveFile

_MIB = 1 << 20
# A model of what files cost, near an object store in the same region. It orders choices, and promises nothing.
_OPEN_S = 0.02
_READ_BYTES_PER_S = 100 * _MIB
_REWRITE_BYTES_PER_S = 25 * _MIB


def read_s(opens: int, size_bytes: int) -> float:
    """How long a reader is at so many files of so many bytes."""
    return _OPEN_S * opens + size_bytes / _READ_BYTES_PER_S


class Why(Enum):
    SMALL_FILES = "small files"
    DELETED_ROWS = "deleted rows"
    DELETE_FILES = "delete files"
    OTHER_SPEC = "an older partition spec"


@dataclass(frozen=True)
class Choice:
    """What one commit would rewrite, and what is gained. Numbers are estimates: whether a row of `data` is left, reading tells.

    `data` are rewritten as one file, or none if no row is left of them. `deletes` may speak of them, and are read with them;
    `deletes_removed` are those that leave the table with it, because they can speak of no row elsewhere. Deletes that stay may
    be among those of other choices too; data files, and deletes that leave, are not.

    A choice of DELETE_FILES has no `data`, and all its deletes leave. They are merged into one, without rows of data files that
    are no longer there; `bytes_written` 0 says that none of their rows can be of one that is, so that nothing takes their place.
    """

    spec_id: int
    partition: tuple[Any, ...]
    why: Why
    data: tuple[LiveFile, ...]
    deletes: tuple[LiveFile, ...]
    deletes_removed: tuple[LiveFile, ...]
    bytes_read: int
    bytes_written: int
    files_saved: int
    delete_files_saved: int
    deleted_rows: int
    read_s_saved: float

    @property
    def rewritten(self) -> tuple[LiveFile, ...]:
        """The files whose place something else takes: data files, or delete files that are merged."""
        return self.data or self.deletes

    @property
    def place(self) -> str:
        return partition_in_words(self.spec_id, self.partition)

    @property
    def cost_s(self) -> float:
        opens = len(self.data) + len(self.deletes) + 1
        return _OPEN_S * opens + (self.bytes_read + self.bytes_written) / _REWRITE_BYTES_PER_S

    @property
    def worth(self) -> float:
        """Seconds that readers save for each that it costs."""
        return self.read_s_saved / self.cost_s

    def in_words(self) -> str:
        """One sentence: what, why, at what cost, for what gain."""
        files = f"{in_numbers(len(self.rewritten), 'data file' if self.data else 'delete file')} of {self.place}"
        what = f"Rewrites {files} as one" if self.bytes_written else f"Removes {files}"
        deletes = f" with {in_numbers(len(self.deletes), 'delete file')}" if self.data and self.deletes else ""
        gains = [
            *([f"{in_numbers(self.files_saved, 'data file')} fewer"] if self.files_saved else []),
            *([f"{in_numbers(self.delete_files_saved, 'delete file')} fewer"] if self.delete_files_saved else []),
            *([f"some {in_numbers(self.deleted_rows, 'deleted row')} gone"] if self.deleted_rows else []),
            f"a whole read some {self.read_s_saved:.2f} s shorter",
        ]
        cost = f"reads {in_bytes(self.bytes_read)}{deletes}, writes {in_bytes(self.bytes_written)}"
        return f"{what} ({self.why.value}): {cost}; {', '.join(gains)}"


@dataclass(frozen=True)
class Left:
    """Files that a rewrite could be wanted of and that are left alone, and why."""

    spec_id: int
    partition: tuple[Any, ...]
    why: str
    files: tuple[LiveFile, ...]

    def in_words(self) -> str:
        return f"{in_numbers(len(self.files), 'file')} of {partition_in_words(self.spec_id, self.partition)} left alone: {self.why}"


def partition_in_words(spec_id: int, partition: tuple[Any, ...]) -> str:
    """Values as stored, a date as days; text and bytes as Python writes them, so that no control character gets to a terminal."""
    values = ", ".join("null" if value is None else repr(value) if isinstance(value, str | bytes) else str(value) for value in partition)
    return f"partition ({values}) of spec {spec_id}" if partition else f"unpartitioned spec {spec_id}"


def in_numbers(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"

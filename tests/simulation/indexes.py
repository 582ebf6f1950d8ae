"""What befalls the key indexes on the writer's disk; and thresholds so small that a few rows are merged, spilled, saved and put away."""

from __future__ import annotations

import random
from collections.abc import Iterator

import dolake.iceberg.index
import dolake.iceberg.index_runs
import dolake.writer.indexes
from tests.simulation.constants import Patch
from tests.simulation.disk import DirectoryNode, Inode, SimDisk
from tests.simulation.faults import Chaos

Copy = dict[str, bytes]
KINDS = ("lost", "a file lost", "cut", "older", "a bit flipped")


def small_indexes(draw: random.Random) -> list[Patch]:
    return sized_indexes(
        entries=draw.choice([1, 4, 1 << 19]),
        growth=draw.choice([1, 4]),
        space=draw.choice([1, 16]),
        chunk=draw.choice([1, 3, 1 << 19]),
        unsaved=draw.choice([0, 3, 1 << 19]),
        memory=draw.choice([0, 300, 1 << 28]),
        read=draw.choice([1, 4, 1 << 20]),
    )


def sized_indexes(*, entries: int, growth: int, space: int, chunk: int, unsaved: int, memory: int, read: int) -> list[Patch]:
    return [
        (dolake.iceberg.index, "MEMORY_ENTRIES_MAX", entries),
        (dolake.iceberg.index, "GROWTH", growth),
        (dolake.iceberg.index, "_FIRST_SPACE", space),
        (dolake.iceberg.index, "_GAP_ROWS_MAX", space),
        (dolake.iceberg.index_runs, "CHUNK_ENTRIES", chunk),
        (dolake.writer.indexes, "_UNSAVED_ROWS_MAX", unsaved),
        (dolake.writer.indexes, "_MEMORY_BYTES_MAX", memory),
        (dolake.writer.indexes, "_READ_ROWS", read),
    ]


class IndexFolders:
    """The folders of all tables' indexes on a disk, while no writer has them open."""

    def __init__(self, disk: SimDisk, chaos: Chaos, root: str) -> None:
        self._disk, self._chaos, self._root = disk, chaos, root + "/"
        self._copies: dict[str, list[Copy]] = {}

    def copy(self) -> None:
        """As a backup would, file by file."""
        for folder in self._folders():
            self._copies.setdefault(folder, []).append({path: bytes(node.cached) for path, node in self._files(folder)})

    def upset(self, draw: random.Random) -> None:
        for folder in self._folders():
            files = list(self._files(folder))
            kind = draw.choice(KINDS)
            copies = [copy for copy in self._copies.get(folder, []) if copy]
            if not files or (kind == "older" and not copies):
                continue
            self._chaos.count(f"index: {kind}")
            path, node = draw.choice(files)
            if kind == "lost":
                self._put(folder, {})
            elif kind == "a file lost":
                del self._disk.names[path]
            elif kind == "cut":
                del node.cached[draw.randint(0, len(node.cached)) :]
            elif kind == "a bit flipped" and node.cached:
                node.cached[draw.randrange(len(node.cached))] ^= 1 << draw.randrange(8)
            elif kind == "older":
                self._put(folder, draw.choice(copies))

    def _put(self, folder: str, files: Copy) -> None:
        for path, _ in list(self._files(folder)):
            del self._disk.names[path]
        for path, data in files.items():
            node = self._disk.names[path] = Inode()
            node.write(0, data)

    def _folders(self) -> list[str]:
        return sorted(path for path, node in self._disk.names.items() if isinstance(node, DirectoryNode) and path.startswith(self._root))

    def _files(self, folder: str) -> Iterator[tuple[str, Inode]]:
        for path in sorted(self._disk.names):
            node = self._disk.names[path]
            if path.startswith(folder + "/") and isinstance(node, Inode):
                yield path, node

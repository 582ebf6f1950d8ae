"""A warehouse on a local file system, whose objects survive a power cut once they are settled.

`put` writes a file under its final name and syncs its bytes; `settle` syncs the directories that hold the names. There
is no temporary name and no rename: names are used once and nothing refers to them before `settle` has returned, so half
a file under its final name is an orphan like any other. A repeated put overwrites such a file whole.

A directory is only as durable as its name in its parent, so the first settle in a directory syncs every directory above
it as well: another process may have made them and died before it could.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from dolake.errors import ObjectMissing, StoreUnreachable
from dolake.model import spelled_out
from dolake.storage.disk import Disk, File, LocalDisk

_SCHEME = "file://"
_PROBE = b"dolake was here"


class LocalStore:
    """Objects as files below one directory, which is made when it is first put into."""

    def __init__(self, root: str, disk: Disk | None = None) -> None:
        """`root` is `file:///absolute/directory`; raises ValueError for any other."""
        self._disk = disk or LocalDisk()
        self.root = root.rstrip("/")
        self._directory = _path(self.root)
        # Directories whose names are known to be durable.
        self._anchored: set[str] = set()

    def probe(self, name: str) -> None:
        """Puts, settles, reads and deletes a tiny object called `name`. Raises StoreUnreachable."""
        location = f"{self.root}/dolake-probe-{name}"
        self.put(location, _PROBE)
        self.settle([location])
        if self.get(location) != _PROBE:
            raise StoreUnreachable(f"{location} came back with other bytes: the disk does not keep what it accepts")
        self.delete(location)

    def put(self, location: str, data: bytes | memoryview) -> None:
        path = self._path(location)
        try:
            file = self._create(path)
            try:
                file.write_at(0, [memoryview(data).cast("B")])
                file.sync()
            finally:
                file.close()
        except OSError as error:
            raise _unreachable(error, path) from error

    def settle(self, locations: Sequence[str]) -> None:
        try:
            for directory in sorted({os.path.dirname(self._path(location)) for location in locations}):
                self._disk.sync_directory(directory)
                self._anchor(directory)
        except OSError as error:
            raise _unreachable(error, directory) from error

    def get(self, location: str) -> bytes:
        path = self._path(location)
        try:
            file = self._disk.open(path)
            try:
                return file.read_at(0, file.size())
            finally:
                file.close()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ObjectMissing(f"{location} is not in the warehouse") from error
        except OSError as error:
            raise _unreachable(error, path) from error

    def size(self, location: str) -> int:
        path = self._path(location)
        try:
            return self._size(path)
        except FileNotFoundError as error:
            raise ObjectMissing(f"{location} is not in the warehouse") from error
        except OSError as error:
            raise _unreachable(error, path) from error

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """As an object store lists: every object whose location begins with `prefix`, in order."""
        path = self._path(prefix)
        for file in self._files(path if path == self._directory else os.path.dirname(path)):
            if file.startswith(path):
                try:
                    yield self.root + file[len(self._directory) :], self._size(file)
                except FileNotFoundError:
                    continue  # Deleted since the directory was read.

    def delete(self, location: str) -> None:
        path = self._path(location)
        try:
            self._disk.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unreachable(error, path) from error

    def _path(self, location: str) -> str:
        """The file of a location. Raises ValueError for one outside the root, however it is spelled."""
        path = _path(location)
        if not self._is_ours(path) or os.path.normpath(path) != path.rstrip("/"):
            raise ValueError(f"{location} does not lie in the warehouse {self.root}")
        return path

    def _is_ours(self, path: str) -> bool:
        return path == self._directory or path.startswith(self._directory + "/")

    def _anchor(self, directory: str) -> None:
        """Makes the names of a directory and of all above it durable, unless they are known to be."""
        climbed = []
        while directory not in self._anchored and directory != os.path.dirname(directory):
            parent = os.path.dirname(directory)
            try:
                self._disk.sync_directory(parent)
            except PermissionError:
                # Some of those above the warehouse may be closed to us: they were there before, and are their owner's matter.
                if self._is_ours(parent):
                    raise
            climbed.append(directory)
            directory = parent
        # Only now: had one above failed, none below it would be durable, and the next settle must climb again.
        self._anchored.update(climbed)

    def _create(self, path: str) -> File:
        """A new file at `path`, in place of what an earlier try left there."""
        for _ in range(2):
            try:
                return self._disk.create(path)
            except FileNotFoundError:
                self._disk.make_directories(os.path.dirname(path))
                self._anchored.clear()  # Any of those above may be new as well.
            except FileExistsError:
                self._disk.unlink(path)
        return self._disk.create(path)

    def _size(self, path: str) -> int:
        file = self._disk.open(path)
        try:
            return file.size()
        finally:
            file.close()

    def _files(self, directory: str) -> Iterator[str]:
        """Every file below a directory, sorted."""
        try:
            names = self._disk.list(directory)
        except FileNotFoundError:
            return
        for name in names:
            path = f"{directory}/{name}"
            try:
                yield from self._files(path)
            except NotADirectoryError:
                yield path


def _path(location: str) -> str:
    location = spelled_out(location)
    if not location.startswith(_SCHEME + "/"):
        raise ValueError(f"a local warehouse is file:///absolute/directory, not {location}")
    return location[len(_SCHEME) :]


def _unreachable(error: OSError, path: str) -> StoreUnreachable:
    return StoreUnreachable(f"the warehouse's disk failed at {path}: {error.strerror or error}; check its space, permissions and health")

"""PyIceberg's FileIO over dolake's object store: whole objects in memory, put when closed.

Manifests and manifest lists are small. Writing them in memory first keeps PyIceberg away from disks and sockets (its own
FileIOs never sync, and use multipart uploads for the smallest file) and gives a simulated store everything to break.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream

from dolake.errors import DolakeError, ObjectDamaged, ObjectMissing
from dolake.storage.store import ObjectStore


class StoreFileIO(FileIO):
    """PyIceberg's door to files, over ours."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self._store = store

    def new_input(self, location: str, size_bytes: int | None = None) -> StoreInputFile:
        """`size_bytes`, where somebody has recorded it, is what it must have."""
        return StoreInputFile(self._store, location, size_bytes)

    def new_output(self, location: str) -> StoreOutputFile:
        return StoreOutputFile(self._store, location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        self._store.delete(location if isinstance(location, str) else location.location)


class StoreInputFile(InputFile):
    """An object to read, whole. Opening raises ObjectDamaged where it has not the size it should."""

    def __init__(self, store: ObjectStore, location: str, size_bytes: int | None = None) -> None:
        super().__init__(location)
        self._store, self._size_bytes = store, size_bytes

    def __len__(self) -> int:
        return self._store.size(self.location)

    def exists(self) -> bool:
        return _exists(self._store, self.location)

    def open(self, seekable: bool = True) -> InputStream:
        data = self._store.get(self.location)
        if self._size_bytes is not None and len(data) != self._size_bytes:
            raise ObjectDamaged(f"{self.location} came with {len(data)} bytes and should have {self._size_bytes}; restore it")
        return io.BytesIO(data)


class StoreOutputFile(OutputFile):
    """One object on its way; its length is known once its stream was closed."""

    def __init__(self, store: ObjectStore, location: str) -> None:
        super().__init__(location)
        self._store = store
        self.size_bytes = 0

    def __len__(self) -> int:
        return self.size_bytes

    def exists(self) -> bool:
        return _exists(self._store, self.location)

    def to_input_file(self) -> StoreInputFile:
        return StoreInputFile(self._store, self.location)

    def create(self, overwrite: bool = False) -> OutputStream:
        return _PutOnClose(self, self._store)


class _PutOnClose(io.BytesIO):
    """Puts what was written when it is closed, unless an exception is what closes it: half an object is never put."""

    def __init__(self, file: StoreOutputFile, store: ObjectStore) -> None:
        super().__init__()
        self._file, self._store = file, store

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is not None:
            super().close()
        else:
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        data = self.getvalue()
        self._file.size_bytes = len(data)
        super().close()
        self._store.put(self._file.location, data)

    def __del__(self) -> None:
        """An abandoned stream is forgotten: only `close` puts."""


@contextmanager
def decoding(location: str) -> Iterator[None]:
    """Around reading what an object holds: whatever a decoder stumbles over is damage to it. Raises ObjectDamaged."""
    try:
        yield
    except (DolakeError, OSError):
        raise
    except Exception as error:  # Damaged bytes take PyIceberg's decoders anywhere: KeyError, struct.error, even SystemError were seen.
        raise ObjectDamaged(f"{location} is not what was written: {type(error).__name__}: {error}; restore it") from error


def _exists(store: ObjectStore, location: str) -> bool:
    try:
        store.size(location)
    except ObjectMissing:
        return False
    return True

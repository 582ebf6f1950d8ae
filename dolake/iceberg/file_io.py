"""PyIceberg's FileIO over dolake's object store: whole objects in memory, put when closed.

Manifests and manifest lists are small. Writing them in memory first keeps PyIceberg away from disks and sockets (its own
FileIOs never sync, and use multipart uploads for the smallest file) and gives a simulated store everything to break.
"""

from __future__ import annotations

import io
from types import TracebackType

from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream

from dolake.errors import ObjectMissing
from dolake.storage.store import ObjectStore


class StoreFileIO(FileIO):
    """PyIceberg's door to files, over ours."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self._store = store

    def new_input(self, location: str) -> StoreInputFile:
        return StoreInputFile(self._store, location)

    def new_output(self, location: str) -> StoreOutputFile:
        return StoreOutputFile(self._store, location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        self._store.delete(location if isinstance(location, str) else location.location)


class StoreInputFile(InputFile):
    """An object to read, whole."""

    def __init__(self, store: ObjectStore, location: str) -> None:
        super().__init__(location)
        self._store = store

    def __len__(self) -> int:
        return self._store.size(self.location)

    def exists(self) -> bool:
        return _exists(self._store, self.location)

    def open(self, seekable: bool = True) -> InputStream:
        return io.BytesIO(self._store.get(self.location))


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


def _exists(store: ObjectStore, location: str) -> bool:
    try:
        store.size(location)
    except ObjectMissing:
        return False
    return True

"""A key index on disk: one folder a table, that may be lost, cut or older than the table at any time.

    index.json                what the index is of, its files, and for every other file its size and CRC32C; replaced by a rename
    run-000007.high .low .rows   a sorted run's three arrays
    dead-000008               a bit for each row: whether it was deleted

Nothing is synced: after a power cut something is torn, its checksum says so, and the index is made anew. Files that
`index.json` does not name are left over from a save that was cut short; they go when the folder is opened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import google_crc32c
import numpy as np
import numpy.typing as npt
import orjson

from dolake.iceberg.index import IndexedFile, KeyIndex
from dolake.iceberg.index_runs import Run, row_type
from dolake.storage.disk import Disk

FORMAT = 1
_NAME = "index.json"
_PARTS = ("high", "low", "rows")
_DIGEST_BYTES = 1 << 20
_VALUES: Mapping[str, Callable[[str], Any]] = {"bytes": bytes.fromhex, "float": float, "Decimal": Decimal, "UUID": UUID}


class IndexDamaged(Exception):
    """The index on disk is not what was saved; `str` says what of it. It has to be made anew."""


@dataclass(frozen=True)
class _Sealed:
    """A file that is written no more."""

    size_bytes: int
    digest: int


class IndexFolder:
    """The saved index of one table in `directory`. Blocks; raises OSError as the disk does."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk, self.directory = disk, directory
        self._sealed: dict[str, _Sealed] = {}
        self._number = 0

    def load(self) -> KeyIndex | None:
        """The index as it was saved, every byte of it checked; None if there is none. Raises IndexDamaged."""
        self._sealed = {}
        saved = self._read_manifest()
        if saved is None:
            self._sweep()
            return None
        try:
            self._sealed = {name: _Sealed(*sealed) for name, sealed in saved["sealed"].items()}
            for name, sealed in self._sealed.items():
                self._check(name, sealed)
            space = int(saved["space"])
            index = KeyIndex(
                table_uuid=saved["table"],
                key=tuple(saved["key"]),
                seed=int(saved["seed"]),
                snapshot_id=saved["snapshot"],
                spill=self.spill,
                runs=[self._map_run(run["name"], run["count"], run["wide"]) for run in saved["runs"]],
                files={file["location"]: _file_from(file) for file in saved["files"]},
                delete_files=set(saved["deletes"]),
                space=space,
                dead=self._read_dead(saved["dead"], space),
                dead_count=int(saved["dead_count"]),
            )
        except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
            raise IndexDamaged(f"{self.directory}: {type(error).__name__}: {error}") from error
        self._number = max([0, *(int(name.split("-")[1].split(".")[0]) for name in self._sealed)])
        self._sweep()
        return index

    def save(self, index: KeyIndex) -> None:
        """Makes `index` what is saved. Its runs are mapped from there afterwards."""
        self._disk.make_directories(self.directory)
        index.runs = [run if run.name else self.spill(iter([run])) for run in index.runs]
        dead = self._next_name("dead")
        self._write(dead, [_bytes_of(np.packbits(index.dead[: index.space]))])
        saved = {
            "format": FORMAT,
            "table": index.table_uuid,
            "key": index.key,
            "seed": str(index.seed),
            "snapshot": index.snapshot_id,
            "runs": [{"name": run.name, "count": run.count, "wide": run.is_wide} for run in index.runs],
            "files": [_file_as_json(file) for file in index.files.values()],
            "deletes": sorted(index.delete_files),
            "space": index.space,
            "dead": dead,
            "dead_count": index.dead_count,
        }
        named = {dead, *(f"{run.name}.{part}" for run in index.runs for part in _PARTS)}
        self._sealed = {name: sealed for name, sealed in self._sealed.items() if name in named}
        saved["sealed"] = {name: [sealed.size_bytes, sealed.digest] for name, sealed in self._sealed.items()}
        self._put_manifest(orjson.dumps(saved))
        self._sweep()

    def spill(self, pieces: Iterator[Run]) -> Run:
        """Writes one run, piece by piece; it is not part of what is saved until `save` says so."""
        self._disk.make_directories(self.directory)
        name = self._next_name("run")
        files = [self._disk.create(os.path.join(self.directory, f"{name}.{part}")) for part in _PARTS]
        sizes, digests, count, wide = [0, 0, 0], [0, 0, 0], 0, False
        try:
            for piece in pieces:
                count += piece.count
                wide = piece.is_wide
                for place, array in enumerate((piece.high, piece.low, piece.rows)):
                    data = _bytes_of(array)
                    sizes[place] += files[place].write_at(sizes[place], [data])
                    digests[place] = _digest(data, digests[place])
        finally:
            for file in files:
                file.close()
        for place, part in enumerate(_PARTS):
            self._sealed[f"{name}.{part}"] = _Sealed(sizes[place], digests[place])
        return self._map_run(name, count, wide)

    def remove(self) -> None:
        """The table is gone, or what is saved is of no use. An index that maps the files keeps them."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(os.path.join(self.directory, _NAME))
        self._sealed = {}
        self._sweep()

    # -- pieces

    def _read_manifest(self) -> Mapping[str, Any] | None:
        path = os.path.join(self.directory, _NAME)
        if not self._disk.exists(path):
            return None
        data = bytes(self._disk.map(path))
        try:
            digest, text = data.split(b"\n", 1)
            if int(digest, 16) != _digest(text):
                raise ValueError("its digest differs")
            saved: dict[str, Any] = orjson.loads(text)
            if saved["format"] != FORMAT:
                raise ValueError(f"its format is {saved['format']}")
        except (ValueError, KeyError, TypeError) as error:
            raise IndexDamaged(f"{path}: {error}") from error
        return saved

    def _put_manifest(self, text: bytes) -> None:
        fresh = self._next_name("new")
        self._write(fresh, [f"{_digest(text):08x}\n".encode(), text])
        del self._sealed[fresh]
        self._disk.rename(os.path.join(self.directory, fresh), os.path.join(self.directory, _NAME))

    def _check(self, name: str, sealed: _Sealed) -> None:
        data = self._disk.map(os.path.join(self.directory, name))
        if len(data) != sealed.size_bytes:
            raise IndexDamaged(f"{self.directory}/{name} has {len(data)} bytes, not {sealed.size_bytes}")
        if _digest(data) != sealed.digest:
            raise IndexDamaged(f"{self.directory}/{name}: its digest differs")

    def _map_run(self, name: str, count: int, wide: bool) -> Run:
        high, low, rows = (self._disk.map(os.path.join(self.directory, f"{name}.{part}")) for part in _PARTS)
        kind = row_type(1 << 33 if wide else 0)
        run = Run(np.frombuffer(high, np.uint64), np.frombuffer(low, np.uint64), np.frombuffer(rows, kind), name)
        if not run.count == len(run.low) == len(run.rows) == count:
            raise ValueError(f"{name} has {run.count} entries, not {count}")
        return run

    def _read_dead(self, name: str, space: int) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(self._disk.map(os.path.join(self.directory, name)), np.uint8)
        return np.unpackbits(bits, count=space).astype(np.bool_)

    def _write(self, name: str, parts: list[bytes | memoryview]) -> None:
        file = self._disk.create(os.path.join(self.directory, name))
        try:
            size = file.write_at(0, parts)
        finally:
            file.close()
        digest = 0
        for part in parts:
            digest = _digest(part, digest)
        self._sealed[name] = _Sealed(size, digest)

    def _next_name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._number:06d}"

    def _sweep(self) -> None:
        """Removes what is not part of what is saved."""
        with contextlib.suppress(FileNotFoundError):
            for name in self._disk.list(self.directory):
                if name != _NAME and name not in self._sealed:
                    self._disk.unlink(os.path.join(self.directory, name))


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).data


def _digest(data: bytes | memoryview, before: int = 0) -> int:
    """CRC32C; piece by piece, since the library takes only bytes."""
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    for start in range(0, len(view), _DIGEST_BYTES):
        before = google_crc32c.extend(before, view[start : start + _DIGEST_BYTES].tobytes())
    return before


def _file_as_json(file: IndexedFile) -> dict[str, Any]:
    return {
        "location": file.location,
        "rows": file.row_count,
        "spec": file.spec_id,
        "partition": [_value_as_json(value) for value in file.partition],
        "sources": file.sources,
        "first": file.first,
    }


def _file_from(saved: Mapping[str, Any]) -> IndexedFile:
    return IndexedFile(
        location=saved["location"],
        row_count=saved["rows"],
        spec_id=saved["spec"],
        partition=tuple(_value_from(value) for value in saved["partition"]),
        sources=tuple((first, name) for first, name in saved["sources"]),
        first=saved["first"],
    )


def _value_as_json(value: Any) -> Any:
    """A partition value as manifests store it: what JSON has no word for goes as text, with its kind."""
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, float | Decimal | UUID):
        return [type(value).__name__, str(value)]
    return value


def _value_from(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, text = value
    return _VALUES[kind](text)

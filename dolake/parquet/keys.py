"""Rows' keys as 128-bit hashes: what the fold compares, and what the key index stores.

A key's hash is of its values, not of how they are held: `int` and `long`, `float` and `double`, a decimal in more digits and a
dictionary's strings give the same, so that a key column may be widened. A key of one integer is mixed by a bijection and never
collides; every other key goes through XXH3 (128 bits) under the index's own seed, which nobody who chooses keys knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

Words = npt.NDArray[np.uint64]

_FIXED_BYTES = 8
# Stafford's constants of the 64-bit finalizer (variants 13 and 1), in two different orders: two unrelated bijections.
_MIX_HIGH = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_MIX_LOW = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))


@dataclass(frozen=True)
class KeyHashes:
    """One hash a row: its upper and its lower 64 bits."""

    high: Words
    low: Words

    def __len__(self) -> int:
        return len(self.high)

    def take(self, places: npt.NDArray[np.int64]) -> KeyHashes:
        return KeyHashes(self.high[places], self.low[places])

    @classmethod
    def joined(cls, parts: Sequence[KeyHashes]) -> KeyHashes:
        none = [np.zeros(0, np.uint64)]
        return cls(np.concatenate([*none, *(part.high for part in parts)]), np.concatenate([*none, *(part.low for part in parts)]))


def key_hashes(columns: Sequence[pa.ChunkedArray | pa.Array], seed: int) -> KeyHashes:
    """`columns`: a key's columns, in its order, at least one; rows in which one is null get a hash that means nothing.

    Blocks, and calls into Python only for keys that hold lists, maps or structs.
    """
    arrays = [_plain(column) for column in columns]
    if len(arrays) == 1 and _is_whole(arrays[0].type):
        return _mixed(_words(arrays[0]))
    if len(arrays) == 1 and not _is_fixed(arrays[0].type):
        return _digested(_texts(arrays[0]), seed)
    if all(_is_fixed(array.type) for array in arrays):
        together = np.concatenate([_fixed_bytes(array) for array in arrays], axis=1)
        return _digested(np.ascontiguousarray(together).view(f"V{together.shape[1]}").ravel(), seed)
    return _digested(_texts(_joined(arrays)), seed)


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array of a type that its values decide, not how they are held."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_decimal(kind):
        return array.cast(pa.decimal128(38, kind.scale)) if kind.precision != 38 else array
    if pa.types.is_floating(kind):
        return array.cast(pa.float64())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(pa.int64())
    if pa.types.is_date32(kind):
        return array.cast(pa.int32()).cast(pa.int64())
    if pa.types.is_nested(kind):
        return pa.array([repr(value) for value in array.to_pylist()], pa.string())
    return array


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_int64(kind) or pa.types.is_temporal(kind))


def _is_fixed(kind: pa.DataType) -> bool:
    return _is_whole(kind) or bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind))


def _words(array: pa.Array) -> Words:
    """Values of eight bytes; nulls as nothing in particular."""
    width: Words = np.frombuffer(array.buffers()[1], np.uint64, len(array), array.offset * _FIXED_BYTES)
    return width


def _fixed_bytes(array: pa.Array) -> npt.NDArray[np.uint8]:
    """A row of bytes for each value."""
    if pa.types.is_floating(array.type):
        values = np.array(np.frombuffer(array.buffers()[1], np.float64, len(array), array.offset * _FIXED_BYTES))
        values += 0.0  # -0.0 equals 0.0,
        values[np.isnan(values)] = np.nan  # and there is one NaN.
        return values.view(np.uint8).reshape(len(array), _FIXED_BYTES)
    size = array.type.byte_width
    found: npt.NDArray[np.uint8] = np.frombuffer(array.buffers()[1], np.uint8, len(array) * size, array.offset * size)
    return found.reshape(len(array), size)


def _joined(arrays: Sequence[pa.Array]) -> pa.Array:
    """All columns as one of bytes; each text is behind its length, so that ("a", "bc") is not ("ab", "c")."""
    parts: list[pa.Array | pa.Scalar] = []
    for array in arrays:
        if _is_fixed(array.type):
            parts.append(_as_binary(_fixed_bytes(array)))
        else:
            text = array.cast(pa.binary())
            sizes = np.array(pc.fill_null(pc.binary_length(text), 0)).astype(np.int64)
            parts += [_as_binary(sizes.view(np.uint8).reshape(len(array), _FIXED_BYTES)), pc.fill_null(text, b"")]
    return pc.binary_join_element_wise(*(part.cast(pa.binary()) for part in parts), b"")


def _as_binary(rows: npt.NDArray[np.uint8]) -> pa.Array:
    kind = pa.binary(rows.shape[1])
    return pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))])


def _texts(array: pa.Array) -> npt.NDArray[np.object_]:
    found: npt.NDArray[np.object_] = pc.fill_null(array.cast(pa.binary()), b"").to_numpy(zero_copy_only=False)
    return found


def _digested(keys: npt.NDArray[np.generic], seed: int) -> KeyHashes:
    digests = b"".join(map(xxhash.xxh3_128_digest, keys.tolist(), itertools.repeat(seed)))
    words = np.frombuffer(digests, np.uint64).reshape(len(keys), 2)
    return KeyHashes(np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1]))


def _mixed(words: Words) -> KeyHashes:
    return KeyHashes(_finalized(words, _MIX_HIGH, 30, 27, 31), _finalized(words, _MIX_LOW, 33, 33, 33))


def _finalized(words: Words, factors: tuple[np.uint64, np.uint64], *shifts: int) -> Words:
    """A bijection of 64 bits after which each bit depends on every one before."""
    first, second, third = (np.uint64(shift) for shift in shifts)
    mixed = words ^ (words >> first)
    mixed *= factors[0]
    mixed ^= mixed >> second
    mixed *= factors[1]
    mixed ^= mixed >> third
    return mixed

"""A mirror plan's rows into data files, each with who wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from dolake.buffer.fold import Places
from dolake.datafiles import EncodedDataFile, encode_file, sources_metadata
from dolake.writer.mirroring import MirrorPlan


def encode_mirror_file(
    table_location: str, partition: tuple[Any, ...], rows: pa.Table, places: Places, plan: MirrorPlan, epoch: int, unique: str
) -> EncodedDataFile:
    """The same of some of a mirror plan's rows; who wrote them goes into the file too."""
    sources = _sources_of(plan, places)
    file = encode_file(table_location, partition, rows, epoch, unique, sources_metadata(sources))
    return EncodedDataFile(file.location, file.data, file.parquet, file.rows, partition, places, sources)


def _sources_of(plan: MirrorPlan, places: Places) -> tuple[tuple[int, str], ...]:
    starts = np.array([first for first, _ in plan.sources], np.int64)
    owners = np.searchsorted(starts, places, side="right") - 1
    begins = np.flatnonzero(np.diff(owners, prepend=-1))
    return tuple((int(begin), plan.sources[owners[begin]][1]) for begin in begins)

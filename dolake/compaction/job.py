"""One rewrite as values: what it is given, what it makes. They go between the process that rewrites and the one that commits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dolake.iceberg.contents import LiveFile
from dolake.iceberg.index import IndexedFile
from dolake.iceberg.plan import NewFile

GONE = -1  # where a row went that a delete had taken out
# Numbers of rows while a job is at work: half of what 64 bits would take, and no job has as many rows as 31 bits count.
Places = npt.NDArray[np.int32]
ROWS_MAX = (1 << 31) - 1


@dataclass(frozen=True)
class Job:
    """Files of one spec and partition that become fewer.

    `schema` and `spec` are the table's own now (Iceberg JSON), in which the rows are written; `sort_by` are field ids, and none
    leaves the rows in the order of the inputs. `deletes` are all that may speak of `data`. New files have names of `epoch`. None of
    them is larger than about `target_bytes`; the rows that are in memory at once take about `memory_bytes` of Arrow, or twice that where
    it is all there are.
    """

    table: str
    location: str
    schema: Mapping[str, Any]
    spec: Mapping[str, Any]
    sort_by: tuple[int, ...]
    epoch: int
    data: tuple[LiveFile, ...]
    deletes: tuple[LiveFile, ...]
    target_bytes: int = 128 << 20
    memory_bytes: int = 192 << 20


@dataclass(frozen=True)
class OutputFile:
    """A data file that was put: as a commit takes it, and as a key index does."""

    file: NewFile
    indexed: IndexedFile


@dataclass(frozen=True)
class Rewritten:
    """What became of a job. `moves`: input location → for each of its rows the number it has now, `GONE` where it was deleted.

    Rows are numbered over all `outputs` as they stand, one file's after the other's.
    """

    outputs: tuple[OutputFile, ...]
    moves: Mapping[str, Places]
    bytes_read: int
    bytes_written: int

    @property
    def row_count(self) -> int:
        return sum(output.file.row_count for output in self.outputs)

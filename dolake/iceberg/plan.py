"""What a commit will say, decided from a loaded table and a delta alone: no I/O, no clock, no randomness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dolake.model import OffsetRange, TableName


@dataclass(frozen=True)
class NewFile:
    """A Parquet file that lies in the store and is in no snapshot yet.

    `partition` holds one Python value for each field of the spec, in its order; `parquet` is the `pyarrow.parquet.FileMetaData`
    that its encoder made.
    """

    location: str
    size_bytes: int
    row_count: int
    parquet: Any
    partition: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Delta:
    """One flush of one table: the rows of `ranges`, to be applied once.

    `ranges`: log id → offsets; `start` is what the writer last knew committed (0 for a log that never fed the table), `end`
    what will be. `schema` (Iceberg JSON) is the one that `files` were written with; `base_schema_id` and `spec_id` were the
    table's when the flush was planned. `epoch` and `instance` are the writer's; its first flush of a table carries the
    table's epoch + 1, and claims it. `commit_id` names this delta through all attempts.
    """

    table: TableName
    table_uuid: str
    ranges: Mapping[str, OffsetRange]
    files: tuple[NewFile, ...]
    schema: Mapping[str, Any]
    base_schema_id: int
    spec_id: int
    epoch: int
    instance: str
    commit_id: str
    properties: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, str] = field(default_factory=dict)

"""Position deletes: each speaks of a row that is there to be deleted, and readers heed it (I8); what is deleted in a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dolake.iceberg.contents import LiveFile
from dolake.parquet.deletes import positions_by_file
from dolake.verify.breach import Breach, Note
from dolake.verify.strangers import is_foreign

Positions = npt.NDArray[np.int64]


@dataclass
class DeletedRows:
    """Of the data files of one snapshot, by location: the rows that readers leave out."""

    subject: str
    data: Mapping[str, LiveFile]
    strangers_been_here: bool
    by_file: dict[str, Positions] = field(default_factory=dict)

    def take(self, deletes: LiveFile, table: pa.Table) -> Iterator[Breach | Note]:
        """One file of position deletes, with its content (`decode_deletes`)."""
        found = positions_by_file([table])
        if (count := sum(len(positions) for positions in found.values())) != table.num_rows:
            yield self._breach(f"{deletes.location} deletes {table.num_rows - count} rows twice")
        missing: list[str] = []
        for path, positions in found.items():
            file = self.data.get(path)
            if file is None:
                missing.append(path)
                continue
            outside = int(np.count_nonzero((positions < 0) | (positions >= file.row_count)))
            if outside:
                yield self._breach(f"{deletes.location} deletes {outside} rows that {path}, which has {file.row_count}, does not have")
            if reason := _unheeded(deletes, file):
                yield self._breach(f"{deletes.location} deletes rows of {path}, and readers pass that over: {reason}")
                continue
            before = self.by_file.get(path, np.zeros(0, np.int64))
            again = np.intersect1d(before, positions)
            if len(again) and not is_foreign(deletes):
                yield self._breach(f"{deletes.location} deletes {len(again)} rows of {path} that were deleted before")
            self.by_file[path] = np.union1d(before, positions)
        if missing:
            sentence = f"{deletes.location} deletes rows of {missing[0]}{_others(len(missing) - 1)}, which the snapshot does not name"
            # Who rewrites data files may leave their deletes behind.
            yield Note(self.subject, sentence) if self.strangers_been_here else self._breach(sentence)

    def kept(self, location: str, row_count: int) -> Positions:
        """The rows of a data file that readers see."""
        mask = np.ones(row_count, np.bool_)
        gone = self.by_file.get(location, np.zeros(0, np.int64))
        mask[gone[(gone >= 0) & (gone < row_count)]] = False
        return np.flatnonzero(mask)

    def _breach(self, sentence: str) -> Breach:
        return Breach("I8", self.subject, sentence)


def _unheeded(deletes: LiveFile, file: LiveFile) -> str:
    """Why a reader does not apply the deletes to the file (Iceberg v2, "Scan Planning"), or nothing."""
    if (deletes.spec_id, deletes.partition) != (file.spec_id, file.partition):
        return "it is of another partition"
    return "it is newer than they are" if deletes.sequence_number < file.sequence_number else ""


def _others(count: int) -> str:
    return f" and {count} more files" if count else ""

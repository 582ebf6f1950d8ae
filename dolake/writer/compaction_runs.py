"""What is noted of each rewrite: for whoever asks what compaction does, and for the key index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from dolake.compaction.compactor import Done
from dolake.compaction.landing import ToLand
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.names import parse_data_file_location
from dolake.writer.indexes import ReplacedFiles


class RunState(StrEnum):
    RUNNING, LANDING, DONE, GIVEN_UP, FAILED = "running", "landing", "done", "given_up", "failed"


@dataclass
class Run:
    """One rewrite. `reason`: why it was given up, or failed; counts are of what has landed."""

    table: str
    what: str
    began_ms: int
    state: RunState = RunState.RUNNING
    reason: str = ""
    seconds: float = 0.0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    rows_carried: int = 0

    def end(self, state: RunState, seconds: float, reason: str = "") -> None:
        self.state, self.seconds, self.reason = state, round(seconds, 3), reason

    def count(self, work: ToLand, done: Done) -> None:
        """Delete files count as files."""
        inputs = () if work.job is None else work.job.data
        gone = (*inputs, *done.landing.deletes_gone)
        outputs = () if work.rewritten is None else work.rewritten.outputs
        self.files_before, self.files_after = len(gone), len(outputs) + len(done.deletes)
        self.bytes_before = sum(file.size_bytes for file in gone)
        self.bytes_after = sum(output.file.size_bytes for output in outputs) + sum(len(file.data) for file in done.deletes)
        self.rows_carried = done.landing.carried_count

    def count_foreign(self, before: Iterable[LiveFile], after: Iterable[LiveFile]) -> bool:
        """What somebody else made of a table's files, as far as names tell: new ones that are not dolake's. Whether there is anything."""
        old, new = {file.location: file for file in before}, {file.location: file for file in after}
        gone = [file for location, file in old.items() if location not in new]
        came = [file for location, file in new.items() if location not in old and parse_data_file_location(location) is None]
        self.files_before, self.files_after = len(gone), len(came)
        self.bytes_before, self.bytes_after = sum(file.size_bytes for file in gone), sum(file.size_bytes for file in came)
        return bool(gone or came)


def replaced_files(work: ToLand, done: Done) -> ReplacedFiles:
    rewritten = work.rewritten
    return ReplacedFiles(
        moves={} if rewritten is None else rewritten.moves,
        files=() if rewritten is None else tuple(output.indexed for output in rewritten.outputs),
        deletes_gone=frozenset(file.location for file in done.landing.deletes_gone),
        deletes_new=frozenset(file.location for file in done.deletes),
    )

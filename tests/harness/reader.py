"""A reader that polls a table while everything behind it is being killed, and must only ever see complete flushes (AT-53)."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.lake import Lake, read_metadata
from tests.harness.oracle import Oracle

_INTERVAL_S = 0.05
_AGAIN_S = 0.5


@dataclass
class PollingReader:
    """DuckDB on the newest snapshot, in a thread of its own. `close` returns what it found wrong.

    It asks for the newest 20 times a second, and reads what it has read already only now and then: that is still there.

    For a table with one source and one log: the rows of every snapshot are the source's events from its first one on,
    each once, up to the end of a batch, never fewer than before, and end where the table's offset property says.
    """

    data: Path
    table: str
    oracle: Oracle
    poll_count: int = 0
    seen_counts: set[int] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _read: tuple[str | None, float] = (None, 0.0)  # which metadata file last, and when

    def __enter__(self) -> PollingReader:
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> list[str]:
        self._ended.set()
        self._thread.join(60)
        return self.findings

    def _run(self) -> None:
        with Lake(self.data) as lake:
            while not self._ended.wait(_INTERVAL_S):
                try:
                    self._poll(lake)
                except Exception as error:  # Whatever a reader runs into is a finding: it must never see a half.
                    self.findings.append(f"poll {self.poll_count}: {type(error).__name__}: {error}")

    def _poll(self, lake: Lake) -> None:
        location = lake.metadata_location(self.table)
        if location is None or (location == self._read[0] and time.monotonic() < self._read[1] + _AGAIN_S):
            return
        self._read = location, time.monotonic()
        properties = read_metadata(location).get("properties", {})
        ((count, distinct, first, last, offset),) = lake.query(
            "SELECT count(*), count(DISTINCT _cdc_sequence), min(_cdc_sequence), max(_cdc_sequence), max(_cdc_offset) "
            f"FROM iceberg_scan('{location}')"
        )
        self.poll_count += 1
        if not count:
            return
        if not count == distinct == last - first + 1:
            self.findings.append(f"{count} rows, {distinct} sequences from {first} to {last}: a hole or a repeat")
        ends = {batch.events[-1].sequence for batch in list(self.oracle.batches.values()) if batch.events}
        if last not in ends:
            self.findings.append(f"the last event, {last}, is not the end of a batch: a torn flush")
        if self.seen_counts and count < max(self.seen_counts):
            self.findings.append(f"{count} rows after {max(self.seen_counts)}: rows went away")
        committed = [int(value) for name, value in properties.items() if name.startswith("dolake.offset.")]
        if len(committed) == 1 and offset >= committed[0]:
            self.findings.append(f"a row at offset {offset}, and the table says that {committed[0]} is not applied yet")
        self.seen_counts.add(count)

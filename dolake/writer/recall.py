"""Events that were read before, once more from where they wait: what is refused late is kept as it was received.

Their records are not committed yet, so they are still in their log, or in the side log of a table that is on its way back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import structlog

from dolake.buffer.tail import LogReader
from dolake.clock import Runtime
from dolake.errors import DolakeError
from dolake.parquet.layout import EventChunk
from dolake.storage.disk import Disk
from dolake.writer.table import Table
from dolake.writer.tail import Routed, read_routed, reroute

if TYPE_CHECKING:
    from dolake.writer.service import WriterService

RETRY_S = 0.2

logger = structlog.get_logger("dolake.writer")


class Recaller:
    """For one writer half, `host`: it knows the logs."""

    def __init__(self, runtime: Runtime, disk: Disk, host: WriterService) -> None:
        self._runtime, self._disk, self._host = runtime, disk, host

    async def recall(self, table: Table, records: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], EventChunk]:
        """By log and offset the table's events of these records, redacted; asks until the disk answers."""
        found: dict[tuple[str, int], EventChunk] = {}
        bounds = table.side.bounds if table.side is not None else {}
        parked = {(log_id, offset) for log_id, offset in records if offset < bounds.get(log_id, 0)}
        while True:
            try:
                if parked:
                    await self._from_side(table, parked, found)
                await self._from_logs(table, set(records) - set(found), found)
            except (DolakeError, OSError) as error:
                logger.warning("cannot read again what is not committed", table=str(table.name), reason=str(error))
            else:
                return found
            await self._runtime.clock.sleep(RETRY_S)

    async def _from_logs(self, table: Table, records: Collection[tuple[str, int]], found: dict[tuple[str, int], EventChunk]) -> None:
        readers: dict[str, LogReader] = {}
        try:
            for log_id, offset in sorted(records):
                if log_id not in readers:
                    readers[log_id] = await self._runtime.tasks.run(LogReader, self._disk, self._host.tails[log_id].directory)
                routed = await self._runtime.tasks.run(read_routed, readers[log_id], self._host.names, offset, 1)
                _take(table, routed[0], found)
        finally:
            for reader in readers.values():
                reader.close()

    async def _from_side(self, table: Table, records: Collection[tuple[str, int]], found: dict[tuple[str, int], EventChunk]) -> None:
        assert table.side is not None
        position = table.side.first
        while not found.keys() >= set(records) and (parts := await self._runtime.tasks.run(table.side.read, position)):
            for part in parts:
                if (part.record.log_id, part.record.offset) in records:
                    _take(table, reroute(part, table.name), found)
                position = part.position + 1


def _take(table: Table, routed: Routed, found: dict[tuple[str, int], EventChunk]) -> None:
    for name, chunk in routed.chunks:
        if name == table.name:
            found[chunk.log, chunk.offset] = table.reading.redacted(chunk)

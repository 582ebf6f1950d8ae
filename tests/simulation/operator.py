"""Somebody at the console who parks tables and brings them back, whatever goes on; and where parked records are on the platter."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dolake.buffer.parked import decode_parked, side_directory
from dolake.buffer.record import decode_record
from dolake.buffer.segment import parse_name, scan_segment
from dolake.errors import DolakeError, LogCorrupt
from dolake.model import RecordKind, TableName
from dolake.writer.flight import Away
from tests.simulation.disk import Inode, SimDisk
from tests.simulation.halves import WriterHalf
from tests.simulation.sources import TABLES

if TYPE_CHECKING:
    from tests.simulation.world import World

PAUSE_S_MAX = 2.0
RETRY_S = 0.5


class Operator:
    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random
        self._left = world.profile.parkings

    async def run(self) -> None:
        """Parks or brings back a table now and then; once all has healed, brings back what is parked until nothing is."""
        while True:
            await asyncio.sleep(RETRY_S if self._world.is_healed else self._random.uniform(0.0, PAUSE_S_MAX))
            half = self._world.writer
            if half is None or half.service is None or not half.process.alive or half.process.detached:
                continue
            if self._world.is_healed:
                for table in list(half.service.tables.values()):
                    if table.away is Away.PARKED:
                        half.process.spawn(self._do(half, table.name, "unpark"))
            elif self._left:
                self._left -= 1
                name = TableName.parse(self._random.choice(TABLES))
                half.process.spawn(self._do(half, name, self._random.choice(["park", "park", "unpark"])))

    def is_all_here(self) -> bool:
        half = self._world.writer
        if not self._world.profile.parkings:
            return True
        if half is None or half.service is None or not half.process.alive:
            return False
        # One that a park refused midway has left empty goes with the next commit, and none may come.
        return not any(table.away or (table.side and table.side.end > table.side.first) for table in half.service.tables.values())

    async def _do(self, half: WriterHalf, name: TableName, what: str) -> None:
        """As the writer answers a request that came over the control socket."""
        assert half.service is not None
        until = {tail.log_id: tail.position for tail in half.service.tails.values()}
        parking = half.service.parking
        half.process.step(what, str(name))
        try:
            result: dict[str, Any] = await (parking.park(name, until) if what == "park" else parking.unpark(name))
        except (DolakeError, OSError) as error:
            self._world.chaos.count(f"{what} refused")
            half.process.step(f"{what} refused", repr(error))
        except Exception as error:
            self._world.note(f"{what} {name}: {error!r}")
        else:
            self._world.chaos.count(f"tables {what}ed")
            half.process.step(f"{what} done", str(result))


def parked_on_platter(disk: SimDisk, data: str, table: TableName, besides: str = "") -> set[tuple[str, int]]:
    """Log ids and offsets of the records that a table's side log would hold after a power cut; not those of one segment."""
    directory = side_directory(data, table)
    found: set[tuple[str, int]] = set()
    for path, node in disk.durable_names.items():
        if isinstance(node, Inode) and path.startswith(directory + "/") and path != besides:
            found.update(parked_records(path, bytes(node.durable)))
    return found


def parked_records(path: str, data: bytes) -> Iterator[tuple[str, int]]:
    """Log ids and offsets of what a segment of a side log holds; nothing if it is no segment."""
    name = parse_name(path.rsplit("/", 1)[-1])
    frames: list[Any] = []
    if name is not None:
        with contextlib.suppress(LogCorrupt):  # What is valid before the place counts.
            scan_segment(data, path, name, lambda _, frame: frames.append(frame))
    for frame in frames:
        record = decode_record(frame, "", path)
        if record.entry.kind == RecordKind.PARKED:
            original = decode_parked(record, path).record
            yield original.log_id, original.offset

"""Directed scenarios for rules that no random world would touch: each says what breach there is, nothing when all is well."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dolake.buffer.wal import Log, LogSettings
from dolake.errors import LogCorrupt
from dolake.model import Entry, RecordKind
from tests.simulation.disk import DiskDoor, Inode, SimDisk
from tests.simulation.faults import Chaos, Trace
from tests.simulation.loop import Process, SimLoop

DIRECTORY = "/data/log"


def trim_damaged() -> str:
    """A sealed segment has rotted behind its first record. What is asked to go below the next is refused, and stays."""
    loop = SimLoop("trim", trace=Trace())
    try:
        disk = SimDisk(Chaos("trim", {}), "/data")
        door = DiskDoor(disk, Process(loop, "ingest", "trim"))
        log = Log.create(door, DIRECTORY, LogSettings(segment_bytes=512), door.process.runtime.random)
        for sequence in range(12):
            payload = b"%0300d" % sequence
            log.append_group([Entry(RecordKind.BATCH, "a", "", sequence, 1, 0, payload, {"t": 1}, sequence)])
        path, node = next((path, node) for path, node in sorted(disk.names.items()) if path.endswith(".log"))
        assert isinstance(node, Inode)
        node.cached[len(node.cached) * 2 // 3] ^= 1
        try:
            log.trim(log.synced_end)
        except LogCorrupt:
            return "" if path in disk.names else f"I6: {path} is damaged, was refused, and is gone"
        return f"I6: {path} is damaged and was trimmed"
    finally:
        loop.close()


SCENARIOS: Mapping[str, Callable[[], str]] = {"a trim meets a damaged segment": trim_damaged}

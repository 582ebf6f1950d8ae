"""A writer that was replaced and goes on: what it still commits spoils nothing of its successor's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dolake.buffer.wal import Log, LogSettings
from dolake.model import TableName
from dolake.storage.disk import LocalDisk
from tests.verify.test_lake import breaches
from tests.writer.half import Hand, half, other_writer, until

T = TableName.parse("t")


def test_a_late_commit_from_another_log_counts(tmp_path: Path) -> None:
    """The successor has loaded the table before, and its own flush holds nothing of that log: only the counts are at odds."""

    async def work() -> None:
        directory = str(tmp_path / "log2")
        async with half(tmp_path) as old:
            log = Log.create(LocalDisk(), directory, LogSettings(), old.runtime.random)
            old.hand.insert({"id": 0})
            assert (await old.flush())["success"]
            Hand(log).insert({"id": 10}, source="elsewhere")
            async with other_writer(old, log={"directories": [directory]}) as new:
                await until(lambda: T in new.service.tables and new.service.tables[T].memtable.rows == 1)
                old.hand.insert({"id": 1}, {"id": 2})
                assert (await old.flush())["success"]
                result = await new.service.flush(None, {log.log_id: log.synced_end}, timeout_s=10)
                assert result["success"]
                assert sorted(new.values()) == [0, 1, 2, 10]
                assert new.catalog().load_table("default.t").properties["dolake.count.accepted"] == "4"
                assert breaches(tmp_path) == []
            log.close()

    asyncio.run(work())

"""Maintenance beside the writer: what nobody needs goes, nothing else, and the writer goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dolake.compaction.compactor import Rewriter
from dolake.compaction.job import Job, Rewritten
from dolake.failpoints import REGISTRY
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.lake import open_warehouse
from dolake.iceberg.metadata import LoadedTable
from dolake.model import TableName
from tests.writer.half import COLUMNS, Half, half, until
from tests.writer.test_compacting import OFF, T, compact, flushed
from tests.writer.test_dead_letters import breaches
from tests.writer.test_mirrors import delete, insert, notes, run, summary, update

QUIET = {**OFF, "maintenance": {"enabled": False}}


def on_disk(h: Half) -> set[str]:
    folder = h.path / "warehouse" / "default" / "t"
    return {f"file://{path}" for path in folder.rglob("*") if path.is_file()}


def needed(h: Half, base: LoadedTable) -> set[str]:
    """Everything that the table's metadata names, by the product's reader of snapshots, and its older metadata."""
    reader = ContentsReader(open_warehouse(h.settings))
    found = {base.metadata_location, *(entry["metadata-file"] for entry in base.metadata.get("metadata-log") or ())}
    for snapshot in base.metadata["snapshots"]:
        contents = reader.read(snapshot)
        found |= {*contents.metadata, *(file.location for file in contents.files)}
    return found & on_disk(h)


def live_bytes(h: Half) -> int:
    return sum(Path(path.removeprefix("file://")).stat().st_size for path in on_disk(h) if path.endswith(".parquet"))


async def head(h: Half) -> LoadedTable:
    base = await h.service.flusher.load(T)
    assert base is not None
    return base


@pytest.mark.acceptance("AT-65")
def test_after_compaction_and_expiry_the_space_comes_back(tmp_path: Path) -> None:
    """AT-65: a key updated a hundred times in a flush, and in each of ten flushes."""

    async def main() -> None:
        async with half(tmp_path, mode="mirror", snapshots_kept=1, **QUIET) as h:
            h.hand.declare()
            for number in range(10):
                await flushed(h, *(update(key, f"{number} {turn} " + "x" * 500) for turn in range(100) for key in range(20)))
                assert len(notes(h)) == 20
            before = live_bytes(h)
            await compact(h)
            done = await h.service.maintaining.maintain(T)
            assert live_bytes(h) <= before * 0.2
            assert done["purged"]["objects"] > 10
            assert notes(h) == dict.fromkeys(range(20), "9 99 " + "x" * 500)
            assert on_disk(h) == needed(h, await head(h))
            assert breaches(h) == []
            await flushed(h, delete(3), update(4, "last"))
            assert notes(h)[4] == "last"
            assert breaches(h) == []

    run(main())


def test_nothing_of_a_retained_snapshot_goes_and_what_a_failed_try_left_does(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="mirror", snapshots_kept=3, **QUIET) as h:
            h.hand.declare()
            for number in range(8):
                await flushed(h, *(update(key, f"at {number}") for key in range(number, number + 5)))
            base = await head(h)
            stray = f"{base.location}/data/e{base.owner_epoch:08x}-{'0' * 8}-0000-4000-8000-{'0' * 12}-00000000.parquet"
            foreign = f"{base.location}/data/part-0.parquet"
            store = open_warehouse(h.settings)
            store.put(stray, b"of a try that failed")
            store.put(foreign, b"somebody else's")
            rows = {
                one["snapshot-id"]: h.catalog().load_table("default.t").scan(snapshot_id=one["snapshot-id"]).to_arrow()
                for one in base.metadata["snapshots"]
            }
            done = await h.service.maintaining.maintain(T)
            assert done["left"] == 1
            assert stray not in on_disk(h)
            assert foreign in on_disk(h)
            assert on_disk(h) - {foreign} == needed(h, await head(h))
            for snapshot_id, before in rows.items():
                assert h.catalog().load_table("default.t").scan(snapshot_id=snapshot_id).to_arrow().sort_by("id") == before.sort_by("id")
            told = summary(h)
            assert told["dolake.maintenance"] == "claim"
            assert len((await head(h)).metadata["snapshots"]) == len(rows) + 1  # The claim takes nobody's place.

    run(main())


def test_it_waits_for_a_rewrite_whose_files_nothing_names_yet(tmp_path: Path) -> None:
    """Or it would purge what is about to land."""
    purging: list[asyncio.Task[object]] = []

    def around(h: Half, rewriter: Rewriter) -> Rewriter:
        async def rewrite(job: Job) -> Rewritten:
            rewritten = await rewriter(job)
            purging.append(asyncio.ensure_future(h.service.maintaining.maintain(T)))
            await asyncio.sleep(0)
            return rewritten

        return rewrite

    async def main() -> None:
        async with half(tmp_path, mode="mirror", around=around, snapshots_kept=1, **QUIET) as h:
            h.hand.declare()
            for number in range(5):
                await flushed(h, insert(number, "x"))
            done = await compact(h)
            assert [one["state"] for one in done["runs"]] == ["done"]
            await asyncio.gather(*purging)
            assert notes(h) == dict.fromkeys(range(5), "x")
            assert breaches(h) == []

    run(main())


def test_it_runs_by_itself_and_leaves_an_idle_table_alone(tmp_path: Path) -> None:
    """A claim makes nothing that the next look would have to claim for: a table at rest keeps its history."""

    async def main() -> None:
        maintenance = {"interval_s": 0.02, "grace_s": 0.1}
        async with half(tmp_path, mode="mirror", snapshots_kept=3, maintenance=maintenance, **OFF) as h:
            h.hand.declare()
            for number in range(8):
                await flushed(h, insert(number, "x"))
            await until(lambda: "dolake_maintenance_purged_objects_total" in h.service.metrics.values())
            REGISTRY.arm("purge.listed", "100000*off")
            try:
                heads: list[int | None] = []
                for _ in range(3):  # The first may still be of what the last flush has made unneeded.
                    looks = REGISTRY.hits["purge.listed"]
                    await until(lambda looks=looks: REGISTRY.hits["purge.listed"] > looks + 10)
                    heads.append((await head(h)).head_id)
            finally:
                REGISTRY.disarm()
            assert heads[1] == heads[2]
            assert notes(h) == dict.fromkeys(range(8), "x")

    run(main())


def test_dead_letters_are_maintained_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="mirror", snapshots_kept=1, **QUIET) as h:
            h.hand.declare(columns=COLUMNS)
            for number in range(4):
                await flushed(h, insert(number, "x"), {"operation": "INSERT", "after": {"id": f"no number {number}"}})
            name = TableName("dolake", "dead_letters")
            done = await h.service.maintaining.maintain(name)
            assert done["purged"]["objects"] > 0
            await flushed(h, {"operation": "INSERT", "after": {"id": "no number either"}})
            assert len(h.catalog().load_table("dolake.dead_letters").scan().to_arrow()) == 5
            assert breaches(h) == []

    run(main())

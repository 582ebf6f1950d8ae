"""TTLs in the writer: what has expired leaves, and nothing else; the index, the counts and verify follow."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dolake.cli.maintenance import _in_words
from dolake.clock import SystemClock, real_runtime
from dolake.failpoints import REGISTRY, FailpointRaised
from dolake.iceberg.lake import open_warehouse
from dolake.iceberg.plan import CommitPolicy
from dolake.model import TableName
from dolake.storage.disk import LocalDisk
from dolake.verify import Compared
from dolake.writer.maintain_here import Cleaning, look_here, purge_here
from tests.iceberg.lake import duckdb_with_iceberg
from tests.verify.damage import Hands, opened, verified
from tests.writer.half import Half, half, letters, settings_of, until
from tests.writer.test_compacting import T, compact, flushed
from tests.writer.test_dead_letters import breaches
from tests.writer.test_maintaining import QUIET, on_disk
from tests.writer.test_mirrors import TRUNCATE, Event, counts, delete, run, summary

MINUTE_S, DAY_S = 60, 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COLUMNS = [
    {"name": "id", "type": "long", "nullable": False},
    {"name": "at", "type": "timestamptz", "nullable": True},
    {"name": "note", "type": "string", "nullable": True},
]


@dataclass
class Passing(SystemClock):
    """A clock for which time passes as a test says, beside what passes by itself; and whose wall clock alone may be set.

    It begins early in some day: no test runs over the end of an hour by chance.
    """

    passed_s: float = 0.0
    set_ahead_s: float = 0.0

    def __post_init__(self) -> None:
        self.passed_s += DAY_S + 300 - super().now_ms() / 1000 % DAY_S

    def now_ms(self) -> int:
        return super().now_ms() + round((self.passed_s + self.set_ahead_s) * 1000)

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.passed_s


def ttl(age: str = "60 s", *, column: str = "at", mode: str = "mirror", **more: Any) -> dict[str, Any]:
    return {"mode": mode, "tables": {"default.t": {"ttl": {"column": column, "age": age}, **more}}, **QUIET}


def moment(clock: SystemClock, ago_s: float) -> datetime:
    return datetime.fromtimestamp(clock.now_ms() / 1000, UTC) - timedelta(seconds=ago_s)


def row(key: int, at: datetime | None, note: str = "x") -> Event:
    return {"operation": "INSERT", "after": {"id": key, "at": None if at is None else at.isoformat(), "note": note}}


def found(h: Half) -> dict[int, str]:
    """Key → note, as PyIceberg and DuckDB read them; fails where the two differ, or a key has two rows."""
    loaded = h.catalog().load_table("default.t")
    rows = [(one["id"], one["note"], one["at"]) for one in loaded.scan().to_arrow().to_pylist()]
    sql = f"""SELECT id, note, epoch_us("at") FROM iceberg_scan('{loaded.metadata_location}') ORDER BY id"""
    other = duckdb_with_iceberg().execute(sql).fetchall()
    assert [(key, note, None if at is None else (at - EPOCH) // timedelta(microseconds=1)) for key, note, at in sorted(rows)] == other
    assert len({key for key, _, _ in rows}) == len(rows)
    return {key: note for key, note, _ in rows}


async def expire(h: Half) -> dict[str, Any]:
    done = await h.service.expiring.expire(T)
    assert done is not None
    assert not done["put_off"], done
    return done


def sound(h: Half, mode: str = "mirror") -> None:
    """Nothing that verify could say, nor by decoding the log once more."""
    assert breaches(h) == []
    said = verified(h.path, mode=mode, against_log=Compared())
    assert said.breaches == [], said.text


@pytest.mark.acceptance("AT-66")
def test_rows_go_once_they_are_older_than_their_age_and_no_others(tmp_path: Path) -> None:
    """AT-66: 60 s, on a clock of the test's own; then compaction and a purge, and their bytes are gone."""

    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, snapshots_kept=1, **ttl()) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, delete(0))  # The first snapshot of an hour is kept by a tag: it had better be this one.
            await flushed(h, *(row(key, moment(clock, 30), "old " + "o" * 200) for key in range(50)), row(98, None))
            await flushed(h, *(row(key, moment(clock, -30 if key % 2 else 30)) for key in range(100, 140)))
            before = found(h)
            assert (await expire(h))["rows"] == 0
            assert found(h) == before
            clock.passed_s += 40
            assert await expire(h) == {"rows": 70, "files": 0, "put_off": ""}
            left = {key: note for key, note in before.items() if key == 98 or (key >= 100 and key % 2)}
            assert found(h) == left
            assert (counts(h)["expired"], counts(h)["accepted"]) == (70, 92)
            told = summary(h)
            assert (told["operation"], told["dolake.maintenance"], told["dolake.count.expired"]) == ("delete", "ttl", "70")
            sound(h)
            assert h.service.metrics.values()["dolake_ttl_expired_rows_total"] == [[["default.t"], 70.0]]
            await compact(h)
            await h.service.maintaining.maintain(T)
            store = open_warehouse(h.settings)
            assert not any(b"old o" in store.get(path) for path in on_disk(h) if path.endswith(".parquet"))
            assert found(h) == left
            sound(h)

    run(main())


@pytest.mark.acceptance("AT-66")
@pytest.mark.parametrize("transform", ["day(at)", "hour(at)", "month(at)", "year(at)"])
@pytest.mark.parametrize("mode", ["mirror", "changelog"])
def test_whole_partitions_go_without_a_file_being_read_or_written(tmp_path: Path, transform: str, mode: str) -> None:
    """AT-66: 7 days, and partitions by time."""

    async def main() -> None:
        clock = Passing()
        age, passes = {"day(at)": (7, 0), "hour(at)": (7, 0), "month(at)": (62, 81), "year(at)": (800, 1187)}[transform]
        async with half(tmp_path, clock=clock, snapshots_kept=1, **ttl(f"{age} d", mode=mode, partition_by=[transform])) as h:
            h.hand.declare(columns=COLUMNS)
            for ago in range(0, 30, 3):
                await flushed(h, *(row(1000 * ago + key, moment(clock, ago * DAY_S), f"{ago} days") for key in range(5)))
            if mode == "mirror":
                await flushed(h, delete(27_000), delete(3), row(27_001, moment(clock, 0), "fresh"))
            clock.passed_s += passes * DAY_S
            files = h.catalog().load_table("default.t").inspect.files().num_rows
            hits = REGISTRY.hits["ttl.read"]
            REGISTRY.arm("ttl.read", "off")
            try:
                done = await h.service.expiring.expire(T)
            finally:
                REGISTRY.disarm()
            assert done is not None
            told = summary(h)
            assert done["files"] > 0
            assert "added-data-files" not in told
            assert int(told["deleted-data-files"]) == done["files"]
            if transform in ("day(at)", "hour(at)"):
                assert REGISTRY.hits["ttl.read"] - hits <= 1  # The one partition that the cutoff lies in.
            assert h.catalog().load_table("default.t").inspect.files().num_rows < files
            sound(h, mode)

    run(main())


@pytest.mark.parametrize("mode", ["mirror", "changelog"])
def test_a_file_of_expired_rows_alone_is_told_by_its_bounds(tmp_path: Path, mode: str) -> None:
    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, **ttl(mode=mode)) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, *(row(key, moment(clock, 0)) for key in range(10)))
            clock.passed_s += 50
            await flushed(h, *(row(key, moment(clock, 0)) for key in range(10, 20)))
            clock.passed_s += 20
            REGISTRY.arm("ttl.read", "raise")
            try:
                assert await expire(h) == {"rows": 10, "files": 1, "put_off": ""}
            finally:
                REGISTRY.disarm()
            assert sorted(one["id"] for one in h.catalog().load_table("default.t").scan().to_arrow().to_pylist()) == list(range(10, 20))
            assert summary(h)["total-delete-files"] == "0"
            sound(h, mode)

    run(main())


def test_a_key_whose_row_has_expired_comes_again_as_a_new_one(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, **ttl()) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, *(row(key, moment(clock, 0), "first") for key in range(6)), row(50, moment(clock, -600), "stays"))
            await flushed(h, delete(5))
            clock.passed_s += 70
            assert (await expire(h))["rows"] == 5
            unchanged = {"operation": "UPDATE", "after": {"id": 1, "at": moment(clock, 0).isoformat()}, "metadata": {"unchanged": ["note"]}}
            kept = {"operation": "UPDATE", "after": {"id": 50, "at": moment(clock, 0).isoformat()}, "metadata": {"unchanged": ["note"]}}
            await flushed(h, row(0, moment(clock, 0), "again"), unchanged, kept, delete(2), row(3, moment(clock, 200), "late"))
            assert found(h) == {0: "again", 50: "stays", 3: "late"}
            assert [one["reason"] for one in letters(h)] == ["unchanged_without_row"]
            told = counts(h)
            assert (told["expired"], told["removed"], told["dead-lettered"]) == (5, 2, 1)
            assert "dolake_index_repairs_total" not in h.service.metrics.values()
            sound(h)
            assert (await expire(h))["rows"] == 1  # What comes late has expired already.
            assert found(h) == {0: "again", 50: "stays"}
            sound(h)

    run(main())


def test_both_the_mirror_and_its_changelog_expire_and_verify_says_what_it_cannot(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, **ttl(mode="both")) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, *(row(key, moment(clock, 0)) for key in range(10)), *(row(key, moment(clock, -600)) for key in range(10, 20)))
            clock.passed_s += 70
            await h.service.expiring.expire(T)
            sound(h, "both")  # The changelog has what the mirror has no more.
            await h.service.expiring.expire(TableName.in_lake("default.t__changes"))
            assert h.catalog().load_table("default.t__changes").scan().to_arrow().num_rows == 10
            sound(h, "both")
            notes = verified(h.path, mode="both").notes
            assert any("have expired" in str(note) for note in notes)

    run(main())


def test_by_its_own_columns_the_changelog_alone_expires(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, **ttl("30 d", column="_cdc_timestamp", mode="both")) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, *(row(key, moment(clock, 0)) for key in range(10)))
            await h.service.expiring.tick()
            assert len(found(h)) == 10
            assert h.catalog().load_table("default.t__changes").scan().to_arrow().num_rows == 0
            assert await h.service.expiring.expire(T) is None
            sound(h, "both")

    run(main())


def test_verify_finds_a_young_row_that_is_lost_though_as_many_may_have_expired(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        for mode in ("mirror", "changelog"):
            async with half(tmp_path / mode, clock=clock, **ttl(mode=mode)) as h:
                h.hand.declare(columns=COLUMNS)
                await flushed(h, *(row(key, moment(clock, 0)) for key in range(4)), *(row(key, moment(clock, -600)) for key in range(4, 9)))
                clock.passed_s += 70
                assert (await expire(h))["rows"] == 4

    run(main())
    for mode in ("mirror", "changelog"):
        path = tmp_path / mode
        with opened(path) as (store, catalog):
            hands = Hands(store, catalog)
            file, position, _ = next(one for one in hands.rows() if one[2]["id"] == 7)
            hands.commit(deletes=[hands.put_deletes(file.location, position)])
            hands.change_metadata(lambda metadata: metadata["properties"].update({"dolake.count.expired": "5"}))
        assert verified(path, mode=mode).breaches == []
        said = verified(path, mode=mode, against_log=Compared())
        assert [breach.invariant for breach in said.breaches] == ["I8" if mode == "mirror" else "I7"], said.text


def test_a_column_that_tells_no_moment_is_refused_by_name(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        for column, rule in (("note", "is a string"), ("when", "must name a column of the table")):
            async with half(tmp_path / column, clock=clock, **ttl(column=column)) as h:
                h.hand.declare(columns=COLUMNS)
                await flushed(h, row(1, moment(clock, 600)))
                done = await h.service.expiring.expire(T)
                assert done is not None
                assert rule in done["put_off"]
                assert "default.t: ttl.column must" in done["put_off"]
                await h.service.expiring.tick()
                assert found(h) == {1: "x"}

    run(main())


def test_a_clock_that_is_set_ahead_is_not_believed_before_it_has_stood_by_it(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, **ttl("30 min")) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, row(1, moment(clock, 0)), row(2, moment(clock, -10 * DAY_S)))
            clock.set_ahead_s = 5 * DAY_S
            await flushed(h, row(3, moment(clock, 0)))  # By now the table's newest snapshot is of then, too.
            for _ in range(50):
                await h.service.expiring.tick()
                clock.passed_s += 60
            assert found(h).keys() == {1, 2, 3}
            done = await h.service.expiring.expire(T)
            assert done is not None
            assert "set ahead" in done["put_off"]
            clock.set_ahead_s = 0  # Set right again: nothing has gone, and what is due goes as soon as its snapshots are past.
            done = await h.service.expiring.expire(T)
            assert done is not None
            assert "newest snapshot" in done["put_off"]
            clock.set_ahead_s = 5 * DAY_S
            for _ in range(70):
                await h.service.expiring.tick()
                clock.passed_s += 60
            assert found(h).keys() == {2}
            sound(h)

    run(main())


def test_after_a_start_an_idle_table_waits_until_the_daemon_has_run_for_an_hour(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, **ttl("7 d")) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, row(1, moment(clock, 0)))
        clock.passed_s += 30 * DAY_S
        async with half(tmp_path, clock=clock, **ttl("7 d")) as h:
            done = await h.service.expiring.expire(T)
            assert done is not None
            assert "nothing was committed to it since" in done["put_off"]
            assert found(h) == {1: "x"}
            clock.passed_s += 3700
            assert (await expire(h))["rows"] == 1
            assert found(h) == {}
            sound(h)

    run(main())


@pytest.mark.parametrize("point", ["ttl.before_commit", "ttl.after_commit", "commit.before_swap", "commit.after_swap"])
@pytest.mark.parametrize("mode", ["mirror", "changelog"])
def test_cut_short_anywhere_it_goes_on_and_every_row_is_counted_once(tmp_path: Path, point: str, mode: str) -> None:
    async def main() -> None:
        clock = Passing()
        sections = ttl(mode=mode)
        async with half(tmp_path, clock=clock, stop_cleanly=False, **sections) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, *(row(key, moment(clock, 0)) for key in range(5)))
            await flushed(h, *(row(key, moment(clock, 0 if key % 2 else -600)) for key in range(5, 15)))
            clock.passed_s += 70
            REGISTRY.arm(point, "1*raise")
            try:
                if point.startswith("ttl."):
                    with pytest.raises(FailpointRaised):
                        await h.service.expiring.expire(T)
                else:
                    await expire(h)  # A lost answer, or none: the commit loop looks what came of it.
            finally:
                REGISTRY.disarm()
            await flushed(h, row(100, moment(clock, -600)))  # In the same writer, that does not know what has landed.
            await expire(h)
            assert (counts(h)["expired"], counts(h)["accepted"]) == (10, 16)
            sound(h, mode)
        async with half(tmp_path, clock=clock, **sections) as h:
            await flushed(h, row(101, moment(clock, -600)), source="s2")
            assert (await expire(h))["rows"] == 0
            ids = sorted(one["id"] for one in h.catalog().load_table("default.t").scan().to_arrow().to_pylist())
            assert ids == [6, 8, 10, 12, 14, 100, 101]
            sound(h, mode)

    run(main())


@pytest.mark.parametrize("mode", ["mirror", "changelog"])
def test_rows_of_others_expire_too_and_are_accounted_for(tmp_path: Path, mode: str) -> None:
    async def main() -> None:
        clock = Passing()
        clock.passed_s = 0.0  # Theirs is the real one.
        async with half(tmp_path, clock=clock, **ttl(mode=mode)) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, *(row(key, moment(clock, 0 if key % 2 else -600)) for key in range(6)))
            theirs = h.catalog().load_table("default.t")
            like = {**theirs.scan().to_arrow().to_pylist()[0], **({"_cdc_log": "of others"} if mode == "changelog" else {})}
            times = {key: moment(clock, 0 if key % 2 else -600) for key in range(100, 106)}
            rows = [{**like, "id": key, "at": at, "note": "theirs"} for key, at in times.items()]
            theirs.append(pa.Table.from_pylist(rows, schema=theirs.schema().as_arrow()))
            clock.passed_s += 70
            assert (await expire(h))["rows"] == 6
            assert found(h) == {key: "theirs" if key > 99 else "x" for key in (0, 2, 4, 100, 102, 104)}
            if mode == "mirror":
                assert (counts(h)["expired"], counts(h)["foreign"]) == (6, 6)
            assert breaches(h) == []
            await flushed(h, *([row(0, moment(clock, -600), "again")] if mode == "mirror" else []), row(7, moment(clock, -600)))
            assert breaches(h) == []

    run(main())


def test_what_others_did_before_a_compaction_is_counted_by_the_flush_after_it(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        clock.passed_s = 0.0  # Theirs is the real one.
        async with half(tmp_path, clock=clock, **ttl()) as h:
            h.hand.declare(columns=COLUMNS)
            for key in range(4):
                await flushed(h, row(key, moment(clock, 0)))
            theirs = h.catalog().load_table("default.t")
            rows = [{"id": 100, "at": moment(clock, 0), "note": "theirs"}]
            theirs.append(pa.Table.from_pylist(rows, schema=theirs.schema().as_arrow()))
            await h.service.compacting.compact(T, dry_run=False)
            assert breaches(h) == []
            await flushed(h, row(5, moment(clock, 0)))
            await compact(h)
            assert counts(h)["foreign"] == 1
            assert breaches(h) == []

    run(main())


@pytest.mark.parametrize("rewind", [False, True])
@pytest.mark.parametrize("mode", ["mirror", "changelog"])
def test_a_rollback_brings_expired_rows_back_and_they_expire_again(tmp_path: Path, mode: str, rewind: bool) -> None:
    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, **ttl(mode=mode)) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, *(row(key, moment(clock, 0)) for key in range(5)), row(50, moment(clock, -600)))
            before = h.catalog().load_table("default.t").current_snapshot()
            assert before is not None
            await flushed(h, row(51, moment(clock, -600)))
            clock.passed_s += 70
            assert (await expire(h))["rows"] == 5
            await flushed(h, row(52, moment(clock, -600)))
            await h.service.rolling_back.roll_back(T, before.snapshot_id, rewind, h.until())
            assert (await h.flush())["success"]
            assert found(h).keys() == ({0, 1, 2, 3, 4, 50, 51, 52} if rewind else {0, 1, 2, 3, 4, 50})
            sound(h, mode)
            assert (await expire(h))["rows"] == 5
            assert counts(h)["expired"] == (5 if rewind else 10)
            sound(h, mode)
            await flushed(h, row(53, moment(clock, -600)))
            assert found(h).keys() == ({50, 51, 52, 53} if rewind else {50, 53})
            sound(h, mode)

    run(main())


def test_without_a_daemon_it_is_shown_and_goes_before_the_purge(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        sections = ttl()
        async with half(tmp_path, clock=clock, **sections) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, *(row(key, moment(clock, 0)) for key in range(5)))
            await flushed(h, *(row(key, moment(clock, 0 if key % 2 else -600)) for key in range(5, 15)))
        clock.passed_s += 70
        with opened(tmp_path) as (store, catalog):
            runtime = replace(real_runtime(), clock=clock)
            settings = settings_of(tmp_path, **sections)
            cleaning = Cleaning(runtime, LocalDisk(), settings, catalog, store, CommitPolicy(snapshots_kept=1), on_trouble=print)
            looked = await look_here(cleaning, T)
            assert looked["expired"] == {"rows": 10, "files": 1, "put_off": ""}
            assert "10 rows would expire, 1 files with all of theirs; " in _in_words(looked)
            assert len(found(h)) == 15
            done = await purge_here(cleaning, T)
            assert done["expired"] == {"rows": 10, "files": 1, "put_off": ""}
            assert found(h).keys() == {6, 8, 10, 12, 14}
            clock.passed_s += 3 * DAY_S
            put_off = await purge_here(cleaning, T)
            assert "nothing was committed to it since" in put_off["expired"]["put_off"]
            sound(h)
        async with half(tmp_path, clock=clock, **sections) as h:  # The index that it saved is brought to what is there now.
            await flushed(h, delete(6), row(0, moment(clock, -600), "again"), source="s2")
            assert found(h) == {0: "again", **dict.fromkeys((8, 10, 12, 14), "x")}
            sound(h)

    run(main())


def test_it_runs_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        sections = {**ttl(), "maintenance": {"ttl_interval_s": 0.02, "interval_s": 3600}}
        async with half(tmp_path, clock=clock, **sections) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, row(1, moment(clock, 0)), row(2, moment(clock, -600)))
            clock.passed_s += 70
            await until(lambda: "dolake_ttl_expired_rows_total" in h.service.metrics.values())
            assert found(h) == {2: "x"}
            clock.passed_s += 10_000
            await until(lambda: h.service.metrics.values()["dolake_ttl_removed_files_total"] == [[["default.t"], 1]])
            assert found(h) == {}
            sound(h)

    run(main())


def test_a_file_that_has_been_looked_into_is_not_read_again_while_nothing_of_it_can_expire(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Passing()
        async with half(tmp_path, clock=clock, **ttl()) as h:
            h.hand.declare(columns=COLUMNS)
            await flushed(h, row(1, moment(clock, 0)), row(2, moment(clock, -600)), row(3, None))
            clock.passed_s += 70
            assert (await expire(h))["rows"] == 1
            REGISTRY.arm("ttl.read", "raise")
            try:
                for _ in range(5):
                    clock.passed_s += 30
                    assert (await expire(h))["rows"] == 0
            finally:
                REGISTRY.disarm()
            clock.passed_s += 600
            assert (await expire(h))["rows"] == 1
            assert found(h) == {3: "x"}
            sound(h)

    run(main())


class Oracle:
    """What a dict makes of a mirror's events and of its TTL."""

    def __init__(self, clock: Passing, age_s: float) -> None:
        self.clock, self.age_s = clock, age_s
        self.rows: dict[int, tuple[datetime | None, str]] = {}

    def apply(self, event: Event) -> None:
        if event["operation"] == "TRUNCATE":
            self.rows.clear()
            return
        key = (event.get("after") or event["before"])["id"]
        if "before" in event and "after" in event:
            self.rows.pop(event["before"]["id"], None)
        if event["operation"] == "DELETE":
            self.rows.pop(key, None)
        else:
            at = event["after"]["at"]
            self.rows[key] = (None if at is None else datetime.fromisoformat(at), event["after"]["note"])

    def expire(self, cutoff: datetime) -> None:
        self.rows = {key: one for key, one in self.rows.items() if one[0] is None or one[0] >= cutoff}

    def is_due(self, at: datetime | None) -> bool:
        return at is not None and at < moment(self.clock, self.age_s)

    @property
    def notes(self) -> dict[int, str]:
        return {key: note for key, (_, note) in self.rows.items()}


def events(random_: random.Random, clock: Passing, turn: int) -> list[Event]:
    made: list[Event] = []
    for number in range(random_.randrange(1, 12)):
        key = random_.randrange(30)
        at = None if random_.random() < 0.1 else moment(clock, random_.choice([-40, 0, 5, 30, 55, 90, 200]))
        kind = random_.random()
        if kind < 0.15:
            made.append(delete(key))
        elif kind < 0.25:
            old = random_.randrange(30)
            if old != key:
                made.append({**row(key, at, f"{turn} {number} moved"), "operation": "UPDATE", "before": {"id": old}})
        elif kind < 0.27:
            made.append(TRUNCATE)
        else:
            made.append(row(key, at, f"{turn} {number}"))
    return made or [delete(0)]


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_with_runs_between_flushes_are_what_a_dict_makes_of_them(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        clock, random_ = Passing(), random.Random(seed)
        more = {"partition_by": random_.choice([["hour(at)"], ["bucket(3, id)"], []])}
        oracle = Oracle(clock, MINUTE_S)
        async with half(tmp_path, clock=clock, snapshots_kept=5, **ttl(**more)) as h:
            h.hand.declare(columns=COLUMNS)
            for turn in range(12):
                made = events(random_, clock, turn)
                await flushed(h, *made)
                for event in made:
                    oracle.apply(event)
                clock.passed_s += random_.choice([0, 1, 20, 61])
                if random_.random() < 0.3:
                    point = random_.choice(["ttl.before_commit", "ttl.after_commit"])
                    REGISTRY.arm(point, "1*raise")
                    with contextlib.suppress(FailpointRaised):
                        await h.service.expiring.expire(T)
                    REGISTRY.disarm()
                    # It may have landed, and nobody here knows: what follows goes on from there.
                    oracle.rows = {key: one for key, one in oracle.rows.items() if key in found(h) or not oracle.is_due(one[0])}
                if random_.random() < 0.6:
                    before = moment(clock, MINUTE_S)
                    await expire(h)
                    after = moment(clock, MINUTE_S)
                    if not any(at is not None and before <= at < after for at, _ in oracle.rows.values()):
                        oracle.expire(before)
                    else:  # A row at the very cutoff, of which the test cannot tell.
                        oracle.rows = {key: one for key, one in oracle.rows.items() if key in found(h)}
                if random_.random() < 0.3:
                    await compact(h)
                if random_.random() < 0.2:
                    await h.service.maintaining.maintain(T)
                    oracle.expire(moment(clock, MINUTE_S))
                assert found(h) == oracle.notes
                sound(h)

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_random_changelogs_lose_what_is_due_and_no_event_else(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        clock, random_ = Passing(), random.Random(seed)
        more = {"partition_by": random_.choice([["day(at)"], []])}
        sent: dict[tuple[int, str], datetime | None] = {}
        async with half(tmp_path, clock=clock, snapshots_kept=5, **ttl(mode="changelog", **more)) as h:
            h.hand.declare(columns=COLUMNS)
            for turn in range(12):
                made = [event for event in events(random_, clock, turn) if event["operation"] == "INSERT"] or [row(0, None, f"{turn}")]
                await flushed(h, *made)
                for after in (event["after"] for event in made):
                    sent[after["id"], after["note"]] = None if after["at"] is None else datetime.fromisoformat(after["at"])
                clock.passed_s += random_.choice([0, 1, 20, 61])
                if random_.random() < 0.6:
                    await expire(h)
                    there = {(one["id"], one["note"]) for one in h.catalog().load_table("default.t").scan().to_arrow().to_pylist()}
                    now = moment(clock, MINUTE_S)
                    assert {one for one, at in sent.items() if at is None or at >= now} <= there <= sent.keys()
                    gone = {one for one in sent if one not in there}
                    assert all((at := sent[one]) is not None and at < now for one in gone)
                    assert all(at is None or at >= now - timedelta(seconds=5) for one, at in sent.items() if one in there)
                    sent = {one: at for one, at in sent.items() if one in there}
                if random_.random() < 0.3:
                    await compact(h)
                sound(h, "changelog")

    run(main())


@pytest.mark.parametrize("mode", ["mirror", "changelog"])
@pytest.mark.parametrize("kind", ["date", "timestamp"])
def test_dates_and_timestamps_without_a_zone_expire_too(tmp_path: Path, kind: str, mode: str) -> None:
    async def main() -> None:
        clock = Passing()
        columns = [COLUMNS[0], {**COLUMNS[1], "type": kind}, COLUMNS[2]]
        async with half(tmp_path, clock=clock, **ttl("2 d", mode=mode)) as h:
            h.hand.declare(columns=columns)
            times = {ago: moment(clock, ago * DAY_S).replace(tzinfo=None) for ago in range(5)}
            said = {ago: (at.date() if kind == "date" else at).isoformat() for ago, at in times.items()}
            await flushed(h, *({"operation": "INSERT", "after": {"id": ago, "at": at, "note": ""}} for ago, at in said.items()))
            await flushed(h, *({"operation": "INSERT", "after": {"id": 10 + ago, "at": said[ago], "note": ""}} for ago in (3, 4)))
            clock.passed_s += 60
            done = await expire(h)
            left = [0, 1, 2] if kind == "date" else [0, 1]
            assert (done["rows"], done["files"]) == (7 - len(left), 1)
            assert sorted(one["id"] for one in h.catalog().load_table("default.t").scan().to_arrow().to_pylist()) == left
            sound(h, mode)

    run(main())

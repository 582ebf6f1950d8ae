"""Mirrors under several sources at once, restarts, and transactions: what they hold at the end, and in every snapshot before."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dolake.model import TransactionMark
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.oracle import Event, Oracle, ledger_event
from tests.harness.source import Source
from tests.harness.traffic import drain, url_of
from tests.harness.waiting import wait_until
from tests.test_real_sources import restarts
from tests.writer.half import Half, half

Row = dict[str, Any]
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def event_of(operation: str, key: int, sequence: int, table: str = "ledger", note: str | None = None) -> Event:
    """`at` tells the sequence."""
    row = {**ledger_event(sequence).row, "id": key, "at": (EPOCH + timedelta(seconds=sequence)).isoformat()}
    return Event(sequence, table, operation, row if note is None else {**row, "note": note})


def as_read(event: Event) -> Row:
    row = event.row
    return {**row, "amount": Decimal(row["amount"]), "at": datetime.fromisoformat(row["at"])}


def by_key(rows: pa.Table) -> dict[int, Row]:
    """Fails where a key has two rows."""
    found = {row["id"]: {**row, "at": row["at"].astimezone(UTC)} for row in rows.to_pylist()}
    assert len(found) == rows.num_rows
    return found


def folded(events: Sequence[Event], rows: dict[int, Row] | None = None) -> dict[int, Row]:
    """What a dict holds after the events."""
    rows = {} if rows is None else rows
    for event in events:
        if event.operation == "DELETE":
            rows.pop(event.row["id"], None)
        else:
            rows[event.row["id"]] = as_read(event)
    return rows


def changes(chance: random.Random, keys: Sequence[int]) -> list[Event]:
    """In the order of `keys` what may happen to each: an insert, updates, a delete, an insert again."""
    living: set[int] = set()
    events = []
    for sequence, key in enumerate(keys):
        operation = "INSERT" if key not in living else "DELETE" if chance.random() < 0.3 else "UPDATE"
        (living.discard if operation == "DELETE" else living.add)(key)
        events.append(event_of(operation, key, sequence))
    return events


@pytest.mark.acceptance("AT-07")
def test_the_order_of_each_key_survives_four_logs_four_partitions_and_three_restarts(tmp_path: Path) -> None:
    """50 keys, 200 changes each, most of them into another partition; killed and started three times."""
    settings = {"DOLAKE_FLUSH_AGE_S": "1", "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "10000"}
    settings["DOLAKE_LOG_DIRECTORIES"] = os.pathsep.join(str(tmp_path / f"disk-{number}") for number in range(4))
    partitions = '[tables."default.ledger"]\npartition_by = ["bucket(4, account)"]\n'
    chance = random.Random(7)
    oracle = Oracle(tmp_path / "journal")
    expected: dict[int, Row] = {}
    with Daemon(tmp_path / "data", settings, mode="mirror", table_settings=partitions) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        sources = [Source(f"source-{number}", oracle).declare("ledger") for number in range(4)]
        for number, source in enumerate(sources):  # Each key belongs to one source: key % 4 says which.
            keys = [key for key in range(50) if key % 4 == number] * 200
            chance.shuffle(keys)
            events = changes(chance, keys)
            folded(events, expected)
            for start in range(0, len(events), 50):
                source.add(events[start : start + 50])

        async def deliver() -> None:
            deliveries = [source.deliver(url_of(daemon)) for source in sources]
            await asyncio.wait_for(asyncio.gather(*deliveries, restarts(daemon, sources, chance)), 180)
            await drain(daemon)

        asyncio.run(deliver())
        assert 20 < len(expected) < 50, "some keys end as deleted"
        assert by_key(lake.read_duckdb("ledger")) == expected
        assert by_key(lake.read_pyiceberg("ledger")) == expected
        table = lake.catalog().load_table("default.ledger")
        assert {next(iter(row["partition"].values())) for row in table.inspect.partitions().to_pylist()} == set(range(4))
        newest: dict[int, datetime] = {}
        for snapshot in table.snapshots()[::4]:
            seen = {key: row["at"] for key, row in by_key(table.scan(snapshot_id=snapshot.snapshot_id).to_arrow()).items()}
            assert {key for key, at in seen.items() if at < newest.get(key, EPOCH)} == set(), "a key went back"
            newest.update(seen)
        verified = daemon.run("verify", deadline_s=120)
        assert verified.returncode == 0, verified.stdout


@dataclass
class Transactions:
    """A source's transactions of 100 rows, each over all its keys; every fifth takes them away."""

    source: str
    keys: range
    number: int = 0
    sent: int = 0

    def batch(self, h: Half) -> bool:
        """A quarter of a transaction; whether it was the last of one."""
        keys = self.keys[self.sent : self.sent + 25]
        self.sent += 25
        last = self.sent == len(self.keys)
        h.hand.change(*map(self._event, keys), source=self.source, transaction=TransactionMark(f"{self.source}-{self.number}", last))
        if last:
            self.number, self.sent = self.number + 1, 0
        return last

    def _event(self, key: int) -> Row:
        if self.number % 5 == 4:
            return {"operation": "DELETE", "before": {"id": key}}
        return {"operation": "UPDATE", "after": {"id": key, "note": f"{self.number}"}}


def assert_no_part(rows: Sequence[Row], of: Transactions) -> str:
    """Of a source's rows there are all, of one transaction, or none; its number, or nothing."""
    here = {row["id"]: row["note"] for row in rows if row["id"] in of.keys}
    assert len(here) in (0, len(of.keys))
    assert len(set(here.values())) <= 1
    return next(iter(here.values()), "")


@pytest.mark.acceptance("AT-58")
def test_no_snapshot_of_a_mirror_shows_a_part_of_a_transaction(tmp_path: Path) -> None:
    """200 transactions of two sources that overlap now and then; flushed and started again in the midst of them."""
    chance = random.Random(58)
    sources = [Transactions("a", range(100)), Transactions("b", range(100, 200))]

    async def work() -> None:
        midst, hand = 0, None
        for part in range(4):
            async with half(tmp_path, mode="mirror", snapshots_kept=1000, stop_cleanly=part % 2 == 0) as h:
                if hand is None:
                    for source in sources:
                        h.hand.declare(source=source.source)
                else:
                    h.hand.sequences, h.hand.numbers = hand.sequences, hand.numbers
                hand = h.hand
                while (left := [one for one in sources if one.number < 25 * (part + 1)]) or any(one.sent for one in sources):
                    begun = [one for one in sources if one.sent]
                    (chance.choice(left) if left and (not begun or chance.random() < 0.3) else begun[0]).batch(h)
                    if part < 3 and not left:
                        break  # The next writer begins in the midst of a transaction.
                    if chance.random() < 0.06:
                        assert (await h.flush())["success"]
                        midst += any(one.sent for one in sources)
        assert midst > 20
        async with half(tmp_path, mode="mirror", snapshots_kept=1000) as h:
            assert (await h.flush())["success"]
            table = h.catalog().load_table("default.t")
            seen = []
            for snapshot in table.snapshots():
                rows = table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().to_pylist()
                seen.append([assert_no_part(rows, source) for source in sources])
            assert len(seen) > 20
            assert len({tuple(one) for one in seen}) > 15
            assert seen[-1] == ["", ""], "the last transaction of each took its rows away"
            numbers = [[int(one) for one in column if one] for column in zip(*seen, strict=True)]
            assert numbers == [sorted(column) for column in numbers]
            assert h.mirrored() == {}

    asyncio.run(work())
    assert [source.number for source in sources] == [100, 100]


@dataclass
class Shared:
    """A daemon that six cases use, a table each; every event in a batch of its own, so that sources mix."""

    daemon: Daemon
    lake: Lake
    oracle: Oracle
    sent: dict[str, list[Event]] = field(default_factory=dict)

    def source(self, table: str, name: str, events: Sequence[Event], *, batch: int = 1) -> Source:
        source = Source(f"{table}-{name}", self.oracle).declare(table)
        for start in range(0, len(events), batch):
            source.add(events[start : start + batch])
        self.sent[source.name] = list(events)
        return source

    def deliver(self, *sources: Source) -> None:
        async def all_at_once() -> None:
            await asyncio.wait_for(asyncio.gather(*(source.deliver(url_of(self.daemon)) for source in sources)), 120)
            await drain(self.daemon)

        asyncio.run(all_at_once())

    def rows(self, table: str) -> dict[int, Row]:
        found = by_key(self.lake.read_duckdb(table))
        assert found == by_key(self.lake.read_pyiceberg(table))
        return found

    def newest(self, table: str) -> dict[int, Row]:
        """Of each key what the changelog beside the mirror has last: there is one log, so its order is that of the commits."""
        every = self.lake.read_pyiceberg(f"{table}__changes").sort_by([("_cdc_offset", "ascending"), ("_cdc_index", "ascending")])
        found = {}
        for row in every.to_pylist():
            values = {name: value for name, value in row.items() if not name.startswith("_cdc_")}
            found[row["id"]] = {**values, "at": row["at"].astimezone(UTC)}
        return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    path = tmp_path_factory.mktemp("shared")
    with Daemon(path / "data", {"DOLAKE_FLUSH_AGE_S": "0.05"}, mode="both") as daemon, Lake(daemon.data) as lake:
        daemon.start()
        yield Shared(daemon, lake, Oracle(path / "journal"))
        verified = daemon.run("verify", deadline_s=120)
        assert verified.returncode == 0, verified.stdout


def ten_by_ten_inserts(lake: Shared, table: str) -> None:
    events = [[event_of("INSERT", 10 * source + n, n, table, f"{source}") for n in range(10)] for source in range(10)]
    lake.deliver(*(lake.source(table, f"{number}", mine) for number, mine in enumerate(events)))
    assert lake.rows(table) == folded([event for mine in events for event in mine])
    assert len(lake.rows(table)) == 100


def five_conflicts_on_one_key(lake: Shared, table: str) -> None:
    events = [[event_of("UPDATE", 7, n, table, f"{source}") for n in range(20)] for source in range(5)]
    lake.deliver(*(lake.source(table, f"{number}", mine) for number, mine in enumerate(events)))
    found = lake.rows(table)
    assert found == lake.newest(table)
    assert found[7] in [as_read(mine[-1]) for mine in events]
    assert len(found) == 1


def five_readers_and_three_writers(lake: Shared, table: str) -> None:
    """Each batch writes all of a writer's keys: a reader sees one batch of each writer, and never an older one than before."""
    events = [
        [event_of("UPDATE", 10 * writer + key, 10 * n + key, table, f"{n}") for n in range(40) for key in range(10)] for writer in range(3)
    ]
    sources = [lake.source(table, f"{number}", mine[:100], batch=10) for number, mine in enumerate(events)]
    reads: list[tuple[int, ...]] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def read() -> None:
        try:
            with Lake(lake.daemon.data) as mine:
                read_on(mine)
        except BaseException as failure:
            failures.append(failure)

    def read_on(mine: Lake) -> None:
        newest = [-1] * 3
        while not over.wait(0.1):
            if mine.snapshots(table):
                rows = by_key(mine.read_duckdb(table))
                for writer in range(3):
                    notes = [row["note"] for key, row in rows.items() if key // 10 == writer]
                    assert len(notes) in (0, 10)
                    assert len(set(notes)) <= 1
                    seen = int(notes[0]) if notes else -1
                    assert seen >= newest[writer]
                    newest[writer] = seen
                reads.append(tuple(newest))

    readers = [threading.Thread(target=read, name=f"reader {number}") for number in range(5)]
    for reader in readers:
        reader.start()
    try:
        for start in range(100, 500, 100):
            lake.deliver(*sources)  # Committed when this returns,
            seen = len(reads)
            wait_until(lambda seen=seen: failures or len(reads) > seen + 5, "readers to look at it")  # and read by somebody.
            for source, mine in zip(sources, events, strict=True):
                for batch in range(start, min(start + 100, len(mine)), 10):
                    source.add(mine[batch : batch + 10])
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert {(number, number, number) for number in (9, 19, 29, 39)} <= set(reads)
    assert lake.rows(table) == folded([event for mine in events for event in mine])
    assert {row["note"] for row in lake.rows(table).values()} == {"39"}


def ten_by_five_updates(lake: Shared, table: str) -> None:
    before = [event_of("INSERT", key, key, table, "before") for key in range(20)]
    lake.deliver(lake.source(table, "before", before, batch=20))
    events = [[event_of("UPDATE", source, n, table, f"{source}:{n}") for n in range(5)] for source in range(10)]
    lake.deliver(*(lake.source(table, f"{number}", mine) for number, mine in enumerate(events)))
    found = lake.rows(table)
    assert found == folded([*before, *(event for mine in events for event in mine)])
    assert [row["note"] for _, row in sorted(found.items())] == [*(f"{key}:4" for key in range(10)), *["before"] * 10]


def ten_by_ten_deletes(lake: Shared, table: str) -> None:
    before = [event_of("INSERT", key, key, table) for key in range(150)]
    lake.deliver(lake.source(table, "before", before, batch=50))
    events = [[event_of("DELETE", 10 * source + n, n, table) for n in range(10)] for source in range(10)]
    lake.deliver(*(lake.source(table, f"{number}", mine) for number, mine in enumerate(events)))
    assert lake.rows(table) == folded(before[100:])


def five_by_five_shared(lake: Shared, table: str) -> None:
    events = [[event_of("UPDATE", n % 5, n, table, f"{source}:{n}") for n in range(25)] for source in range(5)]
    lake.deliver(*(lake.source(table, f"{number}", mine) for number, mine in enumerate(events)))
    found = lake.rows(table)
    assert sorted(found) == list(range(5))
    assert found == lake.newest(table)
    for key, row in found.items():
        assert row in [as_read(mine[20 + key]) for mine in events], "not the last of its source"


CASES: Mapping[str, Callable[[Shared, str], None]] = {
    "inserts": ten_by_ten_inserts,
    "conflicts": five_conflicts_on_one_key,
    "readers": five_readers_and_three_writers,
    "updates": ten_by_five_updates,
    "deletes": ten_by_ten_deletes,
    "shared": five_by_five_shared,
}


@pytest.mark.acceptance("AT-104")
@pytest.mark.parametrize("case", list(CASES))
def test_several_sources_into_one_mirror_at_once(shared: Shared, case: str) -> None:
    CASES[case](shared, case)

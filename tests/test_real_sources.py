"""What a source is promised, against a real `dolake serve`: repeats, gaps, order through restarts."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Event, Oracle, ledger_event
from tests.harness.source import Source, batch_message, connect_message, conversation, schema_message
from tests.harness.traffic import drain, url_of
from tests.harness.waiting import wait_until_async

SETTINGS = {"DOLAKE_FLUSH_AGE_S": "0.3"}


async def send_all(url: str, batches: list[list[Event]], oracle: Oracle | None = None) -> list[dict[str, Any]]:
    """Sends a schema (sequence 1) and the batches (from 2) on one connection; the answers in order."""
    answers = []
    async with conversation(url) as talk:
        assert (await talk.ask(connect_message("s")))["type"] == "status"
        answers.append(await talk.ask(schema_message("s", 1, "ledger")))
        for place, events in enumerate(batches):
            if oracle is not None:
                oracle.sent("s", "", place + 2, events)
            answers.append(await talk.ask(batch_message("s", place + 2, events)))
            if oracle is not None and answers[-1]["type"] == "ack":
                oracle.acked("s", "", place + 2, answers[-1]["status"])
    return answers


@pytest.mark.acceptance("AT-05")
def test_everything_sent_three_times_more_is_acked_and_changes_nothing(tmp_path: Path) -> None:
    """10,000 events again on another connection, again twice after a restart: 30,000 duplicates, 10,000 rows."""
    batches = [[ledger_event(batch * 100 + place) for place in range(100)] for batch in range(100)]
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", SETTINGS) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()
        first = asyncio.run(send_all(ready.cdc, batches, oracle))
        assert {answer["status"] for answer in first} == {"ok"}
        again = asyncio.run(send_all(ready.cdc, batches))
        assert {answer["status"] for answer in again} == {"duplicate"}
        counted = daemon.metrics()["dolake_cdc_duplicate_events_total"]
        assert daemon.stop() == 0
        ready = daemon.start().wait_ready()
        for _ in range(2):
            assert {answer["status"] for answer in asyncio.run(send_all(ready.cdc, batches))} == {"duplicate"}
        assert counted + daemon.metrics()["dolake_cdc_duplicate_events_total"] == 30_000
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)
        assert lake.row_count("ledger") == 10_000


@pytest.mark.acceptance("AT-05")
def test_a_repeat_on_the_same_connection_is_acked_as_duplicate(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", SETTINGS) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()

        async def scenario() -> None:
            async with conversation(ready.cdc) as talk:
                await talk.ask(connect_message("s"))
                message = batch_message("s", 2, [ledger_event(1), ledger_event(2)])
                answers = [await talk.ask(what) for what in (schema_message("s", 1, "ledger"), message, message, message)]
                assert [answer["status"] for answer in answers] == ["ok", "ok", "duplicate", "duplicate"]
                other = await talk.ask(batch_message("s", 2, [ledger_event(1), ledger_event(3)]))
                assert (other["reason"], other["shouldRetry"]) == ("invalid_sequence", False)
            await drain(daemon)

        asyncio.run(scenario())
        assert lake.row_count("ledger") == 2


@pytest.mark.acceptance("AT-06")
def test_a_gap_is_refused_by_name_and_heals_when_it_is_filled(tmp_path: Path) -> None:
    """Sequences 501 to 510 are left out; nothing above 500 is in the lake until they come, also across a restart."""
    oracle = Oracle(tmp_path / "journal")
    batches = [[ledger_event(place)] for place in range(520)]
    with Daemon(tmp_path / "data", SETTINGS) as daemon, Lake(daemon.data) as lake:
        url = daemon.start().wait_ready().cdc
        asyncio.run(send_all(url, batches[:499], oracle))  # the schema is 1: the last batch is 500

        async def skip(url: str) -> dict[str, Any]:
            async with conversation(url) as talk:
                assert (await talk.ask(connect_message("s")))["lastSequence"] == 500
                return await talk.ask(batch_message("s", 511, batches[509]))

        for restart in (False, True):
            if restart:
                daemon.kill()
                url = daemon.start().wait_ready().cdc
            nack = asyncio.run(skip(url))
            assert (nack["type"], nack["reason"], nack["shouldRetry"]) == ("nack", "invalid_sequence", True)
            assert nack["expectedSequence"] == 501
            asyncio.run(drain(daemon))
            assert lake.query(f"SELECT max(_cdc_sequence) FROM iceberg_scan('{lake.metadata_location('ledger')}')") == [(498,)]

        answers = asyncio.run(send_all(url, batches, oracle))
        assert [answer["status"] for answer in answers] == ["duplicate"] * 500 + ["ok"] * 21
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)


@pytest.mark.acceptance("AT-07")
def test_the_order_of_each_key_survives_four_logs_and_three_restarts(tmp_path: Path) -> None:
    """50 keys, 200 changes each, from four sources over four logs, interleaved; killed and started three times."""
    logs = os.pathsep.join(str(tmp_path / f"disk-{number}") for number in range(4))
    chance = random.Random(7)
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", {**SETTINGS, "DOLAKE_LOG_DIRECTORIES": logs}) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        sources = [Source(f"source-{number}", oracle).declare("ledger") for number in range(4)]
        for number, source in enumerate(sources):  # Each key belongs to one source: key % 4 says which.
            keys = [key for key in range(50) if key % 4 == number] * 200
            chance.shuffle(keys)
            events = [change_of(key, sequence) for sequence, key in enumerate(keys)]
            for start in range(0, len(events), 50):
                source.add(events[start : start + 50])

        async def deliver() -> None:
            deliveries = [source.deliver(url_of(daemon)) for source in sources]
            await asyncio.wait_for(asyncio.gather(*deliveries, restarts(daemon, sources, chance)), 120)
            await drain(daemon)

        asyncio.run(deliver())
        assert_lake_equals_oracle(lake, oracle)
        assert len(lake.query(f"SELECT DISTINCT _cdc_log FROM iceberg_scan('{lake.metadata_location('ledger')}')")) == 4
        assert newest_rows(lake) == {key: expected_last(oracle, key) for key in range(50)}


def change_of(key: int, sequence: int) -> Event:
    event = ledger_event(sequence)
    return Event(sequence, "ledger", event.operation, {**event.row, "id": key})


async def restarts(daemon: Daemon, sources: list[Source], chance: random.Random) -> None:
    for part in (1, 2, 3):
        threshold = part * len(sources[0].frames) // 4
        source = chance.choice(sources)
        await wait_until_async(lambda source=source, threshold=threshold: source.acked >= threshold, "traffic between restarts")
        await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)


def newest_rows(lake: Lake) -> dict[int, tuple[int, str]]:
    """The last change of each key as the changelog orders it: (source sequence, operation)."""
    rows = lake.query(
        "SELECT id, max_by((_cdc_sequence, _cdc_operation::VARCHAR), (_cdc_offset, _cdc_index)) "
        f"FROM iceberg_scan('{lake.metadata_location('ledger')}') GROUP BY id"
    )
    return dict(rows)


def expected_last(oracle: Oracle, key: int) -> tuple[int, str]:
    events = [event for batch in oracle.batches.values() for event in batch.events if event.row["id"] == key]
    last = max(events, key=lambda event: event.sequence)
    return last.sequence, last.operation

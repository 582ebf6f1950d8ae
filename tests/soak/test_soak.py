"""A small soak and a small chaos, so that neither can rot; and that their judge would say so if something were wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.waiting import wait_until_async
from tests.soak.engine import World, run_chaos, run_soak, world
from tests.soak.judging import judge
from tests.soak.resources import MIB, slope
from tests.soak.troubles import FAILING, KILLS, NETWORK, STORE, Break, Fail, Kill, Stop, in_order, plan


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, seed=3, sources=3, pause_s=0.02) as place:
        yield place


@pytest.mark.acceptance("AT-117")
def test_fifteen_seconds_of_trouble_change_nothing(small: World) -> None:
    outcome = asyncio.run(run_chaos(small, 15))
    assert outcome.breaches == []
    assert outcome.events > 100
    assert outcome.troubles == sum(outcome.counts.values()) > 3


@pytest.mark.acceptance("AT-111", "AT-69")
def test_a_soak_goes_through_trouble_a_schema_change_and_calm(small: World) -> None:
    outcome = asyncio.run(run_soak(small, 9))
    assert outcome.breaches == []
    assert outcome.rounds >= 3
    assert all(writer.has_extra for writer in small.writers)
    assert {"ingest_grown_mib", "writer_grown_mib", "log_mib_max"} <= outcome.figures.keys()


def test_a_row_that_is_lost_doubled_or_changed_is_told(small: World) -> None:
    """The judge judges what it is told was sent: told otherwise, it finds the difference in the same tables, by both readers."""
    (writer, *_), batches = small.writers, small.oracle.batches
    del small.writers[1:]
    writer.declare()

    async def some() -> None:
        running = asyncio.get_running_loop().create_task(writer.run(small.url))
        await wait_until_async(lambda: writer.source.acked > 10, "some batches to be acked")
        writer.stopping = True
        await running

    asyncio.run(some())
    assert small.daemon.run("flush").returncode == 0
    assert list(judge(small.lake, small.oracle, [writer])) == []
    key = min(writer.rows)
    kept, writer.rows[key] = writer.rows[key], {**writer.rows[key], "account": "nobody's"}
    assert len([breach for breach in judge(small.lake, small.oracle, [writer]) if "account" in breach]) == 2
    del writer.rows[key]
    assert len([breach for breach in judge(small.lake, small.oracle, [writer]) if f"key {key} is there" in breach]) == 2
    writer.rows[key] = kept
    writer.rows[-1] = {**kept, "id": -1}
    assert len([breach for breach in judge(small.lake, small.oracle, [writer]) if "key -1 is missing" in breach]) == 2
    del writer.rows[-1]
    last = max(sequence for _, _, sequence in batches)
    told = batches.pop((writer.source.name, "", last))
    assert any("never sent" in breach for breach in judge(small.lake, small.oracle, [writer]))
    batches[writer.source.name, "", last] = told
    writer.event_count += 1
    assert any("(rows, sequences, first, last)" in breach for breach in judge(small.lake, small.oracle, [writer]))


def test_a_schedule_follows_from_its_seed() -> None:
    one, other = (plan(5, 180, store=True, network=True) for _ in range(2))
    assert one == other != plan(6, 180, store=True, network=True)
    assert 50 < len(one) < 150
    assert all(0 <= planned.at_s < 180 and planned.at_s + planned.lasts_s <= 180 for planned in one)
    moments = list(in_order(one))
    assert [at_s for at_s, _, _ in moments] == sorted(at_s for at_s, _, _ in moments)
    assert sum(begins for _, _, begins in moments) * 2 == len(moments)


def test_every_kind_of_trouble_comes_up_in_five_runs_of_three_minutes() -> None:
    """The kinds of AT-117: kills, partitions, latency, errors of the disk, of the store and of the catalog."""
    names = {planned.trouble.name for seed in range(1, 6) for planned in plan(seed * 1000, 180, store=True, network=True)}
    wanted = [*map(Kill, KILLS), Stop("ingest"), Stop("writer"), *map(Fail, FAILING)]
    wanted += [*(Break("store", fault) for fault in STORE), *(Break("network", fault) for fault in NETWORK)]
    assert {trouble.name for trouble in wanted} - names == set()


def test_a_slope_is_found_through_spikes() -> None:
    chance = random.Random(1)
    series = [(second, 100 * MIB + int(second * 2 * MIB / 60) + chance.choice((0, 0, 0, 30 * MIB))) for second in range(180)]
    assert 1.8 < slope(series) < 2.2
    assert abs(slope([(second, 100 * MIB + chance.randrange(MIB)) for second in range(180)])) < 0.2

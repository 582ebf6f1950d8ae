"""Load shedding by priority, and turns among sources, over a real log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dolake.ingest.lag import PROBE_S, watch_lag
from dolake.ingest.service import IngestService
from tests.cdc.samples import batch, event
from tests.ingest.rig import Peer, TroubledDisk, eventually, serving
from tests.ingest.test_connection import summary

ROWS = [event(index, after={"x": "y" * 300}) for index in range(10)]


def run(scene: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await scene()

    asyncio.run(limited())


async def greeted(service: IngestService, source: str) -> Peer:
    peer = Peer(service)
    await peer.greet(source)
    return peer


def test_a_growing_backlog_sheds_low_then_normal_and_high_only_when_it_is_full(tmp_path):
    sources = {"vip-*": {"priority": "high"}, "logs-*": {"priority": "low"}}

    async def scene() -> None:
        async with serving(tmp_path, log={"backlog_bytes": 400_000, "segment_bytes": 8192}, sources=sources) as service:
            peers = {name: await greeted(service, name) for name in ("vip-1", "orders", "logs-1")}
            sequence = dict.fromkeys(peers, 0)
            refused_at: dict[str, tuple[str, float]] = {}
            while "vip-1" not in refused_at:
                for name, peer in peers.items():
                    if name in refused_at:
                        continue
                    answer = await peer.ask(batch(sequence[name], count=10, events=ROWS, source=name))
                    if answer["type"] == "nack":
                        assert answer["shouldRetry"] is True
                        assert 50 <= answer["retryDelayMs"] <= 150
                        refused_at[name] = answer["reason"], service.desk(name).lane.pressure().utilization
                    sequence[name] += 1
            assert {name: reason for name, (reason, _) in refused_at.items()} == {
                "logs-1": "load_shedding",
                "orders": "load_shedding",
                "vip-1": "buffer_full",
            }
            assert 0.87 < refused_at["logs-1"][1] < 0.93
            assert 0.92 < refused_at["orders"][1] < 0.98
            assert service.metrics.get("dolake_cdc_nacks_total", reason="load_shedding") == 2
            log_id = next(iter(service.lanes.values())).log_id
            synced = next(iter(service.lanes.values())).log.synced_end
            service.hear("writer", {"type": "progress", "logs": {log_id: {"low": synced, "read": synced, "pending": {}}}})
            await eventually(lambda: next(iter(service.lanes.values())).pressure().utilization < 0.5)
            for name, peer in peers.items():
                answer = await peer.ask(batch(sequence[name] - 1, count=10, events=ROWS, source=name))
                assert summary(answer) == ("ack", sequence[name] - 1, "ok")

    run(scene)


@pytest.mark.parametrize("short", ["memory", "lag"])
def test_a_shortage_of_memory_or_time_sheds_the_unimportant(tmp_path, short):
    sources = {"logs": {"priority": "low"}}

    async def scene() -> None:
        async with serving(tmp_path, sources=sources) as service:
            low, normal = await greeted(service, "logs"), await greeted(service, "orders")
            share = 0.92

            def give() -> None:
                service.note_lag(2.0 * share if short == "lag" else 0.0)
                service.held_bytes_max = 100
                service.held_bytes = lambda: round(100 * share) if short == "memory" else 0

            give()
            assert summary(await low.ask(batch(0, source="logs"))) == ("nack", 0, "load_shedding")
            assert summary(await normal.ask(batch(0, source="orders"))) == ("ack", 0, "ok")
            share = 1.0
            give()
            answer = await normal.ask(batch(1, source="orders"))
            assert summary(answer) == (("nack", 1, "load_shedding") if short == "memory" else ("ack", 1, "ok"))
            share = 0.0
            give()
            assert summary(await low.ask(batch(0, source="logs"))) == ("ack", 0, "ok")

    run(scene)


def test_without_memory_nobody_waits_for_the_log_with_a_message_in_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("dolake.ingest.connection.CONNECTION_UNSYNCED_BYTES_MAX", 1)
    disk = TroubledDisk()

    async def scene() -> None:
        async with serving(tmp_path, disk=disk) as service:
            peer = await greeted(service, "orders")
            disk.unheld.clear()
            await peer.send(batch(0, source="orders"))
            service.held_bytes = lambda: service.held_bytes_max
            await peer.send(batch(1, source="orders"))  # comes back at once: refused, and its answer waits its turn
            disk.unheld.set()
            assert summary(await peer.answer()) == ("ack", 0, "ok")
            assert summary(await peer.answer()) == ("nack", 1, "load_shedding")

    run(scene)


def test_a_source_that_has_nothing_on_its_way_does_not_wait_for_one_that_has_much(tmp_path, monkeypatch):
    for module in ("connection", "service"):
        monkeypatch.setattr(f"dolake.ingest.{module}.UNSYNCED_BYTES_MAX", 20_000)
    disk = TroubledDisk()

    async def scene() -> None:
        async with serving(tmp_path, disk=disk) as service:
            noisy, quiet = await greeted(service, "noisy"), await greeted(service, "quiet")
            disk.unheld.clear()
            lane, number = service.desk("noisy").lane, 0
            while lane.unsynced_bytes <= 20_000:
                await noisy.send(batch(number, count=10, events=ROWS, source="noisy"))
                number += 1
            held = asyncio.create_task(noisy.send(batch(number, count=10, events=ROWS, source="noisy")))
            await quiet.send(batch(0, source="quiet"))  # would wait for ever if it had to
            second = asyncio.create_task(quiet.send(batch(1, source="quiet")))
            await asyncio.sleep(0.01)
            assert not held.done()
            assert not second.done()
            disk.unheld.set()
            await asyncio.gather(held, second)
            assert [summary(await quiet.answer()) for _ in range(2)] == [("ack", 0, "ok"), ("ack", 1, "ok")]
            assert [summary(await noisy.answer()) for _ in range(number + 1)] == [("ack", one, "ok") for one in range(number + 1)]

    run(scene)


def test_a_quiet_source_is_in_the_next_group_whatever_waits_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr("dolake.ingest.lane.GROUP_BYTES_MAX", 30_000)
    disk = TroubledDisk()

    async def scene() -> None:
        async with serving(tmp_path, disk=disk) as service:
            noisy, quiet = await greeted(service, "noisy"), await greeted(service, "quiet")
            disk.sync_waits.clear()
            disk.unheld.clear()
            for number in range(60):  # of ~5 KB each: ten groups
                await noisy.send(batch(number, count=10, events=ROWS, source="noisy"))
            await eventually(disk.sync_waits.is_set)
            await quiet.send(batch(0, source="quiet"))
            disk.unheld.set()
            assert summary(await quiet.answer()) == ("ack", 0, "ok")
            assert noisy.answers.qsize() < 20  # the first group and the one it was in
            assert [summary(await noisy.answer()) for _ in range(60)] == [("ack", one, "ok") for one in range(60)]

    run(scene)


def test_the_lag_is_that_of_the_better_of_two_probes():
    class Clock:
        """A clock whose sleeps end so much late."""

        def __init__(self, late_s: list[float]) -> None:
            self._late_s, self._now_s = late_s, 0.0

        def now_ms(self) -> int:
            return 0

        def monotonic_s(self) -> float:
            return self._now_s

        async def sleep(self, seconds: float) -> None:
            if not self._late_s:
                raise EOFError
            assert seconds == PROBE_S
            self._now_s += seconds + self._late_s.pop(0)

    noted: list[float] = []

    async def scene() -> None:
        with pytest.raises(EOFError):
            await watch_lag(Clock([0.0, 5.0, 0.0, 3.0, 4.0, 0.5]), lambda seconds: noted.append(round(seconds, 9)))

    run(scene)
    assert noted == [0, 0, 0, 0, 3.0, 0.5]

"""Acks and the disk: never one before its sync (I1), and what happens when the disk fails, is full, or the daemon stops."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dolake.errors import LogFailed
from dolake.failpoints import REGISTRY
from dolake.ingest.lane import Lane
from dolake.ingest.service import IngestService
from tests.cdc.samples import batch
from tests.ingest.rig import Peer, TroubledDisk, eventually, ingest_settings, quick_runtime, serving


def run(scene: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await scene()

    asyncio.run(limited())


def only(service: IngestService) -> Lane:
    return next(iter(service.lanes.values()))


async def check_acks_wait_for_the_sync(directory: Path) -> None:
    disk = TroubledDisk()
    async with serving(directory, disk=disk) as service:
        peer = Peer(service)
        await peer.greet()
        await peer.ask(batch(0))
        disk.unheld.clear()
        try:
            disk.sync_waits.clear()
            await peer.send(batch(1))
            await asyncio.to_thread(disk.sync_waits.wait, 10)
            await asyncio.sleep(0.01)
            assert peer.answers.empty(), "an ack left before its sync"
        finally:
            disk.unheld.set()
        assert (await peer.answer())["status"] == "ok"


class AcksFirst(Lane):
    """The mutant: acks as soon as a batch arrives."""

    def submit(self, submission: Any) -> None:
        super().submit(submission)
        self._group.clear()
        submission.desk.numbering.settle(submission.desk.numbering.durable)
        submission.client.settled(submission.slot, submission.entry, repeated=False)


@pytest.mark.acceptance("AT-01", "AT-02")
def test_no_ack_leaves_before_its_record_is_synced(tmp_path):
    run(lambda: check_acks_wait_for_the_sync(tmp_path))


@pytest.mark.acceptance("AT-02")
def test_an_ack_before_the_sync_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("dolake.ingest.service.Lane", AcksFirst)
    with pytest.raises(AssertionError, match="before its sync"):
        run(lambda: check_acks_wait_for_the_sync(tmp_path))


def test_one_sync_serves_every_batch_that_waits(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        async with serving(tmp_path, disk=disk) as service:
            peers = [Peer(service) for _ in range(5)]
            for number, peer in enumerate(peers):
                await peer.greet(f"source {number}")
            await peers[0].ask(batch(0, source="source 0"))
            disk.unheld.clear()
            disk.sync_waits.clear()
            await peers[0].send(batch(1, source="source 0"))
            await asyncio.to_thread(disk.sync_waits.wait, 10)
            before = disk.sync_count
            for number in range(2, 40):
                await peers[number % 5].send(batch(number // 5 if number % 5 else number // 5 + 1, source=f"source {number % 5}"))
            disk.unheld.set()
            await eventually(lambda: not any(peer.connection.session.open_count for peer in peers))
            assert disk.sync_count == before + 2

    run(scene)


def test_a_failed_sync_is_answered_degraded_and_recovery_decides_what_became_of_the_batch(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        async with serving(tmp_path, disk=disk) as service:
            peer = Peer(service)
            await peer.greet()
            assert (await peer.ask(batch(0)))["status"] == "ok"
            disk.sync_failures = 1
            refused = await peer.ask(batch(1))
            assert (refused["reason"], refused["shouldRetry"], refused["sequenceNumber"]) == ("degraded", True, 1)
            assert refused["retryDelayMs"] > 0
            await eventually(lambda: only(service).is_serving)
            answer = await peer.ask(batch(1))
            assert answer["status"] in ("ok", "duplicate")
            assert (await peer.ask(batch(2)))["status"] == "ok"
            assert (await peer.ask(batch(0)))["status"] == "duplicate"
            log_id = only(service).log_id
            assert service.metrics.get("dolake_wal_failures_total", log=log_id) == 1
            assert service.metrics.get("dolake_wal_degraded_count", log=log_id) == 0
        async with serving(tmp_path) as service:
            peer = Peer(service)
            assert (await peer.greet())["lastSequence"] == 2

    run(scene)


def test_a_source_that_comes_again_is_not_told_where_to_resume_while_its_log_has_failed(tmp_path):
    """What its earlier connection sent is on its way to the disk when it comes, and the disk fails: it is durable after all."""

    async def scene() -> None:
        disk = TroubledDisk()
        async with serving(tmp_path, disk=disk) as service:
            before = Peer(service)
            await before.greet()
            await before.ask(batch(0))
            disk.unheld.clear()
            await before.send(batch(1))
            again = Peer(service)
            greeting = asyncio.create_task(again.greet())
            await eventually(lambda: service.desk("orders-db-3").client is again.connection)
            disk.sync_failures = 1
            disk.unheld.set()
            refused = await greeting
            assert (refused["type"], refused.get("reason"), refused.get("shouldRetry")) == ("nack", "degraded", True)
            await eventually(lambda: only(service).is_serving)
            assert (await Peer(service).greet())["lastSequence"] == 1

    run(scene)


def test_everything_behind_a_failed_group_is_answered_in_order(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        async with serving(tmp_path, disk=disk) as service:
            peer = Peer(service)
            await peer.greet()
            await peer.ask(batch(0))
            disk.unheld.clear()
            for number in (1, 2, 3):
                await peer.send(batch(number))
            await peer.send(batch(2))
            disk.sync_failures = 1
            disk.unheld.set()
            answers = [await peer.answer() for _ in range(4)]
            assert [(answer["sequenceNumber"], answer["reason"]) for answer in answers] == [
                (1, "degraded"),
                (2, "degraded"),
                (3, "degraded"),
                (2, "degraded"),
            ]
            assert peer.connection.unsynced_bytes == 0
            await eventually(lambda: only(service).is_serving)
            for number in (1, 2, 3):
                assert (await peer.ask(batch(number)))["status"] in ("ok", "duplicate")

    run(scene)


def directories(tmp_path: Path, count: int) -> list[str]:
    return [str(tmp_path / f"disk{number}" / "log") for number in range(count)]


@pytest.mark.acceptance("AT-37")
def test_a_disk_that_fails_degrades_its_own_sources_and_no_others(tmp_path):
    async def scene() -> None:
        disk, logs = TroubledDisk(), directories(tmp_path, 3)
        async with serving(tmp_path, disk=disk, log={"directories": logs}) as service:
            peers = {}
            for number in range(6):
                source = f"source {number}"
                peers[source] = Peer(service)
                await peers[source].greet(source)
                assert (await peers[source].ask(batch(0, source=source)))["status"] == "ok"
            broken = service.desks["source 0"].lane.directory
            disk.broken.add(broken)
            hit = [source for source in peers if service.desks[source].lane.directory == broken]
            assert len(hit) == 2
            for source, peer in peers.items():
                answer = await peer.ask(batch(1, source=source))
                assert answer.get("reason", answer.get("status")) == ("degraded" if source in hit else "ok")
            for source in hit:  # At once again, and on a new connection: still degraded, retryable.
                assert (await peers[source].ask(batch(1, source=source)))["reason"] == "degraded"
                refused = await Peer(service).greet(source)
                assert (refused["type"], refused["reason"], refused["shouldRetry"]) == ("nack", "degraded", True)
            assert not service.ended.done()
            newcomer = Peer(service)
            await eventually(lambda: not service._reopening.locked())
            while (greeting := await newcomer.greet("newcomer"))["type"] != "status":
                assert greeting["reason"] == "degraded"
                newcomer = Peer(service)
            assert service.desks["newcomer"].lane.directory != broken
            disk.broken.clear()
            await eventually(lambda: all(lane.is_serving for lane in service.lanes.values()))
            for source in peers:
                peer = Peer(service)
                await peer.greet(source)
                assert (await peer.ask(batch(1, source=source)))["status"] in ("ok", "duplicate")
                assert (await peer.ask(batch(2, source=source)))["status"] == "ok"

    run(scene)


def test_with_no_log_left_the_service_ends_and_says_why(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        async with serving(tmp_path, disk=disk) as service:
            peer = Peer(service)
            await peer.greet()
            await peer.ask(batch(0))
            disk.broken.add(str(tmp_path))
            assert (await peer.ask(batch(1)))["reason"] == "degraded"
            with pytest.raises(LogFailed, match=str(tmp_path)):
                await service.ended

    run(scene)


def test_no_log_to_begin_with_is_an_error_of_the_start(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        disk.broken.add(str(tmp_path))
        service = IngestService(quick_runtime(), disk, ingest_settings(tmp_path))
        with pytest.raises(LogFailed):
            await service.start()

    run(scene)


def test_a_disk_missing_at_the_start_joins_when_it_is_back(tmp_path):
    async def scene() -> None:
        disk, logs = TroubledDisk(), directories(tmp_path, 2)
        async with serving(tmp_path, disk=disk, log={"directories": logs}) as service:
            for number in range(2):
                peer = Peer(service)
                await peer.greet(f"source {number}")
                await peer.ask(batch(0, source=f"source {number}"))
            away = service.desks["source 1"].lane.directory
        disk.broken.add(away)
        async with serving(tmp_path, disk=disk, log={"directories": logs}) as service:
            here = Peer(service)
            assert (await here.greet("source 0"))["lastSequence"] == 0
            refused = await Peer(service).greet("source 1")
            assert refused["reason"] == "degraded"
            disk.broken.clear()
            await eventually(lambda: service.lanes[away].is_serving)
            assert (await Peer(service).greet("source 1"))["lastSequence"] == 0
            assert (await here.ask(batch(1, source="source 0")))["status"] == "ok"

    run(scene)


@pytest.mark.acceptance("AT-38")
def test_a_full_disk_is_answered_storage_full_and_leaves_no_trace(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        async with serving(tmp_path, disk=disk) as service:
            peer = Peer(service)
            await peer.greet()
            await peer.ask(batch(0))
            disk.full.add(str(tmp_path))
            refused = await peer.ask(batch(1))
            assert (refused["reason"], refused["shouldRetry"]) == ("storage_full", True)
            assert only(service).is_serving
            disk.full.clear()
            assert (await peer.ask(batch(1, count=7)))["status"] == "ok"  # other content: the first left no trace

    run(scene)


def test_stopping_refuses_what_is_new_and_finishes_what_is_in_flight(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        service = IngestService(quick_runtime(), disk, ingest_settings(tmp_path))
        await service.start()
        peer = Peer(service)
        await peer.greet()
        await peer.ask(batch(0))
        disk.unheld.clear()
        await peer.send(batch(1))
        stopping = asyncio.create_task(service.stop())
        await eventually(lambda: service.is_stopping)
        await peer.send(batch(2))
        disk.unheld.set()
        await stopping
        answers = [await peer.answer(), await peer.answer()]
        assert [answer.get("status", answer.get("reason")) for answer in answers] == ["ok", "shutting_down"]
        assert answers[1]["shouldRetry"] is True
        assert peer.ended == (1001, "this daemon is stopping")
        async with serving(tmp_path) as again:
            assert (await Peer(again).greet())["lastSequence"] == 1

    run(scene)


@pytest.mark.parametrize("point", ["ingest.batch_decoded", "ingest.before_append", "ingest.before_ack", "ingest.after_ack", "ingest.trim"])
def test_each_failpoint_is_reached(tmp_path, point):
    async def scene() -> None:
        REGISTRY.arm(point, "off")
        REGISTRY.hits.clear()
        async with serving(tmp_path) as service:
            peer = Peer(service)
            await peer.greet()
            await peer.ask(batch(0))
            service.hear("writer", {"type": "progress", "logs": {only(service).log_id: {"low": 1, "read": 1, "pending": {}}}})
            await eventually(lambda: REGISTRY.hits[point] >= 1)

    run(scene)


@pytest.mark.parametrize("point", ["ingest.before_append", "ingest.before_ack"])
def test_an_error_around_a_group_is_answered_degraded_and_survived(tmp_path, point):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            peer = Peer(service)
            await peer.greet()
            await peer.ask(batch(0))
            REGISTRY.arm(point, "1*raise")
            assert (await peer.ask(batch(1)))["reason"] == "degraded"
            await eventually(lambda: only(service).is_serving)
            expected = "duplicate" if point == "ingest.before_ack" else "ok"
            assert (await peer.ask(batch(1)))["status"] == expected
            assert (await peer.ask(batch(2)))["status"] == "ok"

    run(scene)


def test_segments_below_what_the_writer_needs_go_and_none_above(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path, log={"segment_bytes": 4096}) as service:
            peer, lane = Peer(service), only(service)
            await peer.greet()
            for number in range(30):
                await peer.ask(batch(number, first=number * 10, count=10))
            full = lane.backlog_bytes()
            for low in (10, 20, 5):
                service.hear("writer", {"type": "progress", "logs": {lane.log_id: {"low": low, "read": low, "pending": {}}}})
                await eventually(lambda: lane._trim_below is None and not lane.lock.locked())
                assert lane.log.first_offset <= max(low, 20)
            assert 5 < lane.log.first_offset <= 20
            assert lane.low == 20
            assert lane.backlog_bytes() < full
            assert service.metrics.get("dolake_wal_trimmed_segments_total", log=lane.log_id) > 0
            assert (await Peer(service).greet())["buffer"]["eventCount"] == 100
            # More than there is cannot be asked for: nothing of it is believed.
            service.hear("writer", {"type": "progress", "logs": {lane.log_id: {"low": 10**6, "read": 0, "pending": {}}}})
            assert lane.low == 20

    run(scene)


def committed(service: IngestService, low: int) -> None:
    lane = only(service)
    service.hear("writer", {"type": "progress", "logs": {lane.log_id: {"low": low, "read": low, "pending": {}}}})


def test_what_is_committed_is_retained_for_its_time_and_given_up_on_a_full_disk(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        async with serving(tmp_path, disk=disk, log={"segment_bytes": 4096, "retain_s": 3600}) as service:
            peer, lane = Peer(service), only(service)
            await peer.greet()
            for number in range(30):
                await peer.ask(batch(number, first=number * 10, count=10))
            committed(service, 30)
            await eventually(lambda: lane._trim_below is None and not lane.lock.locked())
            assert (lane.log.first_offset, lane.low) == (0, 30)
            assert lane.backlog_bytes() == 0, "what is retained is no backlog"
            disk.full.add(str(tmp_path))
            assert (await peer.ask(batch(30)))["reason"] == "storage_full"
            disk.full.clear()
            await eventually(lambda: lane.log.first_offset > 0)

    run(scene)


def test_nothing_is_trimmed_while_a_table_is_rolled_back(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path, log={"segment_bytes": 4096}) as service:
            peer, lane = Peer(service), only(service)
            await peer.greet()
            for number in range(30):
                await peer.ask(batch(number, first=number * 10, count=10))

            class Writer:
                """Says what it does not need any more, before it has pinned it again."""

                async def request(self, role: str, message: dict[str, Any]) -> dict[str, Any]:
                    assert (role, message["type"], message["snapshot"], message["rewind"]) == ("writer", "rollback", 7, True)
                    assert message["until"] == {lane.log_id: 30}
                    committed(service, 20)
                    await eventually(lambda: lane._trim_below is None and not lane.lock.locked())
                    assert lane.log.first_offset == 0
                    return {"result": {"snapshot": 8}}

            service.writer_line = Writer()  # type: ignore[assignment]
            assert await service.roll_back("default.t", {"snapshot": 7, "rewind": True}) == {"snapshot": 8}
            await eventually(lambda: lane._trim_below is None and not lane.lock.locked())
            assert lane.log.first_offset == 0, "what was said meanwhile is forgotten"
            committed(service, 20)
            await eventually(lambda: lane.log.first_offset > 0)

    run(scene)

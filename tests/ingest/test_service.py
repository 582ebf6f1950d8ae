"""What the writer says, and how a backlog slows sources down."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dolake.errors import DaemonUnreachable
from dolake.ingest.service import IngestService
from tests.cdc.samples import FLUSH_REQUEST, batch, event
from tests.ingest.rig import Peer, eventually, serving


def run(scene: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await scene()

    asyncio.run(limited())


def report(service: IngestService, *, low: int, read: int, pending: dict[str, int] | None = None, **more: Any) -> None:
    log_id = next(iter(service.lanes.values())).log_id
    service.hear("writer", {"type": "progress", "logs": {log_id: {"low": low, "read": read, "pending": pending or {}}}, **more})


@pytest.mark.acceptance("AT-09")
def test_a_growing_backlog_slows_sources_down_then_refuses_them_until_it_is_committed(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path, log={"backlog_bytes": 100_000, "segment_bytes": 8192}) as service:
            peer = Peer(service)
            await peer.greet()
            statuses, number, answer = [], 0, {}
            rows = [event(index, after={"x": "y" * 300}) for index in range(10)]
            while True:
                answer = await peer.ask(batch(number, count=10, events=rows))
                if answer["type"] == "nack":
                    break
                statuses.append(answer["status"])
                assert (answer["status"] == "buffered") is ("suggestedDelayMs" in answer["details"])
                if answer["status"] == "buffered":
                    assert 1 <= answer["details"]["suggestedDelayMs"] <= 1000
                    assert answer["details"]["bufferUtilization"] > 0.8
                number += 1
            assert statuses == ["ok"] * statuses.count("ok") + ["buffered"] * statuses.count("buffered")
            assert statuses.count("ok") > statuses.count("buffered") > 0
            assert (answer["reason"], answer["shouldRetry"]) == ("buffer_full", True)
            assert 50 <= answer["retryDelayMs"] <= 150
            later = await peer.ask(batch(number, count=10, events=rows))
            assert 100 <= later["retryDelayMs"] <= 300
            assert service.metrics.get("dolake_cdc_nacks_total", reason="buffer_full") == 2
            report(service, low=number, read=number)
            await eventually(lambda: next(iter(service.lanes.values())).pressure().utilization < 0.5)
            assert (await peer.ask(batch(number, count=10, events=rows)))["status"] == "ok"

    run(scene)


def test_the_backlog_is_bounded_by_a_fifth_of_the_disk_unless_set(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            assert next(iter(service.lanes.values())).backlog_bytes_max == (1 << 40) // 5

    run(scene)


def test_acks_say_fallback_while_the_store_or_the_catalog_is_down(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            peer = Peer(service)
            await peer.greet()
            report(service, low=0, read=0, store="down", catalog="ok")
            assert (await peer.ask(batch(0)))["status"] == "fallback"
            report(service, low=0, read=0, store="ok", catalog="down")
            assert (await peer.ask(batch(1)))["status"] == "fallback"
            report(service, low=0, read=0, store="ok", catalog="ok")
            assert (await peer.ask(batch(2)))["status"] == "ok"
            service.hear("writer", {"type": "gone"})
            assert (await peer.ask(batch(3)))["status"] == "ok"
            assert service.metrics.get("dolake_cdc_acks_total", status="fallback") == 2

    run(scene)


async def persisted(peer: Peer) -> int:
    answer = await peer.answer()
    assert answer["status"] == "persisted"
    return answer["sequenceNumber"]


def test_persisted_acks_follow_what_is_committed_of_each_source(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            one, two, silent = Peer(service), Peer(service), Peer(service)
            await one.greet("one", ackPersisted=True)
            await two.greet("two", ackPersisted=True)
            await silent.greet("silent")
            for number in range(4):  # offsets: one 0 3 6 9, two 1 4 7 10, silent 2 5 8 11
                await one.ask(batch(number, source="one"))
                await two.ask(batch(100 + number, source="two"))
                await silent.ask(batch(number, source="silent"))
            report(service, low=0, read=12, pending={"one": 6, "two": 1, "silent": 2})
            assert await persisted(one) == 1
            assert two.answers.empty()
            report(service, low=4, read=12, pending={"one": 6, "two": 8})
            assert await persisted(two) == 102
            assert one.answers.empty()
            report(service, low=12, read=12)
            assert (await persisted(one), await persisted(two)) == (3, 103)
            report(service, low=12, read=12)
            assert one.answers.empty()
            assert two.answers.empty()
            assert silent.answers.empty()
            # Who comes back is told at once.
            again = Peer(service)
            await again.greet("one", ackPersisted=True)
            assert await persisted(again) == 3

    run(scene)


def test_after_a_restart_what_was_committed_before_is_persisted_as_soon_as_the_writer_says_so(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            peer = Peer(service)
            await peer.greet()
            for number in range(3):
                await peer.ask(batch(number))
        async with serving(tmp_path) as service:
            peer = Peer(service)
            await peer.greet(ackPersisted=True)
            report(service, low=2, read=3, pending={"orders-db-3": 2})
            assert peer.answers.empty()
            report(service, low=3, read=3)
            assert await persisted(peer) == 2
            await peer.ask(batch(0, epoch="new"))
            end = next(iter(service.lanes.values())).log.synced_end  # the trim has a record too
            report(service, low=3, read=end, pending={"orders-db-3": end - 1})
            assert peer.answers.empty()
            report(service, low=end, read=end)
            assert await persisted(peer) == 0

    run(scene)


class Writer:
    """Answers flush requests as the hub of the control socket would pass them on."""

    def __init__(self, answer: dict[str, Any] | None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._answer = answer

    async def request(self, role: str, message: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((role, message))
        if self._answer is None:
            raise DaemonUnreachable("the writer has gone")
        return self._answer


def test_a_flush_is_asked_of_the_writer_up_to_what_is_synced_now(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            peer = Peer(service)
            await peer.greet()
            await peer.ask(batch(0))
            await peer.ask(batch(1))
            result = {"success": True, "batchesFlushed": 2, "eventsFlushed": 4}
            service.writer_line = writer = Writer({"type": "flush_result", "id": 1, "result": result})
            assert (await peer.ask(FLUSH_REQUEST))["result"] == result
            log_id = next(iter(service.lanes.values())).log_id
            asked = {"type": "flush", "tables": None, "reason": "manual", "until": {log_id: 2}}
            assert writer.asked == [("writer", asked)]
            service.writer_line = Writer(None)
            failed = (await peer.ask(FLUSH_REQUEST))["result"]
            assert (failed["success"], failed["error"]) == (False, "the writer has gone")

    run(scene)


def test_a_silly_report_changes_nothing(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            for logs in (None, [], {"x": 1}, {next(iter(service.lanes.values())).log_id: {"low": "9", "read": None, "pending": 3}}):
                service.hear("writer", {"type": "progress", "logs": logs})
            service.hear("http", {"type": "hello"})
            peer = Peer(service)
            await peer.greet()
            assert (await peer.ask(batch(0)))["status"] == "ok"

    run(scene)

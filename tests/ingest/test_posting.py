"""What a POST gets for what it sends, beside the websocket of the same source, over a real log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dolake.ingest.posting import PostDesk
from dolake.ingest.service import IngestService
from tests.cdc.samples import NOW_MS, SCHEMA, batch, event, frame
from tests.cdc.test_posted import short
from tests.harness.access import grant, new_token
from tests.ingest.rig import Peer, TroubledDisk, eventually, serving


class Poster:
    """Posts like the http process does. `ask` gives (HTTP status, answer)."""

    def __init__(self, service: IngestService) -> None:
        self._desk = PostDesk(service)
        self.said: dict[str, Any] = {}
        self.authorization: list[str] = []

    async def ask(self, message: dict[str, Any] | bytes) -> tuple[int, dict[str, Any]]:
        body = message if isinstance(message, bytes) else frame(message)
        async with asyncio.timeout(10):
            self.said, answer = await self._desk.answer({"authorization": self.authorization, "query": ""}, body)
        return self.said["status"], json.loads(answer)


Scene = Callable[[IngestService, Poster, Peer], Awaitable[None]]


def play(directory: Path, scene: Scene, *, disk: TroubledDisk | None = None, **sections: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), serving(directory, disk=disk, **sections) as service:
            await scene(service, Poster(service), Peer(service))

    asyncio.run(run())


def summary(answered: tuple[int, dict[str, Any]]) -> tuple[Any, ...]:
    status, answer = answered
    return status, answer["sequenceNumber"], answer.get("status") or answer["reason"]


@pytest.mark.acceptance("AT-05", "AT-06")
def test_post_and_websocket_share_one_numbering_and_neither_takes_over(tmp_path):
    async def scene(service, poster, peer):
        await peer.greet()
        assert (await peer.ask(batch(0)))["status"] == "ok"
        assert summary(await poster.ask(short(batch(0)))) == (200, 0, "duplicate")
        assert summary(await poster.ask(short(batch(1)))) == (200, 1, "ok")
        assert (await peer.ask(batch(1)))["status"] == "duplicate"
        assert (await peer.ask(batch(2)))["status"] == "ok"
        status, gap = await poster.ask(short(batch(9)))
        assert (status, gap["expectedSequence"], gap["shouldRetry"]) == (409, 3, True)
        status, reused = await poster.ask(short(batch(2, count=3)))
        assert (status, reused["reason"], reused["shouldRetry"]) == (400, "invalid_sequence", False)
        assert peer.ended is None
        assert service.metrics.get("dolake_cdc_takeovers_total") == 0
        assert service.metrics.get("dolake_cdc_connections_count") == 1
        assert service.metrics.get("dolake_cdc_acks_total", status="ok") == 3
        assert service.metrics.get("dolake_cdc_acks_total", status="duplicate") == 2
        assert service.metrics.get("dolake_cdc_nacks_total", reason="invalid_sequence") == 2
        assert next(iter(service.lanes.values())).log.synced_end == 3

    play(tmp_path, scene)


def test_a_post_in_an_epoch_counts_for_the_websocket_too(tmp_path):
    async def scene(service, poster, peer):
        await peer.greet(epoch="one")
        assert (await peer.ask(batch(7)))["status"] == "ok"
        status, over = await poster.ask(short(batch(8)))
        assert (status, over["status"]) == (200, "ok")  # no name is a name too, and a new one
        refused = await peer.ask(batch(8))
        assert (refused["reason"], refused["shouldRetry"]) == ("invalid_sequence", False)
        assert summary(await poster.ask({**short(batch(0)), "epoch": "two", "correlationId": "c"})) == (200, 0, "ok")
        status, over = await poster.ask({**short(batch(9)), "correlationId": "c"})
        assert (status, over["reason"], over["correlationId"]) == (400, "invalid_sequence", "c")

    play(tmp_path, scene)


def test_a_batch_below_the_first_that_came_is_refused_and_not_called_a_duplicate(tmp_path):
    async def scene(service, poster, peer):
        assert summary(await poster.ask(short(batch(6)))) == (200, 6, "ok")
        status, refused = await poster.ask(short(batch(5)))
        assert (status, refused["reason"], refused["shouldRetry"]) == (400, "invalid_sequence", False)
        assert refused["errorMessage"].startswith("sequenceNumber: 5 is below 6")

    play(tmp_path, scene)


def test_an_answer_leaves_only_when_its_record_is_synced_and_repeats_wait_for_it(tmp_path):
    disk = TroubledDisk()

    async def scene(service, poster, peer):
        await poster.ask(short(batch(0)))
        disk.unheld.clear()
        first = asyncio.create_task(poster.ask(short(batch(1))))
        again = asyncio.create_task(poster.ask(short(batch(1))))
        ahead = asyncio.create_task(poster.ask(short(batch(3))))
        assert summary(await ahead) == (409, 3, "invalid_sequence")  # nobody's answer waits behind another's
        behind = asyncio.create_task(poster.ask(short(batch(2))))
        await asyncio.to_thread(disk.sync_waits.wait)
        assert not first.done()
        assert not again.done()
        disk.unheld.set()
        assert [summary(await one) for one in (first, again, behind)] == [(200, 1, "ok"), (200, 1, "duplicate"), (200, 2, "ok")]

    play(tmp_path, scene, disk=disk)


def test_a_schema_is_posted_and_numbered_like_a_batch(tmp_path):
    async def scene(service, poster, peer):
        assert summary(await poster.ask(SCHEMA)) == (200, 0, "ok")
        assert summary(await poster.ask(short(batch(1)))) == (200, 1, "ok")
        assert summary(await poster.ask(SCHEMA)) == (200, 0, "duplicate")

    play(tmp_path, scene)


def test_limits_are_the_websockets(tmp_path):
    async def scene(service, poster, peer):
        status, refused = await poster.ask(short(batch(3, events=[event(n, after={"x": "y" * 15_000}) for n in range(2)])))
        assert (status, refused["reason"], refused["sequenceNumber"], refused["maxSize"]) == (413, "payload_too_large", 3, 20_000)
        assert refused["actualSize"] > 30_000
        status, refused = await poster.ask(short(batch(3, events=[event(0, after={"x": "y" * 5_000})])))
        assert (status, refused["reason"], refused["maxSize"]) == (413, "event_too_large", 5_000)
        status, refused = await poster.ask(short(batch(3, count=11)))
        assert (status, refused["errorMessage"]) == (400, "events: holds at most 10 events (got 11 events)")
        body = frame(short(batch(3, count=10)))
        assert summary(await poster.ask(body + b" " * (20_000 - len(body)))) == (200, 3, "ok")  # the body counts, as it was sent
        assert (await poster.ask(b" " * 20_001))[0] == 413

    play(tmp_path, scene, limits={"payload_bytes": 20_000, "event_bytes": 5_000, "batch_events": 10})


def test_a_full_backlog_is_503_with_a_delay_that_grows_each_time_the_batch_comes_back(tmp_path):
    async def scene(service, poster, peer):
        rows = [event(number, after={"x": "y" * 900}) for number in range(10)]
        number = 0
        while (answer := await poster.ask(short(batch(number, events=rows))))[0] == 200:
            number += 1
        delays = []
        for _ in range(9):
            status, refused = await poster.ask(short(batch(number, events=rows)))
            assert (status, refused["reason"], refused["shouldRetry"]) == (503, "buffer_full", True)
            delays.append(refused["retryDelayMs"])
            assert poster.said["headers"] == {"Retry-After": str(max(1, -(-refused["retryDelayMs"] // 1000)))}
        assert answer[1]["retryDelayMs"] <= 150
        assert delays[-1] >= 0.5 * 25_600
        next(iter(service.lanes.values())).allow_trim(number)
        service.lanes[next(iter(service.lanes))]._log_backlog_bytes = 0
        assert summary(await poster.ask(short(batch(number, events=rows)))) == (200, number, "ok")
        assert (await poster.ask(short(batch(number + 99, events=rows))))[0] == 409

    play(tmp_path, scene, log={"backlog_bytes": 70_000, "segment_bytes": 16_384}, limits={"payload_bytes": 20_000, "event_bytes": 2_000})


def test_a_failed_log_is_503_and_the_batch_is_acked_when_sent_again(tmp_path):
    disk = TroubledDisk()

    async def scene(service, poster, peer):
        await poster.ask(short(batch(0)))
        disk.sync_failures = 1
        status, refused = await poster.ask(short(batch(1)))
        assert (status, refused["reason"], refused["shouldRetry"]) == (503, "degraded", True)
        assert poster.said["headers"] == {"Retry-After": "1"}
        await eventually(lambda: next(iter(service.lanes.values())).is_serving)
        status, answer = await poster.ask(short(batch(1)))
        assert (status, answer["status"]) in [(200, "ok"), (200, "duplicate")]
        disk.full.add(str(tmp_path))
        status, refused = await poster.ask(short(batch(2)))
        assert (status, refused["reason"]) == (503, "storage_full")

    play(tmp_path, scene, disk=disk)


def test_a_stopping_daemon_says_so(tmp_path):
    async def scene(service, poster, peer):
        await poster.ask(short(batch(0)))
        service.is_stopping = True
        status, refused = await poster.ask(short(batch(1)))
        assert (status, refused["reason"], refused["shouldRetry"]) == (503, "shutting_down", True)
        assert summary(await poster.ask(short(batch(0)))) == (200, 0, "duplicate")

    play(tmp_path, scene)


def test_the_envelope_that_is_logged_is_canonical_and_a_restart_knows_it(tmp_path):
    async def first_life(service, poster, peer):
        await poster.ask({**short(batch(0)), "unknown": 1})
        (record,) = next(iter(service.lanes.values())).log.sources["orders-db-3"].contents.items()
        assert record[0] == 0

    async def second_life(service, poster, peer):
        assert (await peer.greet())["lastSequence"] == 0
        assert (await peer.ask({**batch(0), "timestamp": NOW_MS + 5}))["status"] == "duplicate"
        assert summary(await poster.ask(short(batch(0)))) == (200, 0, "duplicate")

    play(tmp_path, first_life)
    play(tmp_path, second_life)


@pytest.mark.acceptance("AT-98")
def test_a_post_needs_a_token_for_its_source_and_its_tables(tmp_path):
    token = new_token()

    async def scene(service, poster, peer):
        status, refused = await poster.ask({**short(batch(4)), "correlationId": "c"})
        assert (status, refused["reason"], refused["sequenceNumber"], refused["correlationId"]) == (401, "unauthorized", 4, "c")
        assert poster.said["headers"] == {"WWW-Authenticate": 'Bearer realm="dolake"'}
        poster.authorization = [f"Bearer {new_token()}"]
        assert summary(await poster.ask(short(batch(4)))) == (401, 4, "unauthorized")
        assert poster.said["headers"] == {"WWW-Authenticate": 'Bearer realm="dolake", error="invalid_token"'}
        poster.authorization = [f"Bearer {token}"]
        assert summary(await poster.ask(short(batch(4)))) == (200, 4, "ok")
        status, refused = await poster.ask({**short(batch(5)), "sourceDoId": "payroll"})
        assert (status, refused["reason"], refused["shouldRetry"]) == (403, "forbidden", False)
        assert refused["errorMessage"].startswith("sourceDoId: the token 'shop' may send as `orders-db-*` only (got 'payroll')")
        status, refused = await poster.ask(short(batch(5, events=[event(1, table="salaries")])))
        assert (status, refused["reason"]) == (403, "forbidden")
        assert refused["errorMessage"].startswith("table: the token 'shop' may write `orders` only (got `default.salaries`)")
        assert summary(await poster.ask(SCHEMA)) == (403, 0, "forbidden")
        assert list(service.desks) == ["orders-db-3"]
        assert service.metrics.get("dolake_cdc_nacks_total", reason="unauthorized") == 2
        assert service.metrics.get("dolake_cdc_nacks_total", reason="forbidden") == 3

    play(tmp_path, scene, tokens={"shop": grant(token, sources=["orders-db-*"], tables=["orders"])})


@pytest.mark.acceptance("AT-10")
def test_a_source_posts_no_faster_than_a_connection_sends(tmp_path):
    async def scene(service, poster, peer):
        answers = [await poster.ask(short(batch(0, events=[])))]
        assert answers[0][1]["rateLimit"] == {"limit": 4, "remaining": 3, "resetAt": answers[0][1]["rateLimit"]["resetAt"]}
        while (answer := await poster.ask(short(batch(1, events=[]))))[0] == 200:
            answers.append(answer)
        assert len(answers) >= 4
        status, refused = answer
        assert (status, refused["reason"], refused["shouldRetry"]) == (429, "rate_limited", True)
        assert refused["errorMessage"] == "this source may post 2 messages a second"
        assert refused["rateLimit"]["limit"] == 4
        assert poster.said["headers"] == {"Retry-After": "1"}
        assert summary(await poster.ask({**short(batch(0)), "sourceDoId": "another"})) == (200, 0, "ok")

    play(tmp_path, scene, limits={"messages_per_s": 2})

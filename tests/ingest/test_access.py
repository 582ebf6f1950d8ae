"""What a connection may do under its token: which source it is, which tables it names, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dolake.auth.tokens import TokenBook
from dolake.config.access import TokenSettings
from dolake.ingest.service import IngestService
from tests.cdc.samples import CONNECT, FLUSH_REQUEST, HEARTBEAT, SCHEMA, batch, event
from tests.harness.access import grant, new_token
from tests.ingest.rig import Peer, eventually, serving

TOKEN = new_token()
SHOP = grant(TOKEN, sources=["orders-db-*"], tables=["orders", "public.*"])
Scene = Callable[[IngestService, Peer], Awaitable[None]]


def play(directory: Path, scene: Scene, tokens: dict[str, dict[str, Any]] | None = None) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), serving(directory, tokens=tokens or {"shop": SHOP}) as service:
            await scene(service, Peer(service, service.gate.identify([f"Bearer {TOKEN}"])))

    asyncio.run(run())


def give(service: IngestService, **tokens: dict[str, Any]) -> None:
    """As a reload does."""
    service.gate.book = TokenBook({name: TokenSettings.model_validate(values) for name, values in tokens.items()})


def synced_end(service: IngestService) -> int:
    return sum(lane.log.synced_end for lane in service.lanes.values())


@pytest.mark.acceptance("AT-98")
def test_a_source_within_the_scope_connects_and_writes_its_tables(tmp_path: Path) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        assert (await peer.greet())["type"] == "status"
        assert (await peer.ask(SCHEMA))["status"] == "ok"
        assert (await peer.ask(batch(1)))["status"] == "ok"
        assert peer.ended is None

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-98")
def test_a_source_outside_the_scope_is_nacked_forbidden_and_closed(tmp_path: Path) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        answer = await peer.ask({**CONNECT, "sourceDoId": "payroll", "correlationId": "c"})
        assert answer == {
            "type": "nack",
            "correlationId": "c",
            "sequenceNumber": 0,
            "reason": "forbidden",
            "shouldRetry": False,
            "errorMessage": "sourceDoId: the token 'shop' may send as `orders-db-*` only (got 'payroll')",
        }
        assert peer.ended == (1008, "the token is not for this source")
        assert "payroll" not in service.desks, "nothing is remembered of who may not come"

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-98")
def test_who_may_not_be_a_source_takes_over_nobody(tmp_path: Path) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        other = new_token()
        give(service, shop=SHOP, other=grant(other, sources=["other"], tables=["*"]))
        await peer.greet()
        intruder = Peer(service, service.gate.identify([f"Bearer {other}"]))
        assert (await intruder.greet())["reason"] == "forbidden"
        assert (await peer.ask(batch()))["status"] == "ok"
        assert peer.ended is None

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-98")
def test_a_batch_with_one_event_outside_is_refused_whole_and_leaves_no_trace(tmp_path: Path) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        await peer.greet()
        events = [event(0), event(1, table="secret.salaries"), event(2)]
        before = synced_end(service)
        answer = await peer.ask(batch(0, events=events, lastEventSequence=2, correlationId="c"))
        assert (answer["type"], answer["sequenceNumber"], answer["reason"], answer["shouldRetry"]) == ("nack", 0, "forbidden", False)
        assert answer["errorMessage"] == "table: the token 'shop' may write `orders`, `public.*` only (got `secret.salaries`)"
        assert answer["correlationId"] == "c"
        assert synced_end(service) == before
        assert peer.ended is None, "the connection goes on"
        assert (await peer.ask(batch(0)))["status"] == "ok", "the number was not used up"
        assert service.metrics.get("dolake_cdc_nacks_total", reason="forbidden") == 1
        assert service.metrics.get("dolake_cdc_events_total") == 2

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-98")
def test_the_scope_is_of_tables_as_the_lake_calls_them(tmp_path: Path) -> None:
    async def run() -> None:
        sections: dict[str, Any] = {"sources": {"orders-db-3": {"namespace": "shop"}}}
        async with asyncio.timeout(30), serving(tmp_path, tokens={"shop": {**SHOP, "tables": ["shop.*"]}}, **sections) as service:
            peer = Peer(service, service.gate.identify([f"Bearer {TOKEN}"]))
            await peer.greet()
            assert (await peer.ask(batch()))["status"] == "ok"
            give(service, shop={**SHOP, "tables": ["default.orders"]})
            answer = await peer.ask(batch(1, 2))
            assert answer["reason"] == "forbidden"
            assert "may write `default.orders` only (got `shop.orders`)" in answer["errorMessage"]

    asyncio.run(run())


@pytest.mark.acceptance("AT-98")
def test_a_schema_outside_is_refused_too(tmp_path: Path) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        await peer.greet()
        answer = await peer.ask({**SCHEMA, "table": "secret.salaries"})
        assert (answer["reason"], answer["sequenceNumber"]) == ("forbidden", 0)
        assert "`secret.salaries`" in answer["errorMessage"]

    play(tmp_path, scene)


MESSAGES = {"batch": batch(1, 2), "schema": {**SCHEMA, "sequenceNumber": 1}, "heartbeat": HEARTBEAT, "flush": FLUSH_REQUEST, "noise": b"{"}


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("why", ["revoked", "expired"])
def test_the_next_message_after_the_token_went_bad_is_the_last_one_and_others_go_on(tmp_path: Path, why: str, message: str) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        kept = new_token()
        others = {"kept": grant(kept, sources=["kept"], tables=["*"])}
        give(service, shop=SHOP, **others)
        other = Peer(service, service.gate.identify([f"Bearer {kept}"]))
        await other.greet("kept")
        await peer.greet()
        assert (await peer.ask(batch()))["status"] == "ok"
        give(service, **others, **({"shop": {**SHOP, "expires": "2020-01-01T00:00:00Z"}} if why == "expired" else {}))
        assert peer.ended is None, "nobody is cut off between two messages"
        answer = await peer.ask(MESSAGES[message])
        assert (answer["type"], answer["reason"], answer["shouldRetry"]) == ("nack", "unauthorized", False)
        assert answer["sequenceNumber"] == (1 if message in ("batch", "schema") else 0)
        assert ("was revoked" if why == "revoked" else "expired at 2020-01-01") in answer["errorMessage"]
        assert peer.ended == (1008, "the token is not good any more")
        assert synced_end(service) == 1
        assert (await other.ask(batch(source="kept")))["status"] == "ok"

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-98")
def test_what_was_taken_before_the_token_went_bad_is_acked_first(tmp_path: Path) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        await peer.greet()
        await asyncio.gather(*(peer.send(batch(number, number * 2)) for number in range(5)))
        give(service, other=grant(new_token(), read=True))
        await peer.send(batch(5, 10))
        answers = [await peer.answer() for _ in range(6)]
        assert [answer.get("status") or answer["reason"] for answer in answers] == ["ok"] * 5 + ["unauthorized"]
        await eventually(lambda: peer.ended is not None)
        assert synced_end(service) == 5

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-98")
def test_a_narrower_scope_holds_from_the_next_batch_on(tmp_path: Path) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        await peer.greet()
        assert (await peer.ask(batch()))["status"] == "ok"
        give(service, shop={**SHOP, "tables": ["public.*"]})
        assert (await peer.ask(batch(1, 2)))["reason"] == "forbidden"
        give(service, shop=SHOP)
        assert (await peer.ask(batch(1, 2)))["status"] == "ok"

    play(tmp_path, scene)


class Writer:
    """The line to a writer half: remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def request(self, role: str, message: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(message)
        return {"result": {"success": True}}


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize(("admin", "patterns"), [(False, ("orders", "public.*")), (True, None)])
def test_a_source_flushes_what_it_may_write_and_an_admin_everything(tmp_path: Path, admin: bool, patterns: tuple[str, ...] | None) -> None:
    async def scene(service: IngestService, peer: Peer) -> None:
        service.writer_line = writer = Writer()
        await peer.greet()
        assert (await peer.ask(FLUSH_REQUEST))["result"] == {"success": True}
        assert [(message["tables"], message.get("patterns")) for message in writer.asked] == [(None, patterns)]

    play(tmp_path, scene, {"shop": {**SHOP, "admin": admin}})

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dolake.errors import RequestRefused
from dolake.ingest.asks import Asks
from tests.cdc.samples import batch
from tests.ingest.rig import Peer, TroubledDisk, eventually, serving


def run(scene: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await scene()

    asyncio.run(limited())


def test_readiness_tells_the_halves_apart(tmp_path):
    async def scene() -> None:
        disk = TroubledDisk()
        logs = [str(tmp_path / "one"), str(tmp_path / "two")]
        async with serving(tmp_path, disk=disk, log={"directories": logs}) as service:
            asks = Asks(service)
            ready = await asks.answer({"what": "ready"})
            assert (ready["ready"], ready["writer"]["ready"]) == (True, False)
            service.hear("writer", {"type": "progress", "logs": {}, "store": "ok", "catalog": "ok", "circuits": {"store": {}}})
            writer = {"ready": True, "reasons": [], "stopped": [], "circuits": {"store": {}}}
            assert (await asks.answer({"what": "ready"}))["writer"] == writer
            peer = Peer(service)
            await peer.greet()
            disk.broken.add(service.desks["orders-db-3"].lane.directory)
            await peer.ask(batch(0))
            ready = await asks.answer({"what": "ready"})
            assert ready["ready"] is False
            assert service.desks["orders-db-3"].lane.directory in ready["reasons"][0]
            disk.broken.clear()
            await eventually(lambda: service.desks["orders-db-3"].lane.is_serving)
            assert (await asks.answer({"what": "ready"}))["ready"] is True

    run(scene)


def test_state_metrics_and_tables_are_passed_on(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            asks, peer = Asks(service), Peer(service)
            await peer.greet()
            await peer.ask(batch(5, count=3))
            service.hear("writer", {"type": "progress", "logs": {}, "tables": {"a.b": {"rows": 3}}, "metrics": {"x": [[[], 1]]}})
            state = await asks.answer({"what": "state"})
            (log,) = state["logs"].values()
            assert (log["serving"], log["synced_end"], log["low"]) == (True, 1, 0)
            assert state["sources"]["orders-db-3"]["last_sequence"] == 5
            assert state["writer"]["connected"] is True
            assert (await asks.answer({"what": "tables"}))["tables"] == {"a.b": {"rows": 3}}
            metrics = (await asks.answer({"what": "metrics"}))["metrics"]
            assert metrics["writer"] == {"x": [[[], 1]]}
            assert metrics["ingest"]["dolake_cdc_events_total"] == [[[], 3]]
            assert metrics["ingest"]["dolake_wal_backlog_bytes"][0][1] > 0
            assert (await asks.answer({"what": "flush", "tables": ["a.b"]}))["result"]["success"] is False

    run(scene)


def test_an_unknown_question_is_refused(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            with pytest.raises(RequestRefused, match="nobody knows"):
                await Asks(service).answer({"what": "weather"})

    run(scene)

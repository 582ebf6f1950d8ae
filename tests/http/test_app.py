"""The http process: what it says with a hub, without one, and with one that has bad news."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dolake.clock import real_runtime
from dolake.config import Settings
from dolake.control import ControlHub, Message
from dolake.errors import LogFailed
from dolake.http.app import run_http
from dolake.metrics import Metrics

STOPPED = [{"table": "default.orders", "reason": "somebody rewound it"}]
CIRCUITS = {"store": {"state": "open", "reason": "nobody answers"}, "catalog": {"state": "closed", "reason": ""}}
Check = Callable[[httpx.AsyncClient], Awaitable[None]]
Answer = Callable[[Message], Awaitable[Message]]


def serve(tmp_path: Path, check: Check, answer: Answer | None, **sections: Any) -> None:
    """Runs the real server over a real socket, with a hub that gives `answer` if there is one."""

    async def scenario() -> None:
        settings = Settings.model_validate({"data": str(tmp_path), **sections})
        hub, connected = None, asyncio.Event()
        if answer is not None:
            hub = ControlHub(settings.control_path, runtime=real_runtime(), receive=lambda role, message: connected.set(), answer=answer)
            await hub.start()
        with socket.create_server(("127.0.0.1", 0)) as listen:
            ready, stop = asyncio.Event(), asyncio.Event()
            serving = asyncio.create_task(run_http(settings, listen=listen, ready=ready.set, stop=stop))
            async with asyncio.timeout(30):
                await ready.wait()
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listen.getsockname()[1]}") as client:
                    if hub is not None:
                        await connected.wait()
                    await check(client)
                stop.set()
                assert await serving == 0
        if hub is not None:
            await hub.close()

    asyncio.run(scenario())


def answers(**by_what: Any) -> Answer:
    async def answer(ask: Message) -> Message:
        found = by_what[ask["what"]]
        if isinstance(found, Exception):
            raise found
        return dict(found)

    return answer


@pytest.mark.acceptance("AT-101")
def test_ready_says_what_the_hub_says(tmp_path: Path) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        assert (await client.get("/health")).json() == {"alive": True}
        ready, writer = await client.get("/ready"), await client.get("/ready/writer")
        assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
        assert (writer.status_code, writer.json()) == (
            503,
            {"ready": False, "reasons": ["the object store does not answer"], "stopped": STOPPED, "circuits": CIRCUITS},
        )
        assert writer.headers["Retry-After"] == "1"

    writer = {"ready": False, "reasons": ["the object store does not answer"], "stopped": STOPPED, "circuits": CIRCUITS}
    state = {"ready": True, "reasons": [], "writer": writer}
    serve(tmp_path, check, answers(ready=state))


@pytest.mark.acceptance("AT-101", "AT-102")
def test_without_an_ingest_half_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        assert (await client.get("/health")).status_code == 200
        for path in ("/ready", "/ready/writer"):
            answer = await client.get(path)
            assert answer.status_code == 503
            more = {"stopped": [], "circuits": {}} if path == "/ready/writer" else {}
            assert answer.json() == {"ready": False, "reasons": ["the ingest half does not answer"], **more}
            assert "Retry-After" in answer.headers
        assert b'dolake_process_up_count{process="ingest"} 0.0' in (await client.get("/metrics")).content

    serve(tmp_path, check, None)


def test_a_hub_that_cannot_answer_is_a_reason_too(tmp_path: Path) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["reasons"]) == (503, ["no log is left"])

    serve(tmp_path, check, answers(ready=LogFailed("no log is left")))


def test_metrics_hold_the_values_of_both_halves_and_its_own(tmp_path: Path) -> None:
    ingest, writer = Metrics(), Metrics()
    ingest.add("dolake_cdc_events_total", 71_006)
    writer.add("dolake_commit_landed_total", 3)

    async def check(client: httpx.AsyncClient) -> None:
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        lines = answer.text.splitlines()
        assert "dolake_cdc_events_total 71006.0" in lines
        assert "dolake_commit_landed_total 3.0" in lines
        assert 'dolake_process_up_count{process="writer"} 1.0' in lines
        assert any(line.startswith('dolake_process_memory_bytes{process="http"}') for line in lines)

    serve(tmp_path, check, answers(metrics={"metrics": {"ingest": ingest.values(), "writer": writer.values()}}))


def test_what_does_not_exist_or_is_not_asked_so_is_refused_as_json(tmp_path: Path) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        assert (await client.get("/nothing")).status_code == 404
        refused = await client.post("/health")
        assert (refused.status_code, refused.json()) == (405, {"error": "Method Not Allowed"})
        refused = await client.get("/cdc")
        assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")

    serve(tmp_path, check, None)

"""Who the HTTP port answers: health for all, readiness without its reasons, metrics for readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.access import grant, new_token
from tests.http.test_app import answers, serve

READER, SENDER, OLD, REVOKED = (new_token() for _ in range(4))
TOKENS: dict[str, Any] = {
    "reader": grant(READER, read=True),
    "sender": grant(SENDER, sources=["*"], tables=["*"], admin=True),
    "old": grant(OLD, read=True, expires="2020-01-01T00:00:00Z"),
}
REASON = "table public.orders has stopped"
STOPPED = [{"table": "default.secret", "reason": "its columns are"}]
CIRCUITS = {"store": {"state": "open", "reason": "the secret bucket is gone"}}
STATE = {"ready": False, "reasons": [REASON], "writer": {"ready": False, "reasons": [REASON], "stopped": STOPPED, "circuits": CIRCUITS}}
HUB = answers(ready=STATE, metrics={"metrics": {}})


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("form", ["header", "query"])
@pytest.mark.parametrize(
    ("token", "status", "words"),
    [
        (None, 401, "a token is needed"),
        ("nonsense", 401, "not known here"),
        (OLD, 401, "expired at 2020-01-01"),
        (REVOKED, 401, "not known here"),
        (READER, 200, ""),
        (SENDER, 403, "the token 'sender' may not read"),
    ],
    ids=["none", "wrong", "expired", "revoked", "valid", "other scope"],
)
def test_metrics_are_for_readers(tmp_path: Path, token: str | None, status: int, words: str, form: str) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        headers = bearing(token) if token and form == "header" else {}
        query = f"?token={token}" if token and form == "query" else ""
        answer = await client.get("/metrics" + query, headers=headers)
        assert answer.status_code == status
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
        if status == 200:
            assert "dolake_process_up_count" in answer.text
            return
        assert words in answer.json()["error"]
        assert not token or token not in answer.text
        counted = (await client.get("/metrics", headers=bearing(READER))).text.splitlines()
        assert f'dolake_http_refused_requests_total{{status="{status}"}} 1.0' in counted

    serve(tmp_path, check, HUB, tokens=TOKENS)


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("path", ["/ready", "/ready/writer"])
def test_readiness_is_open_and_its_reasons_are_not(tmp_path: Path, path: str) -> None:
    nothing, everything = (
        ({"stopped": [], "circuits": {}}, {"stopped": STOPPED, "circuits": CIRCUITS}) if path == "/ready/writer" else ({}, {})
    )

    async def check(client: httpx.AsyncClient) -> None:
        for headers in ({}, bearing("nonsense"), bearing(SENDER)):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 503
            assert answer.json() == {"ready": False, "reasons": ["why is only told to a token that has `read`"], **nothing}
        assert (await client.get(path, headers=bearing(READER))).json() == {"ready": False, "reasons": [REASON], **everything}

    serve(tmp_path, check, HUB, tokens=TOKENS)


@pytest.mark.acceptance("AT-98")
def test_health_is_open_with_any_token_and_none(tmp_path: Path) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        for headers in ({}, bearing("nonsense"), bearing(OLD)):
            answer = await client.get("/health", headers=headers)
            assert (answer.status_code, answer.json()) == (200, {"alive": True})

    serve(tmp_path, check, None, tokens=TOKENS)


def test_a_daemon_that_is_ready_gives_no_reasons_to_hide(tmp_path: Path) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        assert (await client.get("/ready")).json() == {"ready": True, "reasons": []}

    serve(tmp_path, check, answers(ready={"ready": True, "reasons": []}), tokens=TOKENS)

"""AT-101 on S3: the object store falls silent, refuses, and comes back; readiness to commit follows, readiness to ack stays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.services.s3 import S3Server
from tests.harness.daemon import Daemon, status
from tests.harness.fault_proxy import TcpProxy
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.posting import post, post_batch
from tests.harness.source import schema_message
from tests.harness.traffic import drain
from tests.harness.waiting import wait_until


@pytest.mark.acceptance("AT-101")
@pytest.mark.parametrize("trouble", ["silent", "refusing"])
def test_readiness_follows_the_object_store(tmp_path: Path, s3_server: S3Server, trouble: str, report: Callable[..., None]) -> None:
    """Flips are measured idle and with rows that wait to be put; the row says 5 s, the machine may be busy."""
    figures = {}
    with TcpProxy(s3_server.port) as proxy:
        settings = {**s3_server.settings(prefix=f"readiness-{trouble}"), "DOLAKE_FLUSH_AGE_S": "0.5"}
        settings["DOLAKE_S3_ENDPOINT"] = f"http://127.0.0.1:{proxy.port}"
        with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data, settings) as lake:
            ready = daemon.start().wait_ready()
            oracle = Oracle(tmp_path / "journal")
            assert post(ready.http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")

            def flipped(code: int) -> float:
                began_s = time.monotonic()
                wait_until(
                    lambda: status(ready.http + "/ready/writer") == code, lambda: f"/ready/writer to be {code}\n{daemon.tail()}", 120
                )
                assert status(ready.http + "/health") == status(ready.http + "/ready") == 200
                return round(time.monotonic() - began_s, 2)

            for number, moment in enumerate(("idle", "busy"), start=2):
                (proxy.block if trouble == "silent" else proxy.refuse)()
                if moment == "busy":
                    events = [ledger_event(place) for place in range(100)]
                    oracle.sent("s", "", number, events)
                    assert post(ready.http, post_batch("s", number, events)).status == 200
                    oracle.acked("s", "", number, "ok")
                else:
                    assert post(ready.http, post_batch("s", number, [])).status == 200
                figures[f"{moment}_down_s"] = flipped(503)
                proxy.heal()
                figures[f"{moment}_up_s"] = flipped(200)
            asyncio.run(drain(daemon))
            assert_lake_equals_oracle(lake, oracle)
    report(trouble=trouble, **figures)

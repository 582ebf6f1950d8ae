"""Chaos over a real S3-compatible server behind a proxy that breaks its requests; `make faults` runs more of it, and longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.services.s3 import S3Server
from tests.soak.engine import run_chaos, world


@pytest.mark.acceptance("AT-117")
def test_thirty_seconds_of_trouble_change_nothing_in_s3(tmp_path: Path, s3_server: S3Server, report: Callable[..., None]) -> None:
    with world(tmp_path, seed=11, sources=4, s3=s3_server) as place:
        outcome = asyncio.run(run_chaos(place, 30))
    assert outcome.breaches == []
    assert any(name.startswith("store: ") for name in outcome.counts)
    report(events=outcome.events, troubles=outcome.troubles, drained_s=max(outcome.drained_s))

"""The probe: an absence is told, a silence too, and a return."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from dolake.clock import Runtime, SystemRandomness, ThreadTasks
from dolake.errors import CatalogUnreachable, ObjectMissing, StoreUnreachable
from dolake.iceberg.access import LakeAccess
from dolake.writer import probing
from tests.ingest.rig import QuickClock, eventually


class Answering:
    """A store and a catalog that answer as they are told to."""

    root = "file:///lake"

    def __init__(self) -> None:
        self.store_fails = self.catalog_fails = ""
        self.unheld = threading.Event()
        self.unheld.set()

    def size(self, location: str) -> int:
        assert location == "file:///lake/dolake-probe"
        if self.store_fails:
            raise StoreUnreachable(self.store_fails)
        raise ObjectMissing(location)

    def load(self, table: Any) -> None:
        assert self.unheld.wait(30)
        if self.catalog_fails:
            raise CatalogUnreachable(self.catalog_fails)


def test_what_is_away_is_told_and_so_is_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "ANSWER_S_MAX", 0.05)

    async def scene() -> None:
        said: dict[str, str] = {}
        parts: Any = Answering()
        runtime = Runtime(clock=QuickClock(), random=SystemRandomness(), tasks=ThreadTasks(4))
        probe = asyncio.create_task(probing.Probe(runtime, parts, parts, LakeAccess(runtime), said.__setitem__).run())
        try:
            await eventually(lambda: said == {"store": "", "catalog": ""})
            parts.store_fails = "the bucket is gone"
            await eventually(lambda: said == {"store": "the bucket is gone", "catalog": ""})
            parts.store_fails, parts.catalog_fails = "", "locked"
            await eventually(lambda: said == {"store": "", "catalog": "locked"})
            parts.catalog_fails = ""
            parts.unheld.clear()
            await eventually(lambda: said["catalog"] == "no answer within 0.05 s")
            parts.unheld.set()
            await eventually(lambda: said == {"store": "", "catalog": ""})
        finally:
            parts.unheld.set()
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    asyncio.run(scene())

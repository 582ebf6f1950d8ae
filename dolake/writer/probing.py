"""Asks store and catalog every other second whether they are there, so that their absence is known before a flush meets it.

A look at what does not exist: the least that shows who answers. That they also take what is put there shows with each flush.
Where the circuit is open it is looked at its steps, and not at all while somebody with rows tries at each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from dolake.clock import Runtime
from dolake.errors import DolakeError, ObjectMissing
from dolake.iceberg.access import CATALOG, STORE, LakeAccess, part_at_fault
from dolake.iceberg.catalog import TableCatalog
from dolake.model import TableName
from dolake.storage.store import ObjectStore

EVERY_S = 2.0
ANSWER_S_MAX = 2.0
_NO_TABLE = TableName("dolake", "probe")


class Probe:
    """`tell(part, trouble)` hears of `store` and `catalog` after each look; no trouble is an empty text."""

    def __init__(
        self, runtime: Runtime, store: ObjectStore, catalog: TableCatalog, access: LakeAccess, tell: Callable[[str, str], None]
    ) -> None:
        self._runtime, self._store, self._catalog, self._access, self._tell = runtime, store, catalog, access, tell

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self._watch(STORE, self._ask_store), self._watch(CATALOG, self._ask_catalog))

    async def _watch(self, part: str, ask: Callable[[], None]) -> None:
        while True:
            if self._access.may_look(part):
                await self._look(part, ask)
            await self._runtime.clock.sleep(EVERY_S)

    async def _look(self, part: str, ask: Callable[[], None]) -> None:
        """One look, however long it takes: what does not answer in time is down until it does."""
        answer = self._runtime.tasks.spawn(f"probe {part}", self._ask(part, ask))
        try:
            if not (await asyncio.wait({answer}, timeout=ANSWER_S_MAX))[0]:
                self._tell(part, f"no answer within {ANSWER_S_MAX:g} s")
            await answer
        except DolakeError as trouble:
            self._tell(part_at_fault(trouble) or part, str(trouble))
        else:
            self._tell(part, "")
        finally:
            answer.cancel()

    async def _ask(self, part: str, ask: Callable[[], None]) -> None:
        async with self._access.turn([part]):
            await self._runtime.tasks.run(ask)

    def _ask_store(self) -> None:
        with contextlib.suppress(ObjectMissing):
            self._store.size(f"{self._store.root}/dolake-probe")

    def _ask_catalog(self) -> None:
        self._catalog.load(_NO_TABLE)

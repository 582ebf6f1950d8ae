"""Random walks of a writer half over real files: steps in any order, the writer dropped at any of them, or at a failpoint in it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

from dolake import failpoints
from dolake.errors import DolakeError, RequestRefused
from dolake.model import TableName
from tests.verify.test_lake import breaches
from tests.writer.half import Half, half, until

TABLES = ("t", "u")
LIVES = 5
Step = Callable[[Half], Awaitable[None]]


def writes(chance: random.Random, accepted: Callable[[str, int], None]) -> Callable[[Half], None]:
    """Writes a few batches of rows of both tables, each row with an id of its own, which `accepted` hears."""
    numbers = itertools.count()

    def write(h: Half) -> None:
        for _ in range(chance.randrange(1, 6)):
            notes = ["x" * chance.randrange(200) for _ in range(chance.randrange(1, 5))]
            rows = [(chance.choice(TABLES), {"id": next(numbers), "note": note}) for note in notes]
            h.hand.batch(rows, source=chance.choice(["s", "other"]))
            for table, row in rows:
                accepted(table, int(str(row["id"])))

    return write


async def trim(h: Half) -> None:
    """As far as the writer lets it."""
    await until(lambda: h.log.log_id in _report(h)["logs"])
    h.log.trim(int(_report(h)["logs"][h.log.log_id]["low"]))


async def walk(
    path: Path, seed: int, chance: random.Random, step: Callable[[Half], Awaitable[None]], check: Callable[[Half], None]
) -> None:
    """Some lives of some steps; then one in which everything is brought back and committed, and `check` looks at it."""
    flushing = {"age_s": [3600, 0.02][seed % 2], "bytes": 3_000}
    async with half(path, flush=flushing) as h:
        for table in TABLES:
            h.hand.declare(table)
        await h.flush()
        sequences = h.hand.sequences, h.hand.numbers
    for _ in range(LIVES):
        with contextlib.suppress(failpoints.FailpointRaised):
            async with half(path, stop_cleanly=False, flush=flushing) as h:
                h.hand.sequences, h.hand.numbers = sequences
                await _life(h, chance.randrange(3, 9), step)
        failpoints.REGISTRY.disarm()
    async with half(path) as h:
        h.hand.sequences, h.hand.numbers = sequences
        for table in TABLES:
            await until(lambda: h.log.log_id in _report(h)["logs"])
            with contextlib.suppress(RequestRefused):
                await h.service.parking.unpark(TableName.parse(table))
        result = await h.flush()
        assert result["success"], result
        check(h)
    assert breaches(path) == []


async def _life(h: Half, steps: int, step: Step) -> None:
    """Until the steps are done, or the writer has died of one."""
    for _ in range(steps):
        stepping = asyncio.ensure_future(step(h))
        await asyncio.wait({stepping, h.running}, return_when=asyncio.FIRST_COMPLETED)
        stepping.cancel()
        with contextlib.suppress(DolakeError, asyncio.CancelledError, failpoints.FailpointRaised):
            await stepping
        if h.running.done():
            return


def _report(h: Half) -> dict[str, dict[str, dict[str, int]]]:
    if h.running.done():
        h.running.result()
    h.service.tell()
    return h.reports[-1]

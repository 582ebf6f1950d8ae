"""Streams of rows that drift, nest, vanish and clash, through writers that die: every event a row or a dead letter, once and exact."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st
from pyiceberg.table import Table

from dolake.failpoints import REGISTRY
from dolake.model import Entry, RecordKind
from tests.harness.lake import Lake
from tests.streams import COLUMNS_MAX, FEW_COLUMNS, Batch, Declare, Die, Flush, Ledger, Step, Stumble, findings, streams
from tests.verify.test_lake import breaches
from tests.writer.half import Half, half


class Hand:
    """Writes steps into a writer's log, and into the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sequences: dict[str, itertools.count[int]] = {}

    def _append(self, h: Half, kind: RecordKind, source: str, count: int, payload: bytes, tables: dict[str, int]) -> int:
        sequence = next(self._sequences.setdefault(source, itertools.count()))
        return h.log.append_group([Entry(kind, source, "", sequence, count, 0, payload, tables)]).start

    def batch(self, h: Half, batch: Batch) -> None:
        numbered = [self.ledger.send(sent) for sent in batch.events]
        tables: dict[str, int] = {}
        for sent in batch.events:
            tables[sent.table] = tables.get(sent.table, 0) + 1
        payload = b'{"type":"cdc_batch","events":[' + b",".join(raw for _, raw in numbered) + b"]}"
        source = batch.events[0].source
        offset = self._append(h, RecordKind.BATCH, source, len(numbered), payload, tables)
        self.ledger.places.update({(source, sequence): (offset, place) for place, (sequence, _) in enumerate(numbered)})

    def declare(self, h: Half, declare: Declare) -> None:
        payload = json.dumps(declare.message(0)).encode()
        self._append(h, RecordKind.SCHEMA, declare.source, 0, payload, {declare.table: 0})
        self.ledger.declared.append(declare)


class Lives:
    """One writer after another over one log and one lake."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self._path, self._ledger = path, ledger
        self._stack = AsyncExitStack()

    async def begin(self, columns_max: int, *, last: bool = False) -> Half:
        """The one before loses all that it has in memory."""
        await self.end()
        self._ledger.few_columns |= columns_max == FEW_COLUMNS
        return await self._stack.enter_async_context(half(self._path, stop_cleanly=last, limits={"columns": columns_max}))

    async def end(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def lives(path: Path, ledger: Ledger) -> AsyncIterator[Lives]:
    found = Lives(path, ledger)
    try:
        yield found
    finally:
        REGISTRY.disarm()
        await found.end()


async def flush(h: Half) -> None:
    """Fails where the writer dies of it, or a table stops."""
    asked = asyncio.get_running_loop().create_task(h.service.flush(None, h.until(), timeout_s=120))
    try:
        await asyncio.wait([asked, h.running], return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            await h.running
        result = await asked
    finally:
        asked.cancel()
    assert result["success"], result


async def broken_flush(h: Half, point: str, passes: int) -> None:
    """A flush that is left where it passes `point` for the last time; a whole one if it never comes there."""
    before = REGISTRY.hits[point]
    arm(point, passes)
    asked = asyncio.get_running_loop().create_task(flush(h))
    while not asked.done() and REGISTRY.hits[point] <= before + passes:  # noqa: ASYNC110 -- a failpoint has no event
        await asyncio.sleep(0.002)
    REGISTRY.disarm()
    if not asked.done():
        asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


def arm(point: str, passes: int) -> None:
    REGISTRY.arm(point, f"{passes}*off->1*raise" if passes else "1*raise")


async def play(path: Path, steps: Sequence[Step], ledger: Ledger) -> None:
    hand, columns_max = Hand(ledger), COLUMNS_MAX
    async with lives(path, ledger) as writers:
        h = await writers.begin(columns_max)
        for step in steps:
            match step:
                case Batch():
                    hand.batch(h, step)
                case Declare():
                    hand.declare(h, step)
                case Flush():
                    await flush(h)
                case Stumble(point, passes):
                    arm(point, passes)
                    await flush(h)
                    REGISTRY.disarm()
                case Die(point, passes, columns_max):
                    if point:
                        await broken_flush(h, point, passes)
                    h = await writers.begin(columns_max)
        h = await writers.begin(columns_max, last=True)
        await flush(h)


def moved_ids(ledger: Ledger, name: str, table: Table) -> Iterator[str]:
    """Field ids through all schemas that a table has had: one column each, for good, whatever it is called."""
    called: dict[int, str] = {}
    for schema in sorted(table.metadata.schemas, key=lambda schema: schema.schema_id):
        ids = {field.field_id: field.name for field in schema.fields}
        yield from (f"{name}: field {one} ({called[one]}) is gone in schema {schema.schema_id}" for one in called.keys() - ids.keys())
        for one, now in ids.items():
            if now not in ledger.names_of(name, called.setdefault(one, now)):
                yield f"{name}: field {one} was {called[one]} and is {now}"
        called |= ids


def judge(path: Path, ledger: Ledger, *, by_duckdb: bool) -> list[str]:
    with warnings.catch_warnings(), Lake(path) as lake:
        warnings.simplefilter("ignore")  # Other libraries' deprecations.
        catalog = lake.catalog()
        try:
            tables = {name: catalog.load_table(f"default.{name}") for name in ledger.tables()}
            schemas = {name: table.schema() for name, table in tables.items()}
            rows = {name: table.scan().to_arrow().to_pylist() for name, table in tables.items()}
            kept_out = lake.metadata_location("dolake.dead_letters") is not None
            letters = catalog.load_table("dolake.dead_letters").scan().to_arrow().to_pylist() if kept_out else []
        finally:
            catalog.close()
        found = list(findings(ledger, schemas, rows, letters))
        for name, table in tables.items():
            found += moved_ids(ledger, name, table)
        if by_duckdb:
            seen = {name: lake.read_duckdb(name).to_pylist() for name in tables}
            found += [f"DuckDB: {sentence}" for sentence in findings(ledger, schemas, seen, letters)]
    if currently_in_test_context():
        event(f"dead letters: {'some' if letters else 'none'}")
    return found + [str(breach) for breach in breaches(path)]


@pytest.mark.acceptance("AT-61", "AT-62")
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(steps=streams(), by_duckdb=st.integers(0, 9).map(lambda one: one == 0))
def test_every_event_of_any_stream_is_a_row_or_a_dead_letter_once_and_exact(steps: list[Step], by_duckdb: bool) -> None:
    ledger = Ledger()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory), steps, ledger))
        found = judge(Path(directory), ledger, by_duckdb=by_duckdb)
    assert not found, "\n".join(found[:10])

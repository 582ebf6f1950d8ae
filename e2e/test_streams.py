"""Rows that drift, nest, vanish and clash, from several sources, while processes are killed: each a row or a dead letter, once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.harness.daemon import Daemon
from tests.harness.kills import Killer, percentile
from tests.harness.oracle import Oracle
from tests.harness.ports import free_port
from tests.harness.source import Source
from tests.harness.traffic import drain, url_of
from tests.harness.waiting import wait_until
from tests.streams import Batch, Declare, Flush, Ledger, Step, streams
from tests.writer.test_streams import judge

QUICK = {"DOLAKE_FLUSH_AGE_S": "0.05"}
STREAMS_A_ROUND = 5
KILLS = (("writer",), ("writer",), ("writer",), ("ingest",), ("ingest", "writer"), ())


@dataclass
class Sources:
    """The sources of one stream, under names and with tables of their own. `queues` holds what each has to send, in order."""

    number: int
    ledger: Ledger
    oracle: Oracle
    queues: dict[str, Source] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        match step:
            case Batch(events):
                mine = tuple(replace(sent, source=self._own(sent.source), table=self._own(sent.table)) for sent in events)
                self._append(mine[0].source, lambda name, sequence: self._batch(name, sequence, Batch(mine)))
            case Declare(source, table, columns):
                mine_too = Declare(self._own(source), self._own(table), columns)
                self.ledger.declared.append(mine_too)
                self._append(mine_too.source, lambda name, sequence: orjson.dumps(mine_too.message(sequence)))

    def _own(self, name: str) -> str:
        return f"{name}_{self.number}"

    def _append(self, name: str, frame: Callable[[str, int], bytes]) -> None:
        source = self.queues.setdefault(name, Source(name, self.oracle, window=2))
        sequence = source.first_sequence + len(source.frames)
        source.frames.append((sequence, frame(name, sequence), []))

    def _batch(self, name: str, sequence: int, batch: Batch) -> bytes:
        numbered = [self.ledger.send(sent) for sent in batch.events]
        body = b",".join(raw for _, raw in numbered)
        head = {"type": "cdc_batch", "timestamp": 1_767_225_600_000, "sourceDoId": name, "sequenceNumber": sequence}
        more = {"firstEventSequence": numbered[0][0], "lastEventSequence": numbered[-1][0], "sizeBytes": len(body)}
        return orjson.dumps({**head, **more, "isRetry": False, "retryCount": 0})[:-1] + b',"events":[' + body + b"]}"

    def acked(self) -> int:
        return sum(source.acked for source in self.queues.values())

    async def deliver(self, daemon: Daemon, killer: Killer) -> None:
        """Everything, with a kill or two on the way."""
        sending = asyncio.gather(*(source.deliver(url_of(daemon)) for source in self.queues.values()))
        for _ in range(killer.random.randrange(1, 3)):
            enough = killer.random.randrange(sum(len(source.frames) for source in self.queues.values()) + 1)
            await asyncio.to_thread(wait_until, lambda enough=enough: self.acked() >= enough or sending.done(), "some acks", 60)
            await asyncio.to_thread(killer.kill, killer.random.choice(KILLS))
        await asyncio.wait_for(sending, 120)


@pytest.mark.acceptance("AT-61", "AT-62")
def test_streams_of_any_rows_outlive_kills_with_every_event_a_row_or_a_dead_letter(
    tmp_path: Path, rounds: int, report: Callable[..., None]
) -> None:
    ledger, oracle, drawn = Ledger(), Oracle(tmp_path / "journal"), draw(rounds * STREAMS_A_ROUND)
    with Daemon(tmp_path / "data", QUICK, port=free_port()) as daemon:
        killer = Killer(daemon.start(), random.Random(11))
        for number, steps in enumerate(drawn):
            sources = Sources(number, ledger, oracle)
            for step in steps:
                sources.add(step)
            asyncio.run(sources.deliver(daemon, killer))
        asyncio.run(drain(daemon))
        assert daemon.stop() == 0
        found = judge(tmp_path / "data", ledger, by_duckdb=False)
    assert not found, "\n".join(found[:10])
    report(streams=len(drawn), events=len(ledger.events), kills=len(killer.recoveries_s), ready_p95_s=percentile(killer.recoveries_s, 95))


def draw(count: int) -> list[Sequence[Step]]:
    """So many streams, always the same ones."""
    found: list[Sequence[Step]] = []

    @seed(5)
    @settings(max_examples=count * 3, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
    @given(steps=streams(deaths=False))
    def collect(steps: list[Step]) -> None:
        kept = [step for step in steps if not isinstance(step, Flush)]
        if any(isinstance(step, Batch) for step in kept):
            found.append(kept)

    collect()
    return found[-count:]  # The first ones are the simplest.

"""Dead letters of a real daemon: one event in a hundred does not fit, and is kept with its reason and its bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.source import connect_message, conversation, schema_message
from tests.harness.traffic import drain, url_of

COUNT, EVERY = 10_000, 100
BATCH = 500
BAD_AMOUNTS = ('"much"', "1.005", "true", '["1"]', "1e40")


def event(number: int) -> bytes:
    """Each hundredth has an amount that is no `decimal(18,2)`."""
    bad, kind = divmod(number, EVERY)
    amount = BAD_AMOUNTS[bad % len(BAD_AMOUNTS)] if kind == 0 else f"{number}.25"
    image = f'{{"id": {number},"amount": {amount}}}'
    said = f'"sequence":{number},"timestamp":1767225600000,"operation":"INSERT","table":"bills","rowId":"{number}"'
    return f'{{{said},"after":{image}}}'.encode()


def batches() -> Iterator[bytes]:
    for place, start in enumerate(range(0, COUNT, BATCH)):
        envelope = {
            "type": "cdc_batch", "timestamp": 1_767_225_600_000, "sourceDoId": "till", "sequenceNumber": place + 1,
            "firstEventSequence": start, "lastEventSequence": start + BATCH - 1, "sizeBytes": 1, "isRetry": False, "retryCount": 0,
        }  # fmt: skip
        yield orjson.dumps(envelope)[:-1] + b',"events":[' + b",".join(event(start + n) for n in range(BATCH)) + b"]}"


async def send(daemon: Daemon) -> None:
    async with conversation(url_of(daemon)() or "") as talk:
        await talk.ask(connect_message("till"))
        answer = await talk.ask(schema_message("till", 0, "bills", {"id": "long", "amount": "decimal(18,2)"}))
        assert answer["type"] == "ack", answer
        for message in batches():
            await talk.socket.send(message)
            answer = await talk.receive()
            assert answer["type"] == "ack", answer
    await drain(daemon)


@pytest.mark.acceptance("AT-62")
def test_one_bad_row_in_a_hundred_is_a_hundred_dead_letters_with_reason_and_bytes(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.3"}) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        asyncio.run(send(daemon))
        rows = lake.query(f"SELECT id, amount::VARCHAR FROM iceberg_scan('{lake.metadata_location('bills')}') ORDER BY id")
        wanted = [(n, f"{n}.25") for n in range(COUNT) if n % EVERY]
        assert len(rows) == len(wanted)
        assert [pair for pair in zip(rows, wanted, strict=True) if pair[0] != pair[1]][:3] == []
        letters = lake.read_pyiceberg("dolake.dead_letters").sort_by("_cdc_sequence").to_pylist()
        assert [(letter["_cdc_sequence"], letter["event"]) for letter in letters] == [(n, event(n)) for n in range(0, COUNT, EVERY)]
        assert {(letter["table_name"], letter["outcome"], letter["reason"], letter["field"]) for letter in letters} == {
            ("default.bills", "dead", "does_not_fit", "amount")
        }
        assert [letter["value"] for letter in letters[:5]] == list(BAD_AMOUNTS)
        assert len({letter["rule"] for letter in letters}) > 1, "each says which rule it breaks"
        (listed,) = [table for table in json.loads(daemon.run("tables", "--json").stdout) if table["table"] == "default.bills"]
        assert (listed["rows"], listed["deadLetters"]) == (COUNT - COUNT // EVERY, COUNT // EVERY)
        verified = daemon.run("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr

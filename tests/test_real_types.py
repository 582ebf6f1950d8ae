"""Every type through the whole daemon: declared, sent as a source writes it, read by DuckDB and PyIceberg as the very same value."""

from __future__ import annotations

import asyncio
import base64
import math
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pytest

from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.source import connect_message, conversation, flush, schema_message
from tests.parquet.test_encode import CASES, plain

ONE_UUID = UUID("0b5e1f8e-8f7c-4c1e-9a51-0123456789ab")
EVERY_BYTE = f'"{base64.b64encode(bytes(range(256))).decode()}"'
# Beside those that every Parquet file is tried with: column type, JSON as a source sends it, the value that every reader must find.
MORE: dict[str, tuple[str, str, Any]] = {
    "combining and control signs": ("string", '"e\\u0301 \\u202e\\u0001\\ufeff\\uffff"', "e\u0301 \u202e\x01\ufeff\uffff"),
    "blanks at the ends": ("string", '" \\t x \\r\\n"', " \t x \r\n"),
    "text that looks like null": ("string", '"null"', "null"),
    "int max": ("int", "2147483647", 2**31 - 1),
    "long written with an exponent": ("long", "1e3", 1000),
    "decimal smallest": ("decimal(38,38)", '"-0.00000000000000000000000000000000000001"', Decimal("-1E-38")),
    "decimal(38,0) of nines": ("decimal(38,0)", "9" * 38, Decimal("9" * 38)),
    "double largest": ("double", "1.7976931348623157e308", 1.7976931348623157e308),
    "double smallest": ("double", "5e-324", 5e-324),
    "double minus zero": ("double", "-0.0", -0.0),
    "float Infinity": ("float", '"Infinity"', math.inf),
    "date last": ("date", '"9999-12-31"', date(9999, 12, 31)),
    "time zero": ("time", '"00:00:00"', time(0, 0)),
    "timestamp before 1970": ("timestamp", '"1969-12-31T23:59:59.999999"', datetime(1969, 12, 31, 23, 59, 59, 999999)),
    "timestamptz first": ("timestamptz", '"0001-01-01T00:00:00Z"', datetime(1, 1, 1, tzinfo=UTC)),
    "binary empty": ("binary", '""', b""),
    "binary of every byte": ("binary", EVERY_BYTE, bytes(range(256))),
    "uuid of capitals": ("uuid", f'"{str(ONE_UUID).upper()}"', ONE_UUID),
    "json number beyond double": ("json", "12345678901234567890.10", "12345678901234567890.10"),
    "list empty": ("list<string>", "[]", []),
    "list of lists": ("list<list<int>>", "[[1],[],null,[2,null]]", [[1], [], None, [2, None]]),
    "list of structs": (
        "list<struct<k: string, v: decimal(9,2)>>",
        '[{"k":"a","v":"1.10"},{"k":null}]',
        [{"k": "a", "v": Decimal("1.10")}, {"k": None, "v": None}],
    ),
    "map of structs": ("map<long, struct<at: date>>", '[[9007199254740993,{"at":"2026-11-20"}]]', {2**53 + 1: {"at": date(2026, 11, 20)}}),
    "struct in struct": (
        "struct<a: struct<b: uuid, c: binary>>",
        f'{{"a":{{"b":"{ONE_UUID}","c":"AP8Q"}}}}',
        {"a": {"b": ONE_UUID, "c": b"\x00\xff\x10"}},
    ),
}
ALL = {**CASES, **MORE}
# PyIceberg 0.12 shows a null of these as an empty list or map (its issue 3833); in the file it is null, as DuckDB says.
READ_AS_EMPTY = {"list of structs", "map of structs"}
COLUMN = {name: f"c{place}" for place, name in enumerate(ALL)}
IMAGES = {"INSERT": "after", "UPDATE": "after", "DELETE": "before"}


def frame(sequence: int, name: str) -> bytes:
    """One event of each operation, the value in its image; the text of the value goes as it is."""
    events = []
    for place, (operation, image) in enumerate(IMAGES.items()):
        row = f'{{"id":{sequence},"{COLUMN[name]}":{ALL[name][1]}}}'
        number = sequence * len(IMAGES) + place
        events.append(
            f'{{"sequence":{number},"timestamp":1767225600000,"operation":"{operation}","table":"types","rowId":"r","{image}":{row}}}'
        )
    first = sequence * len(IMAGES)
    head = {
        "type": "cdc_batch",
        "timestamp": 1_767_225_600_000,
        "sourceDoId": "s",
        "sequenceNumber": sequence,
        "firstEventSequence": first,
        "lastEventSequence": first + len(IMAGES) - 1,
        "sizeBytes": sum(map(len, events)),
        "isRetry": False,
        "retryCount": 0,
    }
    return orjson.dumps(head)[:-1] + b',"events":[' + ",".join(events).encode() + b"]}"


async def send(url: str) -> None:
    async with conversation(url) as talk:
        assert (await talk.ask(connect_message("s")))["type"] == "status"
        columns = {"id": "long", **{COLUMN[name]: kind for name, (kind, _, _) in ALL.items()}}
        assert (await talk.ask(schema_message("s", 0, "types", columns)))["status"] == "ok"
        for sequence, name in enumerate(ALL, start=1):
            await talk.socket.send(frame(sequence, name))
            answer = await talk.receive()
            assert (answer["type"], answer.get("status")) == ("ack", "ok"), (name, answer)
    result = await flush(url)
    assert (result["success"], result["eventsFlushed"]) == (True, len(IMAGES) * len(ALL)), result


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The table as each reader has it, in the order in which it was sent."""
    data: Path = tmp_path_factory.mktemp("types") / "data"
    with Daemon(data, {"DOLAKE_FLUSH_AGE_S": "3600"}) as daemon, Lake(data) as lake:
        daemon.start()
        ready = daemon.ready()
        assert ready is not None
        asyncio.run(asyncio.wait_for(send(ready.cdc), 120))
        lake.database().execute("SET arrow_lossless_conversion = true")  # uuids as uuids
        tables = {"DuckDB": lake.read_duckdb("types"), "PyIceberg": lake.read_pyiceberg("types")}
        verified = daemon.run("verify", deadline_s=120)
        assert verified.returncode == 0, verified.stdout
    return {reader: table.sort_by("_cdc_sequence") for reader, table in tables.items()}


@pytest.mark.acceptance("AT-13")
@pytest.mark.parametrize("reader", ["DuckDB", "PyIceberg"])
@pytest.mark.parametrize("name", list(ALL))
def test_a_value_is_read_as_it_was_sent(found: dict[str, pa.Table], name: str, reader: str) -> None:
    expected = plain(ALL[name][2])
    sequence = list(ALL).index(name) + 1
    rows = found[reader]
    assert rows.num_rows == len(IMAGES) * len(ALL)
    here = rows.slice(sequence * len(IMAGES) - len(IMAGES), len(IMAGES))
    assert here["id"].to_pylist() == [sequence] * len(IMAGES)
    assert here["_cdc_operation"].to_pylist() == list(IMAGES)
    values = [plain(value) for value in here[COLUMN[name]].to_pylist()]
    assert values == [expected] * len(IMAGES)
    assert [type(value) for value in values] == [type(expected)] * len(IMAGES)
    if isinstance(expected, float):
        assert {math.copysign(1, value) for value in values} == {math.copysign(1, expected)}
    strangers = {other: here[column].to_pylist() for other, column in COLUMN.items() if other != name}
    present = {other for other, seen in strangers.items() if seen != [None] * len(IMAGES)}
    assert present == (READ_AS_EMPTY - {name} if reader == "PyIceberg" else set())


def test_there_are_as_many_cases_as_promised() -> None:
    assert len(ALL) >= 25
    assert any(len(text) > 1_000_000 or len(text.encode()) > 1_000_000 for _, text, _ in ALL.values())

from __future__ import annotations

import json
from typing import Any

import pytest

from dolake.cdc.formats import Commit, Declare, Event, Item
from dolake.cdc.formats.native import Native
from dolake.errors import InvalidInput


def decode(*lines: bytes) -> list[Item]:
    return list(Native().items(lines))


def event(**fields: Any) -> bytes:
    return json.dumps({"timestamp": 5, "operation": "INSERT", "table": "orders", "rowId": "o-9", "after": {"id": 9}} | fields).encode()


def raws(items: list[Item]) -> list[bytes]:
    return [item.raw for item in items if isinstance(item, Event)]


def test_events_go_out_byte_for_byte() -> None:
    line = '{ "sequence" : 4,"timestamp":5,"operation":"INSERT","table":"a.b","after":{"total":12.50,"x":"🚀"},"mine":null }'.encode()
    assert raws(decode(line + b"\r")) == [line]


def test_events_without_numbers_count_from_one() -> None:
    items = decode(event(), event())
    assert [json.loads(raw)["sequence"] for raw in raws(items)] == [1, 2]
    assert json.loads(raws(items)[0]) == {"sequence": 1, **json.loads(event())}


def test_numbers_that_are_there_are_kept_and_must_rise() -> None:
    items = decode(event(sequence=400), event(), event(sequence=500))
    assert [item.sequence for item in items if isinstance(item, Event)] == [400, 401, 500]
    with pytest.raises(InvalidInput, match=r"line 2: sequence: must be above that of the event before it, 400 \(got 400\)"):
        decode(event(sequence=400), event(sequence=400))


def test_numbers_may_begin_at_zero() -> None:
    assert [item.sequence for item in decode(event(sequence=0), event(sequence=1)) if isinstance(item, Event)] == [0, 1]
    with pytest.raises(InvalidInput):
        decode(event(sequence=0), event(sequence=0))


def test_a_batch_is_one_transaction_unless_its_mark_says_more_follow() -> None:
    one, two = json.loads(event(sequence=1)), json.loads(event(sequence=2))
    batch = {"type": "cdc_batch", "sequenceNumber": 9, "events": [one, two]}
    assert [type(item) for item in decode(json.dumps(batch).encode())] == [Event, Event, Commit]
    parts = [
        {"type": "cdc_batch", "events": [one], "transaction": {"id": "t", "last": False}},
        {"type": "cdc_batch", "events": [two], "transaction": {"id": "t", "last": True}},
    ]
    items = decode(*(json.dumps(part).encode() for part in parts))
    assert [type(item) for item in items] == [Event, Event, Commit]
    assert isinstance(items[0], Event)
    assert items[0].transaction == "t"


def test_schemas_are_declared() -> None:
    line = (
        b'{"type":"schema","table":"orders","primaryKey":["id"],"columns":'
        b'[{"name":"id","type":"long","nullable":false},{"name":"n","type":"int","default":3,"renamedFrom":"m"}]}'
    )
    (item,) = decode(line)
    assert isinstance(item, Declare)
    assert item.schema.primary_key == ("id",)
    first, second = item.schema.columns
    assert (first.name, first.type, first.nullable) == ("id", "long", False)
    assert (second.default, second.renamed_from, second.nullable) == ("3", "m", True)


def test_the_rest_of_a_recorded_connection_is_passed_over() -> None:
    assert decode(b'{"type":"connect"}', b'{"type":"heartbeat"}', b'{"type":"flush_request"}', b'{"type":"disconnect"}', b"") == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "truncated"),
        (b'"x"', "object"),
        (b'{"type":"nonsense"}', "nonsense"),
        (event(operation="UPSERT"), "operation"),
        (event(timestamp="now"), "timestamp"),
        (event(table="../../evil"), "each part"),
        (event(table="dolake.x"), "dolake's own"),
        (event(after=[1]), "after: must be an object"),
        (event(before=None), "before: must be an object"),
        (event(rowId=4), "rowId"),
        (event(sequence=-1), "sequence"),
        (b'{"type":"cdc_batch"}', "events"),
        (b'{"type":"schema","table":"t","primaryKey":[]}', "columns"),
    ],
)
def test_a_wrong_line_is_named_with_its_number_and_reason(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(event(), line)
    assert caught.value.line == 2
    assert reason in str(caught.value)


@pytest.mark.parametrize("value", [b"[" * 100_000, b'"\xff"'])
def test_a_line_that_no_daemon_would_take_is_named_here(value: bytes) -> None:
    """Nested without end, or no UTF-8 (found by fuzzing)."""
    with pytest.raises(InvalidInput) as caught:
        decode(event(), event().replace(b"9}", value + b"}"))
    assert caught.value.line == 2

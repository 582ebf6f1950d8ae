from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from dolake.cdc.formats import COMMIT, Commit, Declare, Event, Item
from dolake.cdc.formats.wal2json import Wal2json
from dolake.errors import InvalidInput, OtherStream

TIME = "2026-11-20 15:30:18.126353+00"
PK = [{"name": "id", "type": "bigint"}]


def column(name: str, kind: str, value: Any = None) -> dict[str, Any]:
    return {"name": name, "type": kind, "value": value}


def change(action: str, columns: list[dict[str, Any]] | None = None, identity: list[dict[str, Any]] | None = None, **more: Any) -> bytes:
    line: dict[str, Any] = {"action": action, "xid": 7, "timestamp": TIME, "lsn": "0/1E80FD8", "schema": "public", "table": "things"}
    if columns is not None:
        line["columns"] = columns
    if identity is not None:
        line["identity"] = identity
    if action != "T":
        line["pk"] = PK
    line |= more
    return json.dumps({name: value for name, value in line.items() if value is not ...}, ensure_ascii=False).encode()


def begin(xid: int = 7) -> bytes:
    return json.dumps({"action": "B", "xid": xid, "timestamp": TIME}).encode()


def commit(xid: int = 7) -> bytes:
    return json.dumps({"action": "C", "xid": xid, "timestamp": TIME}).encode()


def decode(*lines: bytes) -> list[Item]:
    return list(Wal2json().items(lines))


def events(items: list[Item]) -> list[Any]:
    return [json.loads(item.raw) for item in items if isinstance(item, Event)]


def declared(items: list[Item]) -> list[dict[str, str]]:
    return [{column.name: column.type for column in item.schema.columns} for item in items if isinstance(item, Declare)]


ID, NOTE = column("id", "bigint", 1), column("note", "text", "n")


def test_an_insert_is_declared_and_becomes_an_event() -> None:
    items = decode(begin(), change("I", [ID, NOTE]), commit())
    declaration, event, end = items
    assert isinstance(declaration, Declare)
    assert declaration.schema.table == "public.things"
    assert declaration.schema.primary_key == ("id",)
    assert [(item.name, item.type, item.nullable) for item in declaration.schema.columns] == [
        ("id", "long", False),
        ("note", "string", True),
    ]
    assert isinstance(event, Event)
    assert (event.sequence, event.table, event.transaction) == (1, "public.things", "7")
    assert json.loads(event.raw) == {
        "sequence": 1,
        "timestamp": 1795188618126,
        "operation": "INSERT",
        "table": "public.things",
        "after": {"id": 1, "note": "n"},
        "metadata": {"lsn": "0/1E80FD8", "transactionId": "7"},
    }
    assert isinstance(end, Commit)


def test_an_update_carries_the_old_identity_before_and_the_new_row_after() -> None:
    (event,) = events(decode(change("U", [column("id", "bigint", 2), NOTE], [ID])))
    assert event["operation"] == "UPDATE"
    assert event["before"] == {"id": 1}
    assert event["after"] == {"id": 2, "note": "n"}
    assert "rowId" not in event


def test_a_delete_carries_its_identity_and_does_not_shrink_the_table() -> None:
    items = decode(change("I", [ID, NOTE]), change("D", identity=[ID]), change("I", [ID, NOTE]))
    assert events(items)[1]["before"] == {"id": 1}
    assert "after" not in events(items)[1]
    assert declared(items) == [{"id": "long", "note": "string"}]


def test_a_delete_of_a_table_not_seen_before_declares_what_it_knows() -> None:
    items = decode(change("D", identity=[ID]), change("I", [ID, NOTE]))
    assert declared(items) == [{"id": "long"}, {"id": "long", "note": "string"}]


def test_a_truncate_has_neither_row_nor_row_id() -> None:
    event = events(decode(change("I", [ID]), change("T")))[1]
    assert event["operation"] == "TRUNCATE"
    assert not {"rowId", "before", "after"} & event.keys()


def test_a_truncate_before_any_row_waits_for_the_columns_it_must_be_declared_with() -> None:
    decoder = Wal2json()
    first = list(decoder.items([begin(5), change("T", lsn="0/1"), commit(5)]))
    assert [type(item) for item in first] == [Commit]
    assert "a truncate of public.things was not sent" in decoder.notes[-1]
    second = list(decoder.items([begin(), change("I", [ID]), commit()]))
    assert [type(item) for item in second] == [Declare, Event, Event, Commit]
    truncate, insert = events(second)
    assert (truncate["sequence"], truncate["operation"], truncate["metadata"]["lsn"]) == (1, "TRUNCATE", "0/1")
    assert insert["sequence"] == 2
    assert decoder.notes == []


def test_an_out_of_line_column_left_out_of_an_update_is_unchanged() -> None:
    items = decode(change("I", [ID, NOTE, column("n", "integer", 1)]), change("U", [ID, column("n", "integer", 2)], [ID]))
    assert events(items)[1]["metadata"]["unchanged"] == ["note"]
    assert len(declared(items)) == 1
    assert "unchanged" not in events(items)[0]["metadata"]


def test_a_column_an_update_had_to_carry_was_dropped() -> None:
    items = decode(change("I", [ID, column("n", "integer", 1), NOTE]), change("U", [ID, NOTE], [ID]))
    assert declared(items)[-1] == {"id": "long", "note": "string"}
    assert "unchanged" not in events(items)[1]["metadata"]


def test_a_column_an_insert_lacks_was_dropped() -> None:
    items = decode(change("I", [ID, NOTE]), change("I", [ID]), change("U", [ID], [ID]))
    assert declared(items) == [{"id": "long", "note": "string"}, {"id": "long"}]
    assert "unchanged" not in events(items)[2]["metadata"]


def test_columns_added_and_types_changed_are_declared_again_before_the_event() -> None:
    items = decode(
        change("I", [ID, column("n", "integer", 1)]),
        change("I", [ID, column("n", "bigint", 1)]),
        change("U", [ID, column("n", "bigint", 1), NOTE], [ID]),
        change("I", [ID, column("n", "bigint", 1), NOTE]),
    )
    assert declared(items) == [{"id": "long", "n": "int"}, {"id": "long", "n": "long"}, {"id": "long", "n": "long", "note": "string"}]
    kinds = [type(item) for item in items if not isinstance(item, Commit)]
    assert kinds == [Declare, Event, Declare, Event, Declare, Event, Event]


def test_a_changed_key_is_declared_again() -> None:
    items = decode(change("I", [ID, NOTE]), change("I", [ID, NOTE], pk=[{"name": "note", "type": "text"}]))
    keys = [item.schema.primary_key for item in items if isinstance(item, Declare)]
    assert keys == [("id",), ("note",)]


def test_numbers_and_text_go_out_as_they_came() -> None:
    line = change("I", [ID, NOTE]).replace(b'"value": 1}', b'"value": 9223372036854775807}')
    line = line.replace(b'"value": "n"', '"value": "\\u00fc 🚀 \\\\ \\""'.encode())
    (event,) = [item for item in decode(line) if isinstance(item, Event)]
    assert b'"id":9223372036854775807' in event.raw
    assert '"note":"\\u00fc 🚀 \\\\ \\""'.encode() in event.raw


def test_without_begin_and_commit_each_change_stands_alone() -> None:
    kinds = [type(item) for item in decode(change("I", [ID]), change("I", [ID]))]
    assert kinds == [Declare, Event, Commit, Event, Commit]


def test_messages_and_blank_lines_are_passed_over() -> None:
    items = decode(b"", begin(), b'{"action":"M","transactional":true,"prefix":"p","content":"c"}', b" \r", change("I", [ID]), commit())
    assert [event["sequence"] for event in events(items)] == [1]


def test_the_default_capture_is_read_and_what_it_lacks_is_said() -> None:
    decoder = Wal2json()
    items = list(decoder.items([change("I", [ID, NOTE], xid=..., timestamp=..., lsn=..., pk=...)]))
    (event,) = events(items)
    assert event["timestamp"] == 0
    assert "metadata" not in event
    assert "include-timestamp" in decoder.notes[0]
    assert "public.things" in decoder.notes[1]
    assert "include-pk" in decoder.notes[1]


def test_the_state_lives_across_calls() -> None:
    decoder = Wal2json()
    first = list(decoder.items([begin(), change("I", [ID])]))
    second = list(decoder.items([change("I", [ID]), commit()]))
    assert [type(item) for item in first + second] == [Declare, Event, Event, Commit]
    assert events(second)[0]["sequence"] == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "truncated"),
        (b"[]", "object"),
        (b'{"x":1}', "action: must be one of"),
        (b'{"change":[]}', "format-version=2"),
        (change("I", [ID], table="../evil"), "each part"),
        (change("I", [ID], schema="a.b"), "each part"),
        (change("I", [ID], schema="dolake"), "dolake's own"),
        (change("I", [ID], table=...), "table: is missing"),
        (change("I", [{"name": "id", "value": 1}]), "include-types=true"),
        (change("I", [column("b", "bytea", "zz")]), "column 'b'"),
        (change("I", [column("a", "text[]", "{")]), "column 'a'"),
        (change("I", [ID], timestamp="yesterday"), "yesterday"),
        (change("I", [ID], timestamp="2026-11-20 15:30:18"), "offset"),
    ],
)
def test_a_wrong_line_is_named_with_its_number_and_reason(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(b"", change("I", [ID]), line)
    assert caught.value.line == 3
    assert reason in str(caught.value)


@pytest.mark.parametrize("value", [b"[" * 100_000, b'"\xff"', b'"\xed\xa0\x80"'])
def test_a_line_that_no_daemon_would_take_is_named_here(value: bytes) -> None:
    """Nested without end, or no UTF-8: such a line ended the command, or the batch around it (found by fuzzing)."""
    line = change("I", [ID, NOTE]).replace(b'"n"', value)
    decoder = Wal2json()
    with pytest.raises(InvalidInput) as caught:
        list(decoder.items([begin(), line]))
    assert caught.value.line == 2
    assert len(events(list(decoder.items([change("I", [ID, NOTE])])))) == 1, "what comes after it is read on"


def at(lsn: str, *changes: bytes, xid: int = 7) -> list[bytes]:
    """A transaction that commits at `lsn`."""
    bounds = {"xid": xid, "timestamp": TIME, "lsn": lsn}
    return [json.dumps({"action": "B", **bounds}).encode(), *changes, json.dumps({"action": "C", **bounds}).encode()]


def insert(key: int) -> bytes:
    return change("I", [column("id", "bigint", key), column("note", "text", "n")])


def told(*columns: dict[str, Any]) -> bytes:
    return json.dumps({"action": "R", "schema": "public", "table": "things", "columns": columns, "pk": PK}).encode()


def resumed(sequence: int, lsn: str, *lines: bytes) -> list[tuple[int, str, int]]:
    """(number, lsn, id) of each event of a stream that is resumed there."""
    decoder = Wal2json(by_lsn=True)
    decoder.resume(sequence, lsn)
    return [(one["sequence"], one["metadata"]["lsn"], one["after"]["id"]) for one in events(list(decoder.items(lines)))]


STREAM = [
    *at("0/100", insert(1), insert(2)),
    *at("0/180", insert(3)),
    *at("0/200", insert(4), insert(5), insert(6)),
    *at("0/300", insert(7)),
]
WHOLE = [
    (1, "0/100+1", 1),
    (2, "0/100+2", 2),
    (3, "0/180+1", 3),
    (4, "0/200+1", 4),
    (5, "0/200+2", 5),
    (6, "0/200+3", 6),
    (7, "0/300+1", 7),
]


@pytest.mark.parametrize("durable", range(8))
@pytest.mark.parametrize("missing", [0, 4, 7, 12])
def test_resumed_by_lsn_the_rest_has_the_numbers_it_would_have_had(durable: int, missing: int) -> None:
    """Wherever the stream begins, if the transaction of the last durable event is in it; `missing` lines of its start are gone."""
    sequence, lsn = (-1, "") if durable == 0 else WHOLE[durable - 1][:2]
    first_there = {0: 1, 4: 3, 7: 4, 12: 7}[missing]
    if durable and {1: 1, 2: 1, 3: 3, 4: 4, 5: 4, 6: 4, 7: 7}[durable] < first_there:
        with pytest.raises(OtherStream, match="would be missing"):
            resumed(sequence, lsn, *STREAM[missing:])
        return
    if durable == 0 and missing:
        return  # Nothing is durable: whatever comes is the beginning.
    found = resumed(sequence, lsn, *STREAM[missing:])
    assert found[-len(WHOLE[durable:]) :] == WHOLE[durable:] if durable < 7 else found[-1:] == WHOLE[6:]
    # Those of its transaction that are there already keep their numbers; of those before, nothing comes.
    assert all(one == WHOLE[one[0] - 1] for one in found)
    assert len(found) <= len(WHOLE[durable:]) + 3


def test_resumed_by_lsn_what_was_sent_by_place_is_another_stream() -> None:
    with pytest.raises(OtherStream, match="not sent to be resumed by lsn"):
        resumed(3, "0/180", *STREAM)
    with pytest.raises(OtherStream, match="stands at no lsn"):
        resumed(3, "", *STREAM)


def test_resumed_by_lsn_an_update_may_not_be_the_first_of_its_table_unless_its_columns_are_told() -> None:
    update = change("U", [ID], [ID])
    decoder = Wal2json(by_lsn=True)
    with pytest.raises(InvalidInput, match=r"the first that is heard of public\.things"):
        list(decoder.items(at("0/100", update)))
    decoder = Wal2json(by_lsn=True)
    items = list(decoder.items([told(ID, NOTE), *at("0/100", update)]))
    assert declared(items) == [{"id": "long", "note": "string"}]
    assert events(items)[0]["metadata"]["unchanged"] == ["note"]


def test_resumed_by_lsn_a_truncate_is_not_withheld() -> None:
    (event,) = events(list(Wal2json(by_lsn=True).items(at("0/100", change("T")))))
    assert (event["operation"], event["metadata"]["lsn"]) == ("TRUNCATE", "0/100+1")


def test_resumed_by_lsn_a_stream_that_goes_back_is_not_read_as_new() -> None:
    """pg_recvlogical connects again by itself, and the server begins where its slot is."""
    for again in (STREAM[:4], STREAM[-3:]):
        with pytest.raises(OtherStream, match=r"goes back, from the transaction that commits at 0/300 to 0/[13]00"):
            resumed(-1, "", *STREAM, *again)


def test_resumed_by_lsn_changes_of_a_transaction_without_its_lsn_are_no_other_one_s() -> None:
    """Also where whoever reads leaves out the line that is wrong, and goes on."""
    decoder, numbered = Wal2json(by_lsn=True), []
    for line in [*at("0/100", insert(1)), begin(), insert(2), commit(), *at("0/200", insert(3))]:
        with contextlib.suppress(InvalidInput):
            numbered += [(one["metadata"]["lsn"], one["after"]["id"]) for one in events(list(decoder.items((line,))))]
    assert numbered == [("0/100+1", 1), ("0/200+1", 3)]


def test_a_table_that_can_have_no_name_here_is_named_by_its_changes_alone() -> None:
    decoder = Wal2json(by_lsn=True)
    line = json.loads(told(ID, NOTE)) | {"table": "Order-Items"}
    assert list(decoder.items([json.dumps(line).encode(), *at("0/100")])) == [COMMIT]
    with pytest.raises(InvalidInput, match="Order-Items"):
        list(decoder.items(at("0/200", change("I", [ID], table="Order-Items"))))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([begin(), insert(1), commit()], "where the transaction commits (got None); capture with include-lsn=true"),
        ([insert(1)], "outside of a transaction cannot be resumed by lsn; capture with include-transaction=true"),
    ],
)
def test_resumed_by_lsn_the_stream_says_its_commits(lines: list[bytes], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        list(Wal2json(by_lsn=True).items(lines))
    assert reason in str(caught.value)

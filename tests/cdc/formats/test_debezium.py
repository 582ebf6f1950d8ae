"""Debezium's lines, with schemas and without: what becomes of each, and what is refused by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from dolake.cdc.formats import Commit, Declare, Event, Item
from dolake.cdc.formats.connect import Reading
from dolake.cdc.formats.debezium import Debezium, Options
from dolake.cdc.formats.placeholders import UNAVAILABLE, Placeholders
from dolake.errors import InvalidInput
from tests.cdc.formats.test_shop_stream import changes_of
from tests.debezium import OTHERS, Rewriter, plain, without_schemas
from tests.shop import EVENT_COUNTS, KEYS, assert_equals_final, fold, load_event, stream_lines

ID, NOTE = {**plain("int64"), "field": "id"}, {**plain("string"), "field": "note"}
SOURCE = {"connector": "postgresql", "schema": "public", "table": "things", "ts_ms": 1000, "txId": 7, "lsn": 31985624}
NOTHING: Any = object()


def envelope(columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row = {"type": "struct", "optional": True, "fields": list(columns)}
    return {"type": "struct", "fields": [{**row, "field": "before"}, {**row, "field": "after"}]}


def change(
    op: str, after: Any = None, before: Any = None, *, columns: Sequence[dict[str, Any]] | None = None, key: Any = NOTHING, **more: Any
) -> bytes:
    """A line; with `columns` it carries their schema, with `key` the message's key. `source=` adds to the usual one."""
    source = {name: value for name, value in {**SOURCE, **more.pop("source", {})}.items() if value is not ...}
    payload = {"before": before, "after": after, "source": source, "op": op, "ts_ms": 2000, **more}
    value = payload if columns is None else {"schema": envelope(columns), "payload": payload}
    return line(value if key is NOTHING else {"key": key, "value": value})


def line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def decode(*lines: bytes, decoder: Debezium | None = None, over: bool = True) -> list[Item]:
    decoder = decoder or Debezium()
    return [*decoder.items(lines), *(decoder.pause(over=True) if over else ())]


def events(items: Sequence[Item]) -> list[Any]:
    return [json.loads(item.raw) for item in items if isinstance(item, Event)]


def kinds(items: Sequence[Item]) -> list[str]:
    return [type(item).__name__ for item in items]


def test_an_insert_is_declared_and_becomes_an_event() -> None:
    items = decode(change("c", {"id": 1, "note": "ü"}, columns=[ID, NOTE], key={"id": 1}))
    declaration, event, _ = items
    assert isinstance(declaration, Declare)
    assert (declaration.schema.table, declaration.schema.primary_key) == ("public.things", ("id",))
    assert [(column.name, column.type, column.nullable) for column in declaration.schema.columns] == [
        ("id", "long", False),
        ("note", "string", True),
    ]
    assert isinstance(event, Event)
    assert (event.sequence, event.table, event.transaction) == (1, "public.things", "7")
    assert json.loads(event.raw) == {
        "sequence": 1,
        "timestamp": 1000,
        "operation": "INSERT",
        "table": "public.things",
        "after": {"id": 1, "note": "ü"},
        "metadata": {"lsn": "0/1E80FD8", "transactionId": "7"},
    }


def test_each_operation_and_its_images() -> None:
    row, old = {"id": 1, "note": "n"}, {"id": 1, "note": None}
    found = events(
        decode(
            change("r", row, columns=[ID, NOTE], key={"id": 1}),
            change("u", row, old, columns=[ID, NOTE], key={"id": 1}),
            change("u", row, columns=[ID, NOTE], key={"id": 1}),
            change("d", None, old, columns=[ID, NOTE], key={"id": 1}),
            change("t", columns=[ID, NOTE], key=None),
        )
    )
    assert [(event["operation"], event.get("before"), event.get("after")) for event in found] == [
        ("INSERT", None, row),
        ("UPDATE", old, row),
        ("UPDATE", None, row),
        ("DELETE", old, None),
        ("TRUNCATE", None, None),
    ]
    assert not {"before", "after", "rowId"} & found[4].keys()


def test_without_a_schema_rows_go_out_byte_for_byte_with_the_keys_value_as_their_identity() -> None:
    row = b'{ "id" : 10, "n":1.50,"big":123456789012345678901,"t":"\\u00fc\\/"}'
    raw = b'{"op":"u","before":null,"after":%b,"source":{"db":"d","table":"t"}}' % row
    (event,) = [item for item in decode(b'{"key":{"id":10},"value":%b}' % raw) if isinstance(item, Event)]
    assert b'"after":%b' % row in event.raw
    assert (event.table, json.loads(event.raw)["rowId"]) == ("d.t", "10")
    assert kinds(decode(raw)) == ["Event", "Commit"]


@pytest.mark.parametrize(
    ("key", "row", "identity"),
    [
        ({"id": "a"}, {"id": "a"}, "a"),
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1, "c": 2}, '{"a":1,"b":"x"}'),
        (None, {"id": 1}, None),
        ("text", {"id": 1}, None),
    ],
)
def test_the_identity_of_a_row_without_schema(key: Any, row: dict[str, Any], identity: str | None) -> None:
    (event,) = events(decode(change("c", row, key=key)))
    assert event.get("rowId") == identity


def test_the_key_is_told_by_the_message_or_by_an_option() -> None:
    options = Options(keys={"": ("note",), "public.things": ("id",)})
    told = decode(change("c", {"id": 1, "note": "n"}, columns=[ID, NOTE]), decoder=Debezium(options))
    assert isinstance(told[0], Declare)
    assert told[0].schema.primary_key == ("id",)
    other = decode(change("c", {"id": 1, "note": "n"}, columns=[ID, NOTE], source={"table": "other"}), decoder=Debezium(options))
    assert isinstance(other[0], Declare)
    assert other[0].schema.primary_key == ("note",)
    decoder = Debezium()
    untold = decode(change("c", {"id": 1}, columns=[ID]), decoder=decoder)
    assert isinstance(untold[0], Declare)
    assert untold[0].schema.primary_key == ()
    assert decoder.notes == ["no key is told for public.things: send the messages' keys too, or say --key"]


def test_a_key_of_columns_that_are_none_is_not_the_tables() -> None:
    items = decode(change("c", {"id": 1}, columns=[ID], key={"__dbz__physicalTableIdentifier": "x", "id": 1}))
    assert isinstance(items[0], Declare)
    assert items[0].schema.primary_key == ("id",)


def test_columns_added_and_types_changed_are_declared_again_before_the_event_and_nothing_else_is() -> None:
    other_text = change("u", {"id": 2}, columns=[{**ID, "doc": "the same", "default": 0}], key={"id": 2})
    items = decode(
        change("c", {"id": 1}, columns=[{**ID, "type": "int32"}], key={"id": 1}),
        change("c", {"id": 2}, columns=[ID], key={"id": 2}),
        other_text,
        change("u", {"id": 2, "note": "n"}, columns=[ID, NOTE], key={"id": 2}),
    )
    assert kinds(items) == ["Declare", "Event", "Declare", "Event", "Event", "Declare", "Event", "Commit"]
    declared = [{column.name: column.type for column in item.schema.columns} for item in items if isinstance(item, Declare)]
    assert declared == [{"id": "int"}, {"id": "long"}, {"id": "long", "note": "string"}]


def test_an_update_of_a_key_is_put_together_again() -> None:
    old, new = {"id": 1, "note": "x"}, {"id": 2, "note": UNAVAILABLE}
    halves = (
        change("d", None, old, columns=[ID, NOTE], key={"id": 1}),
        line({"key": {"id": 1}, "value": None}),
        change("c", new, columns=[ID, NOTE], key={"id": 2}),
    )
    items = decode(*halves, change("u", {"id": 2, "note": "y"}, columns=[ID, NOTE], key={"id": 2}, source={"lsn": 31985625}))
    found = events(items)
    assert [(event["sequence"], event["operation"]) for event in found] == [(2, "UPDATE"), (3, "UPDATE")]
    assert (found[0]["before"], found[0]["after"], found[0]["metadata"]["unchanged"]) == (old, {"id": 2}, ["note"])


@pytest.mark.parametrize(
    ("second", "more"),
    [
        ({"id": 1}, {}),  # the same key: deleted and inserted again
        ({"id": 2}, {"lsn": 31985625}),
        ({"id": 2}, {"txId": 8}),
        ({"id": 2}, {"table": "others"}),
        ({"id": 2}, {"connector": "sqlserver"}),
    ],
)
def test_a_delete_and_an_insert_that_are_two_changes_stay_two(second: dict[str, int], more: dict[str, Any]) -> None:
    items = decode(change("d", None, {"id": 1}, columns=[ID], key={"id": 1}), change("c", second, columns=[ID], key=second, source=more))
    assert [(event["sequence"], event["operation"]) for event in events(items)] == [(1, "DELETE"), (2, "INSERT")]


def test_numbers_do_not_depend_on_where_the_stream_paused() -> None:
    decoder = Debezium()
    first = decode(change("d", None, {"id": 1}, columns=[ID], key={"id": 1}), decoder=decoder, over=False)
    assert kinds(first) == ["Declare"]
    assert events(list(decoder.pause(over=False)))[0]["operation"] == "DELETE"
    second = decode(change("c", {"id": 2}, columns=[ID], key={"id": 2}), decoder=decoder)
    assert [(event["sequence"], event["operation"]) for event in events(second)] == [(2, "INSERT")]


def test_a_delete_of_a_table_without_replica_identity_is_told_by_its_key() -> None:
    (event,) = events(decode(change("d", columns=[ID, NOTE], key={"schema": {"type": "struct"}, "payload": {"id": 5}})))
    assert event["before"] == {"id": 5}
    (event,) = events(decode(change("d", key={"id": 5})))
    assert (event["before"], event["rowId"]) == ({"id": 5}, "5")


def test_columns_of_which_only_a_placeholder_came_are_unchanged_in_every_form_of_it() -> None:
    text = UNAVAILABLE
    forms = {
        "a": text,
        "b": "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",
        "c": "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ",
        "d": text.encode().hex(),
        "e": [text],
        "f": list(text.encode()),
        "g": {text: text},
    }
    row = {"id": 1, **forms, "kept": f"not {text}"}
    for found in events([*decode(change("u", row)), *decode(json.dumps(json.loads(change("u", row)), separators=(",", ":")).encode())]):
        assert found["after"] == {"id": 1, "kept": f"not {text}"}
        assert found["metadata"]["unchanged"] == list(forms)
    own = Debezium(Options(placeholders=Placeholders("<toast>")))
    (event,) = events(decode(change("u", {"id": 1, "note": "<toast>", "a": text}, columns=[ID, NOTE]), decoder=own))
    assert (event["after"], event["metadata"]["unchanged"]) == ({"id": 1, "a": text}, ["note"])


def test_transactions_are_whole_where_their_ends_are_told_also_late_or_early() -> None:
    def begin(name: str) -> bytes:
        return line({"status": "BEGIN", "id": name, "ts_ms": 1})

    def end(name: str, count: int) -> bytes:
        return line({"status": "END", "id": name, "event_count": count, "data_collections": []})

    def row(name: str) -> bytes:
        return change("c", {"id": 1}, transaction={"id": name, "total_order": 1, "data_collection_order": 1})

    def shape(*lines: bytes) -> tuple[str, int]:
        decoder = Debezium()
        items = decode(*lines, decoder=decoder)
        return "".join(type(item).__name__[0] for item in items), sum("not whole" in note for note in decoder.notes)

    assert shape(begin("a"), row("a"), row("a"), end("a", 2), begin("b"), row("b"), end("b", 1)) == ("EECEC", 0)
    assert shape(end("a", 2), end("b", 1), row("a"), row("a"), row("b")) == ("EECEC", 0)
    assert shape(row("a"), row("a"), row("b"), end("a", 2), end("b", 1)) == ("EECEC", 0)
    assert shape(row("a"), row("b"), row("a"), end("a", 2), end("b", 1)) == ("ECECEC", 1)
    assert shape(begin("a"), row("a"), end("a", 3)) == ("EC", 1)
    assert shape(begin("a"), row("a")) == ("E", 0)  # cut inside: the end never came
    assert shape(row("a"), row("a"), row("b")) == ("EECEC", 0)
    assert shape(begin("a"), line({"op": "m", "transaction": {"id": "a"}, "message": {}}), row("a"), end("a", 2)) == ("EC", 0)


def test_without_boundaries_a_pause_ends_a_transaction_and_with_them_it_waits() -> None:
    decoder = Debezium()
    assert kinds(decode(change("c", {"id": 1}), decoder=decoder, over=False)) == ["Event"]
    assert kinds(list(decoder.pause(over=False))) == ["Commit"]
    assert list(decoder.pause(over=False)) == []
    begin = line({"status": "BEGIN", "id": "a"})
    told = Debezium()
    assert kinds(decode(begin, change("c", {"id": 1}, transaction={"id": "a"}), decoder=told, over=False)) == ["Event"]
    assert list(told.pause(over=False)) == []


def test_rows_of_a_snapshot_stand_alone() -> None:
    assert kinds(decode(change("r", {"id": 1}), change("r", {"id": 2}))) == ["Event", "Commit", "Event", "Commit"]


def test_what_changes_no_row_is_passed_over_and_counted() -> None:
    decoder = Debezium()
    items = decode(
        b"null",
        b"",
        line({"key": {"id": 1}, "value": None}),
        line({"schema": None, "payload": None}),
        line({"ts_ms": 5}),
        line({"schema": {"name": "io.debezium.connector.common.Heartbeat"}, "payload": {"ts_ms": 5, "ts_us": 5}}),
        line({"source": {}, "databaseName": "d", "ddl": "CREATE TABLE t", "tableChanges": []}),
        line({"op": "m", "message": {"prefix": "p", "content": "Yw=="}}),
        change("c", {"id": 1}),
        decoder=decoder,
    )
    assert [event["sequence"] for event in events(items)] == [1]
    assert decoder.passed_over == {"tombstones": 3, "heartbeats": 2, "schema changes": 1, "messages": 1}
    assert "3 tombstones were passed over" in decoder.notes


def test_lines_of_kcat_are_read() -> None:
    message = {"topic": "shop.public.things", "partition": 0, "offset": 3, "headers": [], "key": '{"id":1}', "payload": None}
    value = change("c", {"id": 1, "note": 'a "b" ü'}, columns=[ID, NOTE]).decode()
    decoder = Debezium()
    items = decode(line(message), line({**message, "payload": value}), line({**message, "key": None, "payload": value}), decoder=decoder)
    assert [event["after"] for event in events(items)] == [{"id": 1, "note": 'a "b" ü'}] * 2
    assert decoder.passed_over == {"tombstones": 1}
    assert isinstance(items[0], Declare)
    assert items[0].schema.primary_key == ("id",)


@pytest.mark.parametrize(
    ("source", "table", "lsn"),
    [
        ({}, "public.things", "0/1E80FD8"),
        ({"lsn": "x"}, "public.things", "x"),
        ({"connector": "mysql", "schema": ..., "db": "shop", "lsn": ..., "file": "binlog.3", "pos": 154}, "shop.things", "binlog.3:154"),
        ({"connector": "sqlserver", "lsn": ..., "change_lsn": "00000027:00000758:0005"}, "public.things", "00000027:00000758:0005"),
        ({"connector": "oracle", "lsn": ..., "scn": "1234"}, "public.things", "1234"),
        ({"connector": "vitess", "schema": ..., "keyspace": "k", "lsn": ...}, "k.things", None),
        ({"schema": ..., "lsn": ..., "gtid": "0-1-2"}, "things", "0-1-2"),
    ],
)
def test_where_a_change_comes_from(source: dict[str, Any], table: str, lsn: str | None) -> None:
    (event,) = events(decode(change("c", {"id": 1}, source=source)))
    assert (event["table"], event["metadata"].get("lsn")) == (table, lsn)


def test_lines_that_do_not_say_their_table_or_time_go_where_an_option_says() -> None:
    decoder = Debezium(Options(table="public.lost"))
    (event,) = events(decode(line({"op": "c", "before": None, "after": {"id": 1}}), decoder=decoder))
    assert (event["table"], event["timestamp"]) == ("public.lost", 0)
    assert "dated 1970" in decoder.notes[0]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"{", "truncated"),
        (b"[]", "object"),
        (b'{"op":"c","op":"d"}', "the same key twice"),
        (
            line({"id": 1, "name": "x"}),
            "op: is missing, so this is no change event (it has id, name); rows without envelopes are --format rows",
        ),
        (line({"op": "x"}), "op: must be one of c, u, d, r, t, m (got 'x')"),
        (change("c"), "after: is missing"),
        (change("u", [1]), "after: must be an object or null (got [1])"),
        (change("c", {"id": 1}, source={"table": "a.b"}), "source.table: 'public.a.b'"),
        (change("c", {"id": 1}, source={"table": "../evil"}), "each part"),
        (change("c", {"id": 1}, source={"schema": "dolake"}), "dolake's own"),
        (change("c", {"id": 1}, source={"table": ..., "schema": ...}), "source.table: is missing: say --table"),
        (change("c", "{}", source={"connector": "mongodb"}), "MongoDB"),
        (change("c", {"id": 1}, source={"ts_ms": -1}), "ts_ms: must be milliseconds"),
        (change("c", {"id": 1}, source={"lsn": [1]}), "$.lsn"),
        (change("c", {"id": 1}, columns=[{"type": "int128", "field": "id"}]), "schema: column 'id': type: 'int128'"),
        (change("c", {"id": 1}, columns=[ID, ID]), "two columns are called 'id'"),
        (line({"schema": {"type": "struct"}, "payload": json.loads(change("c", {"id": 1}))}), "no struct `after`"),
        (change("c", {"d": "x"}, columns=[{**plain("int32", "io.debezium.time.Date"), "field": "d"}]), "column 'd': a whole number"),
        (change("c", {"note": 1}, key={"id": 1}), "column 'id' of the key is missing"),
        (change("c", {"id": None}, key={"id": None}), "column 'id' of the key is null"),
        (b'{"op":"c","source":{"table":"t"},"after":{"a":1,"a":2}}', "the same key twice"),
        (b'{"op":"c","source":{"table":"t"},"after":{"a":' + b"[" * 100_000 + b"}}", "nested too deep"),
        (line({"topic": "t", "payload": "not json"}), "malformed"),
    ],
)
def test_a_wrong_line_is_named_with_its_number_and_reason(wrong: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(b"", change("c", {"id": 1}), wrong)
    assert caught.value.line == 3
    assert reason in str(caught.value)


def test_a_wrong_line_keeps_its_number() -> None:
    decoder = Debezium()
    with pytest.raises(InvalidInput):
        decode(b"{", decoder=decoder)
    assert [event["sequence"] for event in events(decode(change("c", {"id": 1}), decoder=decoder))] == [2]


@pytest.fixture(scope="module")
def shop() -> list[bytes]:
    return stream_lines()


@pytest.fixture(scope="module")
def shop_items(shop: list[bytes]) -> list[Item]:
    decoder = Debezium(Options(reading=Reading(binary_mode="hex", nanoseconds="timestamp")))
    items = decode(*Rewriter(OTHERS).lines(shop), decoder=decoder)
    assert decoder.passed_over == {"tombstones": 618 + 5692 + 492}
    return items


def test_every_change_of_the_shop_is_one_event(shop_items: list[Item]) -> None:
    assert Counter(item.table for item in shop_items if isinstance(item, Event)) == {
        f"public.{table}": n for table, n in EVENT_COUNTS.items()
    }


@pytest.mark.parametrize("table", list(KEYS))
def test_the_shop_in_other_encodings_folds_to_the_final_table(shop_items: list[Item], table: str) -> None:
    changes = changes_of(shop_items, table)
    if table == "customers":
        assert sum(change.key_before is not None for change in changes) == 492
    assert_equals_final(table, fold(table, changes))


def test_the_shop_without_schemas_loses_no_event_and_no_value(shop: list[bytes]) -> None:
    lines = list(Rewriter().lines(shop[:20_000]))
    with_schemas, without = decode(*lines), decode(*without_schemas(lines))
    assert not any(isinstance(item, Declare) for item in without)
    merged = {event.sequence for event in with_schemas if isinstance(event, Event)}
    rows = {item.sequence: load_event(item.raw) for item in without if isinstance(item, Event)}
    assert len(rows) > 10_000
    assert merged <= rows.keys()
    sent = [json.loads(text)["value"]["payload"] for text in lines if b'"op"' in text]
    for number, payload in enumerate(sent, 1):
        assert rows[number].get("after") == _exact(payload.get("after"))
        assert rows[number].get("before") == _exact(payload.get("before"))
    assert sum(isinstance(item, Commit) for item in with_schemas) == sum(isinstance(item, Commit) for item in without)


def _exact(row: Any) -> Any:
    return None if row is None else load_event(json.dumps(row).encode())


def test_a_line_that_is_no_text_is_named_here() -> None:
    """The daemon would refuse the whole batch around it (found by fuzzing)."""
    with pytest.raises(InvalidInput) as caught:
        decode(change("c", {"id": 1, "note": "u"}), change("c", {"id": 1, "note": "u"}).replace(b'"u"', b'"\xff"'))
    assert caught.value.line == 2

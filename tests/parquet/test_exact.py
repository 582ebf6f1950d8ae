from __future__ import annotations

import pytest

from dolake.parquet.letters import Place

from .events import chunk_of, event, layout_of, read_exactly

HEAD = b'"sequence":1,"timestamp":1,"operation":"INSERT","table":"t"'


@pytest.mark.parametrize(
    ("raw", "field", "rule"),
    [
        (b"[]", "event", "an object is expected"),
        (b"null", "event", "an object is expected"),
        (b"{", "event", "not valid JSON"),
        (b"{%b} {}" % HEAD, "event", "not valid JSON"),
        (b'{%b,"x":"\xff"}' % HEAD, "event", "not valid JSON"),
        (b'{%b,"after":{"x":NaN}}' % HEAD, "event", "NaN is not JSON"),
        (b'{%b,"sequence":2}' % HEAD, "sequence", "the same key twice"),
        (b'{%b,"after":{"x":1,"\\u0078":2}}' % HEAD, "x", "the same key twice"),
        (b'{%b,"after":{"x":1,"_cdc_z":2}}' % HEAD, "_cdc_z", "does not begin with `_cdc_`"),
        (b'{%b,"after":{"X":1}}' % HEAD, "X", "equal to the table's `x` but for case"),
        (b'{%b,"after":[]}' % HEAD, "after", "an object is expected"),
        (b'{%b,"metadata":[]}' % HEAD, "metadata", "an object is expected"),
        (b'{%b,"metadata":{"lsn":1,"lsn":1}}' % HEAD, "metadata.lsn", "the same key twice"),
        (b'{%b,"metadata":{"lsn":1.5}}' % HEAD, "metadata.lsn", "a string is expected"),
        (b'{%b,"metadata":{"unchanged":"x"}}' % HEAD, "metadata.unchanged", "an array of column names"),
        (b'{%b,"metadata":{"unchanged":["x",1]}}' % HEAD, "metadata.unchanged[1]", "a string is expected"),
        (b'{%b,"rowId":5}' % HEAD, "rowId", "a string is expected"),
        (event({"x": "1"}, sequence="1.5"), "sequence", "not a whole number"),
        (event({"x": "1"}, timestamp="253402300800000"), "timestamp", "years 0001 to 9999"),
        (event({"x": "1"}, operation="upsert"), "operation", "INSERT, UPDATE, DELETE or TRUNCATE"),
        (event({"x": '"1"'}), "x", "a whole number is expected"),
        (event({"x": "1"}, before={"x": '"1"'}, operation="UPDATE"), "before.x", "a whole number is expected"),
        (event({"x": "1"}, before={"x": "2"}, operation="UPDATE").replace(b'"x":2', b'"x":2,"x":3'), "before.x", "the same key twice"),
    ],
)
def test_a_bad_event_becomes_a_letter_with_its_place_field_and_rule(raw: bytes, field: str, rule: str) -> None:
    layout = layout_of(["x"], x="long")
    rows, letters = read_exactly(layout, chunk_of(event({"x": "1"}), raw, event({"x": "3"}), offset=9, log="log-b", source="s", epoch="e"))
    assert rows.column("x").to_pylist() == [1, 3]
    (found,) = letters
    assert (found.place, found.source, found.epoch, found.field, found.event) == (Place("log-b", 9, 1), "s", "e", field, raw)
    assert rule in found.rule


def test_the_value_is_shown_and_cut_short() -> None:
    _, (letter,) = read_exactly(layout_of(x="long"), chunk_of(event({"x": '"' + "y" * 1_000_000 + '"'})))
    assert (letter.field, letter.rule, letter.reason) == ("x", "a whole number is expected", "does_not_fit")
    assert letter.value == '"' + "y" * 76 + "..."


def test_a_row_holds_the_image_its_operation_stands_for() -> None:
    layout = layout_of(x="long")
    images = {"before": {"x": "1"}}
    table, _ = read_exactly(
        layout,
        chunk_of(
            event({"x": "2"}, operation="INSERT", **images),
            event({"x": "2"}, operation="UPDATE", **images),
            event({"x": "2"}, operation="DELETE", **images),
            event({"x": "2"}, operation="TRUNCATE", **images),
            event(operation="UPDATE"),
            event({}, operation="DELETE"),
        ),
    )
    assert table.column("x").to_pylist() == [2, 2, 1, None, None, None]
    assert table.column("_cdc_operation").to_pylist() == ["INSERT", "UPDATE", "DELETE", "TRUNCATE", "UPDATE", "DELETE"]


def test_only_the_image_a_row_holds_is_held_to_the_schema() -> None:
    layout = layout_of(["x"], x="long", y="string")
    table, _ = read_exactly(layout, chunk_of(event({"x": "1"}, before={"x": "1", "y": "5", "gone": "[]"}, operation="UPDATE")))
    assert table.column("y").to_pylist() == [None]


def test_what_the_source_says_about_an_event_is_kept() -> None:
    raw = event({"x": "1"}, rowId='"o-1"', metadata='{"lsn":"0/1E8","transactionId":3763,"unchanged":["big"],"other":1}', extra="[]")
    (row,) = read_exactly(layout_of(x="long"), chunk_of(raw))[0].to_pylist()
    assert row["_cdc_row_id"] == "o-1"
    assert (row["_cdc_lsn"], row["_cdc_transaction"], row["_cdc_unchanged"]) == ("0/1E8", "3763", ["big"])
    assert row["_cdc_sequence"] == 7
    assert row["_cdc_timestamp"].timestamp() == 1767225600.990


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": "1", "b": '"x"'}, {"a": "2", "b": '"x"'}, '{"b":"x","a":1}'),
        ({"a": "1", "b": '"\\u0078"'}, {"a": "2.0", "b": '"x"'}, '{"b":"\\u0078","a":1}'),
        ({"a": "1.0", "b": '"x"'}, {"a": "1", "b": '"x"'}, None),
        ({"a": "1"}, {"a": "2", "b": '"x"'}, None),
        ({"a": "1", "b": "null"}, {"a": "2", "b": '"x"'}, None),
        ({"a": "1", "b": '"x"'}, {"a": "1"}, None),
        ({"a": "1", "b": '"y"'}, {}, None),
    ],
)
def test_the_old_key_is_kept_when_an_update_changed_it(before: dict[str, str], after: dict[str, str], expected: str | None) -> None:
    layout = layout_of(["b", "a"], a="decimal(9,2)", b="string")
    table, _ = read_exactly(layout, chunk_of(event(after, before=before, operation="UPDATE")))
    assert table.column("_cdc_key_before").to_pylist() == [expected]


def test_without_a_key_no_old_key_is_kept() -> None:
    for key in ((), ("missing",)):
        table, _ = read_exactly(layout_of(key, a="long"), chunk_of(event({"a": "1"}, before={"a": "2"}, operation="UPDATE")))
        assert table.column("_cdc_key_before").to_pylist() == [None]

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolake.parquet import rows as rows_module
from dolake.parquet.exact import ExactDecoder, Readings
from dolake.parquet.letters import Place
from dolake.parquet.rows import ChangelogDecoder, Decoded, EventChunk
from dolake.parquet.schema import arrow_schema, evolve_declared

from .events import TABLE, chunk_of, event, schema_of


def decoded(schema_columns: dict[str, str], *chunks: EventChunk, key: tuple[str, ...] = ()) -> Decoded:
    return ChangelogDecoder(TABLE, schema_of(**schema_columns), key).decode(list(chunks))


def rows_of(schema_columns: dict[str, str], *chunks: EventChunk, key: tuple[str, ...] = ()) -> pa.Table:
    found = decoded(schema_columns, *chunks, key=key)
    assert found.letters == ()
    return found.rows


def test_each_row_says_where_its_event_came_from_and_lies() -> None:
    first = replace(chunk_of(event({"x": "1"}), event({"x": "2"}), offset=5, source="db-1", epoch="e1", log="a"), indexes=[3, 9])
    second = chunk_of(event({"x": "3"}), offset=2, source="db-2", log="b")
    table = rows_of({"x": "long"}, first, second)
    names = ["x", "_cdc_log", "_cdc_offset", "_cdc_index", "_cdc_source", "_cdc_epoch"]
    found = [tuple(row[name] for name in names) for row in table.to_pylist()]
    assert found == [(1, "a", 5, 3, "db-1", "e1"), (2, "a", 5, 9, "db-1", "e1"), (3, "b", 2, 0, "db-2", "")]
    table.validate(full=True)


def test_the_rows_have_the_tables_arrow_schema() -> None:
    schema = schema_of(x="long", u="list<uuid>")
    for chunks in ([], [chunk_of()], [chunk_of(event({"x": "1"}))], [chunk_of(event({"x": "1.0"}))]):
        table = ChangelogDecoder(TABLE, schema).decode(chunks).rows
        assert table.schema.equals(arrow_schema(schema), check_metadata=True)
        assert table.num_rows == sum(len(chunk.events) for chunk in chunks)


def test_only_events_that_need_it_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    by_the_letter = ExactDecoder.read

    def watched(self: ExactDecoder, chunk: EventChunk, aliases: dict[str, str]) -> Readings:
        read.append((chunk.offset, len(chunk.events)))
        return by_the_letter(self, chunk, aliases)

    monkeypatch.setattr(ExactDecoder, "read", watched)
    chunks = [chunk_of(event({"x": "1.0" if offset == 3 else "1"}), offset=offset) for offset in range(6)]
    assert rows_of({"x": "long"}, *chunks).column("_cdc_offset").to_pylist() == list(range(6))
    assert read == [(3, 1)]
    read.clear()
    found = decoded({"x": "long"}, chunk_of(*(event({"x": "[]" if n == 700 else str(n)}) for n in range(1000))))
    assert found.rows.column("x").to_pylist() == found.rows.column("_cdc_index").to_pylist() == [n for n in range(1000) if n != 700]
    assert [letter.place.index for letter in found.letters] == [700]
    assert read == [(3, 32)] or read == [(3, 31)]


def test_rows_that_do_not_fit_are_letters_and_keep_no_other_out() -> None:
    chunks = [chunk_of(event({"x": "1"}), event({"x": '"a"' if offset in (2, 4) else "1"}), offset=offset) for offset in range(6)]
    found = decoded({"x": "long"}, *chunks)
    assert [letter.place for letter in found.letters] == [Place("log-a", 2, 1), Place("log-a", 4, 1)]
    assert {(letter.field, letter.value) for letter in found.letters} == {("x", '"a"')}
    places = [(row["_cdc_offset"], row["_cdc_index"]) for row in found.rows.to_pylist()]
    assert places == [(offset, index) for offset in range(6) for index in (0, 1) if (offset, index) not in {(2, 1), (4, 1)}]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["1", "2.0", "null", "9223372036854775807"]), max_size=4), max_size=6), st.integers(1, 400))
def test_rows_do_not_depend_on_how_events_are_grouped(values: list[list[str]], group_bytes: int) -> None:
    chunks = [chunk_of(*(event({"x": value}) for value in part), offset=offset) for offset, part in enumerate(values)]
    whole = rows_of({"x": "long"}, *chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_GROUP_BYTES", group_bytes)
        assert rows_of({"x": "long"}, *chunks).to_pylist() == whole.to_pylist()
    numbers = {"1": 1, "2.0": 2, "null": None, "9223372036854775807": 2**63 - 1}
    assert whole.column("x").to_pylist() == [numbers[one] for part in values for one in part]


def test_the_largest_events_are_read() -> None:
    text = "ü" * 500_000
    chunks = [chunk_of(*(event({"x": json.dumps(text, ensure_ascii=False)}) for _ in range(5)), offset=offset) for offset in range(4)]
    table = rows_of({"x": "string"}, *chunks)
    assert set(table.column("x").to_pylist()) == {text}
    assert table.num_rows == 20


def test_no_event_makes_the_decimal_reader_go_astray() -> None:
    """Each of these makes pyarrow's own parser read beyond its tables: wrong values, or the end of the process."""
    for value in ("1e-1000000000", '"1e-1000000000"', '"1\\u0065-1000000000"', "0e-2000000", "1e-77", "0." + "0" * 100_000 + "1"):
        (letter,) = decoded({"x": "decimal(12,2)"}, chunk_of(event({"x": value}))).letters
        assert letter.field == "x"


@pytest.mark.parametrize(
    "text", ["123456789012345678e-5", "0." + "0" * 330 + "1", "1.23456789012345678", "0.123456789012345678", "1e-400", "9007199254740993"]
)
def test_no_number_is_put_into_an_inferred_double_that_is_another_there(text: str) -> None:
    decoder = ChangelogDecoder(TABLE, evolve_declared([], None).schema)
    assert decoder.decode([chunk_of(event({"x": "0.5"}))]).rows.column("x").to_pylist() == [0.5]
    found = decoder.decode([chunk_of(event({"x": "1.5"}), event({"x": text}), offset=4)])
    assert found.rows.column("x").to_pylist() == [1.5, None]
    beside = "x__long" if text.isdigit() else "x__json"
    assert str(found.rows.column(beside).to_pylist()[1]) == text


def test_an_old_key_that_an_inferred_column_would_not_hold_is_a_changed_key() -> None:
    decoder = ChangelogDecoder(TABLE, evolve_declared([], None).schema, ("x",))
    update = event({"x": "2"}, before={"x": '"one"'}, operation="UPDATE")
    found = decoder.decode([chunk_of(event({"x": "1"}), update)])
    assert (found.letters, found.rows.column("_cdc_key_before").to_pylist()) == ((), [None, '{"x":"one"}'])

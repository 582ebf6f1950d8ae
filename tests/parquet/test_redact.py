"""What is left out or masked never comes out; everything else comes out as it went in."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolake.errors import SchemaRejected, TableStopped
from dolake.model import DeclaredColumn, DeclaredSchema
from dolake.parquet.redact import Redactor
from dolake.parquet.rows import ChangelogDecoder
from dolake.parquet.schema import evolve_declared
from tests.parquet.events import TABLE, chunk_of

KEY = "a key that nobody knows"
SECRET = "ann@example.com"


def digest(text: str) -> str:
    return hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def redactor(drop: tuple[str, ...] = ("phone",), mask: tuple[str, ...] = ("email",), primary_key: tuple[str, ...] = ()) -> Redactor:
    return Redactor(drop, mask, KEY, primary_key)


def event(**members: str) -> bytes:
    """An event whose further members are raw JSON."""
    head = '{"sequence":7,"timestamp":1795188618126,"operation":"UPDATE","table":"public.people"'
    return (head + "".join(f',"{name}":{value}' for name, value in members.items()) + "}").encode()


def one(raw: bytes, found: Redactor | None = None, *, replayed: bool = False) -> bytes:
    redacted = (found or redactor()).events([raw], replayed=replayed)
    assert redacted.refused == {}
    return redacted.events[0]


def test_columns_are_left_out_and_masked_in_both_images_and_the_rest_keeps_its_bytes() -> None:
    before = f'{{"id":1.50,"email":"{SECRET}","phone":"1"}}'
    after = f'{{"phone":null,"id":1e2,"note":"\\u00fc \\/ 🚀","nested":{{"email": [1 ,2]}},"email":"{SECRET}"}}'
    raw = event(rowId='"r-1"', before=before, after=after, metadata='{"lsn":"0/1","transactionId":18446744073709551617}')
    assert one(raw) == event(
        rowId='"r-1"',
        before=f'{{"id":1.50,"email":"{digest(SECRET)}"}}',
        after=f'{{"id":1e2,"note":"\\u00fc \\/ 🚀","nested":{{"email": [1 ,2]}},"email":"{digest(SECRET)}"}}',
        metadata='{"lsn":"0/1","transactionId":18446744073709551617}',
    )


def test_an_event_with_nothing_to_hide_keeps_every_byte() -> None:
    for raw in (
        event(rowId='"r"', before='{"id" :1}', after='{"id":  1 , "note":"x"}'),
        event(),
        event(before="null", after='{"id":1}', metadata='{"lsn":"0/1"}'),
    ):
        assert one(raw) == raw


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('"ann"', "ann"),
        ('"\\u0061\\u006en"', "ann"),
        ('"ü🚀"', "ü🚀"),
        ('"\\ud83d\\ude80"', "🚀"),
        ('""', ""),
        ("1", "1"),
        ('"1"', "1"),
        ("1.0", "1.0"),
        ("-0", "-0"),
        ("123456789012345678901234567890.5", "123456789012345678901234567890.5"),
        ("true", "true"),
        ('{"a": 1}', '{"a": 1}'),
        ("[1,2]", "[1,2]"),
    ],
)
def test_the_text_that_is_masked(written: str, text: str) -> None:
    assert json.loads(one(event(after=f'{{"email":{written}}}')))["after"] == {"email": digest(text)}
    assert json.loads(one(event(after=f'{{"email": {written} }}')))["after"] == {"email": digest(text)}


def test_a_masked_null_stays_null() -> None:
    assert one(event(after='{"id":1,"email":null}')) == event(after='{"id":1,"email":null}')


def test_names_are_compared_without_case() -> None:
    found = one(event(after=f'{{"EMAIL":"{SECRET}","Phone":"{SECRET}","id":1}}'))
    assert found == event(after=f'{{"EMAIL":"{digest(SECRET)}","id":1}}')


def test_a_name_written_with_escapes_is_the_same_name() -> None:
    assert json.loads(one(event(after=f'{{"e\\u006dail":"{SECRET}"}}')))["after"] == {"email": digest(SECRET)}


def test_members_that_dolake_does_not_read_are_left_out() -> None:
    found = one(event(after='{"id":1}', query=f"\"update people set email = '{SECRET}'\"", metadata=f'{{"lsn":1,"sql":"{SECRET}"}}'))
    assert found == event(after='{"id":1}', metadata='{"lsn":1}')


def test_a_column_left_out_is_not_named_as_unchanged_either() -> None:
    metadata = '{"lsn":"0/1","unchanged":["note","phone","email"]}'
    assert json.loads(one(event(metadata=metadata)))["metadata"] == {"lsn": "0/1", "unchanged": ["note", "email"]}
    assert json.loads(one(event(metadata='{"unchanged":["phone"]}')))["metadata"] == {}


def test_a_row_id_is_masked_with_the_key_it_is_made_of_or_by_its_own_name() -> None:
    raw = event(rowId=f'"{SECRET}"', after='{"id":1}')
    assert one(raw) == raw
    for found in (redactor(primary_key=("Email",)), redactor(mask=("_cdc_row_id",))):
        assert one(raw, found) == event(rowId=f'"{digest(SECRET)}"', after='{"id":1}')


def test_what_was_masked_before_it_became_a_dead_letter_is_not_masked_twice() -> None:
    masked = event(after=f'{{"email":"{digest(SECRET)}"}}')
    assert one(masked, replayed=True) == masked
    assert one(masked) != masked
    assert one(event(after=f'{{"email":"{SECRET}"}}'), replayed=True) == masked


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ({"after": f'{{"id":1,"email":"{SECRET}","id":2}}'}, "the same key twice"),
        ({"after": f'{{"email":"{SECRET}","email":"x"}}'}, "the same key twice"),
        ({"after": f'{{"email":"{SECRET}","e\\u006dail":"x"}}'}, "the same key twice"),
        ({"after": f'{{ "email":"{SECRET}", "email":"x"}}'}, "the same key twice"),
        ({"after": f'{{"email":"{SECRET}"}},"after":{{"id":1}}'}, "the same key twice"),
        ({"before": f'{{"email":"{SECRET}"}},"befor\\u0065":{{"id":1}}'}, "the same key twice"),
        ({"metadata": f'{{"lsn":"{SECRET}","lsn":"1"}}'}, "the same key twice"),
        ({"after": f'["{SECRET}"]'}, "cannot be read"),
        ({"after": f'"{SECRET}"'}, "cannot be read"),
        ({"after": f'{{"email":"\\ud800{SECRET}"}}'}, "cannot be read"),
        ({"after": f'{{"email":{"[" * 20_000}"{SECRET}"{"]" * 20_000}}}'}, "cannot be read"),
        ({"after": f'{{"email":"{SECRET}"'}, "cannot be read"),
        ({"metadata": f'"{SECRET}"'}, "cannot be read"),
    ],
)
def test_an_event_that_cannot_be_rewritten_for_certain_keeps_nothing_of_its_row(members: dict[str, str], rule: str) -> None:
    good = event(after='{"id":1}')
    redacted = redactor().events([good, event(rowId=f'"{SECRET}"', **members), good])
    assert [*redacted.refused] == [1]
    assert rule in redacted.refused[1]
    assert SECRET.encode() not in b"".join(redacted.events)
    assert SECRET not in redacted.refused[1]
    assert redacted.events[0] == redacted.events[2] == good
    assert redacted.events[1] in (event(), b'{"sequence":0,"timestamp":0,"operation":"","table":""}')


def test_a_redacted_event_is_a_row_like_any_other() -> None:
    declared = DeclaredSchema(
        TABLE, ("id",), (DeclaredColumn("id", "long"), DeclaredColumn("email", "json"), DeclaredColumn("phone", "string"))
    )
    found = redactor()
    left = found.schema(declared)
    raw = [event(before='{"id":1,"email":"old"}', after=f'{{"id":2,"email":"{SECRET}","phone":"1"}}')]
    decoder = ChangelogDecoder(TABLE, evolve_declared([left], None).schema, left.primary_key)
    rows = decoder.decode([chunk_of(*found.events(raw).events)]).rows.to_pylist()
    assert (rows[0]["id"], rows[0]["email"], rows[0]["_cdc_key_before"]) == (2, digest(SECRET), '{"id":1}')
    assert "phone" not in rows[0]


def columns(*found: DeclaredColumn) -> DeclaredSchema:
    return DeclaredSchema("public.people", ("id",), (DeclaredColumn("id", "long", nullable=False), *found))


def test_a_declaration_loses_what_is_left_out_and_masked_columns_are_strings() -> None:
    declared = columns(
        DeclaredColumn("Email", "struct<a: long>", default=json.dumps(SECRET)), DeclaredColumn("phone", "long"), DeclaredColumn("n", "int")
    )
    left = redactor().schema(declared)
    masked = DeclaredColumn("Email", "string", default=json.dumps(digest(SECRET)))
    assert left == columns(masked, DeclaredColumn("n", "int"))
    assert redactor(mask=("id",)).schema(columns()).columns == (DeclaredColumn("id", "string", nullable=False),)


@pytest.mark.parametrize(
    ("declared", "drop", "field", "rule"),
    [
        (columns(DeclaredColumn("n", "int")), ("ID",), "id", "is a key column: the settings may mask it, not drop it"),
        (DeclaredSchema("public.people", (), (DeclaredColumn("phone", "long"),)), ("phone",), "*", "the settings drop every column"),
    ],
)
def test_a_declaration_that_cannot_be_redacted_is_refused(declared: DeclaredSchema, drop: tuple[str, ...], field: str, rule: str) -> None:
    with pytest.raises(SchemaRejected) as caught:
        redactor(drop=drop).schema(declared)
    assert (caught.value.table, caught.value.field) == ("public.people", field)
    assert rule in caught.value.rule


@pytest.mark.parametrize(
    ("old", "rule"),
    [
        ("Email", "column mail was Email, which the settings mask: mask the new name as well"),
        ("phone", "column mail was phone, which the settings drop: drop the new name as well"),
    ],
)
def test_a_column_renamed_away_from_its_redaction_stops_the_table(old: str, rule: str) -> None:
    with pytest.raises(TableStopped) as caught:
        redactor().schema(columns(DeclaredColumn("mail", "string", renamed_from=old)))
    assert (caught.value.table, caught.value.reason) == ("public.people", rule)
    both = redactor(mask=("email", "mail"), drop=("phone", "mail") if old == "phone" else ())
    assert len(both.schema(columns(DeclaredColumn("mail", "string", renamed_from=old), DeclaredColumn("n", "int"))).columns) in (2, 3)


NAMES = st.sampled_from(["id", "email", "EMAIL", "phone", "note", "é", 'q"', "mail"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6), st.lists(st.text(max_size=3), max_size=2))


def image(pairs: list[tuple[str, Any]], space: str, ascii_only: bool) -> str:
    """An object as it may be written, equal keys and all."""
    members = [f"{json.dumps(name, ensure_ascii=ascii_only)}:{space}{json.dumps(value, ensure_ascii=ascii_only)}" for name, value in pairs]
    return "{" + f",{space}".join(members) + "}"


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.sampled_from(["", " "]), st.booleans(), st.sampled_from(["before", "after"]))
def test_any_row_comes_out_redacted_or_not_at_all(pairs: list[tuple[str, Any]], space: str, ascii_only: bool, where: str) -> None:
    marked = [(name, f"{SECRET}{value}" if name.casefold() in ("email", "phone") and value is not None else value) for name, value in pairs]
    redacted = redactor().events([event(**{where: image(marked, space, ascii_only)})])
    assert SECRET.encode() not in redacted.events[0]
    names = [name for name, _ in marked]
    if any(name.casefold() in ("email", "phone") for name in names) and len(set(names)) < len(names):
        assert [*redacted.refused] == [0]
        return
    assert redacted.refused == {}
    expected = {
        name: digest(value) if name.casefold() == "email" and value is not None else value
        for name, value in marked
        if name.casefold() != "phone"
    }
    assert json.loads(redacted.events[0])[where] == expected

"""Plain rows: byte for byte into one table, numbered by their lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dolake.cdc.formats import Commit, Declare, Event
from dolake.cdc.formats.rows import Rows
from dolake.errors import InvalidInput
from dolake.model import DeclaredColumn


def rows(*lines: bytes, **options: Any) -> list[Any]:
    return list(Rows("public.t", timestamp_ms=1000, **options).items(lines))


def test_a_row_is_an_insert_with_its_own_bytes_and_its_lines_number() -> None:
    items = rows(b"", b' { "a" : 1.50, "a\\u00fc":"\\/", "big":123456789012345678901 } \r', '{"ü":"é🚀"}'.encode())
    assert [type(item) for item in items] == [Event, Commit, Event, Commit]
    first, second = items[0], items[2]
    body = b'{ "a" : 1.50, "a\\u00fc":"\\/", "big":123456789012345678901 }'
    assert first.raw == b'{"sequence":2,"timestamp":1000,"operation":"INSERT","table":"public.t","after":%b}' % body
    assert (first.sequence, first.table, second.sequence) == (2, "public.t", 3)
    assert json.loads(second.raw)["after"] == {"ü": "é🚀"}


@pytest.mark.parametrize(
    ("key", "line", "identity"),
    [
        (["id"], b'{"id":7}', "7"),
        (["id"], b'{"x":1, "id": "a\\"b"}', 'a"b'),
        (["id"], b'{"id":1.50}', "1.50"),
        (["b", "a"], b'{"a":1,"b":"x"}', '{"b":"x","a":1}'),
        ([], b'{"id":7}', None),
    ],
)
def test_the_key_is_the_rows_identity(key: list[str], line: bytes, identity: str | None) -> None:
    event = rows(line, key=key)[0]
    assert json.loads(event.raw).get("rowId") == identity


def test_columns_with_types_are_declared_before_the_first_row_and_the_key_with_them() -> None:
    first, event, _ = rows(b'{"id":1}', key=["id"], types={"id": "long", "at": "timestamptz"})
    assert isinstance(first, Declare)
    assert isinstance(event, Event)
    assert (first.schema.table, first.schema.primary_key) == ("public.t", ("id",))
    assert first.schema.columns == (DeclaredColumn("id", "long", nullable=False), DeclaredColumn("at", "timestamptz"))
    assert rows(b'{"id":1}', key=["id"], types={"at": "date"})[0].schema.primary_key == ()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"1", "object"),
        (b"null", "object"),
        (b'{"id":1}{"id":2}', "malformed"),
        (b'{"id":NaN}', "malformed"),
        (b'{"id":"\xff"}', "utf-8"),
        (b'{"x":1}', "column 'id' of the key is missing"),
        (b'{"id":null}', "column 'id' of the key is null"),
        (b'{"id":1,"id":2}', "the same key twice"),
    ],
)
def test_a_wrong_line_is_named_and_takes_no_other_lines_number(line: bytes, reason: str) -> None:
    decoder = Rows("t", timestamp_ms=1, key=["id"])
    with pytest.raises(InvalidInput) as caught:
        list(decoder.items([b'{"id":1}', line]))
    assert caught.value.line == 2
    assert reason in caught.value.reason
    assert [item.sequence for item in decoder.items([b'{"id":2}']) if isinstance(item, Event)] == [3]

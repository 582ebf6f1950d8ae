"""Objects of which no member is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolake.members import RepeatedKey, members_of, names_of


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (b"{}", {}),
        (b' {"a" : 1 , "b":[1, 2]} ', {"a": b"1", "b": b"[1, 2]"}),
        ('{"ü":"é","q\\"":1e400}'.encode(), {"ü": '"é"'.encode(), 'q"': b"1e400"}),
        (b'{"\\u0061":1}', {"a": b"1"}),
        (b'{"a":{"x":1,"x":2}}', {"a": b'{"x":1,"x":2}'}),
    ],
)
def test_members_keep_the_text_of_their_values(text: bytes, members: dict[str, bytes]) -> None:
    assert {name: bytes(value).strip() for name, value in members_of(text).items()} == members
    assert names_of(text) == tuple(members)


@pytest.mark.parametrize(
    "text", [b'{"a":1,"a":1}', b'{"a":1,"b":2,"a":3}', b'{"a":1,"\\u0061":2}', b'{ "a": 1, "a": 2 }', '{"ü":1,"ü":1}'.encode()]
)
def test_the_same_key_twice_is_refused(text: bytes) -> None:
    with pytest.raises(RepeatedKey):
        members_of(text)


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b'{"a":1', b'{"a":1}}', b'{"a":NaN}', b'"a"'])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the words are msgspec's
        members_of(text)


KEYS = st.sampled_from(["a", "b", "é", '"', "\\", "\n", "\x7f"])


@given(
    st.lists(st.tuples(KEYS, st.sampled_from(["1", '"x"', "[1, 2]", '{"a":1,"a":2}', "null"])), max_size=6),
    st.booleans(),
    st.sampled_from(["", " "]),
)
def test_any_object_has_all_its_members_or_is_refused(pairs: list[tuple[str, str]], ascii_only: bool, space: str) -> None:
    text = "{" + ",".join(f"{space}{json.dumps(name, ensure_ascii=ascii_only)}:{value}" for name, value in pairs) + "}"
    found: Any = None
    try:
        found = {name: bytes(value).decode() for name, value in members_of(text.encode()).items()}
    except RepeatedKey:
        assert len({name for name, _ in pairs}) < len(pairs)
    else:
        assert found == dict(pairs)
        assert len(found) == len(pairs)

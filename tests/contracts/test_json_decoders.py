"""orjson, msgspec and Python's json: where they differ, and where each of them changes a value without a word.

A value is never to change on its way (design §8), so each of these is a reason why rows stay bytes until `parquet/` reads them,
and why the decoders there look for it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import orjson
import pytest

from dolake.cdc.wire import BatchEnvelope, OnlyIdentity, Row

DECODERS = {"orjson": orjson.loads, "msgspec": msgspec.json.decode, "json": json.loads}


def test_orjson_turns_large_integers_into_floats() -> None:
    """2^64 and −2^63−1 lose digits; the other two keep them (`parquet/values.py` reads numbers by their text)."""
    assert orjson.loads("18446744073709551615") == 18446744073709551615
    for text in ("18446744073709551616", "-9223372036854775809"):
        assert isinstance(orjson.loads(text), float), "it keeps integers of any size now"
        assert msgspec.json.decode(text) == json.loads(text) == int(text)


@pytest.mark.parametrize("name", DECODERS)
def test_the_last_of_equal_keys_wins(name: str) -> None:
    """In silence (`message._keys_differ`, `parquet/exact.py` refuse)."""
    assert DECODERS[name]('{"a":1,"a":2}') == {"a": 2}


def test_only_pythons_own_takes_words_that_are_no_json() -> None:
    """NaN and Infinity (`validation._outside_json`)."""
    assert repr(json.loads("[NaN, Infinity, -Infinity]")) == "[nan, inf, -inf]"
    for text in ("NaN", "Infinity", "-Infinity"):
        for name in ("orjson", "msgspec"):
            with pytest.raises(ValueError, match=r"."):
                DECODERS[name](text)


def test_only_pythons_own_takes_lone_surrogates() -> None:
    """Which fit into no UTF-8 (`validation._outside_json`; `record._bytes_of` keeps one that came another way)."""
    assert json.loads(r'"\ud800"') == "\ud800"
    for name in ("orjson", "msgspec"):
        with pytest.raises(ValueError, match=r"."):
            DECODERS[name](rb'"\ud800"')


@pytest.mark.parametrize("name", DECODERS)
def test_a_number_too_small_is_nought_and_a_negative_nought_an_integer(name: str) -> None:
    """`parquet/values.py` reads numbers by their text."""
    assert DECODERS[name]("1e-400") == 0.0
    assert repr(DECODERS[name]("-0")) == "0"


def test_a_number_too_large_is_refused_or_infinite() -> None:
    """Python's own makes infinity of it."""
    assert json.loads("1e400") == float("inf")
    for name in ("orjson", "msgspec"):
        with pytest.raises(ValueError, match=r"."):
            DECODERS[name]("1e400")


def test_pythons_own_refuses_integers_of_thousands_of_digits() -> None:
    """With a ValueError that says nothing of JSON (`validation._integer_or_text` reads them otherwise)."""
    with pytest.raises(ValueError, match="4300"):
        json.loads("1" * 5000)
    assert json.loads("1" * 5000, parse_int=str) == "1" * 5000


def test_msgspec_ends_deep_nesting_with_a_recursion_error() -> None:
    """Not with an error of its own (`message.try_decode` catches both)."""
    with pytest.raises(RecursionError):
        msgspec.json.decode(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(RecursionError):
        msgspec.json.Decoder(Row).decode(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


def test_msgspecs_errors_are_value_errors() -> None:
    """Those of decoding, that is: `formats/wal2json.py` catches both with one."""
    assert issubclass(msgspec.DecodeError, ValueError)
    assert issubclass(msgspec.ValidationError, msgspec.DecodeError)
    assert issubclass(UnicodeDecodeError, ValueError), "which it raises for bytes that are no text"


@pytest.mark.parametrize("kind", [msgspec.Raw, Row])
def test_msgspec_skips_bytes_that_are_no_text(kind: Any) -> None:
    """What is skipped is not looked at, though it must be JSON (`message.try_decode` looks at the whole frame)."""
    holder = msgspec.defstruct("holder", [("row", kind)])
    msgspec.json.decode(b'{"row":{"a":"\xff"}}', type=holder)
    for wrong in (b'{"row":{"a":}}', b'{"row":{"a":NaN}}', b'{"row":{"a":01}}', b'{"row":{a:1}}', b'{"row":{"a":1,}}'):
        with pytest.raises(msgspec.MsgspecError):
            msgspec.json.decode(wrong, type=holder)


def test_msgspec_takes_a_missing_type_for_the_right_one() -> None:
    """A tagged struct alone does not ask for its tag (`message._decode_plain_batch` asks)."""
    frame = (
        b'{"timestamp":1,"sourceDoId":"s","events":[],"sequenceNumber":1,"firstEventSequence":-1,"lastEventSequence":-1,'
        b'"sizeBytes":2,"isRetry":false,"retryCount":0}'
    )
    assert msgspec.json.decode(frame, type=BatchEnvelope).sequence_number == 1
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(frame.replace(b'{"time', b'{"type":"other","time'), type=BatchEnvelope)


def test_msgspec_refuses_text_where_raw_or_none_is_asked_for() -> None:
    """So `parquet/mirror.py` asks for raw bytes with `null` as their default."""
    optional = msgspec.defstruct("optional", [("a", msgspec.Raw | None, None)])
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"a":"t"}', type=optional)


def test_msgspec_hands_out_raw_values_as_they_came() -> None:
    """To the byte, without the space around them: what is logged and hashed (`message._batch`)."""
    holder = msgspec.defstruct("holder", [("events", msgspec.Raw)])
    assert bytes(msgspec.json.decode(b'{"events" :  [ {"a": 1.50,"a":2} ,3 ] }', type=holder).events) == b'[ {"a": 1.50,"a":2} ,3 ]'


def test_msgspec_names_fields_as_the_wire_does() -> None:
    """camelCase by `rename`; unknown fields are passed over, and must be JSON."""
    found = msgspec.json.decode(b'{"type":"x","sequenceNumber":7,"more":[{}]}', type=OnlyIdentity)
    assert (found.type, found.sequence_number, found.correlation_id) == ("x", 7, None)
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(b'{"type":"x","more":[}]}', type=OnlyIdentity)


def test_orjson_writes_what_python_holds() -> None:
    """Integers up to 64 bits, doubles by their shortest text; it refuses what has no JSON (metadata is written with it)."""
    assert orjson.dumps({"a": 2**63, "b": 0.1, "c": "é\u2028"}) == '{"a":9223372036854775808,"b":0.1,"c":"é\u2028"}'.encode()
    with pytest.raises(TypeError):
        orjson.dumps({"a": 2**64})
    with pytest.raises(TypeError):
        orjson.dumps({"a": "\ud800"})
    assert orjson.dumps(float("nan")) == b"null", "a trap: it makes null of NaN"

"""JSON values of declared types, read one by one and by the letter.

Numbers are read from their digits and never pass through a float, except into float columns; equal keys, lone
surrogates, bare NaN, numbers out of range, unknown members and JSON of the wrong kind are refused with field and rule.

How a declared type is written in JSON: boolean true/false; whole numbers and decimals as numbers (`1e3` and `3.0` are whole),
decimals also as strings; floats as numbers, or "NaN", "Infinity", "-Infinity", rounded to the nearest; dates, times and
timestamps ISO 8601 with at most 6 fractional digits, years 1..9999, a zone exactly where the type has one; uuid and
base64 strings; lists as arrays, structs as objects, maps as `[[key, value], …]`. `json` takes any value: a JSON string is
taken as the text itself (wal2json sends jsonb so), anything else is kept as its raw text. null is null everywhere.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from dolake.column_types import ColumnType, DecimalType, FixedType, ListType, MapType, SimpleType, StructType

UUID_PATTERN = r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
BASE64_PATTERN = r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
MICROSECONDS_A_DAY = 86_400_000_000
# 0001-01-01T00:00:00 and 9999-12-31T23:59:59.999999, in microseconds since the epoch.
TIMESTAMP_MIN, TIMESTAMP_MAX = -62_135_596_800_000_000, 253_402_300_799_999_999

_UUID = re.compile(UUID_PATTERN)
_BASE64 = re.compile(BASE64_PATTERN)
_DECIMAL = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?)([0-9]+))?")
_DATE = r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
_TIME = r"([0-9]{2})(?::([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?)?"
_ONLY_DATE = re.compile(_DATE)
_ONLY_TIME = re.compile(_TIME)
_TIMESTAMP = re.compile(_DATE + r"(?:[T ]" + _TIME + r")?")
_TIMESTAMPTZ = re.compile(_DATE + r"[T ]" + _TIME + r"(?:(Z)|([+-])([0-9]{2})(?::?([0-9]{2}))?)")
_FLOATS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_INTEGER_BITS = {"int": 32, "long": 64}
_EPOCH_DAYS = date(1970, 1, 1).toordinal()


class Misfit(Exception):
    """A value that breaks a rule, of the kind that `code` says. `field` grows from the inside out."""

    def __init__(self, rule: str, value: object = "", field: str = "", code: str = "does_not_fit") -> None:
        super().__init__(rule)
        self.rule, self.value, self.field, self.code = rule, _shown(value), field, code

    def within(self, outer: str) -> Misfit:
        self.field = outer + self.field if self.field.startswith("[") or not self.field else f"{outer}.{self.field}"
        return self


class Number(str):
    """A JSON number, as its text."""

    __slots__ = ()


class Repeated(dict[str, Any]):
    """A JSON object with equal keys: refused where it is used, kept as text where it is only carried."""

    key: str


def _shown(value: object) -> str:
    if isinstance(value, Number):
        text = str(value)
    elif isinstance(value, str | dict | list | bool) or value is None:
        text = json.dumps(value, default=bytes.decode)
    else:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = Repeated(found)
    names = [name for name, _ in pairs]
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=Number, parse_float=Number, parse_constant=_constant)


def parsed(raw: bytes) -> Any:
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except RecursionError:
        raise Misfit("nested too deep") from None
    except ValueError as error:
        raise Misfit(f"not valid JSON: {error}") from None


def unscaled(text: str, scale: int, digits_max: int) -> int:
    """The number that `text` writes, times 10**scale, exactly. Raises Misfit."""
    match = _DECIMAL.fullmatch(text)
    whole, fraction = (match[2], match[3] or "") if match else ("", "")
    if match is None or not whole + fraction:
        raise Misfit("not a number", text)
    exponent = (match[5] or "0").lstrip("0") or "0"
    if len(exponent) > 6:
        raise Misfit("an exponent has at most 6 digits", text)
    shift = scale - len(fraction) + int((match[4] or "") + exponent)
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return 0
    if shift < 0:
        if digits[shift:].strip("0") or len(digits) <= -shift:
            raise Misfit(f"more than {scale} digits after the point" if scale else "not a whole number", text)
        digits, shift = digits[:shift], 0
    if len(digits) + shift > digits_max:
        raise Misfit(f"more than {digits_max - scale} digits before the point" if scale else "out of range", text)
    value = int(digits + "0" * shift)
    return -value if match[1] == "-" else value


def string(value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, Number):
        raise Misfit("a string is expected", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Misfit("a lone surrogate is not text", value) from None
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Misfit("true or false is expected", value)
    return value


def whole(value: Any, bits: int) -> int:
    if not isinstance(value, Number):
        raise Misfit("a whole number is expected", value)
    found = unscaled(value, 0, 19)
    if not -(1 << (bits - 1)) <= found < 1 << (bits - 1):
        raise Misfit(f"out of range for {bits} bits", value)
    return found


def _float(value: Any, single: bool) -> float:
    if not isinstance(value, Number):
        if isinstance(value, str) and value in _FLOATS:
            return _FLOATS[value]
        raise Misfit('a number, "NaN", "Infinity" or "-Infinity" is expected', value)
    found = float(value)
    if single and found not in _FLOATS.values():
        # From the digits to 32 bits in one rounding: by way of 64 bits it may come out one off.
        found = pc.cast(pa.scalar(str(value)), pa.float32()).as_py()
    if abs(found) == float("inf"):
        raise Misfit("out of range", value)
    return found


def _decimal(value: Any, kind: DecimalType) -> int:
    if not isinstance(value, str):
        raise Misfit("a decimal as a number or a string is expected", value)
    return unscaled(value, kind.scale, kind.precision)


def _days(match: re.Match[str], text: str) -> int:
    try:
        return date(int(match[1]), int(match[2]), int(match[3])).toordinal() - _EPOCH_DAYS
    except ValueError:
        raise Misfit("no such day", text) from None


def _microseconds(groups: Sequence[str | None], text: str) -> int:
    hour, minute, second, fraction = groups
    found = (int(hour or 0), int(minute or 0), int(second or 0))
    if found > (23, 59, 59) or found[1] > 59 or found[2] > 59:
        raise Misfit("no such time of day", text)
    return ((found[0] * 60 + found[1]) * 60 + found[2]) * 1_000_000 + int((fraction or "0").ljust(6, "0"))


def _date(value: Any) -> int:
    match = _ONLY_DATE.fullmatch(string(value))
    if match is None:
        raise Misfit("a date is written YYYY-MM-DD, years 0001 to 9999", value)
    return _days(match, value)


def _time(value: Any) -> int:
    match = _ONLY_TIME.fullmatch(string(value))
    if match is None:
        raise Misfit("a time is written HH:MM:SS, with at most 6 digits after the seconds and no zone", value)
    return _microseconds(match.groups(), value)


def _timestamp(value: Any) -> int:
    match = _TIMESTAMP.fullmatch(string(value))
    if match is None:
        raise Misfit("a timestamp is ISO 8601 with at most 6 digits after the seconds and no zone, years 0001 to 9999", value)
    return _days(match, value) * MICROSECONDS_A_DAY + _microseconds(match.groups()[3:7], value)


def _timestamptz(value: Any) -> int:
    match = _TIMESTAMPTZ.fullmatch(string(value))
    if match is None:
        raise Misfit("a timestamptz is ISO 8601 with at most 6 digits after the seconds and a zone, years 0001 to 9999", value)
    hours, minutes = int(match[10] or 0), int(match[11] or 0)
    if hours > 23 or minutes > 59:
        raise Misfit("no such zone", value)
    shift = (hours * 60 + minutes) * 60_000_000 * (-1 if match[9] == "-" else 1)
    found = _days(match, value) * MICROSECONDS_A_DAY + _microseconds(match.groups()[3:7], value) - shift
    if not TIMESTAMP_MIN <= found <= TIMESTAMP_MAX:
        raise Misfit("years 0001 to 9999 in UTC", value)
    return found


def _uuid(value: Any) -> bytes:
    text = string(value)
    if _UUID.fullmatch(text) is None:
        raise Misfit("a uuid is written in 8-4-4-4-12 hexadecimal digits", value)
    return bytes.fromhex(text.replace("-", ""))


def _binary(value: Any, length: int | None) -> bytes:
    text = string(value)
    if _BASE64.fullmatch(text) is None:
        raise Misfit("base64 is expected", value)
    found = binascii.a2b_base64(text)
    if length is not None and len(found) != length:
        raise Misfit(f"{length} bytes are expected", value)
    return found


def _simple(name: str) -> Callable[[Any], Any]:
    plain: dict[str, Callable[[Any], Any]] = {
        "boolean": _boolean,
        "int": lambda value: whole(value, 32),
        "long": lambda value: whole(value, 64),
        "float": lambda value: _float(value, single=True),
        "double": lambda value: _float(value, single=False),
        "date": _date,
        "time": _time,
        "timestamp": _timestamp,
        "timestamptz": _timestamptz,
        "string": string,
        "uuid": _uuid,
        "binary": lambda value: _binary(value, None),
    }
    return plain[name]


def reader(kind: ColumnType) -> Callable[[Any], Any]:
    """What turns a parsed JSON value (never null) into what Arrow takes, or raises Misfit; for types without `json` in them."""
    match kind:
        case SimpleType(name):
            return _simple(name)
        case DecimalType():
            return lambda value: Decimal(f"{_decimal(value, kind)}E-{kind.scale}")
        case FixedType(length):
            return lambda value: _binary(value, length)
        case ListType(element):
            inner = _nullable(reader(element))
            return lambda value: [inside(f"[{place}]", inner, one) for place, one in enumerate(_array(value))]
        case MapType(key, value):
            return _entries(_nullable(reader(key)), _nullable(reader(value)))
        case StructType(fields):
            children = {child.name: _nullable(reader(child.type)) for child in fields}
            return lambda value: {name: inside(name, children[name], one) for name, one in members(value, children).items()}


def _nullable(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def inside(field: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except Misfit as misfit:
        raise misfit.within(field) from None


def _array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Misfit("an array is expected", value)
    return value


def members(value: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The object's members, none of them unknown or twice."""
    if not isinstance(value, dict):
        raise Misfit("an object is expected", value)
    if isinstance(value, Repeated):
        raise Misfit("the same key twice", field=value.key)
    for name in value:
        if name not in names:
            raise Misfit("not declared", value[name], field=name)
    return value


def _entries(read_key: Callable[[Any], Any], read_value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> list[tuple[Any, Any]]:
        found = []
        for place, pair in enumerate(_array(value)):
            if not isinstance(pair, list) or len(pair) != 2:
                raise Misfit("a map is written [[key, value], …]", pair, field=f"[{place}]")
            key = inside(f"[{place}][0]", read_key, pair[0])
            found.append((key, inside(f"[{place}][1]", read_value, pair[1])))
            if key is None:
                raise Misfit("a map's key is never null", field=f"[{place}][0]")
        if len({key for key, _ in found}) < len(found):
            raise Misfit("the same map key twice", value)
        return found

    return read


# Types with `json` in them are read from raw text, level by level: what is below a `json` stays as the source wrote it.
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def raw_reader(kind: ColumnType) -> Callable[[bytes], Any]:
    """The same for types with `json` in them, from the value's raw JSON text; null is None."""
    match kind:
        case SimpleType("json"):
            return _json_text
        case ListType(element):
            inner = raw_reader(element)
            return lambda raw: None if raw == b"null" else [inside(f"[{i}]", inner, one) for i, one in enumerate(_raws(raw))]
        case MapType(key, value):
            read = _entries(raw_reader(key), raw_reader(value))
            return lambda raw: None if raw == b"null" else read([_raws(pair) for pair in _raws(raw)])
        case StructType(fields):
            children = {child.name: raw_reader(child.type) for child in fields}

            def read_struct(raw: bytes) -> Any:
                value = parsed(raw)
                if value is None:
                    return None
                found = members(value, children)
                pieces = _RAW_OBJECT.decode(raw)
                return {name: inside(name, children[name], bytes(pieces[name]).strip()) for name in found}

            return read_struct
        case _:
            plain = _nullable(reader(kind))
            return lambda raw: plain(parsed(raw))


def _raws(raw: bytes) -> list[bytes]:
    _array(parsed(raw))
    return [bytes(one).strip() for one in _RAW_LIST.decode(raw)]


def _json_text(raw: bytes) -> str | None:
    value = parsed(raw)
    if value is None:
        return None
    return string(value) if isinstance(value, str) and not isinstance(value, Number) else raw.decode("utf-8").strip()

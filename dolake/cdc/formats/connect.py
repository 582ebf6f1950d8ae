"""Kafka Connect's schemas, and the meanings Debezium gives them: what a column is declared as, and how its values go on the wire.

JSON of Connect's JsonConverter. Exact: decimals are made of their unscaled digits, nothing goes through a float, and what
the declared type cannot hold passes as it came, to be refused by name.

| in the schema | declared as |
|---|---|
| int8 int16 int32, int64, float, double, boolean, string, bytes | int, long, float, double, boolean, string, binary |
| array, map, struct | list, map, struct; json where a name in it is none that Iceberg has |
| Decimal | decimal(precision or 38, scale), string beyond 38 digits |
| VariableScaleDecimal | string |
| Date, IsoDate; Time, MicroTime, IsoTime; Timestamp, MicroTimestamp, IsoTimestamp; ZonedTimestamp | date; time; timestamp; timestamptz |
| NanoTime, NanoTimestamp | long, or time and timestamp if asked for |
| Json; Uuid; Bits | json; uuid; binary |
| ZonedTime, Interval, Enum, EnumSet, Xml, any other name | as the plain type |

With `column.propagate.source.type` a string is known for what it was: numeric(p,s) becomes a decimal again, bytea binary.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from dolake.cdc.formats.moments import Convert, date_of_days, iso_with_zone, iso_without_zone, time_of, timestamp_of
from dolake.column_types import PRECISION_MAX, parse_type
from dolake.members import members_of

BINARY_MODES = ("base64", "base64-url-safe", "hex")
_SCALE_MAX = 200_000  # PostgreSQL's numeric ends at 131,072 digits.
_CHUNK_DIGITS = 4000
_CHUNK = 10**_CHUNK_DIGITS
_encode = msgspec.json.encode
_decode_text = msgspec.json.Decoder(str).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class ConnectSchema(msgspec.Struct, gc=False):
    """A schema as JsonConverter writes it beside a payload."""

    type: str
    name: str | None = None
    field: str = ""
    fields: list[ConnectSchema] = []
    items: ConnectSchema | None = None
    keys: ConnectSchema | None = None
    values: ConnectSchema | None = None
    parameters: Mapping[str, str] = {}


@dataclass(frozen=True)
class Kind:
    """A column: its type in Iceberg's notation, and what turns a value's JSON into the wire's (None: it is already right)."""

    name: str
    convert: Convert | None = None


@dataclass(frozen=True)
class Reading:
    """What the schema cannot say: how binary columns were made strings, and whether nanoseconds may become microseconds."""

    binary_mode: str = ""
    nanoseconds: str = "long"


def column_kind(schema: ConnectSchema, reading: Reading) -> Kind:
    """Raises ValueError for what is no Connect schema."""
    kind = _kind(schema, reading)
    if schema.type in _NESTED:
        try:
            parse_type(kind.name)
        except ValueError:
            return Kind("json")
    return kind


def _kind(schema: ConnectSchema, reading: Reading) -> Kind:
    if schema.name == "org.apache.kafka.connect.data.Decimal":
        return _decimal(schema)
    if schema.name == "io.debezium.data.VariableScaleDecimal":
        return Kind("string", _variable_scale)
    nanoseconds = _NANOSECONDS.get(schema.name or "")
    if nanoseconds is not None:
        return nanoseconds if reading.nanoseconds == "timestamp" else Kind("long")
    meant = _SEMANTIC.get(schema.name or "")
    if meant is not None and meant[0] == schema.type:
        return meant[1]
    if schema.type == "string":
        return _propagated(schema.parameters, reading) or Kind("string")
    plain = _PLAIN.get(schema.type)
    if plain is not None:
        return plain
    if schema.type in _NESTED:
        return _NESTED[schema.type](schema, reading)
    raise ValueError(f"type: {schema.type!r} is none of Kafka Connect's")


def _array(schema: ConnectSchema, reading: Reading) -> Kind:
    element = _kind(_part(schema.items, "items"), reading)
    convert = element.convert
    if convert is None:
        return Kind(f"list<{element.name}>")
    return Kind(f"list<{element.name}>", lambda raw: b"[" + b",".join([_inside(convert, item) for item in _decode_list(raw)]) + b"]")


def _map(schema: ConnectSchema, reading: Reading) -> Kind:
    """Maps with string keys are objects, others arrays of pairs; on the wire all are pairs."""
    key, value = _kind(_part(schema.keys, "keys"), reading), _kind(_part(schema.values, "values"), reading)

    def pairs(raw: bytes) -> bytes:
        if raw.startswith(b"{"):
            found = [(_encode(name), one) for name, one in members_of(raw).items()]
        else:
            found = [(_inside(key.convert, one), other) for one, other in map(_pair, _decode_list(raw))]
        return b"[" + b",".join([b"[%b,%b]" % (name, _inside(value.convert, one)) for name, one in found]) + b"]"

    return Kind(f"map<{key.name}, {value.name}>", pairs)


def _pair(raw: msgspec.Raw) -> tuple[msgspec.Raw, msgspec.Raw]:
    pair = _decode_list(raw)
    if len(pair) != 2:
        raise ValueError("a map is an object, or an array of pairs")
    return pair[0], pair[1]


def _struct(schema: ConnectSchema, reading: Reading) -> Kind:
    kinds = {child.field: _kind(child, reading) for child in schema.fields}
    name = "struct<" + ", ".join(f"{field}: {kind.name}" for field, kind in kinds.items()) + ">"
    if all(kind.convert is None for kind in kinds.values()):
        return Kind(name)

    def convert(raw: bytes) -> bytes:
        found = members_of(raw)
        return b"{" + b",".join([_encode(field) + b":" + _inside(_of(kinds, field), one) for field, one in found.items()]) + b"}"

    return Kind(name, convert)


def _of(kinds: Mapping[str, Kind], field: str) -> Convert | None:
    return kinds[field].convert if field in kinds else None  # A field the schema lacks passes, to be refused by name.


def _inside(convert: Convert | None, raw: msgspec.Raw) -> bytes:
    text = bytes(raw).strip()
    return text if convert is None or text == b"null" else convert(text)


def _part(schema: ConnectSchema | None, name: str) -> ConnectSchema:
    if schema is None:
        raise ValueError(f"{name}: is missing from a schema")
    return schema


def _decimal(schema: ConnectSchema) -> Kind:
    try:
        scale = int(schema.parameters["scale"])
        precision = int(schema.parameters.get("connect.decimal.precision", "0"))
    except (KeyError, ValueError):
        raise ValueError("parameters: a Decimal has a scale, a whole number as text") from None
    name = _decimal_name(precision, scale)
    quote = b'"' if name == "string" else b""

    def convert(raw: bytes) -> bytes:
        if not raw.startswith(b'"'):  # decimal.format=numeric
            if _NUMBER.fullmatch(raw) is None:
                raise ValueError(f"a decimal is base64 of its unscaled value, or a number (got {raw[:40].decode(errors='replace')})")
            return quote + raw + quote
        return quote + decimal_text(raw, scale).encode() + quote

    return Kind(name, convert)


def _decimal_name(precision: int, scale: int) -> str:
    """No precision is the widest. A negative scale has zeros before the point, one above the precision after it."""
    digits, scale = (precision - scale, 0) if scale < 0 else (max(precision, scale), scale)
    if precision <= 0:
        digits = PRECISION_MAX
    return f"decimal({digits},{scale})" if scale <= digits <= PRECISION_MAX else "string"


def _variable_scale(raw: bytes) -> bytes:
    found = members_of(raw)
    try:
        scale = int(bytes(found["scale"]))
        return b'"%b"' % decimal_text(bytes(found["value"]).strip(), scale).encode()
    except KeyError as error:
        raise ValueError(f"a VariableScaleDecimal has scale and value: {error} is missing") from None


def decimal_text(raw: bytes, scale: int) -> str:
    """The number whose unscaled value is `raw` (JSON: base64 of two's complement, most significant byte first)."""
    if abs(scale) > _SCALE_MAX:
        raise ValueError(f"a scale beyond {_SCALE_MAX} (got {scale})")
    unscaled = int.from_bytes(_from_base64(_decode_text(raw)), "big", signed=True)
    sign, digits = "-" if unscaled < 0 else "", _digits(abs(unscaled))
    if scale <= 0:
        return sign + (digits + "0" * -scale if unscaled else "0")
    digits = digits.rjust(scale + 1, "0")
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}"


def _digits(number: int) -> str:
    """Python refuses to write thousands of digits at once."""
    if number < _CHUNK:
        return str(number)
    high, low = divmod(number, _CHUNK)
    return _digits(high) + str(low).rjust(_CHUNK_DIGITS, "0")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _propagated(parameters: Mapping[str, str], reading: Reading) -> Kind | None:
    """What a string was in the database, where the connector tells."""
    source = parameters.get("__debezium.source.column.type", "").upper().partition("(")[0]
    if source in ("NUMERIC", "DECIMAL"):
        length, scale = parameters.get("__debezium.source.column.length", ""), parameters.get("__debezium.source.column.scale", "0")
        if length.isdecimal() and scale.isdecimal() and 1 <= int(length) <= PRECISION_MAX and int(scale) <= int(length):
            return Kind(f"decimal({int(length)},{int(scale)})")
    if reading.binary_mode and source in _BINARY_SOURCES:
        return Kind("binary", _BINARY[reading.binary_mode])
    return None


def _from_url_safe(raw: bytes) -> bytes:
    body = raw[1:-1].translate(bytes.maketrans(b"-_", b"+/"))
    return b'"' + body + b"=" * (-len(body) % 4) + b'"'


def _from_hex(raw: bytes) -> bytes:
    try:
        return b'"' + binascii.b2a_base64(binascii.unhexlify(raw[1:-1]), newline=False) + b'"'
    except binascii.Error as error:
        raise ValueError(f"not hexadecimal: {error}") from None


_BINARY: dict[str, Convert | None] = {"base64": None, "base64-url-safe": _from_url_safe, "hex": _from_hex}
_BINARY_SOURCES = frozenset(
    {"BYTEA", "BINARY", "VARBINARY", "LONG VARBINARY", "TINYBLOB", "BLOB", "MEDIUMBLOB", "LONGBLOB", "IMAGE", "RAW", "LONG RAW"}
)
_PLAIN = {
    "int8": Kind("int"),
    "int16": Kind("int"),
    "int32": Kind("int"),
    "int64": Kind("long"),
    "float": Kind("float"),
    "float32": Kind("float"),
    "double": Kind("double"),
    "float64": Kind("double"),
    "boolean": Kind("boolean"),
    "string": Kind("string"),
    "bytes": Kind("binary"),
}
_NESTED = {"array": _array, "map": _map, "struct": _struct}
_NS, _US, _MS = 1, 1_000, 1_000_000
_NANOSECONDS = {
    "io.debezium.time.NanoTime": Kind("time", time_of(_NS)),
    "io.debezium.time.NanoTimestamp": Kind("timestamp", timestamp_of(_NS)),
}
# The schema's name, the plain type it goes with, and what it means.
_SEMANTIC = {
    "io.debezium.time.Date": ("int32", Kind("date", date_of_days)),
    "io.debezium.time.Time": ("int32", Kind("time", time_of(_MS))),
    "io.debezium.time.MicroTime": ("int64", Kind("time", time_of(_US))),
    "io.debezium.time.Timestamp": ("int64", Kind("timestamp", timestamp_of(_MS))),
    "io.debezium.time.MicroTimestamp": ("int64", Kind("timestamp", timestamp_of(_US))),
    "io.debezium.time.IsoDate": ("string", Kind("date", iso_without_zone)),
    "io.debezium.time.IsoTime": ("string", Kind("time", iso_without_zone)),
    "io.debezium.time.IsoTimestamp": ("string", Kind("timestamp", iso_without_zone)),
    "io.debezium.time.ZonedTimestamp": ("string", Kind("timestamptz", iso_with_zone)),
    "org.apache.kafka.connect.data.Date": ("int32", Kind("date", date_of_days)),
    "org.apache.kafka.connect.data.Time": ("int32", Kind("time", time_of(_MS))),
    "org.apache.kafka.connect.data.Timestamp": ("int64", Kind("timestamp", timestamp_of(_MS))),
    "io.debezium.data.Json": ("string", Kind("json")),
    "io.debezium.data.Uuid": ("string", Kind("uuid")),
}

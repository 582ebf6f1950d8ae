"""The shop stream as Debezium would have told it: wal2json's lines rewritten as change events, in several of its encodings.

Each line is a Kafka message, `{"key": …, "value": …}` with Kafka Connect's schemas. As the connector does, an update of a
key becomes a delete, a tombstone and an insert at one place of the log; an update without one has no before image unless
the table's replica identity is full; transactions are told by BEGIN and END. Nothing here is dolake's.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec

Json = Any
FULL_IDENTITY = {"customers"}
_ENCODER = msgspec.json.Encoder(decimal_format="number")  # a number keeps the digits it was read with


@dataclass(frozen=True)
class Encoding:
    """How one column is told: its schema, and a value as wal2json has it in the notation of that schema."""

    schema: Mapping[str, Json]
    value: Callable[[Json], Json] = lambda value: value


def plain(kind: str, name: str | None = None, **more: Json) -> dict[str, Json]:
    return {"type": kind, "optional": True, **({"name": name, "version": 1} if name else {}), **more}


def _unscaled(scale: int) -> Callable[[Json], str]:
    def encode(value: Json) -> str:
        number = int(Decimal(value).scaleb(scale))
        return base64.b64encode(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)).decode()

    return encode


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _microseconds(text: str) -> int:
    passed = _moment(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


def _iso(text: str) -> str:
    return _moment(text).astimezone(UTC).isoformat().replace("+00:00", "Z")


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("\\x"))


def _decimal(precision: int, scale: int) -> Encoding:
    parameters = {"scale": str(scale), "connect.decimal.precision": str(precision)}
    return Encoding(plain("bytes", "org.apache.kafka.connect.data.Decimal", parameters=parameters), _unscaled(scale))


def _propagated(kind: str, **more: str) -> dict[str, Json]:
    parameters = {f"__debezium.source.column.{name}": value for name, value in {"type": kind, **more}.items()}
    return plain("string", parameters=parameters)


LONG, TEXT, INT, BOOLEAN = (Encoding(plain(kind)) for kind in ("int64", "string", "int32", "boolean"))
UUID, JSON_TEXT = Encoding(plain("string", "io.debezium.data.Uuid")), Encoding(plain("string", "io.debezium.data.Json"))
ZONED = Encoding(plain("string", "io.debezium.time.ZonedTimestamp"), _iso)
TAGS = Encoding(plain("array", items=plain("string")), lambda value: value.strip("{}").split(","))
DOUBLE, FLOAT = (Encoding(plain(kind), lambda value: value) for kind in ("double", "float"))
STATUS = Encoding(plain("string", "io.debezium.data.Enum", parameters={"allowed": "new,paid,shipped,cancelled"}))

# decimal.handling.mode=precise, time.precision.mode=adaptive, binary.handling.mode=bytes.
USUAL: Mapping[str, Mapping[str, Encoding]] = {
    "customers": {
        "id": LONG, "email": TEXT, "name": TEXT, "tier": Encoding(plain("int16")), "balance": _decimal(12, 2), "tags": TAGS,
        "profile": JSON_TEXT, "created_at": ZONED, "vip": BOOLEAN,
    },
    "orders": {
        "id": UUID, "customer_id": LONG, "status": STATUS, "total": _decimal(14, 4), "placed_at": ZONED,
        "ship_date": Encoding(plain("int32", "io.debezium.time.Date"), lambda text: (date.fromisoformat(text) - date(1970, 1, 1)).days),
        "note": TEXT, "channel": TEXT,
    },
    "order_lines": {"order_id": UUID, "line_no": INT, "sku": TEXT, "qty": INT, "price": DOUBLE, "weight": FLOAT},
    "page_views": {
        "id": LONG, "customer_id": LONG, "url": TEXT,
        "at": Encoding(plain("int64", "io.debezium.time.MicroTimestamp"), _microseconds), "ms": INT,
        "agent": Encoding(plain("bytes"), lambda value: base64.b64encode(_bytes(value)).decode()), "country": TEXT,
    },
}  # fmt: skip
# decimal.handling.mode=string, time.precision.mode=isostring and nanoseconds, binary.handling.mode=hex, propagated types.
OTHERS: Mapping[str, Mapping[str, Encoding]] = {
    **USUAL,
    "customers": {**USUAL["customers"], "balance": Encoding(_propagated("NUMERIC", length="12", scale="2"), str)},
    "orders": {
        **USUAL["orders"],
        "total": Encoding(_propagated("NUMERIC", length="14", scale="4"), str),
        "ship_date": Encoding(plain("string", "io.debezium.time.IsoDate"), lambda text: text + "Z"),
    },
    "page_views": {
        **USUAL["page_views"],
        "at": Encoding(plain("int64", "io.debezium.time.NanoTimestamp"), lambda text: _microseconds(text) * 1000),
        "agent": Encoding(_propagated("BYTEA"), lambda value: _bytes(value).hex()),
    },
}
KEYS = {"customers": ["id"], "orders": ["id"], "order_lines": ["order_id", "line_no"], "page_views": ["id"]}


class Rewriter:
    """State of one stream: the columns a table has so far, which a deleted row's line does not tell."""

    def __init__(self, encodings: Mapping[str, Mapping[str, Encoding]] = USUAL) -> None:
        self._encodings = encodings
        self._columns: dict[str, dict[str, str]] = {}
        self._transaction = ""
        self._count = 0

    def lines(self, wal2json: Iterable[bytes]) -> Iterator[bytes]:
        for text in wal2json:
            line = json.loads(text, parse_float=Decimal)
            if line["action"] == "B":
                self._transaction, self._count = f"{line['xid']}:{_lsn(line['lsn'])}", 0
                yield _dump({"status": "BEGIN", "id": self._transaction, "event_count": None, "data_collections": None})
            elif line["action"] == "C":
                yield _dump({"status": "END", "id": self._transaction, "event_count": self._count, "data_collections": []})
            else:
                yield from self._change(line)

    def _change(self, line: dict[str, Json]) -> Iterator[bytes]:
        table, action = line["table"], line["action"]
        if "columns" in line:
            self._columns[table] = {column["name"]: column["type"] for column in line["columns"]}
        new, old = self._row(table, line.get("columns")), self._row(table, line.get("identity"))
        if action == "T":
            yield self._message(line, "t", None, None)
        elif action == "I":
            yield self._message(line, "c", None, new)
        elif action == "D":
            yield from self._delete(line, old)
        elif _key(table, old) != _key(table, new):
            yield from self._delete(line, old)
            yield self._message(line, "c", None, new)
        else:
            yield self._message(line, "u", old if table in FULL_IDENTITY else None, new)

    def _delete(self, line: dict[str, Json], old: Json) -> Iterator[bytes]:
        yield self._message(line, "d", old, None)
        yield f'{{"key":{self._key_message(line["table"], old)},"value":null}}'.encode()

    def _row(self, table: str, columns: list[dict[str, Json]] | None) -> Json:
        if columns is None:
            return None
        found = dict.fromkeys(self._columns[table])
        for column in columns:
            if column["value"] is not None:
                found[column["name"]] = self._encodings[table][column["name"]].value(column["value"])
        return found

    def _key_message(self, table: str, row: Json) -> str:
        return f'{{"schema":{_key_schema(table)},"payload":{_text(_key(table, row))}}}'

    def _message(self, line: dict[str, Json], op: str, before: Json, after: Json) -> bytes:
        self._count += 1
        table, time_ms = line["table"], _microseconds(line["timestamp"]) // 1000
        source = {
            "version": "3.0.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": time_ms, "snapshot": "false", "db": "shop",
            "sequence": "[null,null]", "schema": line["schema"], "table": table, "txId": line["xid"], "lsn": _lsn(line["lsn"]),
            "xmin": None,
        }  # fmt: skip
        block = {"id": self._transaction, "total_order": self._count, "data_collection_order": self._count}
        payload = {"before": before, "after": after, "source": source, "op": op, "ts_ms": time_ms + 5, "transaction": block}
        if op == "t":
            del payload["before"], payload["after"]
        value = f'{{"schema":{self._schema(table)},"payload":{_text(payload)}}}'
        row = before if after is None else after
        key = "null" if row is None else self._key_message(table, row)
        return f'{{"key":{key},"value":{value}}}'.encode()

    def _schema(self, table: str) -> str:
        return _envelope(table, tuple(self._columns[table].items()), self._encodings is OTHERS)


@cache
def _key_schema(table: str) -> str:
    fields = [{**USUAL[table][name].schema, "optional": False, "field": name} for name in KEYS[table]]
    return _text({"type": "struct", "fields": fields, "optional": False, "name": f"shop.public.{table}.Key"})


@cache
def _envelope(table: str, columns: tuple[tuple[str, str], ...], others: bool) -> str:
    encodings = (OTHERS if others else USUAL)[table]
    # Half way the shop's order_lines.qty becomes bigint, and so does its schema here.
    kinds = {name: {**encodings[name].schema, "type": "int64"} if kind == "bigint" else encodings[name].schema for name, kind in columns}
    fields = [{**schema, "field": name} for name, schema in kinds.items()]
    row = {"type": "struct", "fields": fields, "optional": True, "name": f"shop.public.{table}.Value"}
    others_ = [plain("string", field="op"), plain("int64", field="ts_ms")]
    source = {"type": "struct", "fields": [plain("int64", field="lsn")], "optional": False, "field": "source"}
    parts = [{**row, "field": "before"}, {**row, "field": "after"}, source, *others_]
    return _text({"type": "struct", "fields": parts, "optional": False, "name": f"shop.public.{table}.Envelope", "version": 2})


def without_schemas(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same messages by a converter with schemas.enable=false: the values alone."""
    for line in lines:
        message = json.loads(line, parse_float=Decimal)
        if "status" in message:
            yield line
        else:
            yield _dump({part: content and content["payload"] for part, content in message.items()})


def _key(table: str, row: Json) -> Json:
    return {name: row[name] for name in KEYS[table]}


def _lsn(text: str) -> int:
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def _text(value: Json) -> str:
    return _dump(value).decode()


def _dump(value: Json) -> bytes:
    return _ENCODER.encode(value)

"""One line of Debezium's JSON, taken apart: the message of a Kafka topic, its envelope, what it says of the source.

A line is a message's value alone, a `{"key": …, "value": …}` of both, or what `kcat -J` writes (there both are JSON in
strings). Key and value are bare, or `{"schema": …, "payload": …}` where Kafka Connect's JsonConverter writes schemas.
What is no change of a row is told apart: tombstones, heartbeats, schema changes, transaction boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from dolake.members import Members, members_of, names_of

_NULL = b"null"
_OPERATIONS = frozenset("cudrtm")


class Source(msgspec.Struct, gc=False):
    """Where a change comes from, as far as dolake looks."""

    connector: str = ""
    db: str | None = None
    schema: str | None = None
    keyspace: str | None = None
    table: str | None = None
    ts_ms: int | None = None
    txId: int | str | None = None
    gtid: str | None = None
    lsn: int | str | None = None
    change_lsn: str | None = None
    scn: int | str | None = None
    file: str | None = None
    pos: int | None = None
    row: int | None = None

    @property
    def table_name(self) -> str:
        """`namespace.name`; the namespace is the schema, or what a database without schemas has in its place."""
        return f"{self.schema or self.keyspace or self.db}.{self.table}" if self.schema or self.keyspace or self.db else self.table or ""

    @property
    def position(self) -> str:
        """The place in the database's own log, as the database writes it."""
        if isinstance(self.lsn, int):
            return f"{self.lsn >> 32:X}/{self.lsn & 0xFFFFFFFF:X}" if self.connector == "postgresql" else str(self.lsn)
        if self.file:
            return f"{self.file}:{self.pos}"
        found = next((one for one in (self.lsn, self.change_lsn, self.scn, self.gtid) if one is not None), "")
        return str(found)

    @property
    def row_change(self) -> tuple[Any, ...] | None:
        """What two messages of one and the same row change share; None where the connector does not tell."""
        if isinstance(self.lsn, int) and self.connector == "postgresql":
            return (self.lsn, self.txId)
        return (self.file, self.pos, self.row) if self.file and self.row is not None else None


class _Block(msgspec.Struct, gc=False):
    """The `transaction` block of a change."""

    id: str


@dataclass(frozen=True)
class Change:
    """A change of a row or a table. Images are raw objects, None where absent or null; `key` the payload of the message's key."""

    operation: str
    source: Source
    timestamp_ms: int | None
    before: bytes | None
    after: bytes | None
    schema: bytes | None
    key: bytes | None
    transaction_block: str


class Boundary(msgspec.Struct, gc=False):
    """A message of the transaction topic."""

    status: str
    id: str
    event_count: int | None = None


@dataclass(frozen=True)
class PassedOver:
    """A message that changes no row; `kind` names it in the plural."""

    kind: str
    transaction_block: str = ""


TOMBSTONE = PassedOver("tombstones")
Message = Change | Boundary | PassedOver

_text = msgspec.json.Decoder(str).decode
_source = msgspec.json.Decoder(Source).decode
_block = msgspec.json.Decoder(_Block).decode
_boundary = msgspec.json.Decoder(Boundary).decode
_time = msgspec.json.Decoder(int | None).decode


def read_line(text: bytes) -> Message:
    """Raises ValueError for what is none of these."""
    if text == _NULL:
        return TOMBSTONE
    line = members_of(text)
    key: bytes | None = None
    if "topic" in line and "payload" in line and "op" not in line:  # kcat -J
        key, value = _from_text(line.get("key")), _from_text(line["payload"])
    elif "value" in line and "op" not in line and "payload" not in line:
        key, value = _present(line.get("key")), _present(line["value"])
    else:
        return _value(text, line, None)
    return TOMBSTONE if value is None else _value(value, members_of(value), key)


def key_names(key: bytes | None) -> tuple[str, ...]:
    """The columns of a message's key."""
    return names_of(key) if key is not None and key.startswith(b"{") else ()


def _value(text: bytes, value: Members, key: bytes | None) -> Message:
    schema: bytes | None = None
    if "payload" in value and "op" not in value:
        schema, payload_text = _present(value.get("schema")), _present(value["payload"])
        if payload_text is None:
            return TOMBSTONE
        text, value = payload_text, members_of(payload_text)
    if "op" in value:
        return _change(value, schema, None if key is None else _payload(key))
    if "status" in value and "id" in value:
        return _boundary(text)
    if "ddl" in value or "tableChanges" in value:
        return PassedOver("schema changes")
    if value.keys() <= {"ts_ms", "ts_us", "ts_ns"}:
        return PassedOver("heartbeats")
    names = ", ".join(list(value)[:8])
    raise ValueError(f"op: is missing, so this is no change event (it has {names}); rows without envelopes are --format rows")


def _change(payload: Members, schema: bytes | None, key: bytes | None) -> Message:
    operation = _text(payload["op"])
    if operation not in _OPERATIONS:
        raise ValueError(f"op: must be one of c, u, d, r, t, m (got {operation!r})")
    transaction = _present(payload.get("transaction"))
    block = "" if transaction is None else _block(transaction).id
    if operation == "m":
        return PassedOver("messages", block)
    source_text = _present(payload.get("source"))
    source = Source() if source_text is None else _source(source_text)
    if source.connector == "mongodb":
        raise ValueError("source.connector: MongoDB's documents come as JSON in a string, and as patches; they cannot be read as rows")
    timestamp_ms = source.ts_ms
    if timestamp_ms is None and "ts_ms" in payload:
        timestamp_ms = _time(payload["ts_ms"])
    before, after = (_image(payload, name) for name in ("before", "after"))
    if operation in "cur" and after is None:
        raise ValueError(f"after: is missing, and a change of op {operation} has it")
    return Change(operation, source, timestamp_ms, before, after, schema, key, block)


def _image(payload: Members, name: str) -> bytes | None:
    image = _present(payload.get(name))
    if image is not None and not image.startswith(b"{"):
        raise ValueError(f"{name}: must be an object or null (got {image[:40].decode(errors='replace')})")
    return image


def _payload(key: bytes) -> bytes | None:
    if not key.startswith(b"{"):
        return None
    members = members_of(key)
    return _present(members["payload"]) if members.keys() == {"schema", "payload"} else key


def _present(raw: msgspec.Raw | None) -> bytes | None:
    text = _NULL if raw is None else bytes(raw).strip()
    return None if text == _NULL else text


def _from_text(raw: msgspec.Raw | None) -> bytes | None:
    """JSON within a string."""
    text = _present(raw)
    return None if text is None else _present(msgspec.Raw(_text(text).encode()))

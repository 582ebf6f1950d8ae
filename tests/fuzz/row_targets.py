"""What rows come out of: wal2json, Debezium and native streams into events, events into Arrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from dolake.cdc import message as wire
from dolake.cdc.formats import Commit, Declare, Event, Format, Item
from dolake.cdc.formats.debezium import Debezium
from dolake.cdc.formats.native import Native
from dolake.cdc.formats.rows import Rows
from dolake.cdc.formats.wal2json import Wal2json
from dolake.cdc.outgoing import batch_frame, schema_frame
from dolake.errors import InvalidInput, InvalidMessage
from tests.cdc.samples import SCHEMA, batch, event, frame
from tests.debezium import OTHERS, Rewriter, without_schemas
from tests.fuzz.exact_json import Members, exactly
from tests.fuzz.target import Target, plain, require
from tests.parquet.events import SANE, WILD, DeclaredLayout, layout_of
from tests.parquet.events import event as row_event
from tests.parquet.test_fast import agree
from tests.shop import stream_lines

_AS_IT_IS = frozenset({"bigint", "integer", "smallint", "boolean", "text", "character varying(20)"})


def decoded(decoder: Format, data: bytes) -> tuple[list[tuple[bytes, list[Item]]], int]:
    """Line by line, going on behind one that is refused as `dolake send --skip` could: (line, items), and how many were refused."""
    found, refused = [], 0
    for line in data.split(b"\n"):
        try:
            found.append((line, list(decoder.items([line]))))
        except InvalidInput as error:
            require(bool(error.reason) and error.line >= 1, "a refusal that says nothing")
            refused += 1
    found.append((b"", list(decoder.pause(over=True))))
    assert all(isinstance(note, str) for note in decoder.notes)
    return found, refused


def require_sendable(items: Iterable[Item]) -> str:
    """Events are numbered rising, are JSON, and a batch of them holds them to the byte, or is refused with words."""
    last, answer = -1, "nothing"
    for item in items:
        match item:
            case Event(sequence, table, raw):
                require(sequence > last, f"{sequence} comes after {last}")
                last = sequence
                said = exactly(raw)
                require(isinstance(said, Members), "an event that is no object")
                require((int(said["sequence"]), said["table"]) == (sequence, table), "the event says another number or table")
                sent = batch_frame("s", "", 0, [raw], first=sequence, last=sequence, transaction=None, now_ms=1)
                try:
                    message = wire.decode(sent)
                except InvalidMessage as error:
                    require(bool(error.mistakes), "the daemon refuses and says nothing")
                    answer = "refused by the daemon" if answer != "events" else answer
                else:
                    assert isinstance(message, wire.CdcBatch)
                    require(wire.split_events(sent) == [raw], "the batch holds another event")
                    answer = "events"
            case Declare(schema):
                try:
                    told = wire.decode(schema_frame("s", "", 0, schema, 1))
                except InvalidMessage as error:
                    require(bool(error.mistakes), "the daemon refuses and says nothing")
                else:
                    assert isinstance(told, wire.SchemaMessage)
                    require(told.schema == schema, f"declared {schema}, and the daemon reads {told.schema}")
            case Commit():
                pass
    return answer


def checked(new: Callable[[], Format], values: Callable[[bytes, Event], None] | None = None) -> Callable[[bytes], str]:
    def check(data: bytes) -> str:
        found, refused = decoded(new(), data)
        answer = require_sendable(item for _, items in found for item in items)
        for line, items in found:
            for item in items:
                if values is not None and isinstance(item, Event) and len([one for one in items if isinstance(one, Event)]) == 1:
                    values(line, item)
        return answer + (" and InvalidInput" if refused else "")

    return check


def wal2json() -> list[bytes]:
    lines = stream_lines()
    kinds: dict[tuple[Any, ...], bytes] = {}
    for line in lines:
        said = json.loads(line)
        kinds.setdefault((said["action"], said.get("table"), len(said.get("columns", ()))), line)
    return [*(b"\n".join(lines[start : start + 4]) for start in range(0, 400, 100)), *kinds.values()]


def same_as_wal2json_says(line: bytes, found: Event) -> None:
    """Values of types that need no turning are in the event as they are in the line."""
    said, made = exactly(line), exactly(found.raw)
    for part, image in (("columns", "after"), ("identity", "before")):
        columns = said.get(part) or ()
        names = [column["name"] for column in columns]
        for column in columns:
            if column.get("type") in _AS_IT_IS and names.count(column["name"]) == 1 and not column.repeated and "value" in column:
                require(made[image][column["name"]] == column["value"], f"{column} became {made[image][column['name']]!r}")


def debezium() -> list[bytes]:
    lines = stream_lines()[:60]
    whole = list(Rewriter().lines(lines))
    others = list(Rewriter(OTHERS).lines(lines))
    bare = list(without_schemas(whole))
    return [b"\n".join(stream[start : start + 3]) for stream in (whole, others, bare) for start in (0, 9, 21, 30)]


def native() -> list[bytes]:
    bare = {name: value for name, value in event(0).items() if name != "sequence"}
    return [
        b"\n".join([frame(event(1)), frame(event(5, operation="DELETE", before={"id": 1}))]),
        b"\n".join([frame(SCHEMA), frame(batch(0, 1)), frame({**batch(1, 3), "transaction": {"id": "t", "last": False}})]),
        b"\n".join([frame(bare), frame(bare)]),
        frame(event(3, metadata={"lsn": "0/1", "unchanged": ["note"]})),
    ]


def same_as_native(line: bytes, found: Event) -> None:
    text = line.strip()
    said = exactly(text)
    if "type" not in said:
        require(found.raw == text or found.raw.endswith(text[1:]), "an event is not sent byte for byte")


def rows() -> list[bytes]:
    return [b'{"id":1,"x":12.50,"y":"\\u00e9"}\n{"id":"2","x":null}', b'{"id":{"a":[1,2.0]},"z":1e2}\n\n{}']


def same_as_row(line: bytes, found: Event) -> None:
    require(found.raw.endswith(b',"after":%b}' % line.strip()), "a row is not sent byte for byte")


_LAYOUTS: dict[str, DeclaredLayout] = {
    "plain": layout_of(["k"], k="long", s="string", d="double", n="decimal(12,2)", b="boolean", t="timestamptz"),
    "nested": layout_of(["u"], u="uuid", l="list<string>", r="struct<a: long, b: list<decimal(4,1)>>", x="binary", e="date"),
    "wide": layout_of([], n="decimal(38,10)", f="float", i="int", m="time", j="json", z="timestamp"),
}


def arrow() -> list[bytes]:
    found = []
    for number, (_, layout) in enumerate(_LAYOUTS.items()):
        for turn in range(4):
            values = {}
            for column in layout.columns:
                sane = SANE.get(str(column.kind)) or ["null"]
                values[column.name] = sane[(turn + number) % len(sane)] if turn < 3 else WILD[turn * 7 % len(WILD)]
            before = values if turn % 2 else None
            found.append(
                row_event(values, before=before, operation="UPDATE" if turn % 2 else "INSERT", rowId='"r"', metadata='{"lsn":"0/1"}')
            )
    return [*found, b"\n".join(found[:3]), b"\n".join(found[4:8])]


def check_arrow(data: bytes) -> str:
    """The fast reading is the exact one, or none."""
    events = tuple(data.split(b"\n"))
    return "+".join(name for name, layout in _LAYOUTS.items() if agree(layout, *events)) or "left to the exact way"


TARGETS = (
    Target(
        "wal2json",
        "a line is events or InvalidInput; values are the line's",
        wal2json,
        plain(checked(Wal2json, same_as_wal2json_says)),
        400,
    ),
    Target("debezium", "a line is events or InvalidInput; numbers rise; a batch holds them", debezium, plain(checked(Debezium)), 300),
    Target("native", "a line is events or InvalidInput, byte for byte", native, plain(checked(Native, same_as_native)), 300),
    Target(
        "rows",
        "a line is an event or InvalidInput, byte for byte",
        rows,
        plain(checked(lambda: Rows("default.t", timestamp_ms=1, key=("id",)), same_as_row)),
        200,
    ),
    Target("arrow", "the fast decoder says what the exact one says, or nothing", arrow, plain(check_arrow), 150),
)

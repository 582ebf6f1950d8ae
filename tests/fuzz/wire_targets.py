"""What comes from the network: messages of the protocol, bodies of posts, answers, frames, names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import xxhash
from websockets.frames import Frame, Opcode

from dolake.buffer.record import decode_record, encode_record, parse_frame
from dolake.cdc import message as wire
from dolake.cdc import posted, validation
from dolake.cdc.admission import ConnectionLimits
from dolake.cdc.answer import decode_answer, encode_answer, invalid
from dolake.cdc.frames import FrameWalk
from dolake.cdc.server import ServerPolicy
from dolake.column_types import parse_type
from dolake.errors import InvalidMessage
from dolake.model import TableName, normal_pattern
from dolake.partitioning import parse_partition
from tests.cdc.samples import CONNECT, DISCONNECT, FLUSH_REQUEST, HEARTBEAT, SCHEMA, batch, event, frame
from tests.cdc.test_server import served
from tests.fuzz.exact_json import Members, exactly
from tests.fuzz.target import Check, Target, plain, require

NOW_MS = 1_767_225_600_000


def messages() -> list[bytes]:
    whole = {**batch(3, 7, 3, epoch="e-1", correlationId="c-9"), "transaction": {"id": "t", "last": True}}
    several = [event(0, metadata={"lsn": "0/16B3748", "transactionId": 7, "unchanged": ["note"]}), event(1, operation="DELETE", before={})]
    told = {**batch(4, 0, 2), "events": several}
    plain_ones = [CONNECT, HEARTBEAT, FLUSH_REQUEST, DISCONNECT, SCHEMA, batch(), batch(1, 0, 0, firstEventSequence=-1), whole, told]
    spaced = json.dumps(whole, indent=1).encode()
    reordered = json.dumps({"events": told["events"], **told}).encode()
    return [*map(frame, plain_ones), spaced, reordered]


def check_message(data: bytes) -> str:
    found = wire.try_decode(data)
    mistakes = validation.mistakes_of(data)
    if found is None:
        return refused(wire.explain(data))
    # Equal keys within an event are for whoever reads the rows.
    require(all(one.field.startswith("events.") and one.rule == "comes once" for one in mistakes), f"taken, though {mistakes[:3]}")
    said = exactly(data)
    require(isinstance(said, Members) and not said.repeated, "an object with a key that comes twice was taken")
    if isinstance(found, wire.CdcBatch):
        _require_same_batch(found, said, data)
    if isinstance(found, wire.CdcBatch | wire.SchemaMessage):
        _require_logged_as_it_is(found)
    return type(found).__name__


def refused(error: InvalidMessage) -> str:
    """It says why, in an answer that can be sent and is no larger than an answer should be."""
    require(bool(error.mistakes), "a refusal that says nothing")
    answer = encode_answer(invalid(error))
    require(len(answer) < 200_000, f"an answer of {len(answer)} bytes")
    require(decode_answer(answer) == invalid(error), "the answer reads otherwise")
    return "InvalidMessage"


def _require_same_batch(found: wire.CdcBatch, said: Members, data: bytes) -> None:
    events = said["events"]
    require(found.payload == data, "what is logged is not what came")
    require((found.source, found.sequence) == (said["sourceDoId"], int(said["sequenceNumber"])), "another source or number")
    require(found.epoch == said.get("epoch"), "another epoch")
    counts: dict[str, int] = {}
    for one in events:
        counts[one["table"]] = counts.get(one["table"], 0) + 1
    require((found.event_count, found.tables) == (len(events), counts), "other events")
    raws = wire.split_events(data)
    require([exactly(raw) for raw in raws] == events, "events were cut at the wrong places")
    require(wire.event_tables(data) == [one["table"] for one in events], "tables of events")
    require(wire.largest_event_size_bytes(data) == max(map(len, raws), default=0), "the size of the largest event")
    require(any(found.content == xxhash.xxh3_64_intdigest(raw) for raw in _arrays(data)), "content is not the hash of the events' bytes")


def _arrays(data: bytes) -> Iterator[bytes]:
    """Every piece that could be the `events` value."""
    holder = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    yield bytes(holder["events"])


def _require_logged_as_it_is(found: wire.CdcBatch | wire.SchemaMessage) -> None:
    entry = found.entry(found.epoch or "")
    crc, parts = encode_record(entry, offset=9, synced_upto=8, salt=5, previous=4)
    stored = b"".join(parts)
    record = decode_record(parse_frame(stored, 0), "log", "path")
    require(record.entry == entry, f"the log gives back {record.entry}, not {entry}")
    again, parts = encode_record(record.entry, offset=9, synced_upto=8, salt=5, previous=4)
    require((again, b"".join(parts)) == (crc, stored), "a record is encoded to other bytes the second time")


def posts() -> list[bytes]:
    short = {"sourceDoId": "s", "sequenceNumber": 4, "events": [event(4), event(5)]}
    return [frame(short), frame({**short, "events": []}), frame({**short, "epoch": "e", "isRetry": True}), frame(SCHEMA), frame(batch(2))]


def check_post(data: bytes) -> str:
    found = posted.try_decode_posted(data, NOW_MS)
    if found is None:
        return refused(posted.explain_posted(data))
    said = exactly(data)
    if isinstance(found, wire.CdcBatch):
        require(found.event_count == len(said["events"]), "other events")
        require([exactly(raw) for raw in wire.split_events(found.payload)] == said["events"], "events are not what was posted")
        require((found.source, found.sequence) == (said["sourceDoId"], int(said["sequenceNumber"])), "another source or number")
        require(found.content in [xxhash.xxh3_64_intdigest(raw) for raw in _arrays(data)], "a post's content is not that of its events")
    _require_logged_as_it_is(found)
    return type(found).__name__


def answers() -> list[bytes]:
    details = {"eventsProcessed": 2, "bufferUtilization": 0.5, "timeUntilFlush": 100}
    found: list[dict[str, Any]] = [
        {"type": "ack", "sequenceNumber": 4, "status": "ok", "details": details},
        {
            "type": "nack",
            "sequenceNumber": 4,
            "reason": "invalid_sequence",
            "errorMessage": "x",
            "shouldRetry": True,
            "expectedSequence": 3,
        },
        {"type": "pong", "timestamp": 1, "serverTime": 2},
        {"type": "flush_response", "result": {"success": True, "batchesFlushed": 1}},
    ]
    return [frame(one) for one in found]


def check_answer(data: bytes) -> str:
    try:
        return type(decode_answer(data)).__name__
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return type(error).__name__


def frames() -> list[bytes]:
    found = []
    for sizes in ((3, 0, 125), (126, 5), (65_535, 1), (65_536, 2, 3)):
        parts = [Frame(Opcode.TEXT, b"x" * size).serialize(mask=size % 2 == 0) for size in sizes]
        found.append(b"".join([Frame(Opcode.PING, b"p").serialize(mask=True), *parts]))
    return found


def check_frames(data: bytes) -> str:
    """Cut anyhow, the frames are found where RFC 6455 says that they begin."""
    begins, controls = _frames_of(data)
    walk, pending, seen, seen_controls, position = FrameWalk(), b"", 0, 0, 0
    steps = (1, 2, 5, 14, 1000, 70_000)
    turn = 0
    while position < len(data) or pending:
        step = steps[(len(data) + turn) % len(steps)]
        turn += 1
        pending += data[position : position + step]
        position += step
        piece = walk.piece(pending, 3, 3)
        require(0 <= piece.end <= len(pending) and piece.frame_count <= 3, "more than was asked for")
        require(piece.end > 0 or bool(piece.frame_count) or bool(pending), "nothing came on")
        seen, seen_controls, pending = seen + piece.frame_count, seen_controls + piece.control_count, pending[piece.end :]
    require((seen, seen_controls) == (begins, controls), f"{seen} frames and {seen_controls} control frames, not {begins} and {controls}")
    return "whole" if begins else "none"


def _frames_of(data: bytes) -> tuple[int, int]:
    """Complete headers, and those of control frames."""
    position = count = controls = 0
    while position + 2 <= len(data):
        short, masked = data[position + 1] & 127, data[position + 1] >> 7
        extra = {126: 2, 127: 8}.get(short, 0)
        head = 2 + extra + 4 * masked
        if position + head > len(data):
            break
        count, controls = count + 1, controls + (data[position] >> 3 & 1)
        position += head + (int.from_bytes(data[position + 2 : position + 2 + extra], "big") if extra else short)
    return count, controls


@contextlib.contextmanager
def open_socket() -> Iterator[Check]:
    """A real server: whatever one client sends after its handshake, another is still answered."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        context = served(ServerPolicy(frame_bytes_max=100_000, connections=ConnectionLimits(per_address=10_000, new_per_s=1_000_000)))
        found = runner.run(context.__aenter__())
        stack.callback(lambda: runner.run(context.__aexit__(None, None, None)))
        good = runner.run(_dialled(found))
        stack.callback(lambda: runner.run(good.close()))
        handshake = (
            f"GET /cdc HTTP/1.1\r\nHost: 127.0.0.1:{found.address[1]}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()

        async def one(data: bytes) -> str:
            reader, writer = await asyncio.open_connection(*found.address)
            try:
                writer.write(handshake)
                require((await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101"), "the handshake was refused")
                writer.write(data)
                writer.write_eof()
                said = await asyncio.wait_for(reader.read(), 30)
            except ConnectionError:
                said = b""
            finally:
                writer.close()
            await good.send("still here?")
            require(await asyncio.wait_for(good.recv(), 30) == "still here?", "the good client got another answer")
            while found.connections and found.connections[-1].gone.is_set():
                found.connections.pop()
            codes = re.findall(rb"\x88.(..)", said, re.DOTALL)
            return f"closed {int.from_bytes(codes[-1], 'big')}" if codes else "ended"

        yield lambda data: runner.run(one(data))


async def _dialled(found: Any) -> Any:
    return await found.dial(ping_interval=None)


def streams() -> list[bytes]:
    def sent(*parts: Frame) -> bytes:
        return b"".join(part.serialize(mask=True) for part in parts)

    text = Frame(Opcode.TEXT, frame(HEARTBEAT))
    return [
        sent(text, Frame(Opcode.PING, b"p"), text, Frame(Opcode.CLOSE, b"\x03\xe8")),
        sent(Frame(Opcode.TEXT, b"a", fin=False), Frame(Opcode.PONG, b""), Frame(Opcode.CONT, b"b"), Frame(Opcode.CLOSE, b"\x03\xe9")),
        sent(Frame(Opcode.BINARY, b"x" * 70_000), Frame(Opcode.CLOSE, b"")),
        sent(Frame(Opcode.TEXT, b"x" * 130), Frame(Opcode.TEXT, b"")) + b"\xc1\x80\0\0\0\0",
    ]


NAMES = (
    "orders",
    "public.orders",
    "a" * 128 + "." + "b" * 128,
    "*",
    "public.*",
    "orders__changes",
    "dolake.x",
    "decimal(12,2)",
    "list<map<string, struct<a: long, b: fixed(3)>>>",
    "bucket(16, id)",
    "day(ts)",
    "truncate(4, `a b`)",
    "identity(x)",
    "ts",
    "struct<`a b`: list<int>>",
    "fixed[16]",
)
_TABLE = re.compile(r"(?:[A-Za-z0-9_]{1,128}\.)?[A-Za-z0-9_]{1,128}", re.ASCII)


def check_name(data: bytes) -> str:
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    outcomes = []
    for read in (TableName.parse, TableName.in_lake, normal_pattern, parse_type, parse_partition):
        try:
            found = read(text)
        except ValueError as error:
            require(bool(str(error)), "a refusal that says nothing")
            continue
        outcomes.append(read.__qualname__)
        require(read(str(found)) == found, f"{text!r} is read as {found}, and that as {read(str(found))}")
        if isinstance(found, TableName):
            require(_TABLE.fullmatch(text) is not None, f"{text!r} passes for a table's name")
            require(str(found).removeprefix("default.") == text.removeprefix("default."), f"{text!r} became {found}")
    return "+".join(outcomes) or "ValueError"


TARGETS = (
    Target(
        "message",
        "a frame is a message or InvalidMessage; it says what JSON says; the log gives it back",
        messages,
        plain(check_message),
        600,
    ),
    Target("post", "a body is a message or InvalidMessage; its events are what was posted", posts, plain(check_post), 400),
    Target("answer", "an answer decodes or is refused by the decoder's own errors", answers, plain(check_answer), 200),
    Target("frames", "frames are found where they begin, however the stream is cut", frames, plain(check_frames), 200),
    Target("socket", "whatever a client sends, another is still answered", streams, open_socket, 60),
    Target(
        "name",
        "a name, type or partition is right, or ValueError; it reads back as itself",
        lambda: [name.encode() for name in NAMES],
        plain(check_name),
        500,
    ),
)

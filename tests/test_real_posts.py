"""`POST /cdc` against a real `dolake serve`: the websocket's semantics over HTTP, and every mistake named."""

from __future__ import annotations

import asyncio
import copy
import gzip
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import zstandard

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.posting import JSON, Posted, post, post_batch
from tests.harness.source import batch_message, connect_message, conversation, schema_message
from tests.harness.traffic import drain
from tests.harness.waiting import wait_until

PAYLOAD_BYTES, EVENT_BYTES = 65_536, 16_384
LIMITS = {
    "DOLAKE_LIMITS_PAYLOAD_BYTES": str(PAYLOAD_BYTES),
    "DOLAKE_LIMITS_EVENT_BYTES": str(EVENT_BYTES),
    "DOLAKE_LIMITS_BATCH_EVENTS": "50",
}
BATCH = post_batch("wrong", 1, [ledger_event(1), ledger_event(2)])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One daemon with small limits, to which nothing right is ever sent under the name `wrong`."""
    with Daemon(tmp_path_factory.mktemp("posts") / "data", LIMITS) as daemon:
        yield daemon.start().wait_ready().http


def changed(path: str, value: Any, **more: Any) -> dict[str, Any]:
    """BATCH with one thing in it wrong."""
    message = {**copy.deepcopy(BATCH), **more}
    target: Any = message
    *parents, name = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    if value is None:
        del target[name]
    else:
        target[name] = value
    return message


def raw(old: str, new: str) -> bytes:
    body = json.dumps(BATCH)
    assert old in body
    return body.replace(old, new, 1).encode()


SCHEMA = schema_message("wrong", 1, "ledger")
INT = "is an integer 0..2^63-1"
TYPES = "is one of cdc_batch, schema"
# what is sent, field, rule, value
WRONG: dict[str, tuple[Any, str, str, str]] = {
    "nothing": (b"", "frame", "is one JSON object", '""'),
    "not JSON": (b"{oops", "frame", "is one JSON object", '"{oops"'),
    "an array": (b"[1]", "frame", "is one JSON object", "[1]"),
    "not UTF-8": (b'{"sourceDoId":"\xff"}', "frame", "is UTF-8", r"""b'\xff"}'"""),
    "two objects": (json.dumps(BATCH).encode() + b"{}", "frame", "is one JSON object", '"{\\"sourceDoId\\"'),
    "no source": (changed("sourceDoId", None), "sourceDoId", "is required", "nothing"),
    "empty source": (changed("sourceDoId", ""), "sourceDoId", "is a string of 1..256 characters without control characters", '""'),
    "a source with a newline": (changed("sourceDoId", "a\nb"), "sourceDoId", "is a string of 1..256", r'"a\nb"'),
    "a number for a source": (changed("sourceDoId", 7), "sourceDoId", "is a string of 1..256", "7"),
    "no number": (changed("sequenceNumber", None), "sequenceNumber", "is required", "nothing"),
    "a number below 0": (changed("sequenceNumber", -1), "sequenceNumber", INT, "-1"),
    "a number too large": (changed("sequenceNumber", 2**63), "sequenceNumber", INT, str(2**63)),
    "a number as text": (changed("sequenceNumber", "1"), "sequenceNumber", INT, '"1"'),
    "a broken number": (changed("sequenceNumber", 1.5), "sequenceNumber", INT, "1.5"),
    "no events": (changed("events", None), "events", "is required", "nothing"),
    "events that are none": (changed("events", {}), "events", "is an array", "{}"),
    "an event that is none": (changed("events", [7]), "events.0", "is an object", "7"),
    "another type": ({**BATCH, "type": "connect"}, "type", TYPES, '"connect"'),
    "a type of ours": ({**BATCH, "type": "ack"}, "type", TYPES, '"ack"'),
    "a type that is none": (raw('"sourceDoId"', '"type": null, "sourceDoId"'), "type", TYPES, "null"),
    "an event without a number": (changed("events.1.sequence", None), "events.1.sequence", "is required", "nothing"),
    "events out of order": (changed("events.1.sequence", 1), "events.1.sequence", "is above the event's before it (1)", "1"),
    "no such operation": (changed("events.0.operation", "UPSERT"), "events.0.operation", "is one of INSERT, UPDATE", '"UPSERT"'),
    "no operation": (changed("events.0.operation", None), "events.0.operation", "is required", "nothing"),
    "a way out": (changed("events.0.table", "../../evil"), "events.0.table", "a table is `name` or", '"../../evil"'),
    "dolake's namespace": (changed("events.0.table", "dolake.x"), "events.0.table", "the namespace `dolake` and", '"dolake.x"'),
    "no table": (changed("events.0.table", None), "events.0.table", "is required", "nothing"),
    "a time as text": (changed("events.0.timestamp", "now"), "events.0.timestamp", "is an integer 0..253402300799999", '"now"'),
    "a row that is none": (changed("events.0.after", [1]), "events.0.after", "is an object or null", "[1]"),
    "a key that is no text": (changed("events.0.rowId", 7), "events.0.rowId", "is a string", "7"),
    "a wrong first event": ({**BATCH, "firstEventSequence": 7}, "firstEventSequence", "is the sequence of the first event (1)", "7"),
    "a wrong last event": ({**BATCH, "lastEventSequence": 1}, "lastEventSequence", "is the sequence of the last event (2)", "1"),
    "a time before all": ({**BATCH, "timestamp": -1}, "timestamp", "is an integer 0..253402300799999", "-1"),
    "a retry that is no yes": ({**BATCH, "isRetry": "yes"}, "isRetry", "is true or false", '"yes"'),
    "an epoch that is none": ({**BATCH, "epoch": 5}, "epoch", "is a string of 0..256 characters", "5"),
    "a transaction without an end": ({**BATCH, "transaction": {"id": "x"}}, "transaction.last", "is required", "nothing"),
    "a transaction without a name": ({**BATCH, "transaction": {"id": "", "last": True}}, "transaction.id", "is a string of 1..256", '""'),
    "a key twice": (raw('"sequenceNumber": 1', '"sequenceNumber": 1, "sequenceNumber": 2'), "sequenceNumber", "comes once", "2"),
    "events twice": (raw('"events":', '"events": [], "events":'), "events", "comes once", '[{"sequence"'),
    "no JSON number": (raw('"id": ', '"nan": NaN, "id": '), "events.0.after.nan", "is a JSON value", "NaN"),
    "too many events": (post_batch("wrong", 1, [ledger_event(n) for n in range(51)]), "events", "holds at most 50 events", "51 events"),
    "a schema without columns": ({**SCHEMA, "columns": []}, "columns", "holds 1..", "0 columns"),
    "a schema of no type": (
        {**SCHEMA, "columns": [{"name": "id", "type": "number", "nullable": False}]}, "columns.0.type", "", '"number"'
    ),
    "a key that is no column": ({**SCHEMA, "primaryKey": ["nope"]}, "primaryKey.0", "is one of the columns", '"nope"'),
}  # fmt: skip


@pytest.mark.acceptance("AT-106")
@pytest.mark.parametrize("case", WRONG)
def test_each_mistake_is_answered_with_its_field_rule_and_value(url: str, case: str) -> None:
    sent, field, rule, value = WRONG[case]
    posted = post(url, sent)
    assert (posted.status, posted.answer["type"], posted.answer["reason"]) == (400, "nack", "invalid_format")
    assert posted.answer["shouldRetry"] is False
    assert "Retry-After" not in posted.headers
    shown = next(part for part in posted.answer["errorMessage"].split("; ") if part.startswith(f"{field}: "))
    assert shown.startswith(f"{field}: {rule}"), shown
    assert f"(got {value}" in shown, shown


HEADERS: dict[str, tuple[dict[str, str], int, str, str, str]] = {
    "text": ({"Content-Type": "text/plain"}, 400, "invalid_format", "Content-Type", "'text/plain'"),
    "a form": ({"Content-Type": "application/x-www-form-urlencoded"}, 400, "invalid_format", "Content-Type", "'application/x-www"),
    "an empty type": ({"Content-Type": ""}, 400, "invalid_format", "Content-Type", "''"),
    "an encoding": ({**JSON, "Content-Encoding": "br"}, 400, "invalid_format", "Content-Encoding", "'br'"),
    "no gzip": ({**JSON, "Content-Encoding": "gzip"}, 400, "invalid_format", "Content-Encoding", "'gzip'"),
    "no zstd": ({**JSON, "Content-Encoding": "zstd"}, 400, "invalid_format", "Content-Encoding", "'zstd'"),
}


@pytest.mark.acceptance("AT-106")
@pytest.mark.parametrize("case", HEADERS)
def test_a_body_that_claims_to_be_something_else_is_refused(url: str, case: str) -> None:
    headers, status, reason, field, value = HEADERS[case]
    posted = post(url, BATCH, headers)
    assert (posted.status, posted.answer["reason"], posted.answer["shouldRetry"]) == (status, reason, False)
    assert posted.answer["errorMessage"].startswith(f"{field}: is ")
    assert f"(got {value}" in posted.answer["errorMessage"]


def test_a_page_in_a_browser_may_not_write(url: str) -> None:
    posted = post(url, BATCH, {"Origin": "http://evil.example"})
    assert posted.summary == (403, 0, "forbidden")


@pytest.mark.acceptance("AT-105")
def test_sizes_at_their_limit_are_taken_and_one_byte_more_is_not(url: str) -> None:
    body = json.dumps({**BATCH, "sourceDoId": "sizes"}).encode()
    assert post(url, body + b" " * (PAYLOAD_BYTES - len(body))).summary == (200, 1, "ok")
    refused = post(url, body + b" " * (PAYLOAD_BYTES - len(body) + 1))
    assert refused.summary == (413, 1, "payload_too_large")
    assert (refused.answer["maxSize"], refused.answer["actualSize"]) == (PAYLOAD_BYTES, PAYLOAD_BYTES + 1)
    event = ledger_event(3).to_wire()
    event["rowId"] = "x" * (EVENT_BYTES - len(json.dumps(event, ensure_ascii=False).encode()) + len(event["rowId"]))
    assert post(url, {"sourceDoId": "sizes", "sequenceNumber": 2, "events": [event]}).summary == (200, 2, "ok")
    event["rowId"] += "x"
    refused = post(url, {"sourceDoId": "sizes", "sequenceNumber": 3, "events": [event]})
    assert refused.summary == (413, 3, "event_too_large")
    assert (refused.answer["maxSize"], refused.answer["actualSize"]) == (EVENT_BYTES, EVENT_BYTES + 1)


def answer_on(link: socket.socket) -> tuple[Posted, bytes]:
    """The answer that comes on a raw connection, and what is left on it when the server has closed it."""
    response = http.client.HTTPResponse(link)
    response.begin()
    posted = Posted(response.status, dict(response.headers), json.loads(response.read()))
    return posted, link.recv(1)


@pytest.mark.parametrize("how", ["declared", "chunked"])
def test_a_body_far_above_the_limit_is_not_read_to_its_end(url: str, how: str) -> None:
    with socket.create_connection(urlsplit(url).netloc.split(":"), timeout=30) as link:
        length = "Content-Length: 99999999999" if how == "declared" else "Transfer-Encoding: chunked"
        link.sendall(f"POST /cdc HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        if how == "chunked":  # It ends nowhere: an answer shows that nobody waited for that.
            link.sendall(b"".join(b"10000\r\n%b\r\n" % (b"x" * 0x10000) for _ in range(4 * PAYLOAD_BYTES // 0x10000 + 1)))
        posted, rest = answer_on(link)
    assert posted.summary == (413, 0, "payload_too_large")
    assert (posted.answer["maxSize"], posted.headers["connection"], rest) == (PAYLOAD_BYTES, "close", b"")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_packed_body_is_the_batch_it_was(url: str, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zstandard.compress
    batch = post_batch(f"packed {encoding}", 1, [ledger_event(n) for n in range(20)])
    headers = {**JSON, "Content-Encoding": encoding}
    assert post(url, pack(json.dumps(batch).encode()), headers).summary == (200, 1, "ok")
    assert post(url, json.dumps(batch).encode()).summary == (200, 1, "duplicate")
    body = pack(json.dumps({**batch, "sequenceNumber": 2}).encode())
    assert post(url, body[: len(body) // 2], headers).summary == (400, 0, "invalid_format")
    halves = [pack(half.encode()) for half in re.findall(r"(?s).{1,500}", json.dumps({**batch, "sequenceNumber": 2}))]
    assert post(url, b"".join(halves), headers).summary == (200, 2, "ok")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_refused_and_never_unfolds(tmp_path: Path, encoding: str) -> None:
    pack = zstandard.ZstdCompressor().compressobj() if encoding == "zstd" else None
    if pack is None:
        bomb = gzip.compress(b" " * (200 << 20))
    else:
        bomb = b"".join(pack.compress(b" " * (1 << 20)) for _ in range(2000)) + pack.flush()
    assert len(bomb) < 4 * PAYLOAD_BYTES
    with Daemon(tmp_path / "data", LIMITS) as daemon:
        ready = daemon.start().wait_ready()
        before_kib = peak_kib(ready.pids["http"])
        refused = post(ready.http, bomb, {**JSON, "Content-Encoding": encoding})
        assert refused.summary == (413, 0, "payload_too_large")
        assert refused.answer["maxSize"] == PAYLOAD_BYTES
        assert peak_kib(ready.pids["http"]) - before_kib < 32 * 1024


def peak_kib(pid: int) -> int:
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


def test_a_client_that_goes_away_in_mid_body_has_sent_nothing(url: str) -> None:
    body = json.dumps({**BATCH, "sourceDoId": "broken off"}).encode()
    address = urlsplit(url).netloc.split(":")
    for cut in (0, 1, len(body) // 2, len(body) - 1):
        with socket.create_connection(address, timeout=30) as link:
            link.sendall(b"POST /cdc HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:cut])
    # Had one of them been taken, this would be a gap or a duplicate.
    other = {**BATCH, "sourceDoId": "broken off", "sequenceNumber": 77}
    assert post(url, other).summary == (200, 77, "ok")


@pytest.mark.acceptance("AT-01", "AT-05")
def test_posts_and_frames_of_one_source_make_one_exact_table(tmp_path: Path) -> None:
    """Batches by turns over the websocket and by POST, each sent again the other way: in the lake once, as sent."""
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.3"}) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()

        async def scenario() -> None:
            async with conversation(ready.cdc) as talk:
                await talk.ask(connect_message("s"))
                assert post(ready.http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")
                assert post(ready.http, schema_message("s", 2, "other")).summary == (200, 2, "ok")
                for number in range(3, 63):
                    tables = ("ledger",) if number % 3 else ("ledger", "other")
                    events = [ledger_event(number * 20 + place, tables[place % len(tables)]) for place in range(20)]
                    frame, body = batch_message("s", number, events), post_batch("s", number, events)
                    oracle.sent("s", "", number, events)
                    if number % 2:
                        assert (await talk.ask(frame))["status"] == "ok"
                        assert (await asyncio.to_thread(post, ready.http, compact(body))).summary == (200, number, "duplicate")
                    else:
                        assert (await asyncio.to_thread(post, ready.http, compact(body))).summary == (200, number, "ok")
                        assert (await talk.ask(frame))["status"] == "duplicate"
                    oracle.acked("s", "", number, "ok")

        asyncio.run(scenario())
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)
        assert (lake.row_count("ledger"), lake.row_count("other")) == (1000, 200)
        assert daemon.stop() == 0


def compact(message: dict[str, Any]) -> bytes:
    """As the harness's websocket frames are written: the same rows must be the same bytes to be a repeat."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


class Asking(threading.Thread):
    """One POST beside the test. `outcome` is the answer, or the error that broke it off."""

    def __init__(self, url: str, message: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._url, self._message = url, message
        self.outcome: Posted | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = post(self._url, self._message)
        except (OSError, http.client.HTTPException) as error:
            self.outcome = error


@pytest.mark.acceptance("AT-01")
@pytest.mark.parametrize(("moment", "status"), [("ingest.before_append", "ok"), ("ingest.before_ack", "duplicate")])
def test_a_killed_ingest_half_costs_a_post_nothing(tmp_path: Path, moment: str, status: str) -> None:
    """Killed before the batch is in the log, and after: the request goes on to the next process and is answered."""
    trigger = tmp_path / "trigger"
    with Daemon(tmp_path / "data", {"DOLAKE_FAILPOINTS": f"{moment}=kill({trigger})"}) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()
        oracle = Oracle(tmp_path / "journal")
        assert post(ready.http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")
        trigger.touch()
        events = [ledger_event(n) for n in range(10)]
        oracle.sent("s", "", 2, events)
        assert post(ready.http, post_batch("s", 2, events)).summary == (200, 2, status)
        oracle.acked("s", "", 2, status)
        assert not trigger.exists()
        daemon.wait_replaced(ready, "ingest")
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)


@pytest.mark.acceptance("AT-01")
def test_a_killed_http_process_breaks_the_connection_and_the_batch_may_be_sent_again(tmp_path: Path) -> None:
    held, hits = tmp_path / "held", tmp_path / "hits"
    settings = {"DOLAKE_FAILPOINTS": f"ingest.before_append=pause({held})", "DOLAKE_FAILPOINT_HITS": str(hits)}
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()
        oracle = Oracle(tmp_path / "journal")
        assert post(ready.http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")
        events = [ledger_event(n) for n in range(10)]
        oracle.sent("s", "", 2, events)
        held.touch()
        before = hits.read_text().count("ingest.before_append")
        asking = Asking(ready.http, post_batch("s", 2, events))
        wait_until(lambda: hits.read_text().count("ingest.before_append") > before, "the batch to be on its way into the log")
        daemon.kill("http")
        asking.join(30)
        assert isinstance(asking.outcome, Exception)
        again = Asking(ready.http, post_batch("s", 2, events))
        held.unlink()
        again.join(60)
        assert isinstance(again.outcome, Posted)
        assert again.outcome.summary in [(200, 2, "ok"), (200, 2, "duplicate")]
        oracle.acked("s", "", 2, "ok")
        daemon.wait_replaced(ready, "http")
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)

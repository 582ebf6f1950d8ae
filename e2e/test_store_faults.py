"""AT-52: an object store that misbehaves in every way, through a proxy in front of a real one; its keys expire; its bytes rot.

After each: what was acked is in the table once (DuckDB and PyIceberg), and the log was not trimmed before it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.services.s3 import S3Server
from tests.harness.daemon import Daemon, status
from tests.harness.faults import Fault, Installed
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.http_faults import HttpProxy, requests
from tests.harness.lake import Lake
from tests.harness.links import Chunk
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.posting import post, post_batch
from tests.harness.source import DURABLE, schema_message
from tests.harness.traffic import drain
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.acceptance("AT-52")
NOTE_BYTES = 3000
DATA = r"/data/"


@dataclass
class Scene:
    daemon: Daemon
    lake: Lake
    proxy: HttpProxy
    oracle: Oracle
    sequence: int = 0

    @property
    def http(self) -> str:
        ready = self.daemon.ready()
        assert ready is not None
        return ready.http

    def declare(self, *tables: str) -> None:
        for table in tables:
            self.sequence += 1
            assert post(self.http, schema_message("s", self.sequence, table)).status == 200

    def send(self, *tables: str, count: int = 40, note_size: int = NOTE_BYTES) -> str:
        """One batch with rows of each table; the ack's status."""
        self.sequence += 1
        first = self.sequence * 10_000
        places = ((place, table) for place in range(count) for table in tables)
        events = [ledger_event(first + number, table, note_size=note_size) for number, (_, table) in enumerate(places)]
        self.oracle.sent("s", "", self.sequence, events)
        answer = post(self.http, post_batch("s", self.sequence, events)).answer
        said: str = answer.get("status", "")
        assert said in DURABLE, answer
        self.oracle.acked("s", "", self.sequence, said)
        return said

    def committed(self) -> None:
        """Everything, or the test fails."""
        asyncio.run(drain(self.daemon, 120))
        assert_lake_equals_oracle(self.lake, self.oracle)

    def writer(self) -> dict[str, Any]:
        """What /ready/writer says, and its code."""
        try:
            with urllib.request.urlopen(self.http + "/ready/writer", timeout=10) as answer:
                return {"code": answer.status, **json.loads(answer.read())}
        except urllib.error.HTTPError as error:
            with error:
                return {"code": error.code, **json.loads(error.read())}

    def store(self) -> dict[str, Any]:
        circuit: dict[str, Any] = self.writer()["circuits"].get("store", {})
        return circuit

    def failures(self) -> float:
        return self.daemon.metrics().get('dolake_circuit_failures_total{part="store"}', 0)

    def logs(self) -> list[dict[str, Any]]:
        done = self.daemon.run("status", "--json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["logs"]
        return found

    def wait(self, condition: Callable[[], object], what: str, deadline_s: float = 60) -> None:
        wait_until(condition, lambda: f"{what}\n{self.writer()}\n{self.daemon.tail()}", deadline_s)

    def counted(self, failures: float) -> None:
        """Each request that failed is one try that failed: nothing is repeated out of sight. The writer tells every second."""
        wait_until(lambda: self.failures() == failures, lambda: f"{failures} failures to be counted, not {self.failures()}", 10)

    def verified(self) -> None:
        done = self.daemon.run("verify")
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def scene(tmp_path: Path, server: S3Server, prefix: str, *, mode: str = "changelog", **more: str) -> Iterator[Scene]:
    """A daemon whose store is behind a proxy; readers go past it."""
    direct = server.settings(prefix=prefix)
    with HttpProxy(server.port) as proxy:
        settings = {**direct, "DOLAKE_S3_ENDPOINT": f"http://127.0.0.1:{proxy.port}", "DOLAKE_FLUSH_AGE_S": "0.2", **more}
        settings = {name: value for name, value in settings.items() if value}
        with Daemon(tmp_path / "data", settings, mode=mode) as daemon, Lake(daemon.data, direct) as lake:
            daemon.start().wait_ready()
            yield Scene(daemon, lake, proxy, Oracle(tmp_path / "journal"))


# What passes by itself, or must be overcome while it lasts. None of it may come twice into the table, nor be missing.
PASSING: dict[str, list[Fault]] = {
    "500": [Fault("status", requests("PUT"), times=6, status=500, code="InternalError")],
    "slow down": [Fault("status", requests("PUT"), times=6, status=503, code="SlowDown")],
    "permission taken away": [Fault("status", requests(), times=12, status=403, code="AccessDenied")],
    "reset before": [Fault("reset_before", requests("PUT"), times=6)],
    "reset amid a PUT": [Fault("reset", lambda moment: isinstance(moment, Chunk) and moment.position > 50_000, times=3)],
    "checksum mismatch": [Fault("flip_request", requests("PUT"), times=4)],
    "black hole": [Fault("hold_request", requests("PUT", DATA), times=1)],
    "answer never comes": [Fault("hold_answer", requests("PUT"), times=1)],
    "answer lost": [Fault("lose_answer", requests("PUT"), times=6)],
    "answer to a look lost": [Fault("lose_answer", requests("HEAD", DATA), times=3)],
    "asked twice": [Fault("twice", requests("PUT"), times=6)],
    "lands late": [Fault("late", requests("PUT"), times=4, seconds=2.0)],
    "10 KB/s": [Fault("bandwidth", size_bytes=10_000)],
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_overcome_and_committed_once(tmp_path: Path, s3_server: S3Server, kind: str, report: Callable[..., None]) -> None:
    with scene(tmp_path, s3_server, f"passing-{kind.replace(' ', '-').replace('/', '-')}") as play:
        play.declare("ledger")
        play.send("ledger")
        play.committed()
        installed = [play.proxy.install(fault) for fault in PASSING[kind]]
        before, failures_before = play.proxy.request_count, play.failures()
        for _ in range(3):
            play.send("ledger")
        asyncio.run(drain(play.daemon, 180))
        play.proxy.heal()
        play.send("ledger")
        play.committed()
        play.verified()
        assert status(play.http + "/ready/writer") == 200
        bitten = sum(fault.hit_count for fault in installed)
        expected = 0 if kind in ("10 KB/s", "asked twice") else bitten
        play.counted(failures_before + expected)
        report(kind=kind, hits=bitten, failures=expected, requests=play.proxy.request_count - before)


OUTAGES = {
    "slow down": ("status", {"status": 503, "code": "SlowDown"}, "SlowDown"),
    "reset": ("reset_before", {}, "no_answer"),
}


@pytest.mark.parametrize("kind", OUTAGES)
def test_a_dead_store_is_asked_once_a_step_for_twenty_tables_and_ingest_goes_on(
    tmp_path: Path, s3_server: S3Server, kind: str, report: Callable[..., None]
) -> None:
    tables = [f"ledger{number}" for number in range(20)]
    fault_kind, more, code = OUTAGES[kind]
    with scene(tmp_path, s3_server, f"dead-{kind.replace(' ', '-')}", DOLAKE_LOG_SEGMENT_BYTES="1 MiB") as play:
        play.declare(*tables)
        play.send(*tables, count=2)
        play.committed()
        low = [log["low"] for log in play.logs()]
        before = play.failures()
        # Only what asks with rows: a HEAD has no body to say a code in.
        dead = play.proxy.install(Fault(fault_kind, requests(), **more))  # type: ignore[arg-type]
        play.send(*tables)
        play.wait(lambda: play.store().get("failures", 0) >= 8 and play.writer()["code"] == 503, "eight steps of the backoff")
        said = play.store()
        # At each step one; beside those, what was under way in the moment in which it opened: two flushes and a look.
        assert dead.hit_count <= said["failures"] + 6
        assert said["state"] in ("open", "half-open")
        assert said["code"] in (code, str(more.get("status")))
        assert said["failingSeconds"] > 0
        assert status(play.http + "/ready") == status(play.http + "/health") == 200
        assert play.send(*tables) == "fallback"
        shown = play.daemon.run("status")
        assert "circuit" in shown.stdout, shown.stdout
        assert play.daemon.metrics()['dolake_circuit_open_count{part="store"}'] == 1
        assert [log["low"] for log in play.logs()] == low, "the log was trimmed of what is not committed"
        hits = dead.hit_count
        play.proxy.heal()
        play.committed()
        play.counted(before + dead.hit_count)
        assert play.store()["state"] == "closed"
        assert play.daemon.metrics()['dolake_circuit_open_count{part="store"}'] == 0
        play.verified()
        report(kind=kind, hits=hits, steps=said["failures"])


def test_a_bucket_that_is_gone_is_named_and_its_return_is_enough(tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.directory / "buckets" / "fleeting"
    bucket.mkdir()
    direct = s3_server.settings(bucket="fleeting", prefix="w")
    with scene(tmp_path, s3_server, "unused", DOLAKE_WAREHOUSE_URI=direct["DOLAKE_WAREHOUSE_URI"]) as play:
        play.declare("ledger")
        play.send("ledger")
        play.committed()
        writer = play.daemon.wait_ready().pids["writer"]
        shutil.move(bucket, bucket.with_name("hidden"))
        play.send("ledger")
        play.wait(lambda: play.writer()["code"] == 503 and play.store()["code"] == "NoSuchBucket", "the bucket to be missed")
        assert any("the bucket fleeting does not exist" in reason for reason in play.writer()["reasons"])
        assert status(play.http + "/ready") == 200
        assert play.send("ledger") == "fallback"
        shutil.move(bucket.with_name("hidden"), bucket)
        play.wait(lambda: play.writer()["code"] == 200, "the bucket to be found again")
        play.committed()
        assert play.daemon.wait_ready().pids["writer"] == writer, "a restart was needed"
        play.verified()
    shutil.rmtree(bucket)


def put_keys(path: Path, access_key: str, secret_key: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"AccessKeyId": access_key, "SecretAccessKey": secret_key}))
    os.replace(fresh, path)


def test_keys_that_expire_are_renewed_by_their_file(tmp_path: Path, s3_server: S3Server) -> None:
    """An account goes and another comes, as temporary keys do; then wrong keys. No restart, no signal."""
    path = tmp_path / "keys.json"
    accounts = [("AKfirst", "the first secret"), ("AKsecond", "the second secret"), ("AKthird", "the third secret")]
    for account in accounts[:2]:
        s3_server.add_account(*account)
    put_keys(path, *accounts[0])
    from_file = {"DOLAKE_S3_CREDENTIALS_FILE": str(path), "DOLAKE_S3_ACCESS_KEY": "", "DOLAKE_S3_SECRET_KEY": ""}
    with scene(tmp_path, s3_server, "renewed", **from_file) as play:
        writer = play.daemon.wait_ready().pids["writer"]
        play.declare("ledger")
        play.send("ledger")
        play.committed()

        put_keys(path, *accounts[1])  # Renewed in time: nobody notices when the old ones end.
        failures = play.failures()
        s3_server.remove_account(accounts[0][0])
        play.send("ledger")
        play.committed()
        assert play.failures() == failures

        s3_server.remove_account(accounts[1][0])  # These end first, and are renewed after.
        assert play.send("ledger") in DURABLE
        play.wait(lambda: play.writer()["code"] == 503 and play.store()["code"] == "InvalidAccessKeyId", "the keys to be refused")
        assert any(f"correct the keys in {path}" in reason for reason in play.writer()["reasons"])
        assert play.send("ledger") == "fallback"
        s3_server.add_account(*accounts[2])
        put_keys(path, accounts[2][0], "a wrong secret")
        play.wait(lambda: play.store().get("code") == "SignatureDoesNotMatch", "the wrong secret to be refused")
        put_keys(path, *accounts[2])
        play.wait(lambda: play.writer()["code"] == 200, "the new keys to be taken")
        play.committed()
        assert play.daemon.wait_ready().pids["writer"] == writer
        play.verified()  # Commands read the file too.
        assert not re.search("(first|second|third|wrong) secret", play.daemon.tail(1 << 20)), "a secret was logged"
    s3_server.remove_account(accounts[2][0])


def mirror_events(first: int, count: int, value: str) -> list[dict[str, Any]]:
    """Upserts of keys by number; the second half leaves `note` as the table has it."""
    return [
        {
            "sequence": number,
            "timestamp": 1_767_225_600_000,
            "operation": "UPDATE",
            "table": "people",
            "rowId": str(number),
            "after": {"id": number, "value": value} | ({"note": f"note {number}"} if value == "first" else {}),
            **({} if value == "first" else {"metadata": {"unchanged": ["note"]}}),
        }
        for number in range(first, first + count)
    ]


def send_mirror(play: Scene, first: int, count: int, value: str) -> None:
    play.sequence += 1
    columns = {"id": "long", "value": "string", "note": "string"}
    if play.sequence == 1:
        assert post(play.http, schema_message("s", 1, "people", columns)).status == 200
        play.sequence = 2
    answer = post(play.http, post_batch("s", play.sequence, [Raw(event) for event in mirror_events(first, count, value)]))
    assert answer.answer.get("status") in DURABLE, answer


@dataclass(frozen=True)
class Raw:
    event: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        return self.event


def people(play: Scene) -> list[list[tuple[Any, ...]]]:
    return [
        sorted((row["id"], row["value"], row["note"]) for row in rows.to_pylist())
        for rows in (play.lake.read_duckdb("people"), play.lake.read_pyiceberg("people"))
    ]


@pytest.mark.parametrize("kind", ["truncate", "truncate_clean", "flip_answer"])
def test_what_is_spoilt_on_its_way_back_is_read_again_and_makes_no_row(tmp_path: Path, s3_server: S3Server, kind: str) -> None:
    """Data files, manifests and metadata, read for a key index that is lost and for values that an update leaves as they are."""
    with scene(tmp_path, s3_server, f"spoilt-{kind}", mode="mirror") as play:
        for first in range(0, 300, 100):
            send_mirror(play, first, 100, "first")
            asyncio.run(drain(play.daemon))
        assert play.daemon.stop() == 0
        shutil.rmtree(play.daemon.data / "index")
        spoilt: list[Installed] = [
            play.proxy.install(Fault(kind, requests("GET", pattern), times=3))
            for pattern in (r"metadata\.json", r"-list\.avro", r"-m\d+\.avro", r"\.parquet")
        ]
        play.daemon.start().wait_ready()
        send_mirror(play, 50, 200, "second")
        asyncio.run(drain(play.daemon, 120))
        assert all(fault.hit_count == 3 for fault in spoilt), [fault.hit_count for fault in spoilt]
        expected = [(number, "second" if 50 <= number < 250 else "first", f"note {number}") for number in range(300)]
        assert people(play) == [expected, expected]
        play.verified()


def test_a_byte_that_rots_in_the_store_stops_its_table_by_name_and_no_other(tmp_path: Path, s3_server: S3Server) -> None:
    with scene(tmp_path, s3_server, "rotten", mode="mirror") as play:
        send_mirror(play, 0, 100, "first")
        asyncio.run(drain(play.daemon))
        assert play.daemon.stop() == 0
        shutil.rmtree(play.daemon.data / "index")
        (file,) = (s3_server.directory / "buckets" / "lake" / "rotten").rglob("data/*.parquet")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        play.daemon.start().wait_ready()
        send_mirror(play, 50, 10, "second")
        play.wait(lambda: [one["table"] for one in play.writer()["stopped"]] == ["default.people"], "the table to stop", 120)
        (stopped,) = play.writer()["stopped"]
        assert file.name in stopped["reason"]
        assert play.writer()["code"] == 200
        play.sequence += 1
        assert post(play.http, schema_message("s", play.sequence, "ledger")).status == 200
        play.send("ledger")
        wait_until(lambda: play.lake.row_count("ledger") > 0, lambda: f"the other table\n{play.daemon.tail()}", 60)
        done = play.daemon.run("verify")
        assert done.returncode == 4, done.stdout + done.stderr
        assert file.name in done.stdout

"""What a commit and a load cost through the REST catalog: `dolake catalog` as a process, one client, over HTTP on loopback.

A commit adds a snapshot to `main` and removes the one before the last hundred, as dolake's own do. At the end the table is
loaded, whole and with named snapshots only; and so is one of as many snapshots that were all kept.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

SNAPSHOTS_KEPT = 100
_AROUND = 100  # a commit's cost is the median of so many
_LOADS = 20
_IN_ONE_COMMIT = 500
_TABLE = "/v1/namespaces/bench/tables/commits"
_SCHEMA = {"type": "struct", "fields": [{"id": n + 1, "name": f"column_{n}", "required": False, "type": "long"} for n in range(20)]}


@contextmanager
def catalog(directory: Path, name: str = "") -> Iterator[httpx.Client]:
    """A server of its own, ended with the block; in the database of `DOLAKE_CATALOG_URI`, if there is one, under the directory's name."""
    environment = {**os.environ, "DOLAKE_CATALOG_NAME": name or directory.name}
    command = [sys.executable, "-m", "dolake", "catalog", "--data", str(directory), "--http-port", "0", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        try:
            lines = (json.loads(line) for line in process.stderr if line.startswith(b"{"))
            url = next(line["catalog"] for line in lines if line["event"] == "ready")
            with httpx.Client(base_url=url, timeout=60) as client:
                yield client
        finally:
            process.terminate()


def _asked(client: httpx.Client, path: str, body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _made(client: httpx.Client) -> dict[str, Any]:
    client.post("/v1/namespaces", json={"namespace": ["bench"]})
    made: dict[str, Any] = _asked(client, "/v1/namespaces/bench/tables", {"name": "commits", "schema": _SCHEMA})["metadata"]
    return made


def _snapshot(metadata: dict[str, Any], number: int, parent: int | None) -> dict[str, Any]:
    return {
        "snapshot-id": 2**60 + number,
        "sequence-number": number,
        "timestamp-ms": metadata["last-updated-ms"] + number,
        "manifest-list": f"{metadata['location']}/metadata/e00000001-{number:08d}-list.avro",
        "summary": {
            "operation": "append",
            **{f"total-{what}": str(number) for what in ("records", "data-files", "files-size", "delete-files")},
        },
        "schema-id": 0,
        **({} if parent is None else {"parent-snapshot-id": parent}),
    }


def _to_main(snapshot_id: int) -> dict[str, Any]:
    return {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": snapshot_id}


def run_commits(directory: Path, count: int) -> dict[str, Any]:
    """`count` commits one after the other, each on the one before."""
    seconds: list[float] = []
    with catalog(directory) as client:
        metadata = _made(client)
        before: int | None = None
        for number in range(1, count + 1):
            snapshot = _snapshot(metadata, number, before)
            updates: list[dict[str, Any]] = [{"action": "add-snapshot", "snapshot": snapshot}, _to_main(snapshot["snapshot-id"])]
            if number > SNAPSHOTS_KEPT:
                updates.append({"action": "remove-snapshots", "snapshot-ids": [snapshot["snapshot-id"] - SNAPSHOTS_KEPT]})
            wanted = [{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": before}]
            began_s = time.perf_counter()
            _asked(client, _TABLE, {"requirements": wanted, "updates": updates})
            seconds.append(time.perf_counter() - began_s)
            before = snapshot["snapshot-id"]
        loads = _loads(client)
    first, last = (_median_ms(seconds[place : place + _AROUND]) for place in (min(SNAPSHOTS_KEPT, count // 2), max(0, count - _AROUND)))
    return {"commits": count, "first_p50_ms": first, "last_p50_ms": last, "p50_ms": _median_ms(seconds), **loads}


def run_loads(directory: Path, count: int) -> dict[str, Any]:
    """A table that keeps all of its `count` snapshots."""
    with catalog(directory) as client:
        metadata = _made(client)
        before: int | None = None
        for first in range(1, count + 1, _IN_ONE_COMMIT):
            updates: list[dict[str, Any]] = []
            for number in range(first, min(first + _IN_ONE_COMMIT, count + 1)):
                updates.append({"action": "add-snapshot", "snapshot": _snapshot(metadata, number, before)})
                before = 2**60 + number
            assert before is not None
            _asked(client, _TABLE, {"requirements": [], "updates": [*updates, _to_main(before)]})
        return {"snapshots": count, **_loads(client)}


def _loads(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what, query in (("load_ms", ""), ("load_refs_ms", "?snapshots=refs")):
        seconds = []
        for _ in itertools.repeat(None, _LOADS):
            began_s = time.perf_counter()
            answer = client.get(_TABLE + query)
            seconds.append(time.perf_counter() - began_s)
            assert answer.status_code == 200
        found[what] = _median_ms(seconds)
    return found


def _median_ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1000, 2)


def rest(directory: Path, count: int) -> dict[str, Any]:
    for name in ("rest-commits", "rest-loads"):
        (directory / name).mkdir(parents=True)
    return {**run_commits(directory / "rest-commits", count), "all_kept": run_loads(directory / "rest-loads", count)}

"""A REST catalog to ask, in tests: the real app on a real socket, in a thread of its own; and bodies to send to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from dolake.config import Settings
from dolake.http.alone import run_catalog

JSON = dict[str, Any]
# Above 2^53: a client that takes numbers for floats would see another one.
_SNAPSHOT_IDS = itertools.count(2**53 + 1, 2)
SCHEMA: JSON = {
    "type": "struct",
    "schema-id": 0,
    "fields": [
        {"id": 1, "name": "id", "required": False, "type": "long"},
        {"id": 2, "name": "name", "required": False, "type": "string"},
        {"id": 3, "name": "at", "required": False, "type": "timestamptz"},
    ],
}


class Rest:
    """A server over a data directory, and a client of it."""

    def __init__(self, data: Path, url: str) -> None:
        self.data = data
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=60)

    @property
    def root(self) -> str:
        return f"file://{self.data}/warehouse"

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        if isinstance(body, bytes):
            more["content"] = body
        elif body is not None:
            more["json"] = body
        return self.client.request(method, f"/v1/{path}", **more)

    def get(self, path: str, **more: Any) -> JSON:
        """The body of a good answer."""
        return good(self.ask("GET", path, **more))

    def post(self, path: str, body: Any, **more: Any) -> JSON:
        return good(self.ask("POST", path, body, **more))

    def make(self, name: str = "orders", namespace: str = "shop", **more: Any) -> JSON:
        """A new table, in a namespace that is made if need be; its metadata."""
        self.ask("POST", "namespaces", {"namespace": [namespace]})
        made: JSON = self.post(f"namespaces/{namespace}/tables", {"name": name, "schema": SCHEMA, **more})["metadata"]
        return made

    def metadata(self, name: str = "orders", namespace: str = "shop") -> JSON:
        loaded: JSON = self.get(f"namespaces/{namespace}/tables/{name}")["metadata"]
        return loaded

    def try_commit(self, updates: list[JSON], requirements: list[JSON] | None = None, name: str = "orders") -> httpx.Response:
        return self.ask("POST", f"namespaces/shop/tables/{name}", {"requirements": requirements or [], "updates": updates})

    def commit(self, *updates: JSON, requirements: list[JSON] | None = None, name: str = "orders") -> JSON:
        """The metadata that a commit made."""
        made: JSON = good(self.try_commit(list(updates), requirements, name))["metadata"]
        return made


def good(answer: httpx.Response) -> JSON:
    assert answer.status_code in (200, 204), f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}"
    body: JSON = answer.json() if answer.content else {}
    return body


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    """(status, type, message) of an answer that is none; its body says the status as well."""
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    return answer.status_code, error["type"], error["message"]


def snapshot(metadata: Mapping[str, Any], **more: Any) -> JSON:
    """A next snapshot of a table, without files: what its manifest list is called is all that the catalog looks at."""
    snapshot_id = next(_SNAPSHOT_IDS)
    parent = metadata.get("current-snapshot-id", -1)
    made = {
        "snapshot-id": snapshot_id,
        "sequence-number": metadata["last-sequence-number"] + 1,
        "timestamp-ms": metadata["last-updated-ms"] + 1,
        "manifest-list": f"{metadata['location']}/metadata/snap-{snapshot_id}.avro",
        "summary": {"operation": "append"},
        "schema-id": metadata["current-schema-id"],
        **({} if parent in (None, -1) else {"parent-snapshot-id": parent}),
        **more,
    }
    return {key: value for key, value in made.items() if value is not ...}


def add(made: Mapping[str, Any]) -> JSON:
    return {"action": "add-snapshot", "snapshot": dict(made)}


def to_main(snapshot_id: int) -> JSON:
    return {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": snapshot_id}


def main_is(metadata: Mapping[str, Any]) -> JSON:
    """The requirement that `main` is where it is in this metadata."""
    current = metadata.get("current-snapshot-id", -1)
    return {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": None if current == -1 else current}


def properties(**values: str) -> JSON:
    return {"action": "set-properties", "updates": values}


@contextlib.contextmanager
def serving(data: Path, **sections: Any) -> Iterator[Rest]:
    """Serves until the block ends. `sections` are settings."""
    data.mkdir(parents=True, exist_ok=True)
    settings = Settings.model_validate({"data": str(data), **sections})
    with socket.create_server(("127.0.0.1", 0)) as listen:
        ready, ended = threading.Event(), threading.Event()
        ends: list[Any] = []

        async def serve() -> None:
            stop = asyncio.Event()
            ends.extend((asyncio.get_running_loop(), stop))
            await run_catalog(settings, listen=listen, ready=ready.set, stop=stop)

        def run() -> None:
            try:
                asyncio.run(serve())
            finally:
                ended.set()
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(60)
        assert not ended.is_set(), "the server ended before it served"
        rest = Rest(data, f"http://127.0.0.1:{listen.getsockname()[1]}")
        try:
            yield rest
        finally:
            rest.client.close()
            ends[0].call_soon_threadsafe(ends[1].set)
            thread.join(60)

"""What PyIceberg's catalogs are asked, how often, and what becomes of every way in which they may answer or not."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.schema import Schema

from dolake.cli.lake import Lake as Committed
from dolake.config import CatalogSettings
from dolake.errors import (
    CatalogUnreachable,
    CommitConflict,
    ConfigurationError,
    MetadataMissing,
    ObjectDamaged,
    StoreUnreachable,
    TableStopped,
)
from dolake.iceberg import pyiceberg_catalog
from dolake.iceberg.access import part_at_fault
from dolake.iceberg.pyiceberg_catalog import open_by_pyiceberg
from dolake.model import TableName
from dolake.storage.local import LocalStore
from tests.harness.fault_proxy import TcpProxy
from tests.http.rest import serving
from tests.iceberg.catalog_contract import BIG, advance, snapshot_updates
from tests.iceberg.lake import SCHEMA, TABLE, Lake, make_metadata

TOKEN = "s3cr3t-t0ken"


def rest_settings(url: str, **more: str) -> CatalogSettings:
    return CatalogSettings(type="rest", properties={"uri": url, **more})


def lake_at(directory: Path, url: str, **more: str) -> Lake:
    return Lake(directory, open_catalog=lambda store, _runtime: open_by_pyiceberg(rest_settings(url, **more), store))


class Scripted:
    """An HTTP server that answers as it is told, and remembers what it was asked: (method, path, body)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.config: dict[str, Any] = {"defaults": {}, "overrides": {}}
        self.answer: tuple[int, str] = (500, "")

    def commits(self) -> list[Any]:
        return [body for method, path, body in self.asked if method == "POST" and path.endswith("/tables/orders")]


@contextlib.contextmanager
def scripted() -> Iterator[tuple[Scripted, str]]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            script.asked.append((self.command, path, json.loads(body) if body else None))
            status, text = (200, json.dumps(script.config)) if path == "/v1/config" else script.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        do_POST = do_DELETE = do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield script, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(kind: str, message: str, status: int) -> tuple[int, str]:
    return status, json.dumps({"error": {"type": kind, "message": message, "code": status}})


@pytest.fixture
def base(tmp_path: Path) -> Lake:
    """A lake whose table is not in any catalog that is asked."""
    return Lake(tmp_path)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (said("CommitFailedException", "not there any more", 409), CommitConflict),
        (said("NoSuchTableException", "dropped", 404), CatalogUnreachable),
        (said("CommitStateUnknownException", "who knows", 500), CatalogUnreachable),
        (said("InternalServerError", "", 502), CatalogUnreachable),
        (said("SlowDownException", "later", 503), CatalogUnreachable),
        (said("InternalServerError", "", 504), CatalogUnreachable),
        (said("BadRequestException", "no", 400), CatalogUnreachable),
        (said("ForbiddenException", f"not for {TOKEN}", 403), CatalogUnreachable),
        ((200, "<html>"), CatalogUnreachable),
        ((200, "{}"), CatalogUnreachable),
        ((301, ""), CatalogUnreachable),
    ],
)
def test_a_swap_is_asked_for_once_whatever_the_answer(base: Lake, answer: tuple[int, str], error: type[Exception]) -> None:
    with scripted() as (script, url):
        script.answer = answer
        catalog = open_by_pyiceberg(rest_settings(url, token=TOKEN), base.store)
        with pytest.raises(error) as raised:
            catalog.swap(base.table, *snapshot_updates(base, base.table, 1))
        catalog.close()
    assert len(script.commits()) == 1
    assert TOKEN not in str(raised.value)
    base.close()


def test_what_was_planned_is_what_is_sent(base: Lake) -> None:
    """Nothing dropped, nothing rounded; requirements that pin what the plan was made from come with it."""
    table = base.catalog.swap(base.table, *snapshot_updates(base, base.table, BIG))
    requirements, updates = snapshot_updates(base, table, BIG + 1)
    updates = [
        *updates,
        {"action": "set-snapshot-ref", "ref-name": "t", "type": "tag", "snapshot-id": BIG, "max-ref-age-ms": BIG},
        {"action": "remove-snapshot-ref", "ref-name": "old"},
        {"action": "remove-snapshots", "snapshot-ids": [BIG]},
        {"action": "remove-properties", "removals": ["gone"]},
    ]
    with scripted() as (script, url):
        script.answer = (503, "")
        catalog = open_by_pyiceberg(rest_settings(url), base.store)
        with pytest.raises(CatalogUnreachable):
            catalog.swap(table, requirements, updates)
        catalog.close()
    (body,) = script.commits()
    assert body["updates"] == updates
    assert body["identifier"] == {"namespace": ["shop"], "name": "orders"}
    assert body["requirements"] == [
        {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": BIG},
        {"type": "assert-table-uuid", "uuid": table.uuid},
        {"type": "assert-current-schema-id", "current-schema-id": 0},
        {"type": "assert-default-spec-id", "default-spec-id": 0},
        {"type": "assert-default-sort-order-id", "default-sort-order-id": 0},
        {"type": "assert-last-assigned-field-id", "last-assigned-field-id": 2},
        {"type": "assert-last-assigned-partition-id", "last-assigned-partition-id": 999},
    ]
    base.close()


def test_a_first_snapshot_requires_that_there_is_none(base: Lake) -> None:
    with scripted() as (script, url):
        catalog = open_by_pyiceberg(rest_settings(url), base.store)
        with pytest.raises(CatalogUnreachable):
            catalog.swap(base.table, [], [])
        catalog.close()
    assert {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": None} in script.commits()[0]["requirements"]
    base.close()


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        (said("NoSuchTableException", "none", 404), True),
        (said("NoSuchNamespaceException", "none", 404), True),
        ((404, "<html>not found</html>"), False),
        ((404, ""), False),
        (said("NotFoundException", "no such route", 404), False),
        (said("InternalServerError", "", 500), False),
        ((200, "{}"), False),
    ],
)
def test_only_a_catalog_that_says_so_has_no_such_table(base: Lake, answer: tuple[int, str], there: bool) -> None:
    """A proxy's 404 taken for an answer would have a table created anew, or stopped as dropped."""
    with scripted() as (script, url):
        script.answer = answer
        catalog = open_by_pyiceberg(rest_settings(url), base.store)
        if there:
            assert catalog.load(TABLE) is None
        else:
            with pytest.raises(CatalogUnreachable, match=r"rest catalog|no catalog"):
                catalog.load(TABLE)
        catalog.close()
    base.close()


def test_every_wait_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyiceberg_catalog, "ANSWER_S_MAX", 0.5)
    with serving(tmp_path) as server, TcpProxy(int(server.url.rsplit(":", 1)[1])) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        lake = lake_at(tmp_path, url)
        landed = advance(lake, lake.current(), 1)
        proxy.block()
        calls: Sequence[Callable[[], Any]] = (
            lambda: lake.catalog.load(TABLE),
            lambda: advance(lake, landed, 2),
            lambda: lake.catalog.list_tables(),
            lambda: lake.catalog.create(TableName("shop", "more"), make_metadata(lake.store, lake.runtime)),
            lambda: open_by_pyiceberg(rest_settings(url), lake.store),
            lambda: open_by_pyiceberg(rest_settings(url, credential="a:b", **{"oauth2-server-uri": f"{url}/token"}), lake.store),
        )
        for call in calls:
            with pytest.raises(CatalogUnreachable):
                call()
        proxy.heal()
        lake.close()


def test_a_swap_whose_answer_is_lost_is_found_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyiceberg_catalog, "ANSWER_S_MAX", 1.0)
    with serving(tmp_path) as server, TcpProxy(int(server.url.rsplit(":", 1)[1])) as proxy:
        lake, direct = (
            lake_at(tmp_path, f"http://127.0.0.1:{proxy.port}"),
            open_by_pyiceberg(rest_settings(server.url), LocalStore(server.root)),
        )
        before = lake.current()
        proxy.lose_answers()
        with pytest.raises(CatalogUnreachable):
            advance(lake, before, 1)
        found = direct.load(TABLE)
        assert found is not None
        assert [snapshot["snapshot-id"] for snapshot in found.metadata["snapshots"]] == [1]
        proxy.heal()
        with pytest.raises(CommitConflict):
            advance(lake, before, 2)
        assert lake.current() == found
        direct.close()
        lake.close()


def test_a_catalog_that_is_not_there_is_named_without_its_secrets(base: Lake) -> None:
    settings = rest_settings("http://127.0.0.1:1", token=TOKEN, **{"header.Authorization": "Basic abc123"})
    with pytest.raises(CatalogUnreachable, match="rest catalog dolake could not be opened") as refused:
        open_by_pyiceberg(settings, base.store)
    assert TOKEN not in str(refused.value)
    assert "abc123" not in str(refused.value)
    base.close()


def test_a_catalog_that_cannot_do_what_is_needed_is_refused_at_the_start(base: Lake) -> None:
    with scripted() as (script, url):
        script.config["endpoints"] = [
            *("GET /v1/{prefix}/namespaces", "POST /v1/{prefix}/namespaces", "GET /v1/{prefix}/namespaces/{namespace}/tables"),
            *("GET /v1/{prefix}/namespaces/{namespace}/tables/{table}", "POST /v1/{prefix}/namespaces/{namespace}/tables"),
        ]
        with pytest.raises(ConfigurationError, match=r"serves POST /v1/\{prefix\}/namespaces/\{namespace\}/tables/\{table\} "):
            open_by_pyiceberg(rest_settings(url), base.store)
    base.close()


@pytest.mark.parametrize("warehouse", ["s3://another/place", "file:///elsewhere"])
def test_a_catalog_that_keeps_its_tables_elsewhere_is_refused_at_the_start(base: Lake, warehouse: str) -> None:
    with scripted() as (script, url):
        script.config["overrides"] = {"warehouse": warehouse}
        with pytest.raises(ConfigurationError, match=r"catalog\.properties\.warehouse"):
            open_by_pyiceberg(rest_settings(url), base.store)
    base.close()


def test_a_library_that_is_missing_is_named(base: Lake) -> None:
    with pytest.raises(ConfigurationError, match=r"pyiceberg\[hive\]"):
        open_by_pyiceberg(CatalogSettings(type="hive", properties={"uri": "thrift://127.0.0.1:1"}), base.store)
    base.close()


def test_a_table_in_another_warehouse_is_not_ours_and_hides_no_other(tmp_path: Path) -> None:
    """Reading commands pass it over; the writer stops it, and says what to set."""
    settings = CatalogSettings(type="sql", properties={"uri": f"sqlite:///{tmp_path}/theirs.db"})
    lake = Lake(tmp_path, open_catalog=lambda store, _runtime: open_by_pyiceberg(settings, store))
    elsewhere = SqlCatalog("dolake", uri=f"sqlite:///{tmp_path}/theirs.db", warehouse=f"file://{tmp_path}/elsewhere")
    elsewhere.create_namespace("other")
    elsewhere.create_table("other.one", schema=Schema.model_validate(SCHEMA))
    elsewhere.close()
    stranger = TableName("other", "one")
    assert lake.catalog.list_tables() == [stranger, TABLE]
    assert [table.name for table in Committed(lake.store, lake.catalog).tables()] == [TABLE]
    with pytest.raises(TableStopped, match=r"outside of the warehouse"):
        lake.catalog.load(stranger)
    with pytest.raises(TableStopped, match=r"outside of the warehouse .*warehouse\.uri"):
        lake.catalog.create(TableName("other", "two"), {**make_metadata(lake.store, lake.runtime), "location": f"file://{tmp_path}/else"})
    assert TableName("other", "two") not in lake.catalog.list_tables()
    lake.close()


def sql_lake(directory: Path) -> Lake:
    settings = CatalogSettings(type="sql", properties={"uri": f"sqlite:///{directory}/theirs.db"})
    return Lake(directory, open_catalog=lambda store, _runtime: open_by_pyiceberg(settings, store))


def test_a_metadata_file_that_is_gone_or_spoilt_is_named(tmp_path: Path) -> None:
    """Also where a swap meets it. That the catalog answered is known: neither counts as its absence."""
    lake = sql_lake(tmp_path)
    path = Path(lake.table.metadata_location.removeprefix("file://"))
    whole = path.read_bytes()
    for spoilt in (whole[: len(whole) // 2], b"", b"{}", bytes(len(whole))):
        path.write_bytes(spoilt)
        for call in (lambda: lake.catalog.load(TABLE), lambda: advance(lake, lake.table, 1)):
            with pytest.raises(ObjectDamaged, match="restore it") as damaged:
                call()
            assert path.name in str(damaged.value)
            assert part_at_fault(damaged.value) is None
    path.unlink()
    for call in (lambda: lake.catalog.load(TABLE), lambda: advance(lake, lake.table, 1)):
        with pytest.raises(MetadataMissing, match="not in the warehouse: restore it") as missing:
            call()
        assert part_at_fault(missing.value) is None
    path.write_bytes(whole)
    assert advance(lake, lake.current(), 1).head_id == 1
    lake.close()


def test_a_table_that_has_left_the_warehouse_is_not_at_its_base_any_more(tmp_path: Path) -> None:
    lake = sql_lake(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.execute("UPDATE iceberg_tables SET metadata_location = 'file:///elsewhere/00000-a.metadata.json'")
        theirs.commit()
    with pytest.raises(CommitConflict, match="elsewhere"):
        advance(lake, lake.table, 1)
    with pytest.raises(TableStopped, match="outside of the warehouse"):
        lake.catalog.load(TABLE)
    lake.close()


def test_a_store_that_does_not_answer_is_not_the_catalogs_fault(tmp_path: Path) -> None:
    class Away(LocalStore):
        def get(self, location: str) -> bytes:
            raise StoreUnreachable("no answer")

    lake = sql_lake(tmp_path)
    settings = CatalogSettings(type="sql", properties={"uri": f"sqlite:///{tmp_path}/theirs.db"})
    catalog = open_by_pyiceberg(settings, Away(lake.store.root))
    with pytest.raises(StoreUnreachable) as away:
        catalog.load(TABLE)
    assert part_at_fault(away.value) == "store"
    catalog.close()
    lake.close()


def test_what_pyiceberg_writes_is_durable_before_the_catalog_names_it(tmp_path: Path) -> None:
    """Every catalog but REST writes its metadata files by itself, and PyIceberg's own files are never synced."""
    steps: list[tuple[str, str]] = []

    class Watched(LocalStore):
        def put(self, location: str, data: bytes | memoryview) -> None:
            super().put(location, data)
            steps.append(("put", location))

        def settle(self, locations: Sequence[str]) -> None:
            super().settle(locations)
            steps.extend(("settled", location) for location in locations)

    settings = CatalogSettings(type="sql", properties={"uri": f"sqlite:///{tmp_path}/theirs.db"})
    lake = Lake(tmp_path, open_catalog=lambda store, _runtime: open_by_pyiceberg(settings, Watched(store.root)))
    landed = advance(lake, lake.current(), 1)
    assert landed.metadata_location.endswith(".metadata.json")
    for location in (lake.table.metadata_location, landed.metadata_location):
        assert [step for step, where in steps if where == location] == ["put", "settled"]
    lake.close()

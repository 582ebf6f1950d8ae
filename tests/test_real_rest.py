"""The REST catalog of a real daemon: PyIceberg's and DuckDB's own clients, while dolake writes and when it does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NamespaceNotEmptyError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.types import LongType

from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.lake import Lake
from tests.harness.oracle import Event, Oracle, ledger_event
from tests.harness.posting import post, post_batch
from tests.harness.source import Source
from tests.harness.traffic import drain, steady_traffic, url_of
from tests.harness.waiting import wait_until

ROWS = pa.schema([("id", pa.int64()), ("name", pa.string())])


def rest_catalog(daemon: Daemon, **more: str) -> RestCatalog:
    ready = daemon.ready()
    assert ready is not None
    return RestCatalog("lake", uri=ready.http, **more)


@pytest.fixture(autouse=True)
def _its_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyIceberg's deprecations are not ours to judge.
        yield


def rows(*pairs: tuple[int, str]) -> pa.Table:
    return pa.table({"id": [one for one, _ in pairs], "name": [name for _, name in pairs]}, schema=ROWS)


def read(catalog: RestCatalog, name: str) -> list[dict[str, Any]]:
    return sorted(catalog.load_table(name).scan().to_arrow().to_pylist(), key=lambda row: row["id"])


def test_pyicebergs_client_does_all_it_can(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data") as daemon:
        daemon.start()
        catalog = rest_catalog(daemon, **{"rest-page-size": "1"})
        for namespace in (("shop",), ("shop", "eu"), ("zoo",)):
            catalog.create_namespace(namespace, {"owner": "me"})
        assert (catalog.list_namespaces(), catalog.list_namespaces("shop")) == ([("shop",), ("zoo",)], [("shop", "eu")])
        assert catalog.update_namespace_properties("shop", {"owner"}, {"a": "b"}).updated == ["a"]
        assert (catalog.load_namespace_properties("shop"), catalog.namespace_exists("nowhere")) == ({"a": "b"}, False)
        table = catalog.create_table("shop.orders", ROWS, properties={"format-version": "2"})
        table.append(rows((1, "a"), (2, "b")))
        with table.update_schema() as schema:
            schema.add_column("qty", LongType())
            schema.rename_column("name", "title")
        with table.update_spec() as spec:
            spec.add_identity("title")
        table.append(pa.table({"id": [3], "title": ["c"], "qty": [7]}))
        table.delete("id = 1")
        with table.manage_snapshots() as snapshots:
            snapshots.create_tag(table.current_snapshot().snapshot_id, "v1").create_branch(table.current_snapshot().snapshot_id, "dev")
        after = [{"id": 2, "title": "b", "qty": None}, {"id": 3, "title": "c", "qty": 7}]
        assert read(catalog, "shop.orders") == after
        catalog.rename_table("shop.orders", "shop.eu.orders")
        assert read(catalog, "shop.eu.orders") == after
        assert (catalog.table_exists("shop.orders"), catalog.list_tables(("shop", "eu"))) == (False, [("shop", "eu", "orders")])
        moved = catalog.load_table("shop.eu.orders")
        assert set(moved.refs()) == {"main", "v1", "dev"}
        old = moved.snapshots()[0].snapshot_id
        moved.maintenance.expire_snapshots().by_id(old).commit()
        assert old not in [one.snapshot_id for one in catalog.load_table("shop.eu.orders").snapshots()]
        location = catalog.load_table("shop.eu.orders").metadata_location
        catalog.drop_table("shop.eu.orders")
        catalog.register_table("zoo.orders", location)
        assert read(catalog, "zoo.orders") == after
        catalog.purge_table("zoo.orders")
        assert not Path(location.removeprefix("file://")).exists()
        with pytest.raises(NamespaceNotEmptyError):
            catalog.drop_namespace("shop")
        catalog.drop_namespace(("shop", "eu"))
        catalog.drop_namespace("shop")
        assert catalog.list_namespaces() == [("zoo",)]


def test_pyicebergs_client_is_told_no_in_words_that_it_knows(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data") as daemon:
        daemon.start()
        catalog = rest_catalog(daemon)
        catalog.create_namespace("shop")
        table = catalog.create_table("shop.orders", ROWS)
        with pytest.raises(NoSuchTableError):
            catalog.load_table("shop.none")
        with pytest.raises(NoSuchTableError):
            catalog.drop_table("shop.none")
        with pytest.raises(NoSuchNamespaceError):
            catalog.list_tables("nowhere")
        with pytest.raises(TableAlreadyExistsError):
            catalog.create_table("shop.orders", ROWS)
        with pytest.raises(NamespaceAlreadyExistsError):
            catalog.create_namespace("shop")
        stale = catalog.load_table("shop.orders")
        with table.update_schema() as schema:
            schema.add_column("first", LongType())
        with pytest.raises(CommitFailedException), stale.update_schema() as schema:
            schema.add_column("second", LongType())
        assert catalog.load_table("shop.orders").schema().column_names == ["id", "name", "first"]


def test_a_transaction_of_pyicebergs_client_makes_a_table_with_its_rows(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data") as daemon:
        daemon.start()
        catalog = rest_catalog(daemon)
        catalog.create_namespace("shop")
        with catalog.create_table_transaction("shop.made", ROWS) as transaction:
            transaction.append(rows((1, "a")))
            assert not catalog.table_exists("shop.made")
        assert read(catalog, "shop.made") == [{"id": 1, "name": "a"}]


def test_clients_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each tries again when it came second, as clients do; every row is there once."""
    with Daemon(tmp_path / "data") as daemon:
        daemon.start()
        catalog = rest_catalog(daemon)
        catalog.create_namespace("shop")
        catalog.create_table("shop.orders", ROWS)

        def append(client: int) -> int:
            tries, own = 0, rest_catalog(daemon)
            for number in range(3):
                while True:
                    tries += 1
                    with contextlib.suppress(CommitFailedException):
                        own.load_table("shop.orders").append(rows((client * 10 + number, "x")))
                        break
            return tries

        with ThreadPoolExecutor(6) as pool:
            tries = sum(pool.map(append, range(6)))
        assert [row["id"] for row in read(catalog, "shop.orders")] == [client * 10 + number for client in range(6) for number in range(3)]
        assert tries >= 18
        history = catalog.load_table("shop.orders").metadata
        assert [one.sequence_number for one in history.snapshots] == list(range(1, 19))


def ids_of(count: int) -> list[int]:
    return sorted(ledger_event(number).row["id"] for number in range(count))


KEYS = range(1, 21)


def round_of(number: int) -> list[Event]:
    """One batch, in which every key gets the round's value: a reader that sees two values has seen a torn batch."""
    columns = {**ledger_event(0).row, "account": f"round-{number}"}
    return [Event(number * len(KEYS) + key, "ledger", "UPDATE" if number else "INSERT", {**columns, "id": key}) for key in KEYS]


@dataclass
class Rounds:
    """A source that sends round after round until it is told that it is enough."""

    source: Source
    count: int = 0
    enough: threading.Event = field(default_factory=threading.Event)

    async def send(self, daemon: Daemon) -> None:
        delivering = asyncio.create_task(self.source.deliver(url_of(daemon), until=self.enough.is_set))
        while not self.enough.is_set():
            if self.source.done:
                self.source.add(round_of(self.count))
                self.count += 1
            await asyncio.sleep(0.005)
        await delivering


@pytest.mark.acceptance("AT-77")
def test_duckdb_attached_to_the_catalog_reads_a_mirror_that_dolake_is_writing(tmp_path: Path) -> None:
    """Every look is at one whole snapshot, none goes back, and the last is the last."""
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}, mode="mirror") as daemon, Lake(daemon.data) as lake:
        daemon.start()
        rounds = Rounds(Source("shop", Oracle(tmp_path / "journal")).declare("ledger"))
        sending = threading.Thread(target=lambda: asyncio.run(rounds.send(daemon)))
        catalog = rest_catalog(daemon)
        sending.start()
        seen: list[int] = []
        try:
            # DuckDB refuses a table whose first snapshot came after the transaction began: it has no state as of then.
            exists = lambda: catalog.table_exists("default.ledger") and catalog.load_table("default.ledger").metadata.snapshots  # noqa: E731
            wait_until(exists, lambda: f"the table's first snapshot\n{daemon.tail()}")
            ready = daemon.ready()
            assert ready is not None
            duck = lake.database()
            duck.execute(f"ATTACH 'dolake' AS lake (TYPE iceberg, ENDPOINT '{ready.http}', AUTHORIZATION_TYPE 'none')")
            query = 'SELECT account, count(*), count(DISTINCT id) FROM lake."default".ledger GROUP BY ALL'

            def look() -> int:
                found = duck.execute(query).fetchall()
                counts = [(row_count, key_count) for _, row_count, key_count in found]
                assert counts in ([], [(len(KEYS), len(KEYS))]), f"not one whole round: {found}"
                seen.extend(int(account.removeprefix("round-")) for account, _, _ in found)
                return seen[-1] if seen else -1

            wait_until(lambda: look() >= 0 and len(set(seen)) >= 10, lambda: f"ten snapshots; seen {seen}\n{daemon.tail()}", 90)
            rounds.enough.set()
            wait_until(lambda: look() == rounds.count - 1, lambda: f"round {rounds.count - 1}; seen {seen}\n{daemon.tail()}", 90)
        finally:
            rounds.enough.set()
            sending.join(90)
        assert seen == sorted(seen)
        assert {row["account"] for row in catalog.load_table("default.ledger").scan().to_arrow().to_pylist()} == {
            f"round-{rounds.count - 1}"
        }


def test_outside_writers_commit_through_the_catalog_and_dolake_goes_on(tmp_path: Path) -> None:
    """Properties, a column, rows of their own, while dolake commits: nothing of either is lost, nothing is there twice."""
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.1"}) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        catalog = rest_catalog(daemon)

        def meddle() -> None:
            wait_until(lambda: catalog.table_exists("default.ledger"), lambda: f"the table\n{daemon.tail()}")
            wait_until(lambda: catalog.load_table("default.ledger").scan(limit=1).to_arrow().num_rows, "a row of it")
            for number in range(5):
                while True:
                    with contextlib.suppress(CommitFailedException):
                        table = catalog.load_table("default.ledger")
                        one = table.scan(limit=1).to_arrow()
                        place = one.schema.get_field_index("id")
                        table.append(one.slice(0, 1).set_column(place, one.schema.field(place), pa.array([-1 - number])))
                        break
                with catalog.load_table("default.ledger").transaction() as transaction:
                    transaction.set_properties({f"mine-{number}": "yes"})

        async def both() -> None:
            async with steady_traffic(daemon, oracle):
                await asyncio.to_thread(meddle)
            await drain(daemon)

        asyncio.run(both())
        found = lake.read_duckdb("ledger").to_pylist()
        mine = [row["id"] for row in found if row["id"] < 0]
        theirs = sorted(row["id"] for row in found if row["id"] >= 0)
        assert sorted(mine) == [-5, -4, -3, -2, -1]
        assert theirs == sorted(oracle.as_arrow("ledger")["id"].to_pylist())
        properties = catalog.load_table("default.ledger").properties
        assert {f"mine-{number}" for number in range(5)} <= set(properties)
        assert any(name.startswith("dolake.offset.") for name in properties)


def test_dolake_is_not_held_up_by_a_client_that_would_undo_it(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.1"}) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        ready = daemon.ready()
        assert ready is not None
        post(ready.http, post_batch("a", 1, [ledger_event(number) for number in range(10)]))
        asyncio.run(drain(daemon))
        metadata = lake.metadata("ledger")
        offset = next(name for name in metadata["properties"] if name.startswith("dolake.offset."))
        wrong = {"requirements": [], "updates": [{"action": "set-properties", "updates": {offset: "0"}}]}
        refused = httpx.post(f"{ready.http}/v1/namespaces/default/tables/ledger", json=wrong, timeout=60)
        assert (refused.status_code, offset in refused.json()["error"]["message"]) == (400, True)
        assert httpx.delete(f"{ready.http}/v1/namespaces/default/tables/ledger?purgeRequested=true", timeout=60).status_code == 400
        post(ready.http, post_batch("a", 2, [ledger_event(number) for number in range(10, 20)]))
        asyncio.run(drain(daemon))
        assert sorted(lake.read_duckdb("ledger")["id"].to_pylist()) == ids_of(20)
        verified = daemon.run("verify")
        assert verified.returncode == 0, verified.stdout


def test_the_catalog_alone_serves_what_the_daemon_wrote(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data") as daemon:
        daemon.start()
        ready = daemon.ready()
        assert ready is not None
        post(ready.http, post_batch("a", 1, [ledger_event(number) for number in range(10)]))
        asyncio.run(drain(daemon))
        assert daemon.stop() == 0
        command = [*dolake_command(), "catalog", "--data", str(daemon.data), "--http-port", "0", "--log-format", "json"]
        with subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            try:
                lines = (json.loads(line) for line in process.stderr if line.startswith(b"{"))
                url = next(line["catalog"] for line in lines if line.get("event") == "ready")
                catalog = RestCatalog("lake", uri=url)
                assert catalog.list_tables("default") == [("default", "ledger")]
                assert [row["id"] for row in read(catalog, "default.ledger")] == ids_of(10)
            finally:
                os.kill(process.pid, signal.SIGTERM)
            assert process.wait(30) == 0

"""Transactions over three tables of a real PostgreSQL: at every cut all tables show the same of them, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from pyiceberg.table import Table

from e2e.engines import Engines
from e2e.follower import ask, following, slots
from e2e.services.postgres import PostgresServer
from e2e.services.spark import Spark
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.waiting import wait_until

TABLES = ("accounts", "entries", "audit")
TRANSACTIONS, ROWS = 200, 100
BEGUN, ROLLED_BACK = range(1, TRANSACTIONS + 1), range(5, TRANSACTIONS + 1, 5)


class Load(threading.Thread):
    """Every other transaction, the number of which is in each of its rows: 100 of them, over three tables. `turns`: how many may begin."""

    def __init__(self, server: PostgresServer, first: int, turns: threading.Semaphore) -> None:
        super().__init__(name=f"load {first}", daemon=True)
        self._server, self._numbers = server, iter(range(first, TRANSACTIONS + 1, 2))
        self._chance, self._turns = random.Random(first), turns
        self.done: list[int] = []

    def run(self) -> None:
        with psycopg.connect(self._server.uri("postgres")) as connection:
            for number in self._numbers:
                self._turns.acquire()
                for place in range(ROWS):
                    table = self._chance.choice(TABLES)
                    connection.execute(f"INSERT INTO {table} VALUES (%s, %s)", (number, place))  # type: ignore[arg-type]
                connection.rollback() if number in ROLLED_BACK else connection.commit()
                self.done.append(number)


@pytest.mark.acceptance("AT-58")
@pytest.mark.parametrize("catalog", ["sqlite", "postgresql"])
def test_at_every_cut_all_tables_show_the_same_transactions(
    tmp_path: Path, postgres: PostgresServer, catalog: str, report: Callable[..., None]
) -> None:
    chance = random.Random(catalog)
    settings = {
        "DOLAKE_FLUSH_AGE_S": "0.05",
        "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "10000",
        **({"DOLAKE_CATALOG_URI": postgres.create("cuts")} if catalog == "postgresql" else {}),
    }
    with (
        PostgresServer(settings={"wal_level": "logical"}) as source,
        Daemon(tmp_path / "data", settings, mode=None) as daemon,
        Lake(daemon.data, settings) as lake,
    ):
        for table in TABLES:
            source.run(f"CREATE TABLE {table} (transaction int, place int, PRIMARY KEY (transaction, place))")
        (daemon.data / "dolake.toml").write_text('[tables."public.*"]\ngroup = "ledger"\n')
        daemon.start()
        with following(source, daemon, tmp_path / "follower"):
            wait_until(lambda: slots(source) == ["dolake"], lambda: f"the slot\n{(tmp_path / 'follower').read_text()}", 60)
            turns = threading.Semaphore(0)
            loads = [Load(source, first, turns) for first in (1, 2)]
            for load in loads:
                load.start()
            begun, kills = 0, 0
            while begun < TRANSACTIONS:
                more, before = min(TRANSACTIONS - begun, chance.randrange(10, 30)), last_cut(lake)
                turns.release(more)
                wanted = begun + more // 2
                wait_until(lambda wanted=wanted: sum(len(load.done) for load in loads) >= wanted, "transactions", 120)
                daemon.kill(chance.choice(["ingest", "writer"]))
                wait_until(lambda before=before: last_cut(lake) > before, lambda: f"a cut\n{daemon.tail()}", 120)
                begun, kills = begun + more, kills + 1
            wanted_rows = {table: ask(source, f"SELECT count(*) FROM {table}") for table in TABLES}
            wait_until(
                lambda: all(rows_in(lake, table) == count for table, count in wanted_rows.items()),
                lambda: f"{[(table, rows_in(lake, table)) for table in TABLES]} of {wanted_rows}\n{daemon.tail()}",
                120,
            )
        with contextlib.closing(lake.catalog()) as opened:
            loaded = {table: opened.load_table(f"public.{table}") for table in TABLES}
        cuts, torn_heads = assert_every_cut_is_one(loaded)
        verified = daemon.run("verify", deadline_s=120)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        joined = daemon.run("query", "--json", f"SELECT count(*) AS n FROM ({' UNION ALL '.join(f'FROM public.{one}' for one in TABLES)})")
        assert f'"n":{(TRANSACTIONS - len(ROLLED_BACK)) * ROWS}' in joined.stdout.replace(" ", "")
        report(catalog=catalog, kills=kills, cuts=cuts, snapshots=sum(len(table.snapshots()) for table in loaded.values()))
    assert torn_heads == 0


def last_cut(lake: Lake) -> int:
    if lake.metadata_location("public.accounts") is None:
        return 0
    with contextlib.closing(lake.catalog()) as opened:
        return newest_cut(opened.load_table("public.accounts"))


def rows_in(lake: Lake, table: str) -> int:
    return 0 if lake.metadata_location(f"public.{table}") is None else lake.row_count(f"public.{table}")


def assert_every_cut_is_one(loaded: dict[str, Table]) -> tuple[int, int]:
    """How many cuts there are by their tags, and how many of the tables' newest snapshots are of another cut than the others'."""
    refs = {name: table.refs() for name, table in loaded.items()}
    tags = sorted({ref for found in refs.values() for ref in found if ref.startswith(("dolake-cut-", "dolake-hour-"))})
    cuts, seen = 0, set()
    for tag in tags:
        having = [name for name in loaded if tag in refs[name]]
        # A table of which nothing had been said until then was not there yet.
        began = {name: min(int(ref.removeprefix("dolake-cut-")) for ref in refs[name] if ref.startswith("dolake-cut-")) for name in loaded}
        if tag.startswith("dolake-cut-"):
            cuts += 1
            assert having == [name for name in loaded if began[name] <= int(tag.removeprefix("dolake-cut-"))], tag
        places: Counter[int] = Counter()
        for name in having:
            rows = loaded[name].scan(snapshot_id=refs[name][tag].snapshot_id).to_arrow()
            places.update(rows["transaction"].to_pylist())
        assert set(places.values()) <= {ROWS}, f"{tag} shows parts of transactions: {places}"
        assert not places.keys() & set(ROLLED_BACK), tag
        seen.add(frozenset(places))
        times = {loaded[name].snapshot_by_id(refs[name][tag].snapshot_id).timestamp_ms for name in having}  # type: ignore[union-attr]
        assert len(times) == 1, tag
    assert max(map(len, seen)) == TRANSACTIONS - len(ROLLED_BACK)
    assert len(seen) > 5, "cuts in the midst of it"
    heads = [newest_cut(table) for table in loaded.values()]
    return cuts, sum(head != max(heads) for head in heads)


def newest_cut(table: Table) -> int:
    return int(table.properties.get("dolake.cut", 0))


@pytest.mark.acceptance("AT-58")
def test_spark_reads_tables_that_belong_together_at_a_cut_by_its_tag(tmp_path: Path, spark: Spark) -> None:
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}, mode=None) as daemon:
        (daemon.data / "dolake.toml").write_text('[tables."public.*"]\ngroup = "shop"\n')
        daemon.start()
        for number in range(1, 4):
            events = [
                {
                    "timestamp": 1767225600000,
                    "operation": "INSERT",
                    "table": f"public.{table}",
                    "rowId": f"{number}",
                    "after": {"id": number},
                }
                for table in ("orders", "lines")
            ]
            file = tmp_path / f"{number}.ndjson"
            file.write_text("".join(json.dumps(event) + "\n" for event in events))
            sent = daemon.run("send", str(file), "--source", f"s{number}", "--wait", "persisted")
            assert sent.returncode == 0, sent.stdout + sent.stderr
        with Engines(daemon, None, spark) as engines:
            orders = engines.pyiceberg.load_table("public.orders")
            tags = sorted(ref for ref in orders.refs() if ref.startswith("dolake-cut-"))
            seen = []
            for tag in tags:
                query = f"SELECT id FROM {{lake}}.public.TABLE VERSION AS OF '{tag}' ORDER BY id"
                found = [engines.by_spark(query.replace("TABLE", table)) for table in ("orders", "lines")]
                assert found[0] == found[1], tag
                snapshot = orders.snapshot_by_name(tag)
                assert snapshot is not None
                assert [(one,) for one in sorted(orders.scan(snapshot_id=snapshot.snapshot_id).to_arrow()["id"].to_pylist())] == found[0]
                seen.append(len(found[0]))
            assert seen == sorted(seen)
            assert set(seen) >= {1, 2, 3}

"""A real PostgreSQL under load, followed by pg_recvlogical and wal2json: its tables are dolake's tables, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from e2e.follower import ask, following, slots
from e2e.services.postgres import PostgresServer
from tests.harness.daemon import Daemon, children_of
from tests.harness.lake import Lake
from tests.harness.waiting import wait_until

SCHEMA = """
CREATE TABLE accounts (id bigint PRIMARY KEY, owner text, balance numeric(12, 2), note text, changed timestamptz DEFAULT clock_timestamp());
ALTER TABLE accounts ALTER COLUMN note SET STORAGE EXTERNAL;
CREATE TABLE moves (account bigint, place int, amount numeric(12, 2), PRIMARY KEY (account, place));
CREATE TABLE visits (id bigserial PRIMARY KEY, page text);
"""
COLUMNS = {
    "accounts": "id, owner, balance, note, changed",
    "moves": "account, place, amount",
    "visits": "id, page",
}


class Load(threading.Thread):
    """Transactions of many kinds, one after the other, until it is ended. A server that is away is waited for."""

    def __init__(self, server: PostgresServer, number: int) -> None:
        super().__init__(name=f"load {number}", daemon=True)
        self._server, self._number = server, number
        self._chance = random.Random(number)
        self._ended = threading.Event()
        self.going = threading.Event()
        self.going.set()
        self.transactions = 0

    def run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._server.uri("postgres")) as connection:
                while self.going.wait(60) and not self._ended.wait(0.01):
                    self._transaction(connection)
                    self.transactions += 1

    def end(self) -> None:
        self._ended.set()
        self.join(60)

    def _transaction(self, connection: psycopg.Connection[Any]) -> None:
        """Each thread has keys of its own, so that none waits for another; one in ten is rolled back."""
        chance = self._chance
        for _ in range(chance.choice([1, 1, 3, 30])):
            key = self._number * 1000 + chance.randrange(60)
            self._change(connection, key)
        if chance.random() < 0.1:
            connection.rollback()
        connection.commit()

    def _change(self, connection: psycopg.Connection[Any], key: int) -> None:
        chance = self._chance
        kind = chance.randrange(10)
        if kind < 4:
            # So large that it is stored out of line: an update that leaves it alone does not send it.
            note = chance.choice([None, "short", f"{key} " * 1500])
            connection.execute(
                "INSERT INTO accounts (id, owner, balance, note) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (id) DO UPDATE SET balance = excluded.balance",
                (key, f"owner-{key % 7}", chance.randrange(10**6) / 100, note),
            )
        elif kind < 6:
            connection.execute("UPDATE accounts SET balance = balance + 1, changed = clock_timestamp() WHERE id = %s", (key,))
        elif kind == 6:
            connection.execute(
                "UPDATE accounts SET id = id + 500 WHERE id = %s AND NOT EXISTS (SELECT FROM accounts WHERE id = %s)", (key, key + 500)
            )
        elif kind == 7:
            connection.execute("DELETE FROM accounts WHERE id IN (%s, %s)", (key, key + 500))
        elif kind == 8:
            connection.execute(
                "INSERT INTO moves SELECT %s, coalesce(max(place), 0) + 1, %s FROM moves WHERE account = %s",
                (key, chance.randrange(1000), key),
            )
        elif chance.random() < 0.02:
            connection.execute("TRUNCATE visits")
        else:
            connection.execute("INSERT INTO visits (page) SELECT 'page-' || n FROM generate_series(1, %s) n", (chance.randrange(1, 40),))


@pytest.fixture
def source(tmp_path: Path) -> Iterator[PostgresServer]:
    with PostgresServer(settings={"wal_level": "logical"}) as server:
        server.run(SCHEMA)
        yield server


def kill_a_child(follower: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Of the sender and pg_recvlogical, the one or the other."""
    children = wait_until(lambda: children_of(follower.pid), "the follower's children")
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(children), signal.SIGKILL)


def stop_the_sender_and_kill_it(follower: subprocess.Popen[bytes], server: PostgresServer, loads: list[Load]) -> None:
    """What pg_recvlogical has written to the pipe by then, and could have told the server of, goes with it."""
    for load in loads:
        load.going.clear()
    wait_for_reports(server)  # A full pipe would hold up the next one.
    sender = wait_until(lambda: [pid for pid in children_of(follower.pid) if b"\0send\0-\0" in command_of(pid)], "the sender")[0]
    os.kill(sender, signal.SIGSTOP)
    server.run("INSERT INTO visits (page) VALUES ('in the pipe')")
    wait_for_reports(server, while_connected=True)  # Its round may be over: no other begins before the sender has ended.
    os.kill(sender, signal.SIGKILL)
    for load in loads:
        load.going.set()


def wait_for_reports(server: PostgresServer, *, while_connected: bool = False) -> None:
    for _ in range(2):
        before = last_reply(server)
        if while_connected and before is None:
            return
        wait_until(lambda before=before: last_reply(server) != before, "pg_recvlogical to report", 60)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def last_reply(server: PostgresServer) -> object:
    return ask(server, "SELECT max(reply_time) FROM pg_stat_replication")


def rows_of(server: PostgresServer, table: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(server.uri("postgres")) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(f"SELECT {COLUMNS[table]} FROM {table} ORDER BY 1, 2").fetchall()  # type: ignore[arg-type]


def rows_in(lake: Lake, table: str) -> list[tuple[Any, ...]]:
    if lake.metadata_location(f"public.{table}") is None:
        return []
    rows = (
        lake.read_duckdb(f"public.{table}")
        .select(COLUMNS[table].split(", "))
        .sort_by([(COLUMNS[table].split(", ")[n], "ascending") for n in (0, 1)])
    )
    return list(zip(*(column.to_pylist() for column in rows.columns), strict=True))


@pytest.mark.acceptance("AT-58")
def test_a_database_under_load_is_mirrored_whatever_is_killed(
    tmp_path: Path, source: PostgresServer, rounds: int, report: Callable[..., None]
) -> None:
    chance = random.Random(58)
    loads = [Load(source, number) for number in range(1, 4)]
    kills = 0
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.3"}, mode=None) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        with following(source, daemon, tmp_path / "follower") as follower:
            wait_until(lambda: slots(source) == ["dolake"], lambda: f"the slot\n{(tmp_path / 'follower').read_text()}", 60)
            for load in loads:
                load.start()

            def some_traffic() -> None:
                wanted = sum(load.transactions for load in loads) + chance.randrange(20, 120)
                wait_until(lambda: sum(load.transactions for load in loads) >= wanted, "transactions", 120)

            for _ in range(3 * rounds):
                for kill in (
                    lambda: kill_a_child(follower, chance),
                    lambda: stop_the_sender_and_kill_it(follower, source, loads),
                    lambda: daemon.kill(chance.choice(["ingest", "writer"])),
                    source.restart_immediately,
                ):
                    some_traffic()
                    kill()
                    kills += 1
            some_traffic()
            for load in loads:
                load.end()
            wanted = {table: rows_of(source, table) for table in COLUMNS}
            wait_until(
                lambda: all(rows_in(lake, table) == wanted[table] for table in COLUMNS),
                lambda: f"{differing(lake, wanted)}\n{(tmp_path / 'follower').read_text()[-3000:]}\n{daemon.tail()}",
                120,
            )
            # The round in which the last of it came is over: the server may let go of what dolake has.
            server_end = ask(source, "SELECT pg_current_wal_lsn()")
            source.run("INSERT INTO visits (page) VALUES ('the last')")
            confirmed = "SELECT bool_and(confirmed_flush_lsn >= %s::pg_lsn) FROM pg_replication_slots"
            wait_until(lambda: ask(source, confirmed, server_end), lambda: f"the slot\n{(tmp_path / 'follower').read_text()[-3000:]}", 60)
        letters = daemon.run("dead-letters", "list", "--json")
        assert letters.stdout.strip() in ("", "[]"), letters.stdout[:2000]
        verified = daemon.run("verify", deadline_s=120)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        report(kills=kills, transactions=sum(load.transactions for load in loads), **{table: len(wanted[table]) for table in COLUMNS})


def differing(lake: Lake, wanted: dict[str, list[tuple[Any, ...]]]) -> str:
    lines = []
    for table, rows in wanted.items():
        found = rows_in(lake, table)
        missing, extra = [row for row in rows if row not in found][:3], [row for row in found if row not in rows][:3]
        lines.append(f"{table}: {len(found)} rows of {len(rows)}; missing {missing}; too many {extra}")
    return "\n".join(line[:1500] for line in lines)

"""The catalog in a real PostgreSQL server: the same contract, durable, without a wait that does not end, and it comes back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event

from dolake.errors import CatalogUnreachable, CommitConflict
from dolake.iceberg import database, postgresql
from dolake.iceberg.catalog import SqlTableCatalog, has_catalog
from e2e.services.postgres import PostgresServer
from tests.harness.fault_proxy import TcpProxy
from tests.iceberg.catalog_contract import CONTRACT, TOGETHER, advance
from tests.iceberg.lake import TABLE, Lake, hand_runtime

_NUMBERS = itertools.count(1)


@pytest.fixture
def uri(postgres: PostgresServer) -> str:
    """Of an empty database."""
    return postgres.create(f"lake{next(_NUMBERS)}")


@pytest.fixture
def lake(uri: str, tmp_path: Path) -> Iterator[Lake]:
    lake = lake_at(uri, tmp_path)
    yield lake
    lake.close()


def lake_at(uri: str, directory: Path) -> Lake:
    return Lake(directory, open_catalog=lambda store, runtime: SqlTableCatalog(uri, store, runtime))


@pytest.mark.parametrize("rule", [*CONTRACT, *TOGETHER], ids=lambda rule: rule.__name__)
def test_the_contract_holds(rule: Callable[[Lake], None], lake: Lake) -> None:
    rule(lake)


def test_many_may_create_the_same_catalog_at_once(uri: str, tmp_path: Path) -> None:
    lakes = Lake(tmp_path).store

    def open_one(_: int) -> SqlTableCatalog:
        return SqlTableCatalog(uri, lakes, hand_runtime())

    assert not has_catalog(uri)
    with ThreadPoolExecutor(8) as pool:
        for catalog in list(pool.map(open_one, range(16))):
            assert catalog.list_tables() == []
            catalog.close()
    assert has_catalog(uri)


def test_asking_whether_there_is_a_catalog_makes_none(postgres: PostgresServer, uri: str) -> None:
    assert not has_catalog(uri)
    assert not has_catalog(uri)


def test_catalogs_of_two_names_share_a_database_and_see_nothing_of_each_other(lake: Lake, uri: str) -> None:
    other = SqlTableCatalog(uri, lake.store, lake.runtime, name="other")
    assert other.list_tables() == []
    assert other.load(TABLE) is None
    other.close()
    assert lake.catalog.list_tables() == [TABLE]


@pytest.mark.parametrize(
    "default",
    ["synchronous_commit = off", "synchronous_commit = local", "default_transaction_isolation = 'serializable'", "statement_timeout = 0"],
)
def test_what_a_role_has_as_default_does_not_weaken_a_commit(postgres: PostgresServer, uri: str, tmp_path: Path, default: str) -> None:
    postgres.run(f"ALTER ROLE lake SET {default}")
    try:
        lake = lake_at(uri, tmp_path)
        with lake.catalog._engine.connect() as connection:
            found = {
                name: connection.exec_driver_sql(f"SHOW {name}").scalar()
                for name in ("synchronous_commit", "transaction_isolation", "statement_timeout", "lock_timeout")
            }
        lake.close()
    finally:
        postgres.run("ALTER ROLE lake RESET ALL")
    assert found == {
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
        "statement_timeout": "10s",
        "lock_timeout": "10s",
    }


def test_a_role_that_waits_for_its_standbys_keeps_doing_so(postgres: PostgresServer, uri: str, tmp_path: Path) -> None:
    postgres.run("ALTER ROLE lake SET synchronous_commit = remote_apply")
    try:
        lake = lake_at(uri, tmp_path)
        with lake.catalog._engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "remote_apply"
        lake.close()
    finally:
        postgres.run("ALTER ROLE lake RESET ALL")


def test_a_server_that_restarts_or_dies_is_unreachable_and_then_is_not(postgres: PostgresServer, lake: Lake) -> None:
    landed = advance(lake, lake.current(), 1)
    postgres.restart_immediately()
    assert lake.current() == landed
    landed = advance(lake, landed, 2)
    postgres.kill()
    with pytest.raises(CatalogUnreachable, match=r"postgresql://lake:\*\*\*@127.0.0.1"):
        lake.catalog.load(TABLE)
    with pytest.raises(CatalogUnreachable):
        advance(lake, landed, 3)
    postgres.start()
    assert lake.current() == landed
    assert advance(lake, landed, 3).head_id == 3


def test_a_lock_that_somebody_holds_ends_the_wait_for_it(
    postgres: PostgresServer, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_POSTGRESQL_SESSION", database._POSTGRESQL_SESSION.replace("'10s'", "'300ms'"))
    lake = lake_at(uri, tmp_path)
    other = SqlTableCatalog(uri, lake.store, lake.runtime)
    with other._engine.connect() as holder:
        holder.exec_driver_sql("SELECT * FROM iceberg_tables FOR UPDATE")
        with pytest.raises(CatalogUnreachable, match="timeout"):
            advance(lake, lake.current(), 1)
    assert advance(lake, lake.current(), 2).head_id == 2
    other.close()
    lake.close()


def test_a_network_that_says_nothing_ends_the_wait_too(
    postgres: PostgresServer, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a statement, in the middle of one, and while a connection is made; the proxy confirms every byte."""
    monkeypatch.setattr(postgresql, "ANSWER_S_MAX", 0.5)
    monkeypatch.setitem(database._POSTGRESQL_PARAMETERS, "connect_timeout", "2")
    with TcpProxy(postgres.port) as proxy:
        lake = lake_at(postgres.uri(uri.rsplit("/", 1)[1], port=proxy.port), tmp_path)
        landed = advance(lake, lake.current(), 1)
        proxy.block()
        for _ in range(2):  # By a connection that was there, then by a new one.
            with pytest.raises(CatalogUnreachable):
                lake.catalog.load(TABLE)
        with pytest.raises(CatalogUnreachable):
            advance(lake, landed, 2)
        proxy.heal()
        after = lake.current()
        assert after.head_id in (1, 2)
        advance(lake, after, 3)
        lake.close()


def test_a_swap_that_landed_without_an_answer_is_found_by_looking(
    postgres: PostgresServer, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server commits, the answer never comes: unreachable, not a conflict and not a success."""
    monkeypatch.setattr(postgresql, "ANSWER_S_MAX", 1.0)
    with TcpProxy(postgres.port) as proxy:
        lake = lake_at(postgres.uri(uri.rsplit("/", 1)[1], port=proxy.port), tmp_path)
        base = lake.current()
        lose: Callable[..., None] = lambda _connection: proxy.lose_answers()  # noqa: E731  # The very same is taken away again.
        event.listen(lake.catalog._engine, "commit", lose)
        with pytest.raises(CatalogUnreachable):
            advance(lake, base, 1)
        event.remove(lake.catalog._engine, "commit", lose)
        proxy.heal()
        assert lake.current().head_id == 1
        with pytest.raises(CommitConflict):
            advance(lake, base, 2)
        lake.close()


@pytest.mark.parametrize(("old", "new"), [("lake:", "nobody:"), ("/lake", "/not_there"), (":pw-", ":not-")])
def test_a_database_that_refuses_is_named_without_the_password(
    postgres: PostgresServer, uri: str, tmp_path: Path, old: str, new: str
) -> None:
    wrong = uri.replace(old, new)
    with pytest.raises(CatalogUnreachable) as refused:
        SqlTableCatalog(wrong, Lake(tmp_path).store, hand_runtime())
    assert "127.0.0.1" in str(refused.value)
    assert postgres.password not in str(refused.value)
    assert postgres.password.replace("pw-", "not-") not in str(refused.value)

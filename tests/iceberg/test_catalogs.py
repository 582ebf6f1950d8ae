"""Every catalog keeps the one contract: SQLite's, and what PyIceberg opens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dolake.clock import Runtime
from dolake.config import CatalogSettings
from dolake.errors import TableStopped
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.pyiceberg_catalog import open_by_pyiceberg
from dolake.storage.store import ObjectStore
from tests.http.rest import serving
from tests.iceberg.catalog_contract import CONTRACT, TOGETHER, second_table, swap_of
from tests.iceberg.lake import Lake

Opener = Callable[[ObjectStore, Runtime], TableCatalog] | None


@contextlib.contextmanager
def sqlite(_directory: Path) -> Iterator[Opener]:
    """dolake's own."""
    yield None


@contextlib.contextmanager
def pyiceberg_sql(directory: Path) -> Iterator[Opener]:
    """PyIceberg's SQL catalog behind the door for all of PyIceberg's."""
    settings = CatalogSettings(type="sql", properties={"uri": f"sqlite:///{directory}/theirs.db"})
    yield lambda store, _runtime: open_by_pyiceberg(settings, store)


@contextlib.contextmanager
def rest(directory: Path) -> Iterator[Opener]:
    """A REST catalog on a real socket: dolake's."""
    with serving(directory) as server:
        yield lambda store, _runtime: open_by_pyiceberg(rest_settings(server.url), store)


def rest_settings(url: str, **more: str) -> CatalogSettings:
    return CatalogSettings(type="rest", properties={"uri": url, **more})


@pytest.fixture(params=[sqlite, pyiceberg_sql, rest], ids=lambda kind: kind.__name__)
def lake_in(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lake]:
    with request.param(tmp_path) as open_catalog:
        lake = Lake(tmp_path, open_catalog=open_catalog)
        yield lake
        lake.close()


@pytest.mark.parametrize("rule", CONTRACT, ids=lambda rule: rule.__name__)
def test_the_contract_holds(rule: Callable[[Lake], None], lake_in: Lake) -> None:
    rule(lake_in)


@pytest.mark.parametrize("rule", TOGETHER, ids=lambda rule: rule.__name__)
def test_a_database_swaps_several_tables_together(rule: Callable[[Lake], None], tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rule(lake)
    lake.close()


@pytest.mark.parametrize("kind", [pyiceberg_sql, rest], ids=lambda kind: kind.__name__)
def test_others_refuse_it_by_name_and_do_nothing(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    with kind(tmp_path) as open_catalog:
        lake = Lake(tmp_path, open_catalog=open_catalog)
        bases = [lake.current(), second_table(lake)]
        with pytest.raises(TableStopped, match="put it in no group"):
            lake.catalog.swap_together([swap_of(lake, base, 1) for base in bases])
        assert [lake.catalog.load(base.name) for base in bases] == bases
        lake.close()

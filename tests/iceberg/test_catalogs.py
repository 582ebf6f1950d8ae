"""Every catalog keeps the one contract: SQLite's, and what PyIceberg opens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dolake.clock import Runtime
from dolake.config import CatalogSettings
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.pyiceberg_catalog import open_by_pyiceberg
from dolake.storage.store import ObjectStore
from tests.http.rest import serving
from tests.iceberg.catalog_contract import CONTRACT
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

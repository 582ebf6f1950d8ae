"""Reading the tables as anybody would: DuckDB and PyIceberg on the catalog and the warehouse, without the product."""

from __future__ import annotations

import json
import sqlite3
import sysconfig
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import psycopg
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

_EXTENSIONS = ("avro", "httpfs", "iceberg")


class Lake:
    """The tables of one daemon. `settings` are what it was given of `DOLAKE_S3_…` and `DOLAKE_CATALOG_URI`, if anything."""

    def __init__(self, data: Path, settings: Mapping[str, str] | None = None) -> None:
        self.data = data
        self._s3 = {name: value for name, value in (settings or {}).items() if name.startswith("DOLAKE_S3_")}
        self._uri = (settings or {}).get("DOLAKE_CATALOG_URI") or f"sqlite:///{data}/catalog.db"
        self._database: duckdb.DuckDBPyConnection | None = None

    def metadata_location(self, table: str) -> str | None:
        """What the catalog says is the table's metadata file now; None if there is no such table."""
        namespace, name = _parts(table)
        if self._uri.startswith("postgresql:"):
            return self._location_in_postgresql(namespace, name)
        path = Path(self._uri.removeprefix("sqlite:///"))
        if not path.exists():
            return None
        query = "SELECT metadata_location FROM iceberg_tables WHERE catalog_name = 'dolake' AND table_namespace = ? AND table_name = ?"
        # As PyIceberg opens it: a reader that may not write cannot take back what a killed writer left half done.
        connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=30)
        try:
            row = connection.execute(query, (namespace, name)).fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return None
            raise
        finally:
            connection.close()
        return row[0] if row else None

    def _location_in_postgresql(self, namespace: str, name: str) -> str | None:
        query = "SELECT metadata_location FROM iceberg_tables WHERE catalog_name = 'dolake' AND table_namespace = %s AND table_name = %s"
        with psycopg.connect(self._uri) as connection:
            try:
                row = connection.execute(query, (namespace, name)).fetchone()
            except psycopg.errors.UndefinedTable:
                return None
        return row[0] if row else None

    def metadata(self, table: str) -> dict[str, Any]:
        """A local table's metadata file."""
        location = self.metadata_location(table)
        assert location is not None, f"no table {table}"
        return read_metadata(location)

    def snapshots(self, table: str) -> list[dict[str, Any]]:
        """The retained snapshots of a local table; none if there is no such table yet."""
        location = self.metadata_location(table)
        return [] if location is None else list(read_metadata(location).get("snapshots", []))

    def row_count(self, table: str) -> int:
        """Rows as DuckDB counts them; 0 if there is no such table."""
        location = self.metadata_location(table)
        return 0 if location is None else self.query(f"SELECT count(*) FROM iceberg_scan('{location}')")[0][0]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return self.database().execute(sql).fetchall()

    def database(self) -> duckdb.DuckDBPyConnection:
        if self._database is None:
            self._database = duckdb.connect()
            self._database.execute("SET TimeZone = 'UTC'")
            for name in _EXTENSIONS:
                (path,) = Path(sysconfig.get_paths()["purelib"], f"duckdb_extension_{name}").glob(f"extensions/*/{name}.duckdb_extension")
                self._database.execute(f"LOAD '{path}'")
            if self._s3:
                self._database.execute(self._secret())
        return self._database

    def _secret(self) -> str:
        endpoint = urlsplit(self._s3["DOLAKE_S3_ENDPOINT"])
        options = {
            "KEY_ID": self._s3["DOLAKE_S3_ACCESS_KEY"],
            "SECRET": self._s3["DOLAKE_S3_SECRET_KEY"],
            "REGION": self._s3["DOLAKE_S3_REGION"],
            "ENDPOINT": endpoint.netloc,
            "URL_STYLE": "path",
        }
        quoted = ", ".join(f"{name} '{value}'" for name, value in options.items())
        return f"CREATE SECRET (TYPE s3, {quoted}, USE_SSL {endpoint.scheme == 'https'})"

    def read_duckdb(self, table: str) -> pa.Table:
        location = self.metadata_location(table)
        assert location is not None, f"no table {table}"
        return self.database().execute(f"SELECT * FROM iceberg_scan('{location}')").to_arrow_table()

    def catalog(self) -> SqlCatalog:
        properties = {"uri": self._uri.replace("postgresql:", "postgresql+psycopg:")}
        if self._s3:
            properties |= {
                "s3.endpoint": self._s3["DOLAKE_S3_ENDPOINT"],
                "s3.region": self._s3["DOLAKE_S3_REGION"],
                "s3.access-key-id": self._s3["DOLAKE_S3_ACCESS_KEY"],
                "s3.secret-access-key": self._s3["DOLAKE_S3_SECRET_KEY"],
                "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
            }
        return SqlCatalog("dolake", **properties)

    def read_pyiceberg(self, table: str) -> pa.Table:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Its own libraries' deprecations are not ours to judge.
            return self.load_pyiceberg(table).scan().to_arrow()

    def load_pyiceberg(self, table: str) -> Table:
        catalog = self.catalog()
        try:
            return catalog.load_table(_parts(table))
        finally:
            catalog.close()

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metadata(location: str) -> dict[str, Any]:
    """A metadata file of a local warehouse."""
    content: dict[str, Any] = json.loads(Path(urlsplit(location).path).read_bytes())
    return content


def _parts(table: str) -> tuple[str, str]:
    namespace, _, name = table.rpartition(".")
    return namespace or "default", name

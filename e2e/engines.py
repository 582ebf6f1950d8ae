"""The same SQL to every engine, through a daemon's REST catalog and its bucket; and to the oracle, which is no lake at all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import duckdb
import pyarrow as pa
from pyiceberg.catalog.rest import RestCatalog

from e2e.services.s3 import S3Server
from e2e.services.spark import Spark
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake

Rows = list[tuple[Any, ...]]
_TABLE = re.compile(r"\{lake\}\.((?!system\b)\w+)\.(\w+)")  # Procedures are in `system`.


class Engines:
    """Statements name tables as `{lake}.namespace.table`, and say in what order the rows come. Without `s3` the lake is a folder."""

    def __init__(self, daemon: Daemon, s3: S3Server | None, spark: Spark) -> None:
        self.http = daemon.wait_ready().http
        self.spark = spark
        self.spark_name = spark.attach(self.http, _for_spark(s3))
        self.pyiceberg = RestCatalog("lake", uri=self.http, **_for_pyiceberg(s3))
        self._lake = Lake(daemon.data, s3.settings() if s3 is not None else {})
        self.duckdb = self._lake.database()
        self.duckdb.execute(f"ATTACH 'dolake' AS lake (TYPE iceberg, ENDPOINT '{self.http}', AUTHORIZATION_TYPE 'none')")

    def ask(self, statement: str) -> dict[str, Rows]:
        """What each of them answers."""
        return {"duckdb": self.by_duckdb(statement), "pyiceberg": self.by_pyiceberg(statement), "spark": self.by_spark(statement)}

    def by_duckdb(self, statement: str) -> Rows:
        return rows_of(self.duckdb.execute(statement.format(lake="lake")).to_arrow_table())

    def by_spark(self, statement: str) -> Rows:
        for namespace, table in _TABLE.findall(statement):
            self.spark.sql(f"REFRESH TABLE {self.spark_name}.{namespace}.{table}")
        return self.spark.sql(statement.format(lake=self.spark_name))

    def by_pyiceberg(self, statement: str) -> Rows:
        """PyIceberg reads the tables; it has no SQL, so that is the oracle's."""
        tables = {name: self.scan(name) for name in {".".join(found) for found in _TABLE.findall(statement)}}
        return ask_oracle(tables, statement)

    def scan(self, name: str) -> pa.Table:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Its own libraries' deprecations are not ours to judge.
            return self.pyiceberg.load_table(name).scan().to_arrow()

    def close(self) -> None:
        self._lake.close()
        self.pyiceberg.close()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _for_spark(s3: S3Server | None) -> dict[str, str]:
    if s3 is None:
        return {}
    place = {"s3.endpoint": s3.endpoint, "s3.path-style-access": "true", "client.region": s3.region}
    return {"io-impl": "org.apache.iceberg.aws.s3.S3FileIO", "http-client.type": "urlconnection", **place, **_keys(s3)}


def _for_pyiceberg(s3: S3Server | None) -> dict[str, str]:
    if s3 is None:
        return {}
    return {"s3.endpoint": s3.endpoint, "s3.region": s3.region, "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO", **_keys(s3)}


def _keys(s3: S3Server) -> dict[str, str]:
    return {"s3.access-key-id": s3.access_key, "s3.secret-access-key": s3.secret_key}


def ask_oracle(tables: Mapping[str, pa.Table], statement: str) -> Rows:
    """The same statement over rows in memory, by `namespace.table`."""
    with duckdb.connect() as database:
        database.execute("SET TimeZone = 'UTC'")
        for name, rows in tables.items():
            database.register("rows_of_it", rows)
            database.execute(f"CREATE SCHEMA IF NOT EXISTS {name.split('.', maxsplit=1)[0]}; CREATE TABLE {name} AS FROM rows_of_it")
            database.unregister("rows_of_it")
        return rows_of(database.execute(statement.format(lake="memory")).to_arrow_table())


def rows_of(table: pa.Table) -> Rows:
    """As Python's own values; a uuid as its text, which is what Spark makes of it."""
    columns = [[str(value) if isinstance(value, UUID) else value for value in column.to_pylist()] for column in table.columns]
    return list(zip(*columns, strict=True))

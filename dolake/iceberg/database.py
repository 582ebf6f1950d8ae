"""The database behind a SQL catalog: SQLite or PostgreSQL, opened so that a commit which returned survives a power cut.

Every wait in it has an end. What a statement that took too long has done is unknown, as after any other trouble; its
connection is given up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import DisconnectionError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

if TYPE_CHECKING:
    import psycopg

# How long a statement waits for another process's write, or for an answer, before its outcome counts as unknown.
WAIT_S_MAX = 10
_OPEN_TRIES = 4
File = tuple[int, int]  # device and inode
_FILE = "file"
# libpq's, below what the URI itself says. The first covers names, routes and greetings; the others a network that has gone
# away without a word: bytes that nobody confirms, and a connection on which nothing is sent.
_POSTGRESQL_PARAMETERS = {
    "connect_timeout": str(WAIT_S_MAX),
    "tcp_user_timeout": str(WAIT_S_MAX * 1000),
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "application_name": "dolake",
}
# Of a session, whatever the role, the database or the server have as default. An UPDATE whose WHERE names the old value is a
# compare-and-swap where each statement sees what is committed: one that waited for another looks at the row again.
_POSTGRESQL_SESSION = f"""
SELECT set_config('statement_timeout', '{WAIT_S_MAX}s', false),
       set_config('lock_timeout', '{WAIT_S_MAX}s', false),
       set_config('idle_in_transaction_session_timeout', '{2 * WAIT_S_MAX}s', false),
       set_config('default_transaction_isolation', 'read committed', false),
       CASE WHEN current_setting('synchronous_commit') <> 'remote_apply' THEN set_config('synchronous_commit', 'on', false) END
"""


def open_database(name: str, uri: str, warehouse: str) -> SqlCatalog:
    """PyIceberg's catalog over the database, its two tables created if need be. Raises SQLAlchemyError.

    Creating fails if another process creates one of the tables meanwhile: then it is there the next time.
    """
    catalog = _open(name, uri, warehouse)
    if catalog.engine.dialect.name == "sqlite":
        _SameFile(catalog.engine)
    return catalog


def _open(name: str, uri: str, warehouse: str) -> SqlCatalog:
    for _ in range(_OPEN_TRIES - 1):
        try:
            return _Catalog(name, uri=_driver_uri(uri), warehouse=warehouse, pool_pre_ping="true")
        except (IntegrityError, ProgrammingError):
            continue
        except OperationalError:
            if not uri.startswith("sqlite:"):  # A server that does not answer takes long enough to say so once.
                raise
    return _Catalog(name, uri=_driver_uri(uri), warehouse=warehouse, pool_pre_ping="true")


def opened_file(connection: Connection) -> File | None:
    """Which file a connection is to; None of a server's."""
    file: File | None = connection.info.get(_FILE)
    return file


def file_behind(engine: Engine) -> File | None:
    """Which file a SQLite catalog's path leads to now; None where there is none, and of a server's."""
    if engine.dialect.name != "sqlite":
        return None
    try:
        found = os.stat(engine.url.database or "")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def has_tables(uri: str) -> bool:
    """Whether a catalog was ever made in the database, which is not made either. Raises SQLAlchemyError."""
    url = make_url(uri)
    if url.get_backend_name() == "sqlite":
        return os.path.exists(str(url.database))
    engine = create_engine(_driver_uri(uri))
    try:
        _prepare(engine)
        return inspect(engine).has_table(IcebergTables.__tablename__)
    finally:
        engine.dispose()


def shown(uri: str) -> str:
    """A URI as people may see it: without its password, and without parameters, among which there may be one."""
    return make_url(uri).set(query={}).render_as_string(hide_password=True)


def said(error: SQLAlchemyError) -> str:
    """The database's own words where there are any; without the statement and what SQLAlchemy adds to it."""
    return str(getattr(error, "orig", None) or error).strip()


class _Catalog(SqlCatalog):
    """PyIceberg's, whose connections are prepared before there is any."""

    def _init_catalog(self) -> None:
        _prepare(self.engine)
        try:
            super()._init_catalog()
        except SQLAlchemyError:
            self.engine.dispose()
            raise


def _prepare(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _make_durable)
    else:
        event.listen(engine, "do_connect", _connect_postgresql)


def _driver_uri(uri: str) -> str:
    """The same for SQLAlchemy: it wants to be told which driver."""
    url: URL = make_url(uri)
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg", query={**_POSTGRESQL_PARAMETERS, **url.query})
    return url.render_as_string(hide_password=False)


def _make_durable(connection: Any, _record: Any) -> None:
    """A commit that returned survives a power cut.

    FULL alone is not enough with SQLite's default journal: its unlinking is not synced, and a journal that comes back rolls
    the commit back. Truncating the journal instead is synced under FULL. A database that somebody switched to a write-ahead
    log is left so; FULL syncs that log at each commit.
    """
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={WAIT_S_MAX * 1000}")
    cursor.execute("PRAGMA synchronous=FULL")
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode=TRUNCATE")
    cursor.close()


class _SameFile:
    """Told of a SQLite catalog's connections: none goes to a file that is gone, or that another one has replaced."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        engine.dispose()  # What was pooled so far has not been noted.
        event.listen(engine, "do_connect", self._note)
        event.listen(engine, "checkout", self._require)

    def _note(self, _dialect: Any, record: Any, *_: Any) -> None:
        """Before it is opened. SQLite would make an empty file where there is none, in which no table is known."""
        file = file_behind(self._engine)
        if file is None:
            raise DisconnectionError("the file is gone: restore it")
        if record is not None:
            record.info[_FILE] = file

    def _require(self, _connection: Any, record: Any, _proxy: Any) -> None:
        """One that somebody has put in the file's place (a restored copy) is opened; what the old one is told nobody would find."""
        if record.info.get(_FILE) != file_behind(self._engine):
            raise DisconnectionError("the file was replaced")


def _connect_postgresql(_dialect: Any, _record: Any, arguments: Any, parameters: Any) -> psycopg.Connection[Any]:
    from dolake.iceberg.postgresql import BoundedConnection

    connection = BoundedConnection.connect(*arguments, **parameters)
    connection.execute(_POSTGRESQL_SESSION)
    connection.commit()  # Or a rollback would take the settings with it.
    return connection

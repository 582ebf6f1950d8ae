"""Any catalog that PyIceberg opens: REST, Glue, Hive, … behind the same door as our own.

A load is always PyIceberg's, never from memory; a swap is one `commit_table` with the requirements and updates as they were
planned. PyIceberg's transactions are not used: they take a stale plan to a newer table, and delete files on an outcome that
they do not know. Where PyIceberg writes a metadata file itself (every catalog but REST) it does so through dolake's store.

Such a catalog holds the requirements against the table as it is when the request arrives, which may have other properties
than `base`, or other tags. Everything else that a plan reads is pinned by requirements of ours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, cast

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.rest import Capability, RestCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    NotInstalledError,
    TableAlreadyExistsError,
)
from pyiceberg.schema import Schema
from pyiceberg.table import CommitTableRequest, CommitTableResponse, Table

from dolake import failpoints
from dolake.config import CatalogSettings
from dolake.errors import (
    CatalogUnreachable,
    CommitConflict,
    ConfigurationError,
    DolakeError,
    MetadataMissing,
    Mistake,
    ObjectMissing,
    TableStopped,
)
from dolake.iceberg.catalog import Swap, require_within
from dolake.iceberg.file_io import StoreFileIO, StoreInputFile, StoreOutputFile, decoding
from dolake.iceberg.metadata import MAIN, LoadedTable, Requirement, Update, from_bytes
from dolake.iceberg.names import lies_within
from dolake.model import TABLE_PART, TableName
from dolake.storage.store import ObjectStore

# How long a REST catalog may take to be connected to, and to say the next word; PyIceberg itself waits for ever.
ANSWER_S_MAX = 10.0
_STORE = "dolake.store"
# What REST catalogs call it when there is no table of a name, or no namespace.
_NO_TABLE = re.compile(r"NoSuch\w+Exception|EntityNotFoundException|\w*(Table|Namespace)NotFound")
_NEEDED = (
    *(Capability.V1_LIST_NAMESPACES, Capability.V1_CREATE_NAMESPACE, Capability.V1_LIST_TABLES),
    *(Capability.V1_LOAD_TABLE, Capability.V1_CREATE_TABLE, Capability.V1_UPDATE_TABLE),
)


def open_by_pyiceberg(settings: CatalogSettings, store: ObjectStore) -> PyIcebergTableCatalog:
    """Raises CatalogUnreachable, and ConfigurationError for a catalog in which dolake could not keep tables."""
    properties = {"glue.max-retries": "2", **settings.properties, _STORE: store, "py-io-impl": f"{__name__}.{SettledFileIO.__name__}"}
    reported = _Reported(f"{settings.type} catalog {settings.name}", settings.secrets)
    try:
        with reported("opened"):
            if settings.type == "rest":
                catalog: Catalog = _BoundedRestCatalog(settings.name, **cast(dict[str, str], properties))
            else:
                catalog = load_catalog(settings.name, type=settings.type, **cast(dict[str, str], properties))
    except NotInstalledError as error:
        raise _refused("type", settings.type, f"needs a library that is not installed: {error}") from error
    if isinstance(catalog, RestCatalog) and (missing := [str(one) for one in _NEEDED if one not in catalog._supported_endpoints]):
        raise _refused("properties.uri", settings.properties["uri"], f"must be a catalog that serves {', '.join(missing)}")
    warehouse = str(catalog.properties.get("warehouse") or "")
    if "://" in warehouse and not lies_within(warehouse, store.root) and not lies_within(store.root, warehouse):
        raise _refused("properties.warehouse", warehouse, f"must be where warehouse.uri is ({store.root}), or the other way round")
    return PyIcebergTableCatalog(catalog, store, reported)


class PyIcebergTableCatalog:
    """Tables in a catalog of PyIceberg's. Safe to call from several threads, as far as the catalog is."""

    def __init__(self, catalog: Catalog, store: ObjectStore, reported: _Reported) -> None:
        self._catalog, self._store, self._reported = catalog, store, reported

    def close(self) -> None:
        self._catalog.close()

    def load(self, table: TableName) -> LoadedTable | None:
        try:
            with self._reported("read"):
                found = self._catalog.load_table(_identifier(table))
        except (NoSuchTableError, NoSuchNamespaceError):
            return None
        except _Outside as outside:
            require_within(table, str(outside), self._store.root)
            raise
        return self._as_loaded(table, found)

    def create(self, table: TableName, metadata: dict[str, Any]) -> LoadedTable:
        """The table gets the columns' ids that it was planned with; its uuid, and its place if it insists, are the catalog's."""
        try:
            with self._reported("written"):
                with suppress(NamespaceAlreadyExistsError):
                    if not self._catalog.namespace_exists(table.namespace):
                        self._catalog.create_namespace(table.namespace)
                schema = Schema.model_validate(metadata["schemas"][0])
                staged = self._catalog.create_table_transaction(_identifier(table), schema, location=metadata["location"]).table_metadata
            require_within(table, staged.location, self._store.root)
            updates = _updates_of_new(metadata, uuid=str(staged.table_uuid), location=staged.location)
            return self._commit(table, [{"type": "assert-create"}], updates)
        except (TableAlreadyExistsError, CommitFailedException, _Outside) as error:
            raise CommitConflict(f"{table}: the catalog has a table of this name already") from error

    def swap(self, base: LoadedTable, requirements: Sequence[Requirement], updates: Sequence[Update]) -> LoadedTable:
        failpoints.hit("catalog.before_swap")
        pins = [pin for pin in _pins(base) if pin not in requirements]
        try:
            landed = self._commit(base.name, [*requirements, *pins], updates)
        except (CommitFailedException, NoSuchTableError, _Outside) as error:
            raise CommitConflict(f"{base.name}: {self._reported.masked(error)}") from error
        failpoints.hit("catalog.after_swap")
        return landed

    def swap_together(self, swaps: Sequence[Swap]) -> list[LoadedTable]:
        """PyIceberg commits one table at a time, whatever the catalog behind it could do."""
        reason = "its catalog cannot change several tables in one transaction: put it in no group, or keep the tables in a sql catalog"
        raise TableStopped(str(swaps[0].base.name), reason, field="group")

    def list_tables(self) -> list[TableName]:
        """Tables with names that dolake can give; others are not ours to touch."""
        found: list[tuple[str, ...]] = []
        with self._reported("read"):
            for namespace in self._catalog.list_namespaces():
                with suppress(NoSuchNamespaceError):  # Dropped since it was listed.
                    found += self._catalog.list_tables(namespace)
        return sorted(TableName(*one) for one in found if len(one) == 2 and all(TABLE_PART.fullmatch(part) for part in one))

    def drop(self, base: LoadedTable) -> None:
        """No catalog drops on a condition: a commit between the look and the drop goes with the table."""
        now = self.load(base.name)
        if now is None or now.metadata_location != base.metadata_location:
            raise CommitConflict(f"{base.name}: the table is not at {base.metadata_location} any more")
        try:
            with self._reported("written"):
                self._catalog.drop_table(_identifier(base.name))
        except NoSuchTableError as error:
            raise CommitConflict(f"{base.name}: somebody else has dropped it") from error

    def _commit(self, table: TableName, requirements: Sequence[Requirement], updates: Sequence[Update]) -> LoadedTable:
        named = {"namespace": [table.namespace], "name": table.name}
        request = CommitTableRequest.model_validate({"identifier": named, "requirements": requirements, "updates": updates})
        with self._reported("written"):
            answer = self._catalog.commit_table(cast(Table, _Named(table)), request.requirements, request.updates)
        return self._as_loaded(table, answer)

    def _as_loaded(self, table: TableName, found: Table | CommitTableResponse) -> LoadedTable:
        metadata = from_bytes(found.metadata.model_dump_json().encode())
        require_within(table, metadata["location"], self._store.root, known=found.metadata_location)
        return LoadedTable(table, metadata, found.metadata_location)


class SettledFileIO(StoreFileIO):
    """Metadata files that PyIceberg's catalogs read and write themselves: durable, name and all, before the catalog names them."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        super().__init__(properties[_STORE])

    def new_input(self, location: str, size_bytes: int | None = None) -> StoreInputFile:
        if not lies_within(location, self._store.root):
            raise _Outside(location)
        return _MetadataFile(self._store, location, size_bytes)

    def new_output(self, location: str) -> StoreOutputFile:
        return StoreOutputFile(_SettlingStore(self._store), location)  # type: ignore[arg-type]  # It is asked for no more than this.


class _MetadataFile(StoreInputFile):
    def open(self, seekable: bool = True) -> _Metadata:
        """Raises MetadataMissing, ObjectDamaged, StoreUnreachable."""
        try:
            return _Metadata(self.location, super().open(seekable).read())
        except ObjectMissing as error:
            raise MetadataMissing(f"the catalog names {self.location}, which is not in the warehouse: restore it") from error


class _Metadata(io.BytesIO):
    """PyIceberg decodes while it is open: what stops it then is damage to the file."""

    def __init__(self, location: str, data: bytes) -> None:
        super().__init__(data)
        self._location = location

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        super().__exit__(kind, error, traceback)
        if error is not None:
            with decoding(self._location):
                raise error


class _Outside(Exception):
    """A location that is not in the warehouse."""


class _SettlingStore:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.size = store.size

    def put(self, location: str, data: bytes | memoryview) -> None:
        self._store.put(location, data)
        self._store.settle([location])


class _BoundedRestCatalog(RestCatalog):
    """PyIceberg's, with an end to every wait: it configures each session that it makes, before it asks anything by it."""

    def _config_headers(self, session: Any) -> None:
        session.request = partial(session.request, timeout=ANSWER_S_MAX)
        super()._config_headers(session)

    def load_table(self, identifier: Any) -> Table:
        """A 404 that says nothing of a table is some proxy's: whether there is one is not known then."""
        try:
            return cast(Table, super().load_table(identifier))
        except NoSuchTableError as error:
            if _NO_TABLE.match(str(error)):
                raise
            raise CatalogUnreachable(f"what answers at {self.uri} is no catalog, or not at this address: {error}") from error


class _Named:
    """All that `commit_table` asks of a table. One without a token of its own, which would become the whole session's."""

    config: Mapping[str, str] = {}

    def __init__(self, table: TableName) -> None:
        self._identifier = _identifier(table)

    def name(self) -> tuple[str, str]:
        return self._identifier


# What a caller can tell from any other trouble: these say that the catalog was asked and answered.
_ANSWERS = (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    NotInstalledError,
    TableAlreadyExistsError,
    _Outside,
)


class _Reported:
    """Turns whatever a library may raise into CatalogUnreachable, without the secrets that it was given."""

    def __init__(self, what: str, secrets: Sequence[str]) -> None:
        self._what, self._secrets = what, secrets

    @contextmanager
    def __call__(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (DolakeError, *_ANSWERS):
            raise
        except Exception as error:  # Each catalog has its own library, each library its own errors: the outcome is unknown.
            raise CatalogUnreachable(f"the {self._what} could not be {verb}: {self.masked(error)}") from error

    def masked(self, error: Exception) -> str:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _pins(base: LoadedTable) -> Iterator[Requirement]:
    """What holds while the table is as it was loaded."""
    yield {"type": "assert-table-uuid", "uuid": base.uuid}
    yield {"type": "assert-ref-snapshot-id", "ref": MAIN, "snapshot-id": base.head_id}
    for key in ("current-schema-id", "default-spec-id", "default-sort-order-id"):
        yield {"type": f"assert-{key}", key: base.metadata[key]}
    yield {"type": "assert-last-assigned-field-id", "last-assigned-field-id": base.metadata["last-column-id"]}
    yield {"type": "assert-last-assigned-partition-id", "last-assigned-partition-id": base.metadata["last-partition-id"]}


def _updates_of_new(metadata: Mapping[str, Any], *, uuid: str, location: str) -> list[Update]:
    """Everything that makes a table of nothing."""
    return [
        {"action": "assign-uuid", "uuid": uuid},
        {"action": "upgrade-format-version", "format-version": metadata["format-version"]},
        {"action": "add-schema", "schema": metadata["schemas"][0]},
        {"action": "set-current-schema", "schema-id": -1},
        {"action": "add-spec", "spec": metadata["partition-specs"][0]},
        {"action": "set-default-spec", "spec-id": -1},
        {"action": "add-sort-order", "sort-order": metadata["sort-orders"][0]},
        {"action": "set-default-sort-order", "sort-order-id": -1},
        {"action": "set-location", "location": location},
        {"action": "set-properties", "updates": metadata["properties"]},
    ]


def _identifier(table: TableName) -> tuple[str, str]:
    return (table.namespace, table.name)


def _refused(field: str, value: str, rule: str) -> ConfigurationError:
    return ConfigurationError([Mistake(f"catalog.{field}", value, rule)])

"""Tables that REST clients create, register, rename and drop. Blocking; raises what `rest_errors` makes."""

from __future__ import annotations

from pyiceberg.table.metadata import TableMetadataUtil

from dolake.clock import Runtime
from dolake.errors import ObjectMissing, StoreUnreachable
from dolake.iceberg.catalog_rows import CatalogRows, NameTaken
from dolake.iceberg.identifiers import Identifier, Namespace, default_location, require_unreserved
from dolake.iceberg.metadata import FORMAT_VERSION, LoadedTable, from_bytes, new_table
from dolake.iceberg.ownership import require_disowned, require_unclaimed
from dolake.iceberg.purge import named_files, purge
from dolake.iceberg.rest_commit import Planned, RestCommits
from dolake.iceberg.rest_errors import bad_request, commit_failed, exists, no_table
from dolake.iceberg.rest_reading import RestReading
from dolake.iceberg.rest_requests import CreateTable, RegisterTable
from dolake.iceberg.structure import fresh_structure, judged
from dolake.iceberg.table_change import outside
from dolake.iceberg.updates import checked_properties
from dolake.storage.store import ObjectStore

_TRIES = 5


class RestTables:
    """Whole tables of one catalog."""

    def __init__(self, rows: CatalogRows, reading: RestReading, commits: RestCommits, store: ObjectStore, runtime: Runtime) -> None:
        self._rows, self._reading, self._commits, self._store, self._runtime = rows, reading, commits, store, runtime

    def plan_create(self, namespace: Namespace, request: CreateTable) -> Planned:
        """A new table, not made yet: a client may stage it and commit it later."""
        identifier = Identifier.of(namespace, request.name)
        require_unreserved(identifier)
        self._commits.require_namespace(identifier)
        if self._reading.table(identifier) is not None:
            raise _taken(identifier)
        schema, spec, order = fresh_structure(request.schema, request.partition_spec, request.write_order)
        properties = checked_properties(request.properties or {})
        require_unclaimed(properties)
        uuid = self._runtime.random.uuid()
        location = (request.location or default_location(self._store.root, identifier, uuid)).rstrip("/")
        self._require_inside(location, "location")
        self._commits.require_free(location, identifier)
        now_ms = self._runtime.clock.now_ms()
        metadata = new_table(uuid=uuid, location=location, schema=schema, spec=spec, properties=properties, now_ms=now_ms)
        unsorted = metadata["sort-orders"]
        metadata |= {"sort-orders": [order] if order["fields"] else unsorted, "default-sort-order-id": order["order-id"]}
        return Planned(identifier, None, metadata)

    def create(self, planned: Planned) -> str:
        """Where the new table's metadata is."""
        locations = self._commits.swap_in([planned])
        if locations is None:
            raise _taken(planned.identifier)
        return locations[0]

    def register(self, namespace: Namespace, request: RegisterTable) -> str:
        """A table whose files are there already: the catalog gets its row. Returns where its metadata is."""
        identifier = Identifier.of(namespace, request.name)
        require_unreserved(identifier)
        self._commits.require_namespace(identifier)
        location = request.metadata_location
        self._require_metadata(location, identifier)
        base = self._reading.table(identifier)
        if base is not None and not request.overwrite:
            raise _taken(identifier)
        if base is not None:
            require_disowned(identifier, base.metadata, "overwritten")
        try:
            with self._rows.changing() as connection:
                if base is None:
                    self._rows.insert_table(connection, identifier, location)
                elif not self._rows.swap(connection, identifier, base.metadata_location, location):
                    raise commit_failed(f"{identifier}: somebody has just changed it: load it, and try again")
        except NameTaken:
            raise _taken(identifier) from None
        return location

    def rename(self, source: Identifier, destination: Identifier) -> None:
        """The table keeps its location and all its files."""
        require_unreserved(source)
        require_unreserved(destination)
        for _ in range(_TRIES):
            base = self._existing(source)
            require_disowned(source, base.metadata, "renamed")
            self._commits.require_namespace(destination)
            try:
                with self._rows.changing() as connection:
                    if self._rows.rename(connection, source, base.metadata_location, destination):
                        return
            except NameTaken:
                raise _taken(destination) from None
        raise commit_failed(f"{source}: others have committed to it again and again meanwhile: try again")

    def drop(self, identifier: Identifier) -> LoadedTable:
        """Out of the catalog; its files stay. Returns it as it was."""
        for _ in range(_TRIES):
            base = self._existing(identifier)
            require_disowned(identifier, base.metadata, "dropped")
            with self._rows.changing() as connection:
                if self._rows.delete_table(connection, identifier, base.metadata_location):
                    return base
        raise commit_failed(f"{identifier}: others have committed to it again and again meanwhile: try again")

    def purge(self, dropped: LoadedTable) -> str | None:
        """Deletes the files that a dropped table names, those below its location and no others. Why some are left, if any are."""
        try:
            files = named_files(self._store, dropped.metadata_location)
            purge(self._store, [file for file in files if outside(dropped.location, file) is None])
        except (StoreUnreachable, ObjectMissing, ValueError) as error:
            return str(error)
        return None

    def _existing(self, identifier: Identifier) -> LoadedTable:
        base = self._reading.table(identifier)
        if base is None:
            raise no_table(identifier)
        return base

    def _require_inside(self, location: str, what: str) -> None:
        problem = outside(self._store.root, location)
        if problem is not None:
            raise bad_request(f"{what}: {problem}")

    def _require_metadata(self, location: str, identifier: Identifier) -> None:
        """Raises CatalogRefusal (400) unless a table's metadata lies there, in the warehouse, and belongs to no other table."""
        self._require_inside(location, "metadata-location")
        try:
            data = self._store.get(location)
        except ObjectMissing:
            raise bad_request(f"metadata-location: there is nothing at {location}") from None
        metadata = judged("metadata-location: not a table's metadata", lambda: from_bytes(data))
        # Parsed once more, for PyIceberg changes what it is given.
        judged("metadata-location: not a table's metadata", lambda: TableMetadataUtil.parse_obj(from_bytes(data)))
        if metadata["format-version"] > FORMAT_VERSION:
            raise bad_request(f"metadata-location: format version {metadata['format-version']}: tables here have {FORMAT_VERSION}")
        self._require_inside(str(metadata["location"]), "the metadata's location")
        self._commits.require_free(str(metadata["location"]).rstrip("/"), identifier)


def _taken(identifier: Identifier) -> Exception:
    return exists(f"there is a table {identifier} already")

"""Commits of REST clients, to one table or to several at once: load, check, put the metadata, swap; all swaps in one transaction.

Nothing is swapped but what was planned from exactly the metadata that is swapped out. Where somebody else was faster, the
requirements are checked again against what they made of the table, and the updates put on top of that: so no update is lost,
neither theirs nor this one. No file is ever deleted because a commit failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dolake import failpoints
from dolake.clock import Runtime
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.catalog_rows import CatalogRows, NameTaken, OutcomeUnknown
from dolake.iceberg.identifiers import Identifier, default_location, require_unreserved
from dolake.iceberg.metadata import LoadedTable, Metadata, to_bytes
from dolake.iceberg.names import metadata_version
from dolake.iceberg.ownership import require_respected, require_unclaimed
from dolake.iceberg.requirements import breached, creates
from dolake.iceberg.rest_errors import bad_request, commit_failed, no_namespace, no_table, state_unknown
from dolake.iceberg.rest_reading import MetadataFiles, RestReading
from dolake.iceberg.rest_requests import CommitTable
from dolake.iceberg.updates import change_table, checked_properties, create_table

_TRIES = 5
_LOCATION_LENGTH_MAX = 850  # The catalog's column holds 1000, and a metadata file's name comes behind it.


@dataclass(frozen=True)
class Planned:
    """A table's next metadata, on top of exactly `base`; None where the table is new."""

    identifier: Identifier
    base: LoadedTable | None
    metadata: Metadata

    @property
    def is_change(self) -> bool:
        return self.base is None or self.metadata is not self.base.metadata


class RestCommits:
    """Blocking; raises what `rest_errors` makes, CatalogUnreachable and StoreUnreachable (nothing was done)."""

    def __init__(
        self, catalog: SqlTableCatalog, rows: CatalogRows, reading: RestReading, files: MetadataFiles, root: str, runtime: Runtime
    ) -> None:
        self._catalog, self._rows, self._reading, self._files = catalog, rows, reading, files
        self._root, self._runtime = root, runtime

    def commit(self, commits: Sequence[tuple[Identifier, CommitTable]]) -> list[str]:
        """All of them or none. Returns where the metadata of each is, in the same order."""
        identifiers = [identifier for identifier, _ in commits]
        if len(set(identifiers)) < len(identifiers):
            raise bad_request("a transaction names each table once: put all of its updates into one change")
        for _ in range(_TRIES):
            planned = [self._plan(identifier, commit) for identifier, commit in commits]
            if all(not one.is_change for one in planned) and len(planned) == 1:
                return [one.base.metadata_location for one in planned if one.base]
            locations = self.swap_in(planned)
            if locations is not None:
                return locations
        raise commit_failed("others have committed to the table again and again meanwhile: load it, and try again")

    def _plan(self, identifier: Identifier, commit: CommitTable) -> Planned:
        base = self._reading.table(identifier)
        if base is None and not creates(commit.requirements):
            raise no_table(identifier)
        if unmet := breached(base.metadata if base else None, commit.requirements):
            raise commit_failed(f"{identifier}: {'; '.join(unmet)}")
        now_ms = self._runtime.clock.now_ms()
        if base is None:
            return self._plan_new(identifier, commit, now_ms)
        if not commit.updates:
            return Planned(identifier, base, base.metadata)
        metadata = change_table(base, commit.updates, self._root, now_ms)
        require_respected(base.metadata, metadata)
        if metadata["location"] != base.location:
            self.require_free(str(metadata["location"]), identifier)
        return Planned(identifier, base, metadata)

    def _plan_new(self, identifier: Identifier, commit: CommitTable, now_ms: int) -> Planned:
        require_unreserved(identifier)
        self.require_namespace(identifier)
        uuid = self._runtime.random.uuid()
        location = default_location(self._root, identifier, uuid)
        metadata = create_table(commit.updates, uuid=uuid, location=location, root=self._root, now_ms=now_ms)
        metadata["properties"] = checked_properties(metadata["properties"])
        require_unclaimed(metadata["properties"])
        self.require_free(str(metadata["location"]), identifier)
        return Planned(identifier, None, metadata)

    def require_namespace(self, identifier: Identifier) -> None:
        with self._rows.reading() as connection:
            if not self._rows.has_namespace(connection, identifier.namespace):
                raise no_namespace(identifier.namespace)

    def require_free(self, location: str, identifier: Identifier) -> None:
        """No table in another's folder: cleaning up after one would delete the other's files."""
        if len(location) > _LOCATION_LENGTH_MAX:
            raise bad_request(f"location: at most {_LOCATION_LENGTH_MAX} characters (got {len(location)})")
        own = (str(identifier.namespace), identifier.name)
        with self._rows.reading() as connection:
            for namespace, name, metadata_location in self._rows.all_locations(connection):
                folder = metadata_location.rsplit("/metadata/", 1)[0]
                apart = not f"{folder}/".startswith(f"{location}/") and not f"{location}/".startswith(f"{folder}/")
                if not apart and (namespace, name) != own:
                    raise bad_request(f"location: {location} is in the way of {namespace}.{name}, at {folder}: choose another")

    def swap_in(self, planned: Sequence[Planned]) -> list[str] | None:
        """Puts the metadata and swaps, all in one transaction. None if some table is not at its base any more: nothing was done."""
        locations = [self._put(one) for one in planned]
        failpoints.hit("catalog.before_swap")
        try:
            with self._rows.changing() as connection:
                # In the order of their names, so that two transactions never wait for each other.
                for one, location in sorted(zip(planned, locations, strict=True), key=lambda pair: pair[0].identifier):
                    if one.base is None:
                        self._rows.insert_table(connection, one.identifier, location)
                    elif not self._rows.swap(connection, one.identifier, one.base.metadata_location, location):
                        raise _Late
            failpoints.hit("catalog.after_swap")
        except (_Late, NameTaken):
            return None
        except OutcomeUnknown as error:
            # A look tells if it landed; that it did not (yet), no look can tell.
            if not self._landed(planned, locations):
                raise state_unknown(f"{error}; load the table and look") from error
        return locations

    def _landed(self, planned: Sequence[Planned], locations: Sequence[str]) -> bool:
        with self._rows.reading() as connection:
            found = [self._rows.location(connection, one.identifier) for one in planned]
        return found == list(locations)

    def _put(self, planned: Planned) -> str:
        if planned.base is not None and not planned.is_change:
            return planned.base.metadata_location
        version = 0 if planned.base is None else metadata_version(planned.base.metadata_location) + 1
        location = self._catalog.put_metadata(dict(planned.metadata), version)
        self._files.keep(location, to_bytes(planned.metadata))
        return location


class _Late(Exception):
    """Somebody else has swapped."""

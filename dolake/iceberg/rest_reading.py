"""Tables as REST requests read them: the metadata file's own bytes, and what a client is told to reach the files with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import xxhash

from dolake.errors import ObjectMissing
from dolake.iceberg.catalog_rows import CatalogRows
from dolake.iceberg.identifiers import Identifier, Namespace
from dolake.iceberg.metadata import LoadedTable, from_bytes
from dolake.iceberg.paging import PageRequest, page_of
from dolake.iceberg.rest_errors import CatalogRefusal, no_namespace, no_table
from dolake.storage.store import ObjectStore

_CACHE_BYTES_MAX = 32 << 20
Snapshots = Literal["all", "refs"]


@dataclass(frozen=True)
class Vending:
    """What clients are given of the store: `config` to every table, `credentials` to who asks for delegated access."""

    config: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict)


class MetadataFiles:
    """Metadata files by location. They never change, so the latest ones are kept, as bytes."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[str, bytes] = {}

    def get(self, location: str) -> bytes:
        """Raises ObjectMissing, StoreUnreachable."""
        data = self._known.get(location)
        if data is None:
            data = self._store.get(location)
            self.keep(location, data)
        return data

    def keep(self, location: str, data: bytes) -> None:
        known = {**self._known, location: data}  # A new one each time: other threads read the old.
        while sum(map(len, known.values())) > _CACHE_BYTES_MAX:
            del known[next(iter(known))]
        self._known = known


class RestReading:
    """Lists and loads. Blocking; raises what `rest_errors` makes, CatalogUnreachable and StoreUnreachable."""

    def __init__(self, rows: CatalogRows, files: MetadataFiles, root: str, vending: Vending) -> None:
        self._rows, self._files, self._root, self._vending = rows, files, root, vending

    def listed(self, namespace: Namespace, page: PageRequest, sees: Callable[[str], bool]) -> dict[str, Any]:
        with self._rows.reading() as connection:
            if not self._rows.has_namespace(connection, namespace):
                raise no_namespace(namespace)
            names = self._rows.table_names(connection, namespace)
        visible = [name for name in names if sees(f"{namespace}.{name}")]
        shown, token = page_of(visible, f"tables {namespace}", page)
        return {"identifiers": [Identifier(namespace, name).to_json() for name in shown], "next-page-token": token}

    def require(self, identifier: Identifier) -> str:
        """The location of the table's metadata."""
        with self._rows.reading() as connection:
            location = self._rows.location(connection, identifier)
        if location is None:
            raise no_table(identifier)
        return location

    def table(self, identifier: Identifier) -> LoadedTable | None:
        """As the catalog has it now."""
        with self._rows.reading() as connection:
            location = self._rows.location(connection, identifier)
        return None if location is None else LoadedTable(identifier.row_name, from_bytes(self.metadata(location)), location)

    def metadata(self, location: str) -> bytes:
        try:
            return self._files.get(location)
        except (ObjectMissing, ValueError) as error:  # ValueError: outside the warehouse, where we have no access.
            raise CatalogRefusal(500, "InternalServerError", f"the catalog names {location}, which cannot be read: {error}") from error

    def etag(self, location: str, snapshots: Snapshots, delegated: bool) -> str:
        """One for each form that an answer about this metadata may have."""
        form = f"{location} {snapshots} {delegated} {sorted(self._vending.config.items())}"
        return f'"{xxhash.xxh3_128_hexdigest(form.encode())}"'

    def load_result(self, location: str, snapshots: Snapshots, delegated: bool) -> bytes:
        """The body of an answer to a load, or to a create."""
        data = self.metadata(location)
        if snapshots == "refs":
            data = orjson.dumps(_with_named_snapshots(from_bytes(data)))
        return self.result(data, location, delegated)

    def result(self, metadata: bytes, location: str | None, delegated: bool) -> bytes:
        """The same for metadata at hand; without a location it is only staged."""
        result: dict[str, Any] = {} if location is None else {"metadata-location": location}
        result |= {"metadata": orjson.Fragment(metadata), "config": self._config(delegated)}
        if delegated and self._vending.credentials:
            result["storage-credentials"] = self.credentials()
        return orjson.dumps(result)

    def credentials(self) -> list[dict[str, Any]]:
        """What `[catalog] vend` gives to who asks for it; of the whole warehouse."""
        if not self._vending.credentials:
            return []
        return [{"prefix": self._root, "config": {**self._vending.config, **self._vending.credentials}}]

    def _config(self, delegated: bool) -> dict[str, str]:
        return {**self._vending.config, **(self._vending.credentials if delegated else {})}


def _with_named_snapshots(metadata: Mapping[str, Any]) -> dict[str, Any]:
    named = {ref["snapshot-id"] for ref in (metadata.get("refs") or {}).values()}
    return {**metadata, "snapshots": [one for one in metadata.get("snapshots") or () if one["snapshot-id"] in named]}

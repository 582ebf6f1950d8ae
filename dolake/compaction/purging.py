"""Purging: what lies in a table's folder is listed, what its metadata needs is read, and the objects that nobody needs are deleted.

The order is what makes it safe, and it is the caller's to begin with:

    claim → load → list → read what is needed → decide → delete

The caller commits a snapshot under an epoch of its own, the table's + 1, and hands in the table as it was then or later. From there on
no commit of a lower epoch lands, so what was written under one is named by a retained snapshot or never will be; and what is listed
is never younger than what the claim has shut out. It holds the table's locks meanwhile, and has thrown away whatever it had prepared
itself under an epoch before (a flight, a rewrite): also its own commits must not name such objects any more.

Any trouble while what is needed is read ends in an error, and nothing is deleted: a manifest that could not be read may name anything.
Killed anywhere, the rest is found by the next run, for what was to go is told by its name alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dolake import failpoints
from dolake.compaction.unreferenced import Needs, StoredObject, Unreferenced, last_part, sort_out
from dolake.errors import ObjectDamaged, ObjectMissing, RequestRefused, TableStopped
from dolake.iceberg.entries import fetch_entries, fetch_manifests, is_live
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.metadata import EPOCH, NO_SNAPSHOT, LoadedTable, Metadata, from_bytes, snapshots_by_id
from dolake.iceberg.names import lies_within, metadata_version, parse_below
from dolake.model import spelled_out
from dolake.storage.store import ObjectStore

_METADATA_SUFFIX = ".metadata.json"


@dataclass(frozen=True)
class PurgeResult:
    """What was deleted, and how many of the objects found are still there."""

    objects_count: int
    size_bytes: int
    remaining_count: int


def find_unreferenced(
    store: ObjectStore,
    base: LoadedTable,
    *,
    epoch: int,
    owns_metadata: bool,
    neighbours: Sequence[tuple[str, str]] | None = None,
    is_claimed: bool = True,
) -> Unreferenced:
    """What of the table's folder may be purged. Deletes nothing. Blocks.

    `base` is the table as it was loaded after the claim of `epoch` had landed; with `is_claimed` False it is what there would be to
    purge if it had, for who only wants to know. `owns_metadata`: whether dolake's own catalog names the
    metadata files; another one's server keeps its files as it likes. `neighbours` are all other tables of the catalog
    (`SqlTableCatalog.neighbours`), None where it does not say: then a folder that another table had may be that one's still.

    Raises TableStopped where the claim is not the table's (any more), RequestRefused where another table has the folder too,
    ObjectMissing, ObjectDamaged, StoreUnreachable and what else the store raises.
    """
    if is_claimed and base.owner_epoch != epoch:
        raise TableStopped(str(base.name), f"it is not claimed to be purged: its epoch is {base.owner_epoch}, ours is {epoch}", field=EPOCH)
    folder = base.location.rstrip("/") + "/"
    _require_alone(base, folder, neighbours or ())
    listed = [(location, size_bytes) for location, size_bytes in store.list(folder) if location.startswith(folder)]
    failpoints.hit("purge.listed")
    retained = _read_retained(store, base)
    _require_there(store, folder, retained.live, listed)
    lives = _read_lives(store, folder, [location for location, _ in listed if last_part(location) not in retained.names])
    of_others = _read_others(store, lives, base.uuid)
    if of_others and neighbours is None:
        raise RequestRefused(
            f"{base.name}: the metadata of another table lies in its folder {base.location}, and the catalog does not say whether it "
            "has that one still: nothing is purged; move one of the two, or delete the other one's files"
        )
    own = {last_part(location) for location, uuid in lives.items() if uuid == base.uuid} if owns_metadata else set()
    return sort_out(listed, folder, Needs(retained.names, of_others, own, epoch, metadata_version(base.metadata_location)))


def purge(
    store: ObjectStore,
    objects: Sequence[StoredObject],
    *,
    spent: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda done: None,
    count_max: int | None = None,
) -> PurgeResult:
    """Deletes `objects` (of `Unreferenced`, found under the same locks) in their order. Blocks. Raises StoreUnreachable.

    Ends where `count_max` of them are gone, or once `spent` says so: the next run finds the others.
    """
    count = size_bytes = 0
    for one in objects[:count_max]:
        if spent():
            break
        failpoints.hit("purge.before_delete")
        store.delete(one.location)
        failpoints.hit("purge.after_delete")
        count, size_bytes = count + 1, size_bytes + one.size_bytes
        progress(count)
    return PurgeResult(count, size_bytes, len(objects) - count)


class _Reach:
    """What snapshots name. Only names are kept, and each manifest is read once: a table may have more files than fit in memory as entries.

    `names` are last parts, `live` the locations that a reader of the snapshots needs.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._io = StoreFileIO(store)
        self._read: set[str] = set()
        self.names: set[str] = set()
        self.live: set[str] = set()

    def add(self, metadata: Metadata, *, is_former: bool = False) -> None:
        """Everything that the metadata names. Of a former table something may be gone: its own purges, or one that was cut short."""
        for snapshot in metadata.get("snapshots") or ():
            self._unless_gone(self._add_snapshot, str(snapshot["manifest-list"]), is_former)
        for kind in ("statistics", "partition-statistics"):
            self._name(str(one["statistics-path"]) for one in metadata.get(kind) or ())
        self._name(str(entry["metadata-file"]) for entry in metadata.get("metadata-log") or ())

    def _add_snapshot(self, manifest_list: str, is_former: bool) -> None:
        self._name([manifest_list])
        for manifest in fetch_manifests(self._io, manifest_list):
            self._name([manifest.manifest_path])
            if manifest.manifest_path not in self._read:
                self._unless_gone(self._add_manifest, manifest, is_former)
                self._read.add(manifest.manifest_path)

    def _add_manifest(self, manifest: Any, _is_former: bool) -> None:
        """A file that a snapshot says has left with it is needed by those before it alone."""
        for entry in filter(is_live, fetch_entries(self._io, manifest)):
            self._name([entry.data_file.file_path])
            self.live.add(entry.data_file.file_path)

    def _unless_gone(self, add: Callable[[Any, bool], None], what: Any, is_former: bool) -> None:
        try:
            add(what, is_former)
        except ObjectMissing:
            if not is_former:
                raise

    def _name(self, locations: Iterable[str]) -> None:
        self.names.update(map(last_part, locations))


def _read_retained(store: ObjectStore, base: LoadedTable) -> _Reach:
    """Of all snapshots that the metadata has, whether or not a ref names them: some are staged, some were rolled back."""
    snapshots = snapshots_by_id(base.metadata)
    refs: Mapping[str, Mapping[str, Any]] = base.metadata.get("refs") or {}
    heads = [base.metadata.get("current-snapshot-id"), *(ref["snapshot-id"] for ref in refs.values())]
    for head in heads:
        if head not in (None, NO_SNAPSHOT) and head not in snapshots:
            raise ObjectDamaged(f"{base.metadata_location} has no snapshot {head}, which it says is needed; restore it")
    reach = _Reach(store)
    reach.add(base.metadata)
    reach.names.add(last_part(base.metadata_location))
    return reach


def _require_there(store: ObjectStore, folder: str, live: Iterable[str], listed: Iterable[tuple[str, int]]) -> None:
    """Whether what is needed is there, under the names that it is known by: if not, who knows what the others are needed for.

    Raises ObjectMissing.
    """
    found = {location for location, _ in listed}
    for location in map(spelled_out, live):
        if location.startswith(folder) and location not in found:
            store.size(location)  # A store may spell a name otherwise in its list.


def _require_alone(base: LoadedTable, folder: str, neighbours: Iterable[tuple[str, str]]) -> None:
    """Tables nested in the folder, or around it, are no matter: their objects lie deeper, or higher."""
    for name, metadata_location in neighbours:
        location = spelled_out(metadata_location)
        if lies_within(location, f"{folder}metadata") and "/" not in location.removeprefix(f"{folder}metadata/"):
            raise RequestRefused(f"{base.name} has its folder {base.location} in common with the table {name}: nothing is purged; move one")


def _read_lives(store: ObjectStore, folder: str, unnamed: Iterable[str]) -> dict[str, str]:
    """Location → table uuid of metadata files in the folder. Those that cannot be read are left out.

    The newest first, for each names a hundred others that are its table's: so few of many have to be read.
    """
    files = {last_part(location): location for location in unnamed if _is_metadata(location.removeprefix(folder))}
    lives: dict[str, str] = {}
    for location in sorted(files.values(), key=lambda one: (metadata_version(one), one), reverse=True):
        if location in lives or (metadata := _metadata_at(store, folder, location)) is None:
            continue
        lives[location] = str(metadata["table-uuid"])
        for entry in metadata.get("metadata-log") or ():
            if (named := files.get(last_part(str(entry["metadata-file"])))) is not None:
                lives.setdefault(named, str(metadata["table-uuid"]))
    return lives


def _read_others(store: ObjectStore, lives: Mapping[str, str], own_uuid: str) -> set[str]:
    """What the other tables need that had the folder, and their metadata files themselves."""
    reach = _Reach(store)
    for uuid in set(lives.values()) - {own_uuid}:
        versions = {location: metadata_version(location) for location, owner in lives.items() if owner == uuid}
        reach.names.update(map(last_part, versions))
        for location, version in versions.items():
            # The last one that landed, and one that did not: no other is ahead of it. Names of other forms say nothing of that.
            if version >= max(versions.values()) - 1 or version < 0:
                reach.add(from_bytes(store.get(location)), is_former=True)
    return reach.names


def _is_metadata(path: str) -> bool:
    return path.startswith("metadata/") and path.count("/") == 1 and path.endswith(_METADATA_SUFFIX)


def _metadata_at(store: ObjectStore, folder: str, location: str) -> Metadata | None:
    """None for half a file: a writer that died while it put one leaves that. Raises ObjectDamaged for one of another program."""
    try:
        return from_bytes(store.get(location))
    except ObjectMissing:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        if parse_below(location.removeprefix(folder)) is not None:
            return None
        raise ObjectDamaged(f"{location} cannot be read, so nobody knows what it needs: {error}; nothing is purged") from error

"""Which objects of a table's folder nobody needs: decided from their names and from what the table's metadata reaches (I11).

An object may be purged only if dolake named it, to the letter, directly in the table's own `data` or `metadata` folder, and

- it is a data or delete file, a manifest or a manifest list that no retained snapshot names, of an epoch that is over: lower than
  the one under which the table was claimed before anybody looked. The claim has moved the head, so a swap that was under way
  fails, and the loop refuses to plan another one under a lower epoch. Age says nothing: a commit may be held up for any time.
- or it is a metadata file of this very table that its current metadata does not name, and whose version is not above the current
  one. A swap that is under way was made from what is current now, so the file that it names has the next version.

Everything else stays: the claim's own epoch and later ones, what others named, whatever lies deeper (tables nested in the folder).

A table's folder may have had another table before: one that was dropped, whose files "stay" until they are purged with it, or one
that goes by another name now. Its epochs say nothing here, for every table's begin with 1. So what its metadata names stays, be the
epoch ever so low; and what it does not name is nobody's: nothing can commit to a table that is in no catalog, so that such an
object is judged like the present table's own. Is the other one in the catalog still, then nothing at all is purged (`purging`).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from dolake.iceberg.names import METADATA, parse_below

# In the order in which they go: what names others after what it names, so that whoever looks in between finds what is left.
_ORDER = ("data", "deletes", "manifest", "manifest list", METADATA)


@dataclass(frozen=True)
class StoredObject:
    """`kind` is that of its name (`names.ObjectName`)."""

    location: str
    size_bytes: int
    kind: str


@dataclass(frozen=True)
class Needs:
    """What decides over a table's folder. Names are the last parts of locations.

    Each of dolake's names is used once, so the last part alone tells an object, however a program spells the way to it (`s3a:`,
    `file:/`): one that is named anywhere stays.

    `retained`: what the table's metadata names, directly or through its snapshots. `of_others`: the same of other tables that had the
    folder. `own_metadata`: metadata files that are known to be this table's and may be purged. `epoch` is the claim's, `version` that
    of the current metadata file.
    """

    retained: Set[str]
    of_others: Set[str]
    own_metadata: Set[str]
    epoch: int
    version: int


@dataclass(frozen=True)
class Unreferenced:
    """`objects`, in the order in which to purge them; and how many others lie below the table's location, by why they stay.

    `reachable_count`: named by the table's metadata. `unfinished_count`: named by nobody, but a commit that names them could still
    land. `of_others_count`: of tables that had the folder before. `left_count`: dolake did not name them, so they are not its to judge.
    """

    objects: tuple[StoredObject, ...]
    reachable_count: int = 0
    unfinished_count: int = 0
    of_others_count: int = 0
    left_count: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.objects)


def sort_out(listed: Iterable[tuple[str, int]], folder: str, needs: Needs) -> Unreferenced:
    """`listed`: (location, size in bytes) of everything below `folder`, the table's location with a `/` behind it."""
    objects: list[StoredObject] = []
    reachable = unfinished = of_others = left = 0
    for location, size_bytes in listed:
        name, last = parse_below(location.removeprefix(folder)), last_part(location)
        if name is None:
            left += 1
        elif last in needs.retained:
            reachable += 1
        elif last in needs.of_others:
            of_others += 1
        elif name.kind == METADATA and last not in needs.own_metadata:
            left += 1
        elif may_be_named(name.version, needs.version + 1) if name.kind == METADATA else may_be_named(name.epoch, needs.epoch):
            unfinished += 1
        else:
            objects.append(StoredObject(location, size_bytes, name.kind))
    objects.sort(key=lambda one: _ORDER.index(one.kind))
    return Unreferenced(tuple(objects), reachable, unfinished, of_others, left)


def may_be_named(number: int, first_open: int) -> bool:
    """Whether a commit could still land that names an object of this epoch (or version); those below `first_open` are over."""
    return number >= first_open


def last_part(location: str) -> str:
    return location.rsplit("/", 1)[-1]

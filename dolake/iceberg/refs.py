"""Tags and branches as people make them: what each change says, decided from a loaded table, and the loop that makes it.

dolake itself writes `main` alone; what is in other branches others have written. Publishing a branch moves `main` forward to its
newest snapshot, and only forward: where `main` is not one of that snapshot's ancestors it is refused. No change of a ref touches
rows or offsets, so whoever owns the table goes on with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dolake.errors import CatalogUnreachable, CommitConflict, Diverged, NoSuchPoint, RefRefused, StoreUnreachable
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.metadata import MAIN, LoadedTable, Requirement, Update, ancestry, snapshots_by_id
from dolake.iceberg.points import head_of
from dolake.iceberg.summary import count_rows

OWN_PREFIX = "dolake-"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
NAME_RULE = "must be 1 to 128 letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`"
TAG, BRANCH = "tag", "branch"
DAY_MS = 24 * 60 * 60 * 1000
_TRIES = 20


@dataclass(frozen=True)
class RefChange:
    """What one swap says. No updates: it is so already."""

    requirements: Sequence[Requirement] = ()
    updates: Sequence[Update] = ()


def plan_create(base: LoadedTable, kind: str, name: str, snapshot_id: int, keep_days: int | None, now_ms: int) -> RefChange:
    """A new tag or branch. `keep_days` are counted from now. Raises RefRefused."""
    _refuse_own(base, kind, name, "made")
    there = _ref(base, name)
    if there is not None:
        raise RefRefused(
            table=str(base.name), name=name, kind="exists", reason=f"there is a {there['type']} {name} already; delete it first"
        )
    snapshot = snapshots_by_id(base.metadata).get(snapshot_id)
    if snapshot is None:
        reason = "its snapshot has expired meanwhile"
        raise NoSuchPoint(table=str(base.name), point=f"snapshot:{snapshot_id}", kind="expired", reason=reason, oldest=None)
    ref: dict[str, Any] = {"type": kind, "snapshot-id": snapshot_id}
    if keep_days is not None:
        ref["max-ref-age-ms"] = max(0, now_ms - snapshot["timestamp-ms"]) + keep_days * DAY_MS
    return RefChange(_stands(base, name), [{"action": "set-snapshot-ref", "ref-name": name, **ref}])


def plan_delete(base: LoadedTable, kind: str, name: str) -> RefChange:
    """Raises RefRefused."""
    _refuse_own(base, kind, name, "deleted")
    _require(base, kind, name)
    return RefChange(_stands(base, name), [{"action": "remove-snapshot-ref", "ref-name": name}])


def plan_publish(base: LoadedTable, name: str) -> RefChange:
    """`main` forward to the newest snapshot of a branch. Raises RefRefused, Diverged."""
    if name == MAIN:
        raise RefRefused(table=str(base.name), name=name, kind="protected", reason="main is what branches are published to")
    branch = _require(base, BRANCH, name)
    if branch["snapshot-id"] == base.head_id:
        return RefChange()
    if base.head_id is not None and all(one["snapshot-id"] != base.head_id for one in ancestry(base.metadata, branch["snapshot-id"])):
        raise diverged(base, name)
    main = {key: value for key, value in (_ref(base, MAIN) or {"type": BRANCH}).items() if key != "snapshot-id"}
    update = {"action": "set-snapshot-ref", "ref-name": MAIN, **main, "snapshot-id": branch["snapshot-id"]}
    return RefChange([*_stands(base, MAIN), *_stands(base, name)[1:]], [update])


def diverged(base: LoadedTable, name: str) -> Diverged:
    """What `main` and a branch have that the other has not."""
    sides = [[*ancestry(base.metadata, head)] for head in (base.head_id, head_of(base, name))]
    common = set.intersection(*({one["snapshot-id"] for one in side} for side in sides))
    counts = []
    for side in sides:
        alone = [count_rows(one["summary"]) for one in side if one["snapshot-id"] not in common]
        counts.append((len(alone), sum(rows.added for rows in alone), sum(rows.deleted for rows in alone)))
    return Diverged(table=str(base.name), name=name, main=counts[0], branch=counts[1])


def change_ref(
    catalog: TableCatalog, base: LoadedTable, plan: Callable[[LoadedTable], RefChange], pause: Callable[[], None] = lambda: None
) -> LoadedTable:
    """Makes the change on top of whatever the table is by then; other commits may come between. Blocks.

    `pause` waits a moment between two tries. Raises what `plan` raises, and CatalogUnreachable with the outcome unknown.
    """
    wanted: Sequence[Update] = ()
    for attempt in range(_TRIES):
        if attempt:
            pause()
            loaded = catalog.load(base.name)
            if loaded is None or loaded.uuid != base.uuid:
                raise RefRefused(table=str(base.name), name="", kind="missing", reason="the table is gone, or another took its name")
            base = loaded
            if wanted and all(_is_so(base, update) for update in wanted):
                return base  # It landed, and the answer did not come.
        change = plan(base)
        if not change.updates:
            return base
        wanted = change.updates
        try:
            return catalog.swap(base, change.requirements, change.updates)
        except (CommitConflict, CatalogUnreachable, StoreUnreachable):
            if attempt == _TRIES - 1:
                raise
    raise AssertionError  # The last try has returned or raised.


def _is_so(base: LoadedTable, update: Update) -> bool:
    ref = _ref(base, update["ref-name"])
    if update["action"] == "remove-snapshot-ref":
        return ref is None
    return ref is not None and (ref["type"], ref["snapshot-id"]) == (update["type"], update["snapshot-id"])


def _ref(base: LoadedTable, name: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (base.metadata.get("refs") or {}).get(name)
    return found


def _require(base: LoadedTable, kind: str, name: str) -> dict[str, Any]:
    ref = _ref(base, name)
    if ref is None or ref["type"] != kind:
        is_other = f"; {name} is a {ref['type']}" if ref is not None else ""
        reason = f"there is no {kind} {name}{is_other}; `dolake {'tags' if kind == TAG else 'branches'} list {base.name}` lists them"
        raise RefRefused(table=str(base.name), name=name, kind="missing", reason=reason)
    return ref


def _refuse_own(base: LoadedTable, kind: str, name: str, verb: str) -> None:
    if name == MAIN or name.startswith(OWN_PREFIX):
        whose = "main is the table itself" if name == MAIN else f"names that begin with `{OWN_PREFIX}` are dolake's own"
        raise RefRefused(table=str(base.name), name=name, kind="protected", reason=f"{kind} {name} cannot be {verb}: {whose}")


def _stands(base: LoadedTable, name: str) -> list[Requirement]:
    """That the table is this one, and the ref still what was looked at."""
    return [
        {"type": "assert-table-uuid", "uuid": base.uuid},
        {"type": "assert-ref-snapshot-id", "ref": name, "snapshot-id": head_of(base, name)},
    ]

"""What a REST client must leave alone: the properties by which dolake knows what it has applied to a table.

Anybody may commit to a table that dolake writes: the writer sees it, and plans again. But of `dolake.offset.*` and their
like one that is lowered or gone brings rows twice, and one that is raised loses some. So they change only in a commit of
the form that dolake's own have: it claims an epoch (a later one, or the same for the same instance), and the snapshot that
it puts on `main` says the same offsets in its summary. Only one that says `dolake.rewind` there may lower them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dolake.iceberg.identifiers import Identifier
from dolake.iceberg.metadata import BEGIN_PREFIX, COMMIT_ID, EPOCH, INSTANCE, OFFSET_PREFIX, Metadata, offsets_in
from dolake.iceberg.rest_errors import bad_request

_REWIND = "dolake.rewind"


def is_owned(metadata: Metadata) -> bool:
    """Whether dolake's writer has claimed the table."""
    return EPOCH in (metadata.get("properties") or {})


def require_unclaimed(properties: Mapping[str, str]) -> None:
    """For a table that a client makes. Raises CatalogRefusal (400) if it says that dolake has applied something to it."""
    if found := sorted(key for key in properties if _is_ours(key)):
        raise bad_request(f"{found[0]}: only dolake's writer sets it: leave it out")


def require_respected(before: Metadata, after: Metadata) -> None:
    """Raises CatalogRefusal (400) for a commit that changes what only dolake may change."""
    old, new = before.get("properties") or {}, after.get("properties") or {}
    changed = sorted(key for key in {*old, *new} if _is_ours(key) and old.get(key) != new.get(key))
    if not changed or _is_of_dolake(before, after):
        return
    raise bad_request(
        f"{changed[0]}: only dolake's writer changes it, for it says which changes the table holds "
        f"({old.get(changed[0], 'none')} → {new.get(changed[0], 'none')}): leave it out of this commit"
    )


def require_disowned(identifier: Identifier, metadata: Metadata, verb: str) -> None:
    """Raises CatalogRefusal (400) for a table that dolake writes: gone by another way, its events would come back."""
    if is_owned(metadata):
        remedy = "`dolake tables drop` does it" if verb == "dropped" else "it keeps its name"
        raise bad_request(f"{identifier} is written by dolake, and cannot be {verb} here: {remedy}")


def _is_ours(key: str) -> bool:
    return key in (EPOCH, INSTANCE) or key.startswith((OFFSET_PREFIX, BEGIN_PREFIX))


def _is_of_dolake(before: Metadata, after: Metadata) -> bool:
    try:
        return _claims(before, after) and _carries_offsets(before, after)
    except ValueError:  # A number that is none.
        return False


def _claims(before: Metadata, after: Metadata) -> bool:
    old, new = before.get("properties") or {}, after.get("properties") or {}
    if not new.get(INSTANCE) or EPOCH not in new:
        return False
    old_epoch, new_epoch = int(old.get(EPOCH, 0)), int(new[EPOCH])
    return new_epoch > old_epoch or (new_epoch == old_epoch and new[INSTANCE] == old.get(INSTANCE))


def _carries_offsets(before: Metadata, after: Metadata) -> bool:
    head = _head(after)
    if head is None or head["snapshot-id"] == before.get("current-snapshot-id"):
        return False
    summary, old, new = head["summary"], before.get("properties") or {}, after.get("properties") or {}
    offsets, offsets_before = offsets_in(new), offsets_in(old)
    if COMMIT_ID not in summary or offsets_in(summary) != offsets:
        return False
    kept = all(offsets.get(log, -1) >= offset for log, offset in offsets_before.items())
    return kept or (_REWIND in summary and int(new[EPOCH]) > int(old.get(EPOCH, 0)))


def _head(metadata: Metadata) -> Mapping[str, Any] | None:
    current = metadata.get("current-snapshot-id")
    return next((one for one in metadata.get("snapshots") or () if one["snapshot-id"] == current), None)

"""Every requirement that a REST commit may have: what the client believes of the table, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dolake.iceberg.metadata import Metadata, Requirement

# What stands in the metadata, and what it is called in the requirement.
_FIELDS = {
    "assert-last-assigned-field-id": ("last-column-id", "last-assigned-field-id"),
    "assert-current-schema-id": ("current-schema-id", "current-schema-id"),
    "assert-last-assigned-partition-id": ("last-partition-id", "last-assigned-partition-id"),
    "assert-default-spec-id": ("default-spec-id", "default-spec-id"),
    "assert-default-sort-order-id": ("default-sort-order-id", "default-sort-order-id"),
}


def creates(requirements: Sequence[Requirement]) -> bool:
    """Whether a commit is one that makes its table."""
    return any(requirement["type"] == "assert-create" for requirement in requirements)


def breached(metadata: Metadata | None, requirements: Sequence[Requirement]) -> list[str]:
    """One sentence for each requirement that the table does not meet; `metadata` is None where there is no table.

    All of them are known here: `rest_requests` lets no others in.
    """
    return [sentence for requirement in requirements if (sentence := _breach(metadata, requirement))]


def _breach(metadata: Metadata | None, requirement: Requirement) -> str:
    kind = str(requirement["type"])
    if kind == "assert-create":
        return "" if metadata is None else "assert-create: the table exists"
    if metadata is None:
        return f"{kind}: there is no table"
    found, wanted = _LOOKS[kind](metadata, requirement)
    return "" if found == wanted else f"{kind}: wanted {_shown(wanted)}, found {_shown(found)}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)[:200]


def _uuid(metadata: Metadata, requirement: Requirement) -> tuple[Any, Any]:
    return str(metadata["table-uuid"]).lower(), str(requirement["uuid"]).lower()


def _ref(metadata: Metadata, requirement: Requirement) -> tuple[Any, Any]:
    ref: Mapping[str, Any] = (metadata.get("refs") or {}).get(requirement["ref"]) or {}
    return ref.get("snapshot-id"), requirement.get("snapshot-id")


def _field(name: str, requirement_name: str) -> Callable[[Metadata, Requirement], tuple[Any, Any]]:
    return lambda metadata, requirement: (metadata.get(name), requirement[requirement_name])


_LOOKS: dict[str, Callable[[Metadata, Requirement], tuple[Any, Any]]] = {
    "assert-table-uuid": _uuid,
    "assert-ref-snapshot-id": _ref,
    **{kind: _field(*names) for kind, names in _FIELDS.items()},
}

"""What every snapshot of dolake's notes in its summary beside its offsets, so that a rollback can take it up again."""

from __future__ import annotations

from collections.abc import Mapping

from dolake.iceberg.skipped import SKIPPED_PREFIX

COUNT_PREFIX = "dolake.count."


def noted_in(properties: Mapping[str, str]) -> dict[str, str]:
    """Counts and skipped offsets, out of a table's properties or a snapshot's summary."""
    return {key: value for key, value in properties.items() if value and key.startswith((COUNT_PREFIX, SKIPPED_PREFIX))}

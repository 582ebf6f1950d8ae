"""Which manifests of a table have to be written anew when some of its files leave it and all others stay.

A manifest that names a removed file is taken apart: what stays goes on as existing, with the numbers it has, what goes is recorded
as deleted. Those of one kind are put together on the way, as far as one manifest takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pyiceberg.manifest import ManifestContent, ManifestEntry, ManifestFile

from dolake.iceberg.plan import Replacement

# As many as a merge makes of small manifests at most; more in one would cost every later change of it too much.
_FILES_MAX = 1000
Kind = tuple[ManifestContent, int]


@dataclass(frozen=True)
class Replaced:
    """`kept` stand as they are. Each of `rewritten` becomes one manifest of its content and spec: entries that stay, and that go."""

    kept: tuple[ManifestFile, ...]
    rewritten: tuple[tuple[Kind, list[ManifestEntry], list[ManifestEntry]], ...]


def plan_replacement(
    head: Sequence[ManifestFile], replacement: Replacement, entries_of: Callable[[ManifestFile], Sequence[ManifestEntry]]
) -> Replaced:
    """`entries_of` gives a manifest's live entries. Raises ValueError where a file that is to go is not there: nothing may be doubled."""
    kept: list[ManifestFile] = []
    affected: dict[Kind, list[tuple[list[ManifestEntry], list[ManifestEntry]]]] = {}
    missing = set(replacement.removed)
    for manifest in head:
        if (manifest.min_sequence_number or 0) > replacement.removed_sequence_max:
            kept.append(manifest)
            continue
        entries = entries_of(manifest)
        gone = [entry for entry in entries if entry.data_file.file_path in replacement.removed]
        if not gone:
            kept.append(manifest)
            continue
        missing -= {entry.data_file.file_path for entry in gone}
        staying = [entry for entry in entries if entry.data_file.file_path not in replacement.removed]
        affected.setdefault((manifest.content, manifest.partition_spec_id), []).append((staying, gone))
    if missing:
        raise ValueError(f"{len(missing)} files are to be replaced that are not in the table, as {min(missing)}")
    return Replaced(tuple(kept), tuple((kind, *group) for kind, parts in affected.items() for group in _together(parts)))


def _together(
    parts: Sequence[tuple[list[ManifestEntry], list[ManifestEntry]]],
) -> Iterator[tuple[list[ManifestEntry], list[ManifestEntry]]]:
    staying: list[ManifestEntry] = []
    gone: list[ManifestEntry] = []
    for some_stay, some_go in parts:
        if gone and len(staying) + len(some_stay) > _FILES_MAX:
            yield staying, gone
            staying, gone = [], []
        staying, gone = staying + some_stay, gone + some_go
    yield staying, gone

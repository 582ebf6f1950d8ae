"""What takes a table from one snapshot's files to an older one's: which manifests stand again, which files come and go.

The older snapshot's manifests are listed as they are. Their files so keep the sequence numbers that they had, and with these the
position deletes of that time speak of the same rows as then, those made since of none: they are gone with the newer snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyiceberg.manifest import ManifestContent, ManifestEntry, ManifestFile

# As many as one manifest records of files that left the table.
_GROUP_MAX = 10_000
Kind = tuple[ManifestContent, int]


@dataclass(frozen=True)
class Restore:
    """`kept`: the manifests of the snapshot to come. `back`: entries of files that are not in the head. `gone`: those only there,
    by content and spec, as many together as one manifest records."""

    kept: tuple[ManifestFile, ...]
    back: tuple[ManifestEntry, ...]
    gone: tuple[tuple[Kind, list[ManifestEntry]], ...]


def plan_restore(
    head: Sequence[ManifestFile], target: Sequence[ManifestFile], entries_of: Callable[[ManifestFile], Sequence[ManifestEntry]]
) -> Restore:
    """`head` and `target` are what the two snapshots list; `entries_of` gives a manifest's live entries."""
    shared = {manifest.manifest_path for manifest in head} & {manifest.manifest_path for manifest in target}
    before = _entries([manifest for manifest in head if manifest.manifest_path not in shared], entries_of)
    after = _entries([manifest for manifest in target if manifest.manifest_path not in shared], entries_of)
    gone: dict[Kind, list[ManifestEntry]] = {}
    for path, (kind, entry) in before.items():
        if path not in after:
            gone.setdefault(kind, []).append(entry)
    groups = [(kind, found[start : start + _GROUP_MAX]) for kind, found in gone.items() for start in range(0, len(found), _GROUP_MAX)]
    return Restore(
        kept=tuple(manifest for manifest in target if (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)),
        back=tuple(entry for path, (_, entry) in after.items() if path not in before),
        gone=tuple(groups),
    )


def _entries(
    manifests: Sequence[ManifestFile], entries_of: Callable[[ManifestFile], Sequence[ManifestEntry]]
) -> dict[str, tuple[Kind, ManifestEntry]]:
    return {
        entry.data_file.file_path: ((manifest.content, manifest.partition_spec_id), entry)
        for manifest in manifests
        for entry in entries_of(manifest)
    }

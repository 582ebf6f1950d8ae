"""One writer half at a time works on a data directory."""

from __future__ import annotations

from dolake.errors import LogRefused
from dolake.storage.disk import Disk, Lock


def lock_writer(disk: Disk, data: str) -> Lock:
    """Raises LogRefused where another one does."""
    path = f"{data}/writer.lock"
    try:
        return disk.lock(path)
    except BlockingIOError:
        raise LogRefused(f"{path}: another writer works on this data directory; stop it first") from None

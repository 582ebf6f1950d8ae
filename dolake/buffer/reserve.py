"""A little room kept for the one write that makes room: on a full disk a trim must still be able to state its bound."""

from __future__ import annotations

from contextlib import suppress

from dolake.storage.disk import Disk

NAME = "reserve"


def hold(disk: Disk, directory: str, size_bytes: int) -> None:
    """Makes the file if there is none. Where there is no room for it the log does without: it holds no data."""
    path = f"{directory}/{NAME}"
    if size_bytes <= 0 or disk.exists(path):
        return
    with suppress(OSError):
        file = disk.create(path)
        try:
            file.write_at(0, [bytes(size_bytes)])
            file.sync()
        except OSError:
            disk.unlink(path)
        finally:
            file.close()


def release(disk: Disk, directory: str) -> bool:
    """Gives the room back; whether there was any."""
    try:
        disk.unlink(f"{directory}/{NAME}")
    except OSError:
        return False
    return True

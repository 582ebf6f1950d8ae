"""Unix sockets in the data directory: made whole, the owner's alone (0600), found under paths of any length."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator

from dolake.errors import ConfigurationError, Mistake

_PATH_BYTES_MAX = 100  # sun_path holds 108 on Linux, 104 elsewhere.


def bind_local(path: str) -> socket.socket:
    """A listening socket at `path`, made beside it and renamed over it, so that nobody ever finds a half-made one.

    What an earlier process left there is replaced. Raises ConfigurationError if it is something else than a socket.
    """
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise ConfigurationError([Mistake("data", path, "must not hold anything but dolake's own socket under this name")])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    new = f"{path}.{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        with _short(new) as short:
            listener.bind(short)
        os.chmod(new, 0o600)  # Before it listens: until then nobody can connect.
        listener.listen(64)
        os.rename(new, path)
    except OSError:
        listener.close()
        raise
    return listener


def remove_local(path: str, inode: int) -> None:
    """Removes the socket at `path` if it still is the one with this inode: another process may have replaced it."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


async def open_local(path: str, limit_bytes: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to whoever listens at `path`; `limit_bytes` bounds what is read ahead. Raises OSError if nobody does."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.setblocking(False)
        with _short(path) as short:
            await asyncio.get_running_loop().sock_connect(link, short)
        return await asyncio.open_unix_connection(sock=link, limit=limit_bytes)
    except OSError:
        link.close()
        raise


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """A name for `path` that fits into a socket address: through a symbolic link that lives as long as the call."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield path
        return
    directory, name = os.path.split(os.path.abspath(path))
    with tempfile.TemporaryDirectory(prefix="dolake-", dir="/tmp" if os.path.isdir("/tmp") else None) as short:
        link = os.path.join(short, "d")
        os.symlink(directory, link)
        try:
            yield os.path.join(link, name)
        finally:
            os.unlink(link)

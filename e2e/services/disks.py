"""File systems of a test's own, mounted for it: one that can be full, and one whose device can fail. They need root."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.waiting import wait_until

_EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32): what `xfs_io -c shutdown` asks for
_WITHOUT_LOG_FLUSH = 2  # as a power cut: what was not synced is gone


@contextlib.contextmanager
def tmpfs(mountpoint: Path, size_bytes: int) -> Iterator[Path]:
    """A file system in memory that holds no more than `size_bytes`. Skips where this user may not mount."""
    mountpoint.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "dolake-test", str(mountpoint))
    try:
        yield mountpoint
    finally:
        _run("umount", "-l", str(mountpoint))


class LoopDisk:
    """An ext4 in a file, on a loop device. `fail` makes every access an I/O error; `mend` unmounts and mounts it again."""

    def __init__(self, image: Path, mountpoint: Path, size_bytes: int = 256 << 20) -> None:
        self.image, self.mountpoint = image, mountpoint
        self.size_bytes = size_bytes

    def __enter__(self) -> LoopDisk:
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("needs mkfs.ext4 (e2fsprogs)")
        with self.image.open("wb") as file:
            file.truncate(self.size_bytes)
        _run("mkfs.ext4", "-q", str(self.image))
        self.mountpoint.mkdir(parents=True)
        self._mount()
        return self

    def __exit__(self, *_: object) -> None:
        _run("umount", "-l", str(self.mountpoint))

    def fail(self) -> None:
        descriptor = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _EXT4_SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
        finally:
            os.close(descriptor)
        with pytest.raises(OSError, match="Input/output error") as caught:
            (self.mountpoint / "probe").touch()
        assert caught.value.errno == errno.EIO

    def mend(self) -> None:
        """What an operator does. The unmount fails for as long as anybody holds a file there open."""
        wait_until(lambda: _run("umount", str(self.mountpoint)) == "", "the failed disk to be let go by everybody")
        self._mount()

    def _mount(self) -> None:
        _mount("-o", "loop", str(self.image), str(self.mountpoint))


def _mount(*arguments: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a file system")
    trouble = _run("mount", *arguments)
    if trouble:
        pytest.skip(f"this machine lets nobody mount: {trouble}")


def _run(*command: str) -> str:
    """What it complained of; empty if all went well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"ended with {done.returncode}"

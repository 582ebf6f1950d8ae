"""What tests must not leave behind: processes, temporary folders, listening sockets, open descriptors.

Every process that a test starts inherits a mark in its environment, and every temporary folder lies in one place, so that what is
found at the end is ours, whoever else works on the machine.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.harness.daemon import is_running, listening_ports
from tests.harness.waiting import WaitedTooLong, wait_until

_MARK = "TEST_RUN"
_ENDING_S_MAX = 10.0  # What was told to end may take a moment.
_OF_LIBRARIES = 30  # Descriptors that libraries open once and keep: pools, pipes to helpers, devices.


@contextlib.contextmanager
def no_leftovers(temporary: Path) -> Iterator[None]:
    """Around a whole run: at its end nothing that it began is there. `temporary` becomes the folder for temporary files."""
    run = uuid.uuid4().hex
    ports, descriptors = set(listening_ports(os.getpid())), len(_descriptors())
    before = {name: os.environ.get(name) for name in (_MARK, "TMPDIR")}
    os.environ.update({_MARK: run, "TMPDIR": str(temporary)})
    folder, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        yield
    finally:
        tempfile.tempdir = folder
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    findings: list[str] = []
    gc.collect()  # A half that was killed in thought only still holds its files.

    def nothing_left() -> bool:
        findings[:] = [
            *(f"a process: {line}" for line in _processes(run)),
            *(f"a temporary file: {path}" for path in temporary.iterdir()),
            *(f"a socket that listens on port {port}" for port in set(listening_ports(os.getpid())) - ports),
        ]
        if len(left := _descriptors()) > descriptors + _OF_LIBRARIES:
            findings.append(f"{len(left) - descriptors} descriptors: {', '.join(sorted(left))}")
        return not findings

    try:
        wait_until(nothing_left, "everything that the tests began to be over", _ENDING_S_MAX)
    except WaitedTooLong:
        raise AssertionError("left behind:\n" + "\n".join(findings)) from None


def _descriptors() -> list[str]:
    """What this process has open, by name."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # The listing's own has gone.
            found.append(str(entry.readlink()))
    return found


def _processes(run: str) -> list[str]:
    """Command lines of the processes with the mark of this run, this one apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if f"{_MARK}={run}".encode() in (entry / "environ").read_bytes().split(b"\0") and is_running(int(entry.name)):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any("multiprocessing.resource_tracker" in word for word in words):
                    continue  # The library's own, one for this process and as long as it: it ends when its pipe closes.
                found.append(f"{entry.name} {' '.join(words)}".strip())
    return found

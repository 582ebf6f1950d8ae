"""Code in a process of its own, for what ends a process: crashes, and system calls that it was forbidden."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

_NUMBERS = {"x86_64": (0xC000003E, (74, 75, 306, 277)), "aarch64": (0xC00000B7, (82, 83, 267, 84))}  # fsync, fdatasync, syncfs, ranges

# The kernel ends a process that asks for any of these (seccomp, which needs no rights).
_FORBID = """
import ctypes, struct

def forbid_syncs(architecture, numbers):
    load, equal, give = 0x20, 0x15, 0x06
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, 0x7FFF0000), (load, 0, 0, 0)]
    for place, number in enumerate(numbers):
        lines.append((equal, len(numbers) - place, 0, number))
    lines += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x80000000)]
    code = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter; a negative return code is the signal that ended it."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def run_without_syncs(setup: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The same, but whoever asks the kernel to sync anything during `code` is ended by SIGSYS."""
    architecture, numbers = _NUMBERS[platform.machine()]
    forbidding = f"{_FORBID}\nforbid_syncs({architecture}, {numbers})\n"
    return run("\n".join([textwrap.dedent(setup), forbidding, textwrap.dedent(code)]), *arguments)

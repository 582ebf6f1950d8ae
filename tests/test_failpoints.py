"""Failpoints: what an armed moment does, when, and for which files only."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dolake.failpoints import FailpointRaised, Registry


def outcomes(registry: Registry, name: str, *paths: str) -> list[str]:
    """What each hit did."""
    found = []
    for path in paths:
        try:
            registry.hit(name, path)
        except (FailpointRaised, OSError) as error:
            found.append(type(error).__name__)
        else:
            found.append("")
    return found


def test_steps_follow_one_another() -> None:
    registry = Registry()
    registry.arm("wal.before_sync", "2*off->1*raise->1*errno(EIO)")
    assert outcomes(registry, "wal.before_sync", *"abcdef") == ["", "", "FailpointRaised", "OSError", "", ""]
    assert registry.hits["wal.before_sync"] == 6


def test_a_path_restricts_a_failpoint_to_the_files_of_one_disk() -> None:
    registry = Registry()
    registry.arm("wal.before_sync@/mnt/b/", "errno(EIO)")
    registry.arm("wal.before_sync@/mnt/c/", "1*off->raise")
    paths = ("/mnt/a/1", "/mnt/b/1", "/mnt/c/1", "/mnt/c/2", "/mnt/b/2", "", "/mnt/bb/1")
    assert outcomes(registry, "wal.before_sync", *paths) == ["", "OSError", "", "FailpointRaised", "OSError", "", ""]


def test_an_error_can_last_as_long_as_a_file_is_there(tmp_path: Path) -> None:
    registry, flag = Registry(), tmp_path / "broken"
    registry.arm("wal.before_write", f"errno(EIO, {flag})")
    registry.hit("wal.before_write", "x")
    flag.touch()
    for _ in range(2):
        with pytest.raises(OSError, match=r"wal\.before_write") as caught:
            registry.hit("wal.before_write", "x")
        assert caught.value.errno == errno.EIO
    flag.unlink()
    registry.hit("wal.before_write", "x")


@pytest.mark.parametrize(
    ("name", "action", "rule"),
    [
        ("no.such", "raise", "no failpoint is named no.such"),
        ("no.such@/mnt", "raise", "no failpoint is named no.such"),
        ("wal.before_sync", "explode", "not a failpoint action: 'explode'"),
        ("wal.before_sync@/mnt", "errno(ENONSENSE, /tmp/x)", "no errno is named 'ENONSENSE'"),
        ("wal.before_sync", "errno", "no errno is named ''"),
    ],
)
def test_what_cannot_be_armed_is_named(name: str, action: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Registry().arm(name, action)

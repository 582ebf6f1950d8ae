"""Looking at a log: one sentence for each breach, with file and bytes, whether the daemon runs or not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dolake.buffer.inspect import inspect_log, verify_log
from dolake.errors import LogCorrupt
from dolake.storage.disk import LocalDisk
from tests.buffer.logtools import batches, contents, create, entry, fill, overwrite, reopen, segment_files


def breaches(directory: Path) -> list[str]:
    return list(verify_log(LocalDisk(), str(directory)))


def test_a_whole_log_has_no_breach_live_or_stopped(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    assert breaches(tmp_path / "log") == []
    for number in range(45):
        log.append_group([entry(number)])
        if number % 9 == 0:
            assert breaches(tmp_path / "log") == []
    log.trim(25)
    fill(log, range(3), epoch="b")
    assert breaches(tmp_path / "log") == []
    log.close()
    reopen(tmp_path / "log").close()
    assert breaches(tmp_path / "log") == []


def test_a_torn_tail_is_shown_and_is_no_breach(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(3))
    log.close()
    with open(tmp_path / "log" / f"{0:020d}.open", "ab") as file:
        file.write(b"torn" * 50)
    assert breaches(tmp_path / "log") == []
    (view,) = inspect_log(LocalDisk(), str(tmp_path / "log"))
    assert (view.state, view.torn, view.first_offset, view.end, view.problem) == ("open", True, 0, 3, "")


def test_segments_and_records_are_shown_as_they_stand(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(25))
    views = list(inspect_log(LocalDisk(), str(tmp_path / "log")))
    assert [(view.state, view.first_offset, view.end) for view in views] == [("sealed", 0, 10), ("sealed", 10, 20), ("open", 20, 25)]
    assert [view.tables for view in views] == [{"public.orders": 9}, {"public.orders": 19}, {"public.orders": 24}]
    assert batches([record for view in views for record in view.records]) == list(range(25))
    assert sum(view.size_bytes for view in views) == log.size_bytes
    log.close()


@pytest.mark.acceptance("AT-04")
def test_damage_is_named_by_file_and_bytes_before_and_after_quarantine(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(35))
    log.close()
    name = segment_files(tmp_path / "log")[1]
    position = contents(tmp_path / "log")[name].index(entry(13).payload)
    overwrite(tmp_path / "log" / name, position, b"\0\0\0")
    for _ in range(2):
        found = breaches(tmp_path / "log")
        assert name in found[0]
        assert "the checksum does not match" in found[0]
        start, end = (int(figure) for figure in found[0].split("bytes ")[1].split(":")[0].split(".."))
        assert start <= position < end
        views = list(inspect_log(LocalDisk(), str(tmp_path / "log")))
        assert [bool(view.problem) for view in views] == [False, True, False, False]
        assert batches(views[1].records) == [10, 11, 12]
        if not any("quarantine" in file for file in segment_files(tmp_path / "log")):
            with pytest.raises(LogCorrupt):
                reopen(tmp_path / "log")
    assert views[1].state == "quarantined"


def test_a_hole_a_lost_beginning_and_a_lost_end_are_told(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(35))
    log.close()
    names = segment_files(tmp_path / "log")
    os.rename(tmp_path / "log" / names[1], tmp_path / "kept")
    assert any("begins with offset 20 where 10 belongs" in breach for breach in breaches(tmp_path / "log"))
    os.rename(tmp_path / "kept", tmp_path / "log" / names[1])
    os.rename(tmp_path / "log" / names[0], tmp_path / "kept")
    assert any("offsets 0..10 are gone" in breach for breach in breaches(tmp_path / "log"))
    os.rename(tmp_path / "kept", tmp_path / "log" / names[0])
    os.unlink(tmp_path / "log" / names[3])
    assert any("offsets 30..35 were synced and are not here" in breach for breach in breaches(tmp_path / "log"))


def test_a_sequence_that_jumps_breaks_i3(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, [0, 1, 3])
    fill(log, [0, 1], source="other")
    fill(log, [7], epoch="b")
    log.close()
    (breach,) = breaches(tmp_path / "log")
    assert "offset 2: source 'orders-db' has sequence 3 where 2 belongs (I3)" in breach

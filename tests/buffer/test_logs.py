"""Several logs: found again by what they hold, and missed when they are not there."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from dolake.buffer.logs import Logs, init_logs
from dolake.buffer.wal import holds_log
from dolake.errors import LogCorrupt, LogFailed, LogRefused, SourceRefused
from dolake.failpoints import FailpointRaised
from dolake.storage.disk import LocalDisk
from tests.buffer.logtools import SMALL, FailingDisk, HastyDisk, SeededRandomness, armed, batches, contents, entry, overwrite, read_all


def open_logs(directories: Sequence[Path], disk: LocalDisk | None = None, seed: int = 1) -> Logs:
    return Logs(disk or HastyDisk(), [str(directory) for directory in directories], SMALL, SeededRandomness(seed))


def dirs(tmp_path: Path, count: int = 4) -> list[Path]:
    return [tmp_path / f"disk-{number}" / "log" for number in range(count)]


def awkward_names() -> list[str]:
    chance = random.Random(32)
    names = ["a", "b.c", "x..y", ".", "..", "ß", "源頭-1", "🙂", "../../evil", "a/b"]
    for size in (1, 3, 7, 8, 200):
        names += ["".join(chance.choice("abcdefghijklmnopqrstuvwxyz.-_ äöü漢字") for _ in range(size)) for _ in range(8)]
    names = list(dict.fromkeys(names))[:40]
    assert len(names) == 40
    return names


@pytest.mark.acceptance("AT-32", "AT-36")
def test_forty_sources_are_found_again_and_no_file_lies_elsewhere(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path))
    assert logs.failed == {}
    places = {}
    for name in awkward_names():
        log = logs.log_for(name)
        log.append_group([entry(number, source=name) for number in range(12)])
        places[name] = log.directory
    assert sorted(logs.placement.loads().values()) == [10, 10, 10, 10]
    logs.close()
    logs = open_logs(dirs(tmp_path))
    assert {name: logs.log_for(name).directory for name in places} == places
    for name, directory in places.items():
        assert logs.log_for(name).sources[name].last_sequence == 11
        assert directory in {str(path) for path in dirs(tmp_path)}
    logs.close()
    for where, _, names in os.walk(tmp_path):
        assert not names or Path(where) in dirs(tmp_path)
        assert all(name in ("lock", "synced-end", "reserve") or name.split(".")[0].isdigit() for name in names)


@pytest.mark.acceptance("AT-31", "AT-34")
def test_assignments_last_over_restarts_and_new_bytes_go_only_there(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path))
    homes = {}
    for number in range(9):
        homes[f"s{number}"] = logs.log_for(f"s{number}").directory
        logs.log_for(f"s{number}").append_group([entry(0, source=f"s{number}")])
    for restart in range(1, 11):
        logs.close()
        logs = open_logs(dirs(tmp_path), seed=restart)
        assert {source: logs.log_for(source).directory for source in homes for _ in range(100)} == homes
        source = f"s{restart % 9}"
        sequence = logs.log_for(source).sources[source].last_sequence + 1
        before = {directory: contents(directory) for directory in homes.values()}
        logs.log_for(source).append_group([entry(sequence, source=source)])
        changed = {directory for directory in before if contents(directory) != before[directory]}
        assert changed == {homes[source]}
    logs.close()


@pytest.mark.acceptance("AT-33")
def test_a_source_in_two_logs_is_refused_naming_both_and_39_others_serve(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path, 2))
    for number in range(40):
        logs.log_for(f"s{number}").append_group([entry(0, source=f"s{number}")])
    home = logs.log_for("s7").directory
    other = next(log for directory, log in logs.serving.items() if directory != home)
    other.append_group([entry(5, source="s7")])
    logs.close()
    logs = open_logs(dirs(tmp_path, 2))
    with pytest.raises(SourceRefused) as caught:
        logs.log_for("s7")
    assert all(str(directory) in str(caught.value) for directory in dirs(tmp_path, 2))
    for number in range(40):
        if number != 7:
            logs.log_for(f"s{number}").append_group([entry(1, source=f"s{number}")])
    logs.close()


def test_every_log_names_all_the_others(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path, 3))
    ids = {directory: log.log_id for directory, log in logs.serving.items()}
    assert len(set(ids.values())) == 3
    logs.close()
    logs = open_logs(dirs(tmp_path, 3))
    for directory, log in logs.serving.items():
        assert {(one.directory, one.log_id) for one in log.siblings} == {pair for pair in ids.items() if pair[0] != directory}
    logs.close()


def test_an_empty_directory_where_a_log_should_be_is_refused_and_left_empty(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path, 3))
    logs.log_for("kept").append_group([entry(0, source="kept")])
    logs.log_for("gone").append_group([entry(0, source="gone")])
    kept, gone = logs.log_for("kept").directory, logs.log_for("gone").directory
    logs.close()
    os.rename(gone, gone + "-unmounted")
    os.mkdir(gone)
    logs = open_logs(dirs(tmp_path, 3))
    assert list(logs.failed) == [gone]
    assert isinstance(logs.failed[gone], LogRefused)
    assert "is the disk mounted" in str(logs.failed[gone])
    assert os.listdir(gone) == []
    logs.log_for("kept").append_group([entry(1, source="kept")])
    for source in ("gone", "never seen"):  # Neither can be told from the other now.
        with pytest.raises(LogFailed, match="may live in"):
            logs.log_for(source)
    os.rmdir(gone)
    os.rename(gone + "-unmounted", gone)
    assert logs.reopen(gone).sources["gone"].last_sequence == 0
    assert logs.failed == {}
    assert logs.log_for("gone").directory == gone
    assert logs.log_for("never seen").directory not in (gone, kept)
    logs.close()


def test_an_operator_may_begin_a_lost_log_anew(tmp_path: Path) -> None:
    paths = [str(path) for path in dirs(tmp_path, 3)]
    logs = open_logs(dirs(tmp_path, 3))
    old = logs.serving[paths[1]].log_id
    logs.close()
    shutil.rmtree(paths[1])
    made = init_logs(LocalDisk(), paths, SMALL, SeededRandomness(5))
    assert list(made) == paths
    assert made[paths[1]] != old
    logs = open_logs(dirs(tmp_path, 3))
    assert logs.failed == {}
    assert logs.log_for("new").append_group([entry(0, source="new")])
    logs.close()


def test_a_log_that_is_no_longer_configured_is_missed_until_it_is_given_up(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path, 2))
    for source in ("x", "y"):
        logs.log_for(source).append_group([entry(0, source=source)])
    logs.close()
    paths = [str(path) for path in dirs(tmp_path, 2)]
    logs = open_logs(dirs(tmp_path, 1))
    assert "not configured" in str(logs.failed[paths[1]])
    assert logs.log_for("x").directory == paths[0]
    with pytest.raises(LogFailed):
        logs.log_for("y")
    logs.close()
    init_logs(LocalDisk(), paths[:1], SMALL, SeededRandomness(5))
    logs = open_logs(dirs(tmp_path, 1))
    assert logs.failed == {}
    logs.close()


def test_a_directory_that_moved_is_known_by_its_log(tmp_path: Path) -> None:
    first, second = dirs(tmp_path, 2)
    logs = open_logs([first, second])
    logs.log_for("x").append_group([entry(0, source="x")])
    logs.close()
    os.rename(second, tmp_path / "moved")
    for _ in range(2):
        logs = open_logs([first, tmp_path / "moved"])
        assert logs.failed == {}
        assert {one.directory for one in logs.serving[str(first)].siblings} == {str(tmp_path / "moved")}
        logs.close()


def test_a_copy_of_a_log_is_refused_together_with_it(tmp_path: Path) -> None:
    first, second, third = dirs(tmp_path, 3)
    logs = open_logs([first, third])
    logs.close()
    shutil.copytree(first, second)
    logs = open_logs([first, second, third], seed=2)
    assert set(logs.failed) == {str(first), str(second)}
    assert "one is a copy" in str(logs.failed[str(first)])
    logs.close()


def test_a_corrupt_log_stops_alone(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path, 2))
    for source in ("x", "y"):
        for number in range(12):
            logs.log_for(source).append_group([entry(number, source=source)])
    x, y = logs.log_for("x").directory, logs.log_for("y").directory
    logs.close()
    name = sorted(contents(x))[0]
    overwrite(Path(x) / name, 1500, b"\0\xff\0")
    logs = open_logs(dirs(tmp_path, 2))
    assert isinstance(logs.failed[x], LogCorrupt)
    assert logs.log_for("y").directory == y
    with pytest.raises(LogFailed):
        logs.log_for("x")
    with pytest.raises(LogCorrupt):
        logs.reopen(x)
    logs.close()


def test_a_log_that_fails_while_serving_degrades_only_its_own_sources(tmp_path: Path) -> None:
    disk = FailingDisk()
    logs = open_logs(dirs(tmp_path, 2), disk)
    for source in ("x", "y"):
        logs.log_for(source).append_group([entry(0, source=source)])
    log = logs.log_for("x")
    disk.syncs_fail = True
    with pytest.raises(LogFailed) as caught:
        log.append_group([entry(1, source="x")])
    disk.syncs_fail = False
    logs.fail(log.directory, caught.value)
    with pytest.raises(LogFailed, match="the log of source 'x' is down"):
        logs.log_for("x")
    logs.log_for("y").append_group([entry(1, source="y")])
    assert logs.log_for("new one").directory != log.directory  # All that log's sources are known: this is none of them.
    again = logs.reopen(log.directory)
    assert again.log_id == log.log_id
    assert logs.log_for("x") is again
    assert again.sources["x"].last_sequence in (0, 1)
    logs.close()


@pytest.mark.parametrize("skip", range(8))
@pytest.mark.parametrize("point", ["wal.roll_create", "wal.roll_rename", "wal.before_write", "wal.after_sync"])
def test_a_new_log_accepts_only_when_all_know_it_whenever_its_making_is_cut_short(tmp_path: Path, point: str, skip: int) -> None:
    logs = open_logs(dirs(tmp_path, 2))
    logs.log_for("x").append_group([entry(0, source="x")])
    logs.close()
    action = f"{skip}*off->1*raise" if skip else "1*raise"
    with armed(point, action):
        try:
            logs = open_logs(dirs(tmp_path, 4), seed=2)
            logs.close()
        except FailpointRaised:
            pass
    for index in (2, 3):
        # Whatever the cut left: a log with two records may accept, and is known to each of the others.
        directory = dirs(tmp_path, 4)[index]
        if holds_log(LocalDisk(), str(directory)) and len(read_all(directory)) > 1:
            for other in dirs(tmp_path, 4):
                if other != directory:
                    assert any(str(directory) in record.entry.payload.decode() for record in read_all(other) if record.entry.source == "")
    logs = open_logs(dirs(tmp_path, 4), seed=3)
    assert logs.failed == {}
    assert all(len(log.siblings) == 3 for log in logs.serving.values())
    assert logs.log_for("x").sources["x"].last_sequence == 0
    logs.close()


def test_a_new_directory_waits_while_another_log_cannot_be_told_of_it(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path, 2))
    logs.log_for("x").append_group([entry(0, source="x")])
    home = logs.log_for("x").directory
    logs.close()
    other = next(str(path) for path in dirs(tmp_path, 2) if str(path) != home)
    shutil.move(other, other + "-away")
    logs = open_logs(dirs(tmp_path, 3), seed=2)
    new = str(dirs(tmp_path, 3)[2])
    assert "a new log waits until" in str(logs.failed[new])
    assert not os.path.exists(new)
    assert list(logs.serving) == [home]
    shutil.move(other + "-away", other)
    logs.reopen(other)
    assert set(logs.serving) == {str(path) for path in dirs(tmp_path, 3)}
    logs.close()


def test_one_directory_needs_no_sibling(tmp_path: Path) -> None:
    logs = open_logs(dirs(tmp_path, 1))
    log = logs.log_for("x")
    assert log.append_group([entry(0, source="x")]) == range(1)
    logs.close()
    assert batches(read_all(dirs(tmp_path, 1)[0])) == [0]

"""The simulated disk keeps the real one's contract, and loses exactly what was not synced."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dolake.storage.disk import Disk, LocalDisk
from tests.simulation.disk import BLOCK, Cut, DiskDoor, Inode, SimDisk
from tests.simulation.faults import Chaos, Trace
from tests.simulation.loop import Process, ProcessKilled, SimLoop
from tests.simulation.world import CUTS

OpenDisk = Callable[[Path], tuple[Disk, str]]


def door(disk: SimDisk, name: str = "ingest") -> DiskDoor:
    loop = SimLoop("0", trace=Trace())
    loop.close()
    return DiskDoor(disk, Process(loop, name, "0"))


def sim_disk(root: str = "/data", **chances: float) -> SimDisk:
    return SimDisk(Chaos("0", chances), root)


@pytest.fixture(params=["local", "simulated"])
def disk_and_root(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    root = str(tmp_path)
    return (LocalDisk() if request.param == "local" else door(sim_disk(root))), root


def test_bytes_written_are_read_back_also_past_the_end_and_through_another_handle(disk_and_root: tuple[Disk, str]) -> None:
    disk, root = disk_and_root
    file = disk.create(f"{root}/a")
    assert file.write_at(0, [b"one", memoryview(b"two")]) == 6
    assert file.write_at(8, [b"x"]) == 1
    file.sync()
    assert file.read_at(0, 100) == b"onetwo\0\0x"
    assert disk.open(f"{root}/a").read_at(3, 3) == b"two"
    assert (file.size(), disk.open(f"{root}/a").read_at(9, 5)) == (9, b"")


def test_names_behave_as_the_system_has_them(disk_and_root: tuple[Disk, str]) -> None:
    disk, root = disk_and_root
    disk.make_directories(f"{root}/log/deep")
    disk.create(f"{root}/log/b").close()
    disk.create(f"{root}/log/a").close()
    disk.rename(f"{root}/log/a", f"{root}/log/c")
    disk.sync_directory(f"{root}/log")
    assert disk.list(f"{root}/log") == ["b", "c", "deep"]
    assert (disk.exists(f"{root}/log/a"), disk.exists(f"{root}/log/c")) == (False, True)
    with pytest.raises(FileExistsError):
        disk.create(f"{root}/log/b")
    disk.unlink(f"{root}/log/b")
    for missing in (lambda: disk.open(f"{root}/log/b"), lambda: disk.unlink(f"{root}/log/b"), lambda: disk.list(f"{root}/nowhere")):
        with pytest.raises(FileNotFoundError):
            missing()


def test_an_open_file_outlives_its_name(disk_and_root: tuple[Disk, str]) -> None:
    disk, root = disk_and_root
    disk.create(f"{root}/a").write_at(0, [b"kept"])
    file = disk.open(f"{root}/a")
    disk.unlink(f"{root}/a")
    assert file.read_at(0, 4) == b"kept"


def test_a_lock_excludes_until_released_and_a_counter_is_shared(disk_and_root: tuple[Disk, str]) -> None:
    disk, root = disk_and_root
    lock = disk.lock(f"{root}/lock")
    with pytest.raises(BlockingIOError):
        disk.lock(f"{root}/lock")
    lock.release()
    disk.lock(f"{root}/lock").release()
    counter = disk.counter(f"{root}/end", writable=True)
    assert counter.get() == 0
    counter.set(7)
    assert disk.counter(f"{root}/end", writable=False).get() == 7
    with pytest.raises(FileNotFoundError):
        disk.counter(f"{root}/other", writable=False)


def test_a_power_cut_keeps_what_was_synced_and_nothing_else_when_all_is_dropped() -> None:
    disk = sim_disk()
    before = door(disk)
    file = before.create("/data/a")
    file.write_at(0, [b"s" * 700])
    file.sync()
    before.sync_directory("/data")
    file.write_at(700, [b"u" * 700])
    before.create("/data/unsynced-name").sync()
    disk.cut_power(Cut(drop_all=True, names="all"))
    assert door(disk).list("/data") == ["a"]
    assert door(disk).open("/data/a").read_at(0, 2000) == b"s" * 700


def test_a_power_cut_takes_any_subset_of_unsynced_blocks_whole() -> None:
    seen = set()
    for seed in range(60):
        disk = SimDisk(Chaos(str(seed), {}), "/data")
        file = door(disk).create("/data/a")
        door(disk).sync_directory("/data")
        file.write_at(0, [b"".join(bytes([65 + n]) * BLOCK for n in range(4))])
        disk.cut_power(Cut())
        content = door(disk).open("/data/a").read_at(0, 4 * BLOCK)
        blocks = [content[start : start + BLOCK].strip(b"\0") for start in range(0, len(content), BLOCK)]
        assert all(block in (b"", bytes([65 + n]) * BLOCK) for n, block in enumerate(blocks))
        seen.add(tuple(bool(block) for block in blocks))
    assert len(seen) > 8
    assert any(pattern.index(True) > 0 for pattern in seen if True in pattern)  # a hole before a block that was kept


def test_a_failed_sync_leaves_bytes_that_are_read_but_not_durable_and_a_second_sync_does_not_help() -> None:
    disk = sim_disk(sync_eio=1.0)
    file = door(disk).create("/data/a")
    door(disk).sync_directory("/data")
    file.write_at(0, [b"x" * 20 * BLOCK])
    with pytest.raises(OSError, match="Input/output error"):
        file.sync()
    disk.chaos.heal()
    file.sync()
    assert file.read_at(0, 20 * BLOCK) == b"x" * 20 * BLOCK
    disk.cut_power(Cut(drop_all=True))
    assert 0 < door(disk).open("/data/a").read_at(0, 20 * BLOCK).count(b"x") < 20 * BLOCK


@pytest.mark.parametrize("fault", ["write_eio", "write_enospc"])
def test_a_failed_write_leaves_a_prefix(fault: str) -> None:
    lengths = set()
    for seed in range(20):
        disk = SimDisk(Chaos(str(seed), {fault: 1.0}), "/data")
        file = door(disk).create("/data/a")
        with pytest.raises(OSError, match=r"error|space"):
            file.write_at(0, [b"x" * 100])
        lengths.add(file.size())
    assert len(lengths) > 5


def test_a_full_disk_takes_what_fits() -> None:
    disk = SimDisk(Chaos("0", {}), "/data", capacity=100)
    file = door(disk).create("/data/a")
    with pytest.raises(OSError, match="No space left"):
        file.write_at(0, [b"x" * 150])
    assert file.size() <= 100
    assert door(disk).usage("/data")[1] == 100 - file.size()


def test_a_counter_comes_back_from_a_power_cut_as_now_as_once_or_as_nothing() -> None:
    seen = set()
    for seed in range(40):
        disk = SimDisk(Chaos(str(seed), {}), "/data")
        counter = door(disk).counter("/data/end", writable=True)
        door(disk).sync_directory("/data")
        for value in (3, 5, 9):
            counter.set(value)
        disk.cut_power(Cut())
        seen.add(door(disk).counter("/data/end", writable=False).get())
    assert seen == {0, 3, 5, 9}


def test_the_dead_touch_nothing_and_zombies_get_errors() -> None:
    disk = sim_disk()
    dead, zombie, successor = door(disk, "dead"), door(disk, "zombie"), door(disk, "successor")
    file = dead.create("/data/a")
    dead.lock("/data/lock")
    dead.process.die()
    with pytest.raises(ProcessKilled):
        file.write_at(0, [b"x"])
    zombie.lock("/data/lock")
    zombie.process.detached = True
    with pytest.raises(OSError, match="Input/output error"):
        zombie.list("/data")
    successor.lock("/data/lock")
    assert successor.open("/data/a").size() == 0


def test_power_cuts_drop_tear_and_reorder_bytes_and_names_of_the_log_and_of_the_warehouse() -> None:
    seen: set[str] = set()
    for seed in range(60):
        disk = SimDisk(Chaos(str(seed), {}), "/data")
        machine = door(disk)
        for area in ("log", "warehouse"):
            machine.make_directories(f"/data/{area}")
            for directory in (f"/data/{area}", "/data"):
                machine.sync_directory(directory)
            file = machine.create(f"/data/{area}/a")
            machine.sync_directory(f"/data/{area}")
            file.write_at(0, [bytes(range(256)) * 16])
            for name in "bcde":
                machine.create(f"/data/{area}/{name}").close()
        disk.cut_power(CUTS[seed % len(CUTS)])
        for area in ("log", "warehouse"):
            kept = disk.names[f"/data/{area}/a"]
            assert isinstance(kept, Inode)
            for start in range(0, len(kept.cached), BLOCK):
                assert bytes(kept.cached[start : start + BLOCK]) in (bytes(range(256)) * 2, bytes(BLOCK))
        seen |= disk.chaos.counts.keys()
    fates = ("dropped", "torn", "reordered")
    assert seen >= {f"{what} {fate} of {area}" for what in ("blocks", "names") for fate in fates for area in ("log", "warehouse")}


@pytest.mark.parametrize("fault", ["create", "rename", "sync", "sync_directory", "write"])
@pytest.mark.parametrize(("kind", "number"), [("eio", errno.EIO), ("enospc", errno.ENOSPC)])
def test_every_operation_fails_as_its_fault_says_and_is_counted_for_what_it_happened_to(fault: str, kind: str, number: int) -> None:
    disk = sim_disk()
    machine = door(disk)
    machine.make_directories("/data/warehouse")
    file = machine.create("/data/warehouse/a")
    disk.chaos.chances = {f"{fault}_{kind}": 1.0}
    operations: dict[str, Callable[[], object]] = {
        "create": lambda: machine.create("/data/warehouse/b"),
        "rename": lambda: machine.rename("/data/warehouse/a", "/data/warehouse/b"),
        "sync": file.sync,
        "sync_directory": lambda: machine.sync_directory("/data/warehouse"),
        "write": lambda: file.write_at(0, [b"x"]),
    }
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        operations[fault]()
    assert raised.value.errno == number
    assert disk.chaos.counts[f"{fault}_{kind} of warehouse"] == 1
    assert not machine.exists("/data/warehouse/b")

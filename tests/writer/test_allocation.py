"""What the writer process has of the system's memory, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Blocks that the allocator makes no mapping of their own for, and a few that stay between them, so that it returns none by itself.
_FRAGMENTED = """
import sys
from dolake.writer.allocation import give_back, settle_allocation

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

settle_allocation()
blocks = [bytes(20_000) for _ in range(10_000)]
kept = blocks[::100]
del blocks
print(resident_mib())
if sys.argv[1] == "give back":
    give_back()
print(resident_mib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("asked", "returned"), [("give back", True), ("nothing", False)])
def test_pages_that_nothing_is_on_are_given_back(asked: str, returned: bool) -> None:
    done = subprocess.run([sys.executable, "-c", _FRAGMENTED, asked], capture_output=True, text=True, timeout=60, check=True)
    before, after = map(int, done.stdout.split())
    assert (before - after > 100) is returned, (before, after)


@pytest.mark.parametrize(("wanted", "used"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_all_of_arrow_uses_the_systems_allocator_unless_told_otherwise(wanted: str | None, used: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    if wanted is not None:
        environment["ARROW_DEFAULT_MEMORY_POOL"] = wanted
    asked = "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    begun = f"import dolake.cli.serve; from dolake.daemon.child import load_half; load_half('writer'); {asked}"
    done = subprocess.run([sys.executable, "-c", begun], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [used]

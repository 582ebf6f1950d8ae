"""All tests, again and again: `python -m tests.suite`. Ends with 1 if a test failed, or did not end as in the other runs.

What `make test` runs, so many times; a test that now passes and now does not is found by nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from tests.reliability import summary

COMMAND = (sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q")
# What `make faults` does at full size, done shortly: its share of the time is said at the end of a run.
QUICK_FAULTS = ("tests/simulation/", "tests/fuzz/", "tests/soak/", "tests/test_real_kills.py", "tests/verify/test_damage.py")


@dataclass(frozen=True)
class Run:
    """How each test ended, by its name; seconds of the whole, and of the processes that ran the quick part of `make faults`."""

    ended: Mapping[str, str]
    seconds: float
    quick_s: float

    @property
    def line(self) -> str:
        counts = Counter(self.ended.values())
        said = ", ".join(f"{count:,} {how}" for how, count in sorted(counts.items())) or "no tests"
        return f"{said}, {self.seconds:.0f} s; quick part of make faults {self.quick_s:.0f} s of the tests' processes"


def run_all(what: Sequence[str], log: Path) -> Run:
    """Runs the tests once; what they print is added to `log`. Raises RuntimeError where they could not be run."""
    with TemporaryDirectory(prefix="suite-") as folder:
        report = Path(folder) / "report.xml"
        began_s = time.monotonic()
        with log.open("a", encoding="utf-8") as output:
            command = [*COMMAND, *what, "--junitxml", str(report), "--basetemp", str(Path(folder) / "temporary")]
            done = subprocess.run(command, stdout=output, stderr=output, check=False)
        seconds = time.monotonic() - began_s
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}; what it printed is in {log}")
        return read_report(report.read_text(encoding="utf-8"), seconds)


def read_report(text: str, seconds: float) -> Run:
    """Of pytest's JUnit report."""
    ended: dict[str, str] = {}
    quick_s = 0.0
    for case in ElementTree.fromstring(text).iter("testcase"):
        file = case.get("classname", "").replace(".", "/")
        ended[f"{file}::{case.get('name')}"] = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        quick_s += float(case.get("time", 0)) * f"{file}.py".startswith(QUICK_FAULTS)
    return Run(ended, seconds, quick_s)


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Tests that have not passed in every run, and how they ended in each."""
    names = sorted({name for run in runs for name in run.ended})
    results = {name: [run.ended.get(name, "not there") for run in runs] for name in names}
    return {name: result for name, result in results.items() if set(result) != {"passed"}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.suite", description=__doc__)
    parser.add_argument("what", nargs="*", default=["tests"], help="files or folders; all tests if not given")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", default="", help="write the figures to this file")
    asked = parser.parse_args(arguments)
    log = summary.FOLDER / "suite.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    runs: list[Run] = []
    for number in range(1, asked.times + 1):
        runs.append(run_all(asked.what, log))
        print(f"run {number} of {asked.times}: {runs[-1].line}", flush=True)
    wrong = differing(runs)
    for name, results in wrong.items():
        print(f"{name}: {', '.join(results)}")
    print(f"suite: {len(runs)} runs, {len(wrong)} tests that failed in one or ended differently")
    if asked.json:
        summary.write(
            asked.json,
            family="suite",
            cases=len(runs),
            breaches=len(wrong),
            seconds=sum(run.seconds for run in runs),
            figures={"tests_most": max(len(run.ended) for run in runs), "quick_part_s_max": round(max(run.quick_s for run in runs))},
            detail=wrong,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

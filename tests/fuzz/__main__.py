"""`python -m tests.fuzz --seconds 60`: every target for so long, each in a process of its own. Ends with 1 if anything was found.

`--target NAME` (again and again) chooses; `--input FILE` tries one input again; `--json FILE` leaves a summary.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import mmap
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.engine import Found, Report, try_for
from tests.fuzz.mutations import SIZE_BYTES_MAX
from tests.fuzz.targets import TARGETS
from tests.reliability.summary import write

FOUND = Path("build/fuzz")


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    if asked.input is not None:
        with TARGETS[asked.target[0]].open() as check:
            print(check(asked.input.read_bytes()))
        return 0
    if asked.here is not None:
        here(asked.target[0], asked.seconds, asked.seed, asked.here)
        return 0
    began_s = time.monotonic()
    reports = [apart(name, asked.seconds, asked.seed) for name in asked.target or TARGETS]
    findings = sum(len(report.findings) for report in reports)
    executions = sum(report.executions for report in reports)
    print(f"{executions:,} executions of {len(reports)} targets in {time.monotonic() - began_s:.0f} s: {findings} findings")
    if asked.json is not None:
        write(
            asked.json,
            family="fuzz",
            cases=executions,
            breaches=findings,
            seconds=time.monotonic() - began_s,
            figures={"targets": len(reports)},
            detail=[report.to_json() for report in reports],
        )
    return 1 if findings else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), default=[])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the mutations; the time if not given")
    parser.add_argument("--input", type=Path, help="a file to try, with --target")
    parser.add_argument("--json", type=Path, help="where to leave the summary")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # the folder of a child process
    asked = parser.parse_args(arguments)
    if (asked.input or asked.here) and len(asked.target) != 1:
        parser.error("name the one --target")
    return asked


def apart(name: str, seconds: float, seed: int) -> Report:
    """One target in a process of its own. If that dies, what it was at is the finding."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--target",
            name,
            "--seconds",
            str(seconds),
            "--seed",
            str(seed),
            "--here",
            directory,
        ]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        path = Path(directory, "report.json")
        if path.exists():
            report = _report(json.loads(path.read_text()))
        else:
            report = Report(name, seed, executions=1)
            ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
            report.findings.append(Found(f"{ended} of the process", done.stderr[-500:], _last_input(Path(directory))))
    print(report.line(), flush=True)
    for found in report.findings:
        FOUND.mkdir(parents=True, exist_ok=True)
        kept = FOUND / f"{name.replace(' ', '-')}-{hashlib.sha256(found.data).hexdigest()[:12]}"
        kept.write_bytes(found.data)
        print(f"  {found.place}: {found.error}\n  see it again: python -m tests.fuzz --target '{name}' --input {kept}", flush=True)
    return report


def here(name: str, seconds: float, seed: int, directory: Path) -> None:
    """The child's part: notes each input where its parent finds it, in memory that outlives it."""
    with open(directory / "input", "w+b") as file:
        file.truncate(8 + SIZE_BYTES_MAX)
        with mmap.mmap(file.fileno(), 0) as noted:

            def note(data: bytes) -> None:
                noted[:8] = len(data).to_bytes(8, "little")
                noted[8 : 8 + len(data)] = data

            report = try_for(TARGETS[name], seconds, seed, note)
    (directory / "report.json").write_text(json.dumps(report.to_json()))


def _last_input(directory: Path) -> bytes:
    path = directory / "input"
    data = path.read_bytes() if path.exists() else bytes(8)
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def _report(said: dict[str, Any]) -> Report:
    report = Report(said["target"], said["seed"], said["executions"], said["seconds"])
    report.outcomes.update(said["outcomes"])
    report.findings = [Found(one["place"], one["error"], base64.b64decode(one["input"])) for one in said["findings"]]
    return report


if __name__ == "__main__":
    sys.exit(main())

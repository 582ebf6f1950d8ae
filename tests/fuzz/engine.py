"""Tries a target for a time: draws mutations, keeps what led somewhere new, collects findings and makes them small."""

from __future__ import annotations

import base64
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.mutations import any_mutations, mutated
from tests.fuzz.target import Check, Target

FINDINGS_MAX = 20
_POOL_MAX = 2000
_SMALLER_S = 3.0


@dataclass
class Found:
    """One kind of finding: where it is raised and the smallest input known to do it."""

    place: str
    error: str
    data: bytes

    def to_json(self) -> dict[str, Any]:
        return {"place": self.place, "error": self.error, "input": base64.b64encode(self.data).decode()}


@dataclass
class Report:
    target: str
    seed: int
    executions: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Found] = field(default_factory=list)

    def line(self) -> str:
        kinds = ", ".join(f"{name} {count:,}" for name, count in self.outcomes.most_common(5))
        return f"{self.target:16} {self.executions:10,} executions {self.seconds:6.1f} s  {len(self.findings)} findings  ({kinds})"

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "seed": self.seed,
            "executions": self.executions,
            "seconds": round(self.seconds, 2),
            "outcomes": dict(self.outcomes),
            "findings": [found.to_json() for found in self.findings],
        }


def try_for(target: Target, seconds: float, seed: int, before: Callable[[bytes], None] = lambda _: None) -> Report:
    """`before` hears each input before it is tried: the check may end the process."""
    chance, report = random.Random(f"{seed}/{target.name}"), Report(target.name, seed)
    corpus = list(target.corpus())
    pool, seen = list(corpus), set[str]()
    began_s = time.monotonic()
    with target.open() as check:
        waiting = list(corpus)
        while time.monotonic() - began_s < seconds and len(report.findings) < FINDINGS_MAX:
            data = waiting.pop() if waiting else mutated(corpus, chance.choice(pool), any_mutations(chance))
            before(data)
            report.executions += 1
            outcome, error = outcome_of(check, data)
            if error is None:
                report.outcomes[outcome] += 1
                if outcome not in seen and len(pool) < _POOL_MAX:
                    seen.add(outcome)
                    pool.append(data)
            elif all(place_of(error) != found.place for found in report.findings):
                small = smaller(check, data, place_of(error), before)
                report.findings.append(Found(place_of(error), f"{type(error).__name__}: {error}"[:500], small))
    report.seconds = time.monotonic() - began_s
    return report


def outcome_of(check: Check, data: bytes) -> tuple[str, Exception | None]:
    try:
        return check(data), None
    except Exception as error:  # Whatever a check lets out is a finding.
        return "", error


def place_of(error: Exception) -> str:
    """The kind of an error and the innermost line of ours: two with the same are one finding."""
    lines = [step for step in traceback.extract_tb(error.__traceback__) if "site-packages" not in step.filename]
    last = lines[-1]
    return f"{type(error).__name__} at {'/'.join(last.filename.split('/')[-3:])}:{last.lineno}"


def smaller(check: Check, data: bytes, place: str, before: Callable[[bytes], None] = lambda _: None) -> bytes:
    """The input with pieces left out, as long as the same thing is found."""
    end_s, size = time.monotonic() + _SMALLER_S, max(1, len(data) // 2)
    while size and time.monotonic() < end_s:
        position, shrunk = 0, False
        while position < len(data) and time.monotonic() < end_s:
            without = data[:position] + data[position + size :]
            before(without)
            _, error = outcome_of(check, without)
            if error is not None and place_of(error) == place:
                data, shrunk = without, True
            else:
                position += size
        if not shrunk:
            size //= 2
    return data

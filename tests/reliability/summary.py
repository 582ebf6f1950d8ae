"""The one shape in which a family of fault tests leaves its figures: a JSON file under build/faults, one for each family."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "faults"
# Words in the names of figures of which two runs together have the larger; all others add up.
LARGEST = ("max", "most", "kinds", "failpoints", "p95", "p99")


@dataclass(frozen=True)
class Summary:
    """`cases` is what the family counts (schedules, kills, inputs); `breaches` must be 0. `ran_at` is an ISO date, `commit` a short hash.

    `figures` are numbers worth publishing; `detail` is for whoever looks into a run.
    """

    family: str
    ran_at: str
    commit: str
    cases: int
    breaches: int
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    detail: Any = None


def write(
    path: Path | str,
    *,
    family: str,
    cases: int,
    breaches: int,
    seconds: float,
    figures: Mapping[str, float] | None = None,
    detail: Any = None,
) -> Summary:
    """Leaves a run's summary at `path`, dated today and with the commit that is checked out."""
    ran_at = datetime.datetime.now(datetime.UTC).date().isoformat()
    summary = Summary(family, ran_at, commit(), cases, breaches, round(seconds, 1), dict(figures or {}), detail)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")
    return summary


def read(path: Path | str) -> Summary:
    """Raises ValueError, naming the file and what is wrong with it."""
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        summary = Summary(**said)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no summary of a family: {error}") from error
    datetime.date.fromisoformat(summary.ran_at)
    for name in ("cases", "breaches"):
        if not isinstance(getattr(summary, name), int):
            raise ValueError(f"{path}: {name} is a whole number, not {getattr(summary, name)!r}")
    return summary


def together(one: Summary, other: Summary) -> Summary:
    """Two runs of one family over cases of their own, as one. Raises ValueError where they ran on different products."""
    if not is_same_product(one.commit, other.commit):
        raise ValueError(f"{one.family}: runs on {one.commit} and {other.commit}, where dolake differs, are not one run; run it again")
    figures = dict(one.figures)
    for name, value in other.figures.items():
        known = figures.get(name, 0)
        figures[name] = max(known, value) if any(word in name for word in LARGEST) else known + value
    later = max(one, other, key=lambda summary: summary.ran_at)
    seconds = round(one.seconds + other.seconds, 1)
    detail = [one.detail, other.detail]
    return Summary(one.family, later.ran_at, later.commit, one.cases + other.cases, one.breaches + other.breaches, seconds, figures, detail)


def is_same_product(commit: str, other: str) -> bool:
    """Whether nothing under dolake/ differs between two commits, neither of them changed since."""
    if commit == other:
        return True
    known = re.fullmatch("[0-9a-f]+", commit) and re.fullmatch("[0-9a-f]+", other)
    command = ["git", "-C", str(ROOT), "diff", "--quiet", commit, other, "--", "dolake"]
    return bool(known) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def commit() -> str:
    """The short hash of what is checked out, with a + where it has been changed since; `unknown` outside a repository."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"

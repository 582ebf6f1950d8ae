"""`docs/reliability.md`: a template written by hand, around the figures of the last runs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from tests.reliability.summary import ROOT, Summary, read, together

TEMPLATE = Path(__file__).with_name("template.md")
PAGE = ROOT / "docs" / "reliability.md"
FIGURES = ROOT / "docs" / "reliability.json"

# family → what one case of it is, and the command that runs it. Others are listed too, by their name alone.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "simulation": ("simulated schedules", "python -m tests.simulation"),
    "mutants": ("rules broken on purpose, each caught", "python -m tests.simulation --mutants"),
    "nth": ("operations of disk, store and catalog failed, one a run", "python -m tests.simulation.nth"),
    "matrix": ("failpoint × way to fail × hit", "python -m tests.simulation.matrix"),
    "kills": ("real SIGKILLs of a daemon's parts", "python -m tests.kills"),
    "bits": ("flipped bits: each found in rows, none an error without a name", "python -m tests.verify.bits"),
    "fuzz": ("hostile inputs", "python -m tests.fuzz"),
    "chaos": ("runs of nothing but trouble", "python -m tests.soak --chaos"),
    "soak": ("runs of trouble and calm", "python -m tests.soak"),
    "suite": ("runs of all tests, each with the same results", "python -m tests.suite"),
}
_TEST = re.compile(r"`((?:tests|e2e)/[\w/]+\.py)::(\w+)`")
_ACCEPTANCE = re.compile(r"AT-\d+")
_INVARIANT = re.compile(r"\bI(\d+)\b")


def gathered(folder: Path, known: Mapping[str, Summary]) -> dict[str, Summary]:
    """What is known of each family, with what `folder` has of later runs; several of one family add up. Raises ValueError."""
    later: dict[str, Summary] = {}
    for path in sorted(folder.glob("*.json")):
        summary = read(path)
        later[summary.family] = together(later[summary.family], summary) if summary.family in later else summary
    return {**known, **later}


def to_json(summaries: Mapping[str, Summary]) -> str:
    """Without details: those are for whoever looks into a run."""
    said = {family: {**asdict(summary), "detail": None} for family, summary in sorted(summaries.items())}
    return json.dumps(said, indent=1) + "\n"


def from_json(text: str) -> dict[str, Summary]:
    return {family: Summary(**said) for family, said in json.loads(text).items()}


def page(template: str, summaries: Mapping[str, Summary]) -> str:
    return template.replace("{families}", "\n".join(_table(summaries)))


def _table(summaries: Mapping[str, Summary]) -> Iterator[str]:
    yield "| family | one case is | cases | breaches | time | figures | ran | commit |"
    yield "|---|---|---:|---:|---:|---|---|---|"
    for family in [*FAMILIES, *sorted(summaries.keys() - FAMILIES.keys())]:
        what, command = FAMILIES.get(family, ("", ""))
        named = f"{family}: `{command}`" if command else family
        if family not in summaries:
            yield f"| {named} | {what} | – | – | – | | not run yet | |"
            continue
        one = summaries[family]
        figures = ", ".join(f"{name.replace('_', ' ')} {value:,g}" for name, value in sorted(one.figures.items()))
        yield f"| {named} | {what} | {one.cases:,} | {one.breaches:,} | {_time(one.seconds)} | {figures} | {one.ran_at} | {one.commit} |"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def mistakes(text: str, root: Path = ROOT) -> Iterator[str]:
    """What a page names and is not there: tests, and acceptance tests that no test is marked with."""
    for file, name in sorted(set(_TEST.findall(text))):
        path = root / file
        if not path.exists() or name not in _functions(path):
            yield f"{file}::{name} is no test"
    marked = set(_marked(path for folder in ("tests", "e2e") for path in (root / folder).rglob("test_*.py")))
    for number in sorted(set(_ACCEPTANCE.findall(text)) - {"AT-xx"}):
        if number not in marked:
            yield f"{number}: no test carries it"
    unnamed = [f"I{number}" for number in range(1, 16) if str(number) not in _INVARIANT.findall(text)]
    if unnamed:
        yield f"{', '.join(unnamed)}: no promise names it"


def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def _marked(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        for call in re.findall(r"mark\.acceptance\(([^)]*)\)", path.read_text(encoding="utf-8")):
            yield from _ACCEPTANCE.findall(call)

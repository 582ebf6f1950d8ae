"""The committed page is what its template and its figures give, and names nothing that is not there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.reliability.__main__ import main
from tests.reliability.page import FIGURES, PAGE, TEMPLATE, from_json, gathered, mistakes, page, to_json
from tests.reliability.summary import Summary, is_same_product, read, write

REMEDY = "run `python -m tests.reliability --write docs/reliability.md`"


def test_the_committed_page_is_what_the_template_gives() -> None:
    figures = FIGURES.read_text(encoding="utf-8")
    summaries = from_json(figures)
    assert page(TEMPLATE.read_text(encoding="utf-8"), summaries) == PAGE.read_text(encoding="utf-8"), REMEDY
    assert to_json(summaries) == figures, REMEDY
    assert [family for family, summary in summaries.items() if summary.breaches] == [], "a breach is mended, not published"


def test_every_test_and_number_that_it_names_is_there() -> None:
    assert list(mistakes(PAGE.read_text(encoding="utf-8"))) == []


def test_what_is_not_there_is_said() -> None:
    text = (
        PAGE.read_text(encoding="utf-8")
        .replace("I9", "It")
        .replace("AT-01", "AT-999")
        .replace("test_no_path_deletes", "test_any_path_deletes")
    )
    assert list(mistakes(text)) == [
        "tests/iceberg/test_commit.py::test_any_path_deletes_a_file is no test",
        "AT-999: no test carries it",
        "I9: no promise names it",
    ]


def summary_at(folder: Path, family: str, **more: object) -> Summary:
    return write(folder / f"{family}.json", **{"family": family, "cases": 7, "breaches": 0, "seconds": 12.34, **more})  # type: ignore[arg-type]


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = summary_at(tmp_path, "soak", figures={"events": 12}, detail=[{"seed": 1}])
    assert read(tmp_path / "soak.json") == written
    assert written.commit != "unknown"
    for wrong in ("{", "{}", json.dumps({**json.loads((tmp_path / "soak.json").read_text()), "cases": "7"})):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"wrong\.json"):
            read(tmp_path / "wrong.json")


def test_later_figures_take_the_place_of_earlier_ones_and_others_stay(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    summary_at(runs, "soak", figures={"events": 12})
    summary_at(runs, "others")
    target = tmp_path / "page.md"
    assert main(["--write", str(target), "--from", str(runs)]) == 0
    first = target.read_text()
    assert "| soak: `python -m tests.soak` | runs of trouble and calm | 7 | 0 | 12 s | events 12 |" in first
    assert "| others |" in first
    (runs / "others.json").unlink()
    summary_at(runs, "soak", cases=8, detail=["much"])
    assert main(["--write", str(target), "--from", str(runs)]) == 0
    assert "| 8 | 0 | 12 s |  |" in target.read_text()
    assert "| others |" in target.read_text()
    assert "much" not in (tmp_path / "page.json").read_text()
    assert set(gathered(runs, {})) == {"soak"}


def test_figures_with_a_breach_are_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary_at(tmp_path / "runs", "soak", breaches=1)
    assert main(["--write", str(tmp_path / "page.md"), "--from", str(tmp_path / "runs")]) == 1
    assert "soak: mend the breaches first" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_runs_of_one_product_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    first = write(
        runs / "soak.json", family="soak", cases=7, breaches=0, seconds=12.3, figures={"events": 12, "drained_s_max": 3.5, "failpoints": 9}
    )
    write(
        runs / "soak-2.json",
        family="soak",
        cases=5,
        breaches=1,
        seconds=1.0,
        figures={"events": 5, "drained_s_max": 2.5, "failpoints": 9, "kills": 1},
    )
    found = gathered(runs, {})["soak"]
    assert (found.cases, found.breaches, found.seconds, found.commit) == (12, 1, 13.3, first.commit)
    assert found.figures == {"events": 17, "drained_s_max": 3.5, "failpoints": 9, "kills": 1}
    (runs / "soak-2.json").write_text(json.dumps({**asdict(first), "commit": "0123456"}))
    assert main(["--write", str(tmp_path / "page.md"), "--from", str(runs)]) == 1
    assert f"soak: runs on 0123456 and {first.commit}, where dolake differs" in capsys.readouterr().err
    assert not is_same_product("0123456", "0123457")
    assert not is_same_product(first.commit, f"{first.commit}+")

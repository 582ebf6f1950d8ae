"""The references: whole, with a remedy for everything that can go wrong, and equal to the files under docs/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dolake.cdc.answer import AckStatus, Reason
from dolake.cdc.session import CloseCode
from dolake.cli import run
from dolake.cli.reference import REFERENCES, error_classes
from dolake.cli.remedies import ACKS, CLOSES, ERRORS, EXITS, NACKS
from dolake.config.access import TokenSettings
from dolake.config.settings import SourceOverrides
from dolake.config.sources import setting_keys
from dolake.config.tables import TableOverrides

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", REFERENCES)
def test_the_committed_reference_is_what_the_command_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["docs", name]) == 0
    assert capsys.readouterr().out == (DOCS / REFERENCES[name][0]).read_text(encoding="utf-8"), "run `make docs`"


def test_all_of_them_are_written_at_once(tmp_path: Path) -> None:
    assert run(["docs", "write", str(tmp_path / "new")]) == 0
    for file, text in REFERENCES.values():
        assert (tmp_path / "new" / file).read_text(encoding="utf-8") == text()


def test_whatever_can_go_wrong_has_words_about_what_to_do() -> None:
    """Whoever adds a reason, a close code or an error says in dolake/cli/remedies.py what its reader should do."""
    assert {str(status) for status in AckStatus} == set(ACKS)
    assert {str(reason) for reason in Reason} - set(NACKS) == set()
    assert {int(code) for code in CloseCode} - set(CLOSES) == set()
    assert {kind.__name__ for kind in error_classes()} - set(ERRORS) == set()
    assert {kind.exit_code for kind in error_classes()} <= set(EXITS)
    assert all(kind.__doc__ for kind in error_classes())


def test_a_section_that_a_remedy_names_is_in_the_operations_page() -> None:
    operations = (DOCS / "operations.md").read_text(encoding="utf-8")
    words = [*(remedy for _, remedy in NACKS.values()), *ERRORS.values(), *(remedy for _, remedy in EXITS.values())]
    named = {section for remedy in words for section in re.findall(r"\*([A-Z][^*]+)\*", remedy)}
    assert {section for section in named if f"# {section}\n" not in operations} == set()
    assert len(named) > 3


def test_every_setting_says_what_it_is_and_what_is_allowed() -> None:
    text = REFERENCES["config"][1]()
    for key, about in setting_keys():
        assert about.description, key
        assert f"| `{key}` |" in text
    for model in (TableOverrides, SourceOverrides, TokenSettings):
        for name, about in model.model_fields.items():
            assert about.description or hasattr(about.annotation, "model_fields"), f"{model.__name__}.{name} needs a description"
    rows = {line.split(" | ")[0].strip("| `"): line for line in text.splitlines() if line.startswith("| `")}
    assert "| from 0 to 65,535 |" in rows["port"]
    assert "| `auto`, `console`, `json` |" in rows["log_format"]
    assert "| from 4,096 to 1,073,741,824 |" in rows["log.segment_bytes"]
    assert "| more than 0 to 86,400 |" in rows["flush.age_s"]
    assert "| `mirror`, `changelog`, `both` |" in rows["mode"]

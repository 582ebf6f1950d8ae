"""The README's commands and programs, run as they stand there, in its order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.harness.daemon import Daemon

README = Path(__file__).parents[1] / "README.md"


def blocks(section: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block below a heading."""
    text = README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


def run(language: str, text: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_changes_are_sent_and_read_as_the_readme_says(tmp_path: Path) -> None:
    with Daemon(tmp_path / "lake", mode=None) as daemon:
        daemon.start()
        sending = blocks("Send your own changes")
        assert [language for language, _ in sending] == ["sh", "sh", "sh", "python", "python"]
        shown = run(*sending[0], tmp_path)
        rows = [line.split() for line in shown.splitlines() if "o-" in line]
        assert rows == [["o-9", "7.00"]]
        shown = run(*sending[1], tmp_path)
        assert [line.split() for line in shown.splitlines() if "Oslo" in line or "Lima" in line] == [
            ["1", "Oslo", "3.5", "null"],
            ["2", "Lima", "null", '["a",', '"b"]'],
        ]
        assert "sent 2 events" in run(*sending[2], tmp_path)
        assert [run(*sending[3], tmp_path), run(*sending[3], tmp_path)] == ["ok\n", "duplicate\n"]
        for _ in range(2):  # The second time there is nothing left to send.
            run(*sending[4], tmp_path)
        (reading,) = blocks("Read it")
        assert run(*reading, tmp_path).split() == ["1000"]
        by_pyiceberg = blocks("Query it from DuckDB, Spark, Trino, PyIceberg")[0]
        assert "RestCatalog" in by_pyiceberg[1]
        assert run(*by_pyiceberg, tmp_path).split() == ["1000"]


def test_every_command_of_the_table_exists() -> None:
    from dolake.cli import COMMANDS

    named = set(re.findall(r"`dolake ([\w-]+)", README.read_text(encoding="utf-8")))
    assert named - COMMANDS.keys() == set()
    assert COMMANDS.keys() - named == set()

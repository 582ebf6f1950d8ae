"""`dolake token`: what it prints makes a token good, and nothing else prints it."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.harness.access import hash_of, new_token, section
from tests.harness.daemon import clean_environment, dolake_command


def token(*arguments: str, environment: dict[str, str] | None = None, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [*dolake_command(), "token", *arguments]
    return subprocess.run(command, env=clean_environment(environment), input=text, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.acceptance("AT-98")
def test_what_new_prints_is_a_section_that_makes_it_good(tmp_path: Path) -> None:
    made = token(
        "new", "shop", "--source", "orders-*", "--source", 'q"\\', "--table", "public.*", "--read", "--expires-days", "30", "--json"
    )
    assert (made.returncode, made.stderr) == (0, "")
    said = json.loads(made.stdout)
    written = tomllib.loads(said["section"])["tokens"]["shop"]
    assert written["hash"] == said["hash"] == hash_of(said["token"])
    assert (written["sources"], written["tables"], written["read"]) == (["orders-*", 'q"\\'], ["public.*"], True)
    assert said["token"] not in said["section"]
    (tmp_path / "dolake.toml").write_text(said["section"])
    checked = token("check", "--data", str(tmp_path), "--json", environment={"DOLAKE_TOKEN": said["token"]})
    assert (checked.returncode, json.loads(checked.stdout)["name"]) == (0, "shop")
    assert json.loads(checked.stdout)["expires"] == written["expires"]
    by_hand = token("check", "--data", str(tmp_path), text=said["token"] + "\n")
    assert by_hand.stdout.startswith("shop: sources ['orders-*'")
    listed = token("list", "--data", str(tmp_path))
    assert "orders-*" in listed.stdout
    assert said["token"] not in listed.stdout + checked.stdout + by_hand.stdout + by_hand.stderr
    assert said["hash"] not in listed.stdout


def test_people_get_the_token_on_a_line_of_its_own() -> None:
    lines = token("new", "ops", "--read", "--admin").stdout.splitlines()
    written = tomllib.loads("\n".join(lines[1:]))["tokens"]["ops"]
    assert written == {"hash": hash_of(lines[0]), "read": True, "admin": True}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shop"], "tokens.shop: must allow something"),
        (["shop", "--source", "x"], "tokens.shop.tables: must be given together with tokens.shop.sources"),
        (["sh op", "--read"], "tokens.sh op: must be a name of 1 to 64 letters"),
        (["shop", "--source", "x", "--table", "a.b.c"], "tokens.shop.tables: a table pattern is"),
        (["shop", "--read", "--expires-days", "0"], "expires-days"),
    ],
)
def test_a_token_that_could_not_be_configured_is_not_made(arguments: list[str], words: str) -> None:
    done = token("new", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("given", [pytest.param(new_token(), id="another token"), "nonsense", ""])
def test_check_ends_with_5_for_a_token_that_is_not_good(tmp_path: Path, given: str) -> None:
    (tmp_path / "dolake.toml").write_text(section("shop", new_token(), read=True))
    done = token("check", "--data", str(tmp_path), text=given + "\n")
    assert (done.returncode, done.stdout) == (5, "")
    assert not given or given not in done.stderr


def test_without_tokens_list_says_who_may_do_what(tmp_path: Path) -> None:
    assert "anybody" in token("list", "--data", str(tmp_path)).stdout
    assert json.loads(token("list", "--data", str(tmp_path), "--json").stdout) == {}

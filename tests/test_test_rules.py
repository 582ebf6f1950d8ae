"""AT-114: what no test may do, so that each can fail for one reason only, and the same in every run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.test_layers import Module, imported

ROOT = Path(__file__).parents[1]
SLEEP_S_MAX = 0.1
_ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\]):(\d+)")
_NOBODY = {0, 1}  # Port 0 is any free one; on port 1 nobody listens.
# Addresses that are only judged there, and never used.
JUDGED_IN = ("tests/test_config.py", "tests/test_bad_inputs.py", "tests/test_compose.py", "tests/cdc/test_admission.py")
# Parts of the product held to their contracts, in this process, against a service that only e2e installs.
IN_PROCESS = ("e2e/test_postgres.py",)
VIRTUAL_TIME = "tests/simulation/"


@cache
def files() -> list[Module]:
    return [
        Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for folder in ("tests", "e2e")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def mock_breaches(file: Module) -> Iterator[str]:
    """Nothing of what is tested is replaced; e2e does not even change a constant."""
    for line, target, name in imported(file):
        if target.split(".")[0] in ("unittest", "mock", "pytest_mock") or name == "mock":
            yield f"{file.name}:{line}: use the real thing, or a fake that passes its contract test"
    if file.name.startswith("e2e/") and file.name not in IN_PROCESS:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.arg) and node.arg == "monkeypatch":
                yield f"{file.name}:{node.lineno}: e2e runs what a user runs"


def port_breaches(file: Module) -> Iterator[str]:
    """A port that is written down belongs to somebody else already: 0, or tests.harness.ports."""
    if file.name in JUDGED_IN:
        return
    for node in ast.walk(file.tree):
        ports: list[int] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            ports = [int(port) for port in _ADDRESS.findall(node.value)]
        elif isinstance(node, ast.keyword) and node.arg is not None and node.arg.endswith("port"):
            ports = [node.value.value] if _is_number(node.value) else []  # type: ignore[attr-defined]
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant):
            is_host = node.elts[0].value in ("127.0.0.1", "localhost", "0.0.0.0", "::1", "::")
            ports = [node.elts[1].value] if is_host and _is_number(node.elts[1]) else []  # type: ignore[attr-defined]
        for port in ports:
            if port not in _NOBODY:
                yield f"{file.name}:{node.lineno}: port {port} is written down; take 0, or a port of tests.harness.ports"  # type: ignore[attr-defined]


def sleep_breaches(file: Module) -> Iterator[str]:
    """What is waited for has a condition: tests.harness.waiting. Virtual time costs nothing."""
    if file.name.startswith(VIRTUAL_TIME):
        return
    for call in calls(file, "sleep"):
        is_real = ast.unparse(call.func) in ("time.sleep", "asyncio.sleep", "sleep")
        if is_real and call.args and _is_number(call.args[0]) and call.args[0].value > SLEEP_S_MAX:  # type: ignore[attr-defined]
            yield f"{file.name}:{call.lineno}: sleeps {ast.unparse(call)}; wait for a condition"


def skip_breaches(file: Module) -> Iterator[str]:
    """A test that does not run says why; one that fails is mended, not expected."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("xfail", "flaky") and ast.unparse(node).startswith("pytest."):
            yield f"{file.name}:{node.lineno}: {ast.unparse(node)}: mend it"
        for decorator in getattr(node, "decorator_list", ()):
            if ast.unparse(decorator) in ("pytest.mark.skip", "pytest.mark.skipif"):
                yield f"{file.name}:{decorator.lineno}: say why it is skipped"
    for call in calls(file, "skip", "skipif"):
        said = any(keyword.arg == "reason" for keyword in call.keywords)
        if not said and (ast.unparse(call.func).endswith("skipif") or not call.args):
            yield f"{file.name}:{call.lineno}: say why it is skipped"


def condition_breaches(file: Module) -> Iterator[str]:
    """`if value:` around an assertion lets a test pass that has seen no value. What a test is given as a parameter may decide."""
    for function in ast.walk(file.tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or not function.name.startswith("test"):
            continue
        given = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
        for node in ast.walk(function):
            if not isinstance(node, ast.If) or node.orelse or not isinstance(node.test, ast.Name):
                continue
            if node.test.id not in given and any(isinstance(statement, ast.Assert) for statement in node.body):
                yield f"{file.name}:{node.lineno}: asserts only if {node.test.id}: assert that there is one"


def calls(file: Module, *names: str) -> Iterator[ast.Call]:
    """Calls of functions or methods of these names."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in names:
            yield node


def _is_number(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


RULES = (mock_breaches, port_breaches, sleep_breaches, skip_breaches, condition_breaches)


@pytest.mark.acceptance("AT-114", "AT-118")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removesuffix("_breaches"))
def test_every_test_keeps_the_rule(rule) -> None:  # type: ignore[no-untyped-def]
    assert [breach for file in files() for breach in rule(file)] == []


# What breaks a rule is put together here, so that this file keeps them.
BREACHES = [
    (mock_breaches, "from unittest" + " import mock"),
    (mock_breaches, "import unittest" + ".mock"),
    (mock_breaches, "import pytest" + "_mock"),
    (mock_breaches, "def test_x(monkeypatch): pass"),
    (port_breaches, "url = 'ws://localhost:" + "8765/cdc'"),
    (port_breaches, "url = f'http://127.0.0.1:" + "9000/{x}'"),
    (port_breaches, "Daemon(data, port=" + "8765)"),
    (port_breaches, "bind(('127.0.0.1', " + "8765))"),
    (sleep_breaches, "import time\ntime.sleep(" + "0.2)"),
    (sleep_breaches, "import asyncio\nasync def f():\n    await asyncio.sleep(" + "1)"),
    (skip_breaches, "import pytest\npytest" + ".skip()"),
    (skip_breaches, "import pytest\n@pytest.mark" + ".skip\ndef test_x(): pass"),
    (skip_breaches, "import pytest\n@pytest.mark" + ".skipif(True)\ndef test_x(): pass"),
    (skip_breaches, "import pytest\n@pytest.mark" + ".xfail\ndef test_x(): pass"),
    (condition_breaches, "def test_x():\n    value = f()\n    if value:\n        assert value == 1"),
]
ALLOWED = [
    (mock_breaches, "import pytest\ndef test_x(tmp_path): pass"),
    (port_breaches, "url = 'ws://127.0.0.1:1/cdc'\nbind(('127.0.0.1', 0))\nDaemon(data, port=0)\nDaemon(data, port=free_port())"),
    (sleep_breaches, "import asyncio\nasync def f():\n    await asyncio.sleep(0.1)"),
    (
        skip_breaches,
        "import pytest\npytest" + ".skip('needs root')\n@pytest.mark" + ".skipif(True, reason='needs root')\ndef test_x(): pass",
    ),
    (condition_breaches, "def test_x(is_busy):\n    if is_busy:\n        assert f()"),
]


@pytest.mark.parametrize(("rule", "text"), BREACHES)
def test_the_rules_bite(rule, text: str) -> None:  # type: ignore[no-untyped-def]
    assert list(rule(Module("e2e/test_x.py", text)))


@pytest.mark.parametrize(("rule", "text"), ALLOWED)
def test_the_rules_let_through_what_is_allowed(rule, text: str) -> None:  # type: ignore[no-untyped-def]
    assert list(rule(Module("e2e/test_x.py", text))) == []

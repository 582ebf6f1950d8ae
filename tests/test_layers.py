"""Holds the code to its architecture: the layers, the doors, what is pure, how long things are, what is explained.

Each rule is a function that yields one sentence for each breach, so that a failure reads as an instruction.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

from dolake.failpoints import POINTS
from dolake.metrics import METRICS

ROOT = Path(__file__).parents[1] / "dolake"

# Highest first. A unit imports from itself and from lower lines only, so units on one line never see each other.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["daemon"],
    ["ingest", "writer", "http"],
    ["query", "verify", "compaction"],
    ["datafiles"],
    ["cdc", "buffer", "parquet", "iceberg"],
    ["storage", "metrics", "auth", "config", "control"],
    ["model", "clock", "retry", "failpoints", "column_types", "partitioning", "members", "local_socket"],
    ["errors"],
]
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}

# What may be imported only behind one door: module → the files (or folders) that are the door.
DOORS: dict[str, tuple[str, ...]] = {
    "websockets": ("cdc/",),
    "duckdb": ("query.py", "compaction/rewrite.py"),
    "duckdb_extension_avro": ("query.py", "compaction/rewrite.py"),
    "duckdb_extension_httpfs": ("query.py", "compaction/rewrite.py"),
    "duckdb_extension_iceberg": ("query.py", "compaction/rewrite.py"),
    "pyiceberg": ("iceberg/",),
    "pyiceberg.types": ("iceberg/", "parquet/"),
    "pyiceberg.schema": ("iceberg/", "parquet/", "datafiles.py", "compaction/", "writer/"),  # A schema is a value, and a table holds one.
    "sqlalchemy": ("iceberg/",),
    "sqlite3": ("iceberg/",),
    "psycopg": ("iceberg/postgresql.py", "iceberg/database.py"),
    "boto3": ("storage/",),
    "botocore": ("storage/",),
    "fcntl": ("storage/",),
    "mmap": ("storage/",),
    "pyarrow.parquet": ("parquet/",),
    "starlette": ("http/",),
    "uvicorn": ("http/",),
    "prometheus_client": ("metrics.py",),
    "pydantic": ("config/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "uvloop": ("daemon/",),
    "ssl": ("auth/", "cdc/dial.py"),
    "subprocess": ("daemon/", "cli/"),
    "multiprocessing": (),
    "threading": (),
    "concurrent": ("clock.py",),
    "time": ("clock.py", "failpoints.py"),
    "random": ("clock.py", "failpoints.py"),
    "secrets": ("clock.py",),
    "uuid": ("clock.py", "iceberg/index_files.py"),  # The second knows uuids as values, and makes none.
    "pyspark": ("compaction/spark_process.py",),  # No dependency: whoever has Spark rewrite installs it.
    "pickle": ("compaction/process.py",),
    "unittest": (),
}
# The same for what is reached as an attribute.
ATTRIBUTE_DOORS: dict[str, tuple[str, ...]] = {
    "os.environ": ("config/sources.py",),
    "os.environb": (),
    "os.getenv": (),
    "datetime.now": ("clock.py",),
    "datetime.utcnow": (),
    "datetime.today": (),
    "date.today": (),
    "asyncio.sleep": ("clock.py",),
    "asyncio.to_thread": (),
    "os.fsync": ("storage/",),
    "os.fdatasync": ("storage/",),
}
# Files that decide: values in, values out. Also everything that only holds values.
PURE_NAMES = ("plan.py", "session.py", "schema.py", "placement.py")
PURE_FILES = (
    *("errors.py", "model.py", "column_types.py", "partitioning.py", "iceberg/metadata.py", "iceberg/partition.py"),
    *("iceberg/history.py", "iceberg/judging.py", "iceberg/summary.py", "iceberg/identifiers.py"),
    *("iceberg/ownership.py", "iceberg/paging.py"),
    *("iceberg/judging.py", "iceberg/requirements.py", "iceberg/rest_errors.py", "iceberg/rest_requests.py", "iceberg/snapshot_updates.py"),
    *("iceberg/structure.py", "iceberg/table_change.py", "iceberg/updates.py", "http/catalog_routes.py"),
    *("compaction/unreferenced.py", "compaction/grace.py"),
    *("cdc/admission.py", "cdc/frames.py", "cdc/rates.py", "ingest/pressure.py"),
    *("compaction/choice.py", "compaction/reach.py", "compaction/sizes.py", "compaction/spark.py"),
)
IMPURE_IMPORTS = {
    *("asyncio", "boto3", "duckdb", "logging", "os", "pathlib", "random", "secrets", "shutil", "socket", "subprocess", "threading", "time"),
    *("uuid", "websockets", "structlog", "dolake.storage", "dolake.clock", "dolake.control"),
}
MODULE_LINES_MAX, FUNCTION_LINES_MAX = 400, 60
EXPLAINED_FROM_LINES = 12  # A public function or class of this length says in a docstring what it is for.


@dataclass(frozen=True)
class Module:
    """One file of the package: `name` as in `buffer/wal.py`."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def unit(self) -> str:
        return self.name.removesuffix(".py").split("/")[0]

    @property
    def is_pure(self) -> bool:
        return self.name in PURE_FILES or self.name.rsplit("/", 1)[-1] in PURE_NAMES


@cache
def modules() -> list[Module]:
    return [Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))]


def imported(module: Module) -> Iterator[tuple[int, str, str]]:
    """(line, module, name or empty) of every import, those inside functions and for type checking included."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, "." * node.level + (node.module or ""), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or (place.endswith("/") and name.startswith(place)) for place in places)


def layer_breaches(module: Module) -> Iterator[str]:
    if module.unit == "__init__":
        for line, target, _ in imported(module):
            yield f"{module.name}:{line}: the package's root imports nothing, and not {target}"
        return
    if module.unit not in RANK:
        yield f"{module.name}: give {module.unit} a place in LAYERS"
        return
    for line, target, name in imported(module):
        if target.startswith("."):
            yield f"{module.name}:{line}: write imports in full"
        if target == "dolake":
            target = f"dolake.{name}"
        unit = target.split(".")[1] if target.startswith("dolake.") else None
        if unit is None or unit == module.unit:
            continue
        if unit not in RANK:
            yield f"{module.name}:{line}: {unit} has no place in LAYERS"
        elif RANK[unit] <= RANK[module.unit]:
            yield f"{module.name}:{line}: {module.unit} may not import {unit}: imports go down only"
        if name.startswith("_"):
            yield f"{module.name}:{line}: {name} is {unit}'s own"


def door_breaches(module: Module) -> Iterator[str]:
    for line, target, _ in imported(module):
        doors = [door for door in DOORS if target == door or target.startswith(door + ".")]
        if doors and not within(module.name, DOORS[max(doors, key=len)]):
            yield f"{module.name}:{line}: only {', '.join(DOORS[max(doors, key=len)]) or 'nobody'} may import {target}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            written = ast.unparse(node)
            for door, places in ATTRIBUTE_DOORS.items():
                if (written == door or written.endswith("." + door)) and not within(module.name, places):
                    yield f"{module.name}:{node.lineno}: only {', '.join(places) or 'nobody'} may use {door}"


def purity_breaches(module: Module) -> Iterator[str]:
    if not module.is_pure:
        return
    for line, target, _ in imported(module):
        if any(target == name or target.startswith(name + ".") for name in IMPURE_IMPORTS):
            yield f"{module.name}:{line}: decides, so it may not import {target}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await):
            yield f"{module.name}:{node.lineno}: decides, so it never waits"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input"):
            yield f"{module.name}:{node.lineno}: decides, so it may not {node.func.id}"


def tidiness_breaches(module: Module) -> Iterator[str]:
    if len(module.text.splitlines()) >= MODULE_LINES_MAX:
        yield f"{module.name}: {len(module.text.splitlines())} lines; a concept is missing"
    if ast.get_docstring(module.tree) is None:
        yield f"{module.name}: say in a docstring what this module is for"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{module.name}:{node.lineno}: name the error that you expect"
        if isinstance(node, ast.ExceptHandler) and node.type is not None and "BaseException" in ast.unparse(node.type):
            yield f"{module.name}:{node.lineno}: BaseException is not for catching: a cancelled task must end"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) >= FUNCTION_LINES_MAX:
            yield f"{module.name}:{node.lineno}: {node.name} has {lines_of(node)} lines; a concept is missing"
    for node in module.tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if lines_of(node) >= EXPLAINED_FROM_LINES and ast.get_docstring(node) is None:
            yield f"{module.name}:{node.lineno}: say in a docstring what {node.name} is for"


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


RULES = (layer_breaches, door_breaches, purity_breaches, tidiness_breaches)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removesuffix("_breaches"))
def test_every_module_keeps_the_rule(rule) -> None:  # type: ignore[no-untyped-def]
    assert [breach for module in modules() for breach in rule(module)] == []


def literals(function_names: set[str]) -> dict[str, list[str]]:
    """First arguments written as text, of calls to functions or methods of these names: text → where."""
    found: dict[str, list[str]] = {}
    for module in modules():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
            first = node.args[0]
            if name in function_names and isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.setdefault(first.value, []).append(f"{module.name}:{node.lineno}")
    return found


def test_every_failpoint_is_hit_somewhere_and_every_hit_is_listed() -> None:
    hit = literals({"hit"})
    assert {name: places for name, places in hit.items() if name not in POINTS} == {}
    assert set(POINTS) - set(hit) == set()
    for name, moment in POINTS.items():
        assert name.count(".") == 1, name
        assert moment, name


def test_every_metric_is_measured_somewhere() -> None:
    used = {name for name in literals({"add", "set", "observe", "forget"}) if name.startswith("dolake_")}
    assert used - set(METRICS) == set()
    assert set(METRICS) - used == set()


BREACHES = [
    (layer_breaches, "cdc/session.py", "from dolake.buffer import wal"),
    (layer_breaches, "cdc/session.py", "from dolake import buffer"),
    (layer_breaches, "storage/disk.py", "def f():\n    import dolake.iceberg.commit"),
    (layer_breaches, "writer/flush.py", "from dolake.ingest.service import IngestService"),
    (layer_breaches, "writer/flush.py", "from dolake.buffer.wal import _frame"),
    (layer_breaches, "writer/flush.py", "from . import table"),
    (layer_breaches, "__init__.py", "import os"),
    (layer_breaches, "helpers.py", ""),
    (door_breaches, "ingest/service.py", "import websockets.asyncio.server"),
    (door_breaches, "parquet/schema.py", "from pyiceberg.table import Table"),
    (door_breaches, "buffer/wal.py", "import time"),
    (door_breaches, "buffer/wal.py", "import os\nos.fdatasync(3)"),
    (door_breaches, "cli/send.py", "import os\nx = os.environ['A']"),
    (door_breaches, "writer/service.py", "import asyncio\nasync def f():\n    await asyncio.sleep(1)"),
    (door_breaches, "verify/rows.py", "import datetime\nx = datetime.datetime.now()"),
    (purity_breaches, "buffer/plan.py", "import asyncio"),
    (purity_breaches, "cdc/session.py", "async def f(): pass"),
    (purity_breaches, "buffer/placement.py", "def f(): return open('x')"),
    (purity_breaches, "parquet/schema.py", "from dolake.storage.disk import Disk"),
    (tidiness_breaches, "buffer/wal.py", "x = 1"),
    (tidiness_breaches, "buffer/wal.py", '"""x"""\ntry: pass\nexcept: pass'),
    (tidiness_breaches, "buffer/wal.py", '"""x"""\ntry: pass\nexcept (OSError, BaseException): pass'),
    (tidiness_breaches, "buffer/wal.py", '"""x"""\n' + "x = 1\n" * MODULE_LINES_MAX),
    (tidiness_breaches, "buffer/wal.py", '"""x"""\ndef f():\n    """y"""\n' + "    x = 1\n" * FUNCTION_LINES_MAX),
    (tidiness_breaches, "buffer/wal.py", '"""x"""\ndef f():\n' + "    x = 1\n" * EXPLAINED_FROM_LINES),
]


@pytest.mark.parametrize(("rule", "name", "text"), BREACHES)
def test_the_rules_bite(rule, name: str, text: str) -> None:  # type: ignore[no-untyped-def]
    assert list(rule(Module(name, text)))


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (layer_breaches, "daemon/child.py", "from dolake.writer.main import run_writer"),
        (layer_breaches, "buffer/wal.py", "from dolake.buffer.record import _frame\nfrom dolake import failpoints"),
        (door_breaches, "parquet/schema.py", "from pyiceberg.types import LongType"),
        (door_breaches, "clock.py", "import time"),
        (purity_breaches, "buffer/wal.py", "import os"),
    ],
)
def test_the_rules_let_through_what_is_allowed(rule, name: str, text: str) -> None:  # type: ignore[no-untyped-def]
    assert list(rule(Module(name, text))) == []

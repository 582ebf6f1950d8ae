"""What end-to-end tests share: one S3 server for all of them, how often the heavy ones repeat themselves, where figures go."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.services.postgres import PostgresServer
from e2e.services.s3 import S3Server
from e2e.services.spark import Spark
from tests.harness.leftovers import no_leftovers

FIGURES = Path(__file__).parent.parent / "build" / "figures.ndjson"


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with no_leftovers(tmp_path_factory.mktemp("temporary")):
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running server with the bucket `lake`. Tests take a prefix of their own; one that stops it starts it again."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server. Tests take a database of their own; one that stops it starts it again."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    """A running Spark. Tests attach catalogs of their own."""
    with Spark(tmp_path_factory.mktemp("spark")) as spark:
        yield spark


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many times a kill is repeated: 20 for `make faults`, once for `make e2e`, or E2E_ROUNDS."""
    return int(os.environ.get("E2E_ROUNDS", "1"))


@pytest.fixture
def report(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Prints measured figures and keeps them in build/figures.ndjson: measured and reported, not asserted."""

    def write(**figures: Any) -> None:
        line = json.dumps({"test": request.node.name, **figures})
        with capsys.disabled():
            print(f"\n{line}")
        FIGURES.parent.mkdir(exist_ok=True)
        with open(FIGURES, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    return write

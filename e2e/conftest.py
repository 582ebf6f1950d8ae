"""What end-to-end tests share: one S3 server for all of them, and how often the heavy ones repeat themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from e2e.services.s3 import S3Server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running server with the bucket `lake`. Tests take a prefix of their own; one that stops it starts it again."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many times a kill is repeated: 20 for `make faults`, 2 for `make e2e`, or E2E_ROUNDS."""
    return int(os.environ.get("E2E_ROUNDS", "2"))

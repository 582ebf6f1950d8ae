"""What every test starts from: nothing armed, nothing left by the one before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dolake.failpoints import REGISTRY


@pytest.fixture(autouse=True)
def _no_failpoints_left() -> Iterator[None]:
    yield
    REGISTRY.disarm()

"""What every test starts from: nothing armed, nothing left by the one before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from dolake.failpoints import REGISTRY
from tests.harness.leftovers import no_leftovers
from tests.suite import QUICK_FAULTS

# The same examples in every run, so that a change is judged by what it changed; `make faults` draws new ones.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("searching", deadline=None, print_blob=True)
# Whoever starts the tests in the background makes them ignore Ctrl-C, and so every daemon and command that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for some in terminalreporter.stats.values() for report in some if isinstance(report, pytest.TestReport)]
    quick = [report for report in reports if report.nodeid.startswith(QUICK_FAULTS)]
    if quick:
        count, seconds = len({report.nodeid for report in quick}), sum(report.duration for report in quick)
        terminalreporter.write_line(f"quick part of make faults: {count} tests, {seconds:.0f} s of the tests' processes")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with no_leftovers(tmp_path_factory.mktemp("temporary")):
        yield


@pytest.fixture(autouse=True)
def _no_failpoints_left() -> Iterator[None]:
    yield
    REGISTRY.disarm()

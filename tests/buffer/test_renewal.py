"""Giving up lost logs: only what is missed, never what may still be wanted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dolake.buffer.logs import Logs, init_logs
from dolake.buffer.renewal import FoundLog, GivenUp, look_at_log, plan_renewal
from dolake.buffer.segment import Sibling
from dolake.errors import ConfigurationError, LogRefused
from dolake.failpoints import FailpointRaised
from dolake.storage.disk import LocalDisk
from tests.buffer.logtools import SMALL, HastyDisk, SeededRandomness, armed, entry

A = FoundLog("/a", "log-a", (Sibling("log-b", "/b"),), 2)
B = FoundLog("/b", "log-b", (Sibling("log-a", "/a"),), 1)
EMPTY = FoundLog("/b")
FRESH = FoundLog("/b", "log-x")
STRANGER = FoundLog("/b", "log-x", (), 3)
BROKEN = FoundLog("/b", "log-b", (), 0, "bytes 5..9 do not verify")
LOST = GivenUp("/b", "log-b", renewed=True)


@pytest.mark.parametrize(
    ("found", "named", "given_up"),
    [
        ([A, EMPTY], ["/b"], [LOST]),
        ([A, EMPTY], ["/b", "/b"], [LOST]),
        ([A, EMPTY], ["/a", "/b"], [LOST]),
        ([A, FRESH], ["/b"], [LOST]),
        ([A], ["/b"], [GivenUp("/b", "log-b", renewed=False)]),
        ([A, B], ["/b"], []),
        ([FoundLog("/a")], ["/a"], []),
    ],
    ids=["empty", "named twice", "one is whole", "an interrupted renewal", "no longer configured", "nothing is missed", "a first log"],
)
def test_what_is_missed_is_given_up_and_nothing_else(found: list[FoundLog], named: list[str], given_up: list[GivenUp]) -> None:
    assert list(plan_renewal(found, named)) == given_up


@pytest.mark.parametrize(
    ("found", "named", "error", "words"),
    [
        ([A, EMPTY], ["/c"], ConfigurationError, "DIR: must be a directory of the log: /a, /b (got /c)"),
        ([A, STRANGER], ["/b"], LogRefused, "with records of 3 sources lies here where log-b should be"),
        ([A, BROKEN], ["/b"], LogRefused, "move this directory away and keep it"),
        ([A, BROKEN], ["/a"], LogRefused, "mend it first"),
        ([A, EMPTY], ["/a"], LogRefused, "/b: log log-b is missed here too"),
    ],
    ids=["nobody knows it", "somebody else's log", "unreadable", "another is unreadable", "another is missed"],
)
def test_what_may_still_be_wanted_is_never_given_up(found: list[FoundLog], named: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as refusal:
        plan_renewal(found, named)
    assert words in str(refusal.value)


def test_a_renewal_that_was_interrupted_is_finished_by_the_next(tmp_path: Path) -> None:
    """Killed between making the new log and telling the others of it."""
    paths = [str(tmp_path / name) for name in ("a", "b")]
    logs = Logs(HastyDisk(), paths, SMALL, SeededRandomness(1))
    for source in ("x", "y"):
        logs.log_for(source).append_group([entry(0, source=source)])
    lost = logs.serving[paths[1]].log_id
    logs.close()
    shutil.rmtree(paths[1])
    with armed("wal.before_write"), pytest.raises(FailpointRaised):
        init_logs(LocalDisk(), paths, SMALL, SeededRandomness(5))
    found = [look_at_log(LocalDisk(), path) for path in paths]
    assert found[1].log_id not in ("", lost)
    assert found[1].source_count == 0
    assert list(plan_renewal(found, paths[1:])) == [GivenUp(paths[1], lost, renewed=True)]
    init_logs(LocalDisk(), paths, SMALL, SeededRandomness(6))
    assert list(plan_renewal([look_at_log(LocalDisk(), path) for path in paths], paths)) == []
    logs = Logs(HastyDisk(), paths, SMALL, SeededRandomness(7))
    assert logs.failed == {}
    assert logs.serving[paths[0]].sources.keys() | logs.serving[paths[1]].sources.keys() == {"x"}
    logs.close()

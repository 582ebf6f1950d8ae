"""The writer process: whatever fails in it ends it, so that it is started again."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from dolake.control import ControlClient
from dolake.daemon import child
from dolake.writer import allocation, main, probing
from tests.writer.half import open_log, settings_of

TEST_S_MAX = 20.0


class Broken(Exception):
    pass


def _break(*_: Any) -> None:
    raise Broken


async def _break_later(_: Any) -> None:
    raise Broken


def _break_once(times: list[None]) -> None:
    if times:
        times.pop()
        raise Broken


BESIDE = {
    "what hears the ingest half": lambda patch: patch.setattr(ControlClient, "start", _break_later),
    "what gives memory back": lambda patch: (
        patch.setattr(allocation, "_GIVE_BACK_S", 0.0),
        patch.setattr(allocation, "give_back", _break),
    ),
    "what reports": lambda patch: (
        patch.setattr(main, "REPORT_S", 0.0),
        patch.setattr(main, "observe_process", lambda *_, times=[None]: _break_once(times)),
    ),
    "what probes store and catalog": lambda patch: patch.setattr(probing.Probe, "run", _break_later),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_what_runs_beside_takes_the_writer_down_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str) -> None:
    """Else it would go on without it, and nobody notice. (That each of them runs at all is seen by the same.)"""
    monkeypatch.setattr(main, "NICENESS", 0)
    BESIDE[beside](monkeypatch)
    open_log(tmp_path).close()
    writer = main.run_writer(settings_of(tmp_path), ready=lambda: None, stop=asyncio.Event())
    with pytest.raises(Broken):
        asyncio.run(asyncio.wait_for(writer, TEST_S_MAX))


def test_what_a_half_began_with_is_looked_through_no_more() -> None:
    frozen: list[int] = []

    async def half(_: Any, *, ready: Any, stop: asyncio.Event) -> int:
        ready()
        frozen.append(gc.get_freeze_count())
        return 0

    gc.unfreeze()  # What others have frozen in this process.
    try:
        assert child._run("writer", half, None, None, None, ready=lambda: None, prepare=lambda _: None) == 0  # type: ignore[arg-type]
    finally:
        gc.unfreeze()
    assert frozen > [10_000]

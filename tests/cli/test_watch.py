"""`dolake status --watch` as a person sees it: on a terminal, drawn again and again, and gone without a trace."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Iterator

import pytest

from tests.cli.test_status import send
from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.source import flush
from tests.harness.terminal import Terminal


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Rows stay uncommitted until somebody asks. In a folder of a short name: the screen has to show it."""
    with Daemon(tmp_path_factory.mktemp("w") / "lake", {"DOLAKE_FLUSH_AGE_S": "3600"}) as running:
        running.start().wait_ready()
        yield running


def watching(daemon: Daemon, **size: int) -> Terminal:
    command = [*dolake_command(), "status", "--watch", "--interval", "0.1", "--data", str(daemon.data)]
    return Terminal(command, clean_environment(), **size)


def line_of(screen: str, name: str) -> list[str]:
    """The words of the line that begins with `name`; none where there is no such line."""
    return next((line.split() for line in screen.splitlines() if line.strip().startswith(name)), [])


def ended(terminal: Terminal) -> int:
    """The exit code, once the terminal is as it was before: the cursor to be seen, the screen the one from before, and on it nothing."""
    code = terminal.process.wait(60)
    assert terminal.seen().split() == []
    assert (terminal.shows_cursor, terminal.is_alternate) == (True, False)
    assert terminal.settings() == terminal.settings_before
    return code


@pytest.mark.acceptance("AT-107")
def test_the_screen_is_drawn_again_with_what_has_changed_until_ctrl_c(daemon: Daemon) -> None:
    ready = daemon.ready()
    assert ready is not None
    with watching(daemon) as terminal:
        screen = terminal.wait_for(lambda seen: "no tables yet" in seen, "the first screen")
        assert (terminal.is_alternate, terminal.shows_cursor) == (True, False)
        for part in (ready.cdc, ready.http, "can ack     yes", "can commit  yes", "no sources yet", f"ingest {ready.pids['ingest']} runs"):
            assert part in screen
        asyncio.run(send(ready.cdc, "shop", 5, 4))
        screen = terminal.wait_for(
            lambda seen: line_of(seen, "default.ledger")[1:5] == ["changelog", "0", "12", "12"], "12 rows to be pending"
        )
        assert line_of(screen, "shop")[2:4] == ["8", "82"], "the last sequence, the last event"
        terminal.wait_for(lambda seen: re.search(r"events/s +0 acked, 0 committed", seen), "rates")
        asyncio.run(send(ready.cdc, "shop", 9, 2, declare=False))
        screen = terminal.wait_for(
            lambda seen: line_of(seen, "default.ledger")[1:5] == ["changelog", "0", "18", "18"], "18 rows to be pending"
        )
        assert line_of(screen, "shop")[2:4] == ["10", "102"]
        asyncio.run(flush(ready.cdc))
        terminal.wait_for(lambda seen: line_of(seen, "default.ledger")[1:5] == ["changelog", "18", "0", "0"], "18 rows to be committed")
        drawn = terminal.drawn_count
        terminal.wait_for(lambda _: terminal.drawn_count > drawn, "the screen to be drawn though nothing changes")
        terminal.type(b"\x03")
        assert ended(terminal) == 130


@pytest.mark.acceptance("AT-107")
def test_a_watch_outlives_its_daemon_and_sees_the_next_one(daemon: Daemon) -> None:
    with watching(daemon) as terminal:
        terminal.wait_for(lambda seen: "can ack     yes" in seen, "the daemon")
        daemon.kill()
        screen = terminal.wait_for(lambda seen: "no daemon answers" in seen, "its end")
        assert re.search(r"ingest \d+ is away, writer \d+ is away, http \d+ is away", screen)
        daemon.start()
        terminal.wait_for(lambda seen: "can ack     yes" in seen and "is away" not in seen, "the next one")
        terminal.process.send_signal(signal.SIGINT)
        assert ended(terminal) == 130


def test_a_window_that_is_too_small_says_that_there_is_more(daemon: Daemon) -> None:
    ready = daemon.ready()
    assert ready is not None
    asyncio.run(send(ready.cdc, "shop", 5, 1))
    with watching(daemon, rows=12, columns=160) as terminal:
        screen = terminal.wait_for(lambda seen: "more lines" in seen, "what does not fit to be named")
        assert ready.cdc in screen
        assert re.fullmatch(r"… \d+ more lines: a taller window shows them, or the command without --watch", screen.splitlines()[-1])
        terminal.type(b"\x03")
        assert ended(terminal) == 130

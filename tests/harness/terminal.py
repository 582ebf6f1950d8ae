"""A terminal of our own: a pseudo-terminal with a command in it, and what a person in front of it would see."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.harness.waiting import wait_until

# Sequences, what is left of one (another began before its end: terminals forget it, and Ctrl-C may cut what is written anywhere), text.
_PIECES = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|(?P<forgotten>\x1b(?:\[[?\d;]*)?)(?=\x1b)|\x1b|[\r\n]|[^\x1b\r\n]+")


def _of_a_terminal(environment: Mapping[str, str]) -> dict[str, str]:
    """Its size is what the terminal says, whatever the environment that the tests run in says of theirs."""
    kept = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    return {**kept, "TERM": "xterm-256color"}


class Terminal:
    """Runs a command in the foreground of a terminal. Knows the few control sequences that it is shown, and refuses all others."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, rows: int = 50, columns: int = 220) -> None:
        self.rows, self.columns = rows, columns
        self._main, self._other = os.openpty()
        self._readable = select.poll()
        self._readable.register(self._main, select.POLLIN)
        fcntl.ioctl(self._other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        settings = self.settings()
        settings[3] &= ~termios.ECHO  # What is typed is not written between what the command writes.
        termios.tcsetattr(self._other, termios.TCSANOW, settings)
        self.settings_before = self.settings()
        self._unread = b""
        self._clear()
        self._row = self._column = 0
        self.is_alternate, self.shows_cursor = False, True
        self.drawn_count = 0  # how often it was drawn from the top
        self.process = subprocess.Popen(command, env=_of_a_terminal(environment), preexec_fn=lambda: os.login_tty(os.dup(self._other)))

    def settings(self) -> list[Any]:
        """Of the line: echo, signals and so on."""
        return termios.tcgetattr(self._other)

    def type(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def seen(self) -> str:
        """The screen now, with everything that has been written to it until now."""
        while self._readable.poll(0):
            self._unread += os.read(self._main, 1 << 16)
        text, self._unread = self._whole(self._unread)
        for piece in _PIECES.finditer(text):
            self._take(piece)
        return "\n".join("".join(line).rstrip() for line in self._lines)

    def wait_for(self, condition: Callable[[str], object], what: str) -> str:
        """The first screen of which `condition` is true."""
        seen = ""

        def look() -> bool:
            nonlocal seen
            seen = self.seen()
            return bool(condition(seen))

        wait_until(look, lambda: f"{what}; the screen was\n{seen}", 60)
        return seen

    @staticmethod
    def _whole(data: bytes) -> tuple[str, bytes]:
        """Up to the last control sequence or character that may not be all there."""
        end = data.rfind(b"\x1b")
        cut = end if end >= 0 and not re.match(rb"\x1b\[[?\d;]*[A-Za-z]", data[end:]) else len(data)
        while True:
            try:
                return data[:cut].decode(), data[cut:]
            except UnicodeDecodeError as error:
                cut = error.start

    def _take(self, piece: re.Match[str]) -> None:
        if piece["forgotten"]:
            return
        sequence = piece[1], piece[2]
        match sequence:
            case (None, None):
                self._write(piece[0])
            case (_, "m"):
                pass  # Colours.
            case ("", "H"):
                self._row = self._column = 0
                self.drawn_count += 1
            case ("?25", "l" | "h"):
                self.shows_cursor = piece[2] == "h"
            case ("?1049", "l" | "h"):
                self.is_alternate = piece[2] == "h"
                self._clear()
            case _:
                raise AssertionError(f"a control sequence that this terminal does not know: {piece[0]!r}")

    def _clear(self) -> None:
        self._lines = [[" "] * self.columns for _ in range(self.rows)]

    def _write(self, text: str) -> None:
        if text == "\r":
            self._column = 0
        elif text == "\n":
            self._row += 1
            assert self._row < self.rows, "the screen rolls away"
        else:
            assert "\x1b" not in text, f"a control sequence that this terminal does not know: {text!r}"
            assert self._column + len(text) <= self.columns, f"a line is too long: {text!r}"
            self._lines[self._row][self._column : self._column + len(text)] = text
            self._column += len(text)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._main)
        os.close(self._other)

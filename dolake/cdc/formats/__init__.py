"""Formats that change streams arrive in, turned into events of the protocol.

A format reads lines and yields items: `Declare` before the first event of a table and whenever its columns change, `Event`
for each change, `Commit` where a source transaction ends. It knows nothing of batches: events are numbered by their place
in the stream, so that the same file gives the same numbers however it is cut, and sending can resume by event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import msgspec

from dolake.model import DeclaredSchema


class Declare(msgspec.Struct, frozen=True, gc=False):
    """The schema of one table, as it holds for that table's events from here on."""

    schema: DeclaredSchema


class Event(msgspec.Struct, frozen=True, gc=False):
    """One change: `raw` is the JSON of a protocol event, `transaction` the source's name for its transaction."""

    sequence: int
    table: str
    raw: bytes
    transaction: str


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The events since the last commit were one source transaction, and it is over."""


Item = Declare | Event | Commit


class Format(Protocol):
    """A decoder with the state of one stream: call `items` with its lines, in order, in as many calls as it takes."""

    def items(self, lines: Iterable[bytes]) -> Iterator[Item]:
        """Raises InvalidInput, naming the line; what was yielded before stands, and of that line nothing was."""
        ...

    def pause(self, *, over: bool) -> Iterable[Item]:
        """What may go out now that the stream is quiet, or `over`."""
        ...

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Lines that are right and hold no change, counted by what they are, in the plural."""
        ...

    @property
    def notes(self) -> list[str]:
        """What the stream lacks and how to get it, a sentence each; for people, after sending."""
        ...


COMMIT = Commit()

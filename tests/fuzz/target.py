"""What a target is, and a finding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Check = Callable[[bytes], str]


@dataclass(frozen=True)
class Target:
    """`corpus` are right inputs. `open` gives the check: bytes → what became of them; it may hold something for as long as it is used.

    `about` says what must hold. `example_count` is how many `pytest` tries.
    """

    name: str
    about: str
    corpus: Callable[[], Sequence[bytes]]
    open: Callable[[], contextlib.AbstractContextManager[Check]]
    example_count: int = 300


class Changed(AssertionError):
    """Something was made of the bytes that they do not say."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Changed(what)


def plain(check: Check) -> Callable[[], contextlib.AbstractContextManager[Check]]:
    """Of a check that holds nothing."""

    @contextlib.contextmanager
    def opened() -> Iterator[Check]:
        yield check

    return opened

"""One thing that is not as it must be; and what is only worth saying."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Breach:
    """`invariant` as the documents number them (I1 … I16), `subject` the table or log, and a sentence that says what is wrong."""

    invariant: str
    subject: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.subject}: {self.sentence}"


@dataclass(frozen=True)
class Damage(Breach):
    """Something that cannot be read at all: what lies behind it could not be looked at."""


@dataclass(frozen=True)
class Note:
    """What others have done to a table, or what could not be compared: no breach, and not to be passed over in silence either."""

    subject: str
    sentence: str

    def __str__(self) -> str:
        return f"note {self.subject}: {self.sentence}"

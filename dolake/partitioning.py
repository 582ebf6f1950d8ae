"""How a table can be partitioned, and the notation for it in settings.

    region                 the column's own value (identity)
    year(ts) month(ts) day(ts) hour(ts)
    bucket(16, id)         hash modulo 16
    truncate(4, name)      the first 4 characters; numbers down to a multiple of 4
    void(x)                nothing: one partition, always null

A column inside a struct is `payload.at`; a name that holds `( ) , . "` or blanks at its ends stands in double quotes, with `""`
for a quote. Values in, values out: no I/O, no Iceberg library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

TIMES = ("year", "month", "day", "hour")
NUMBERED = ("bucket", "truncate")
TRANSFORMS = ("identity", *TIMES, "void", *NUMBERED)
NUMBER_MAX = 2**31 - 1
_CALL = re.compile(r"\s*([A-Za-z_]+)\s*\((.*)\)\s*", re.DOTALL)
_NUMBER = re.compile(r"\s*(\d{1,10})\s*,(.*)", re.DOTALL)
_PLAIN_NAME = re.compile(r'[^\s(),."](?:[^(),."]*[^\s(),."])?')
_QUOTED_NAME = re.compile(r'"((?:[^"]|"")+)"')
PARTITION_FORMS = "a column, year(column), month(column), day(column), hour(column), bucket(N, column), truncate(N, column) or void(column)"
_SUFFIX = {"identity": "", "void": "_null", "bucket": "_bucket_{}", "truncate": "_trunc_{}", **{time: f"_{time}" for time in TIMES}}


@dataclass(frozen=True)
class Partition:
    """One part of a table's partitioning. `column` is a path through structs; `number` is 0 where the transform takes none."""

    transform: str
    column: tuple[str, ...]
    number: int = 0

    def __str__(self) -> str:
        column = ".".join(_written(part) for part in self.column)
        if self.transform == "identity":
            return column
        return f"{self.transform}({self.number}, {column})" if self.number else f"{self.transform}({column})"

    @property
    def iceberg_transform(self) -> str:
        """As a partition spec's JSON has it: `bucket[16]`."""
        return f"{self.transform}[{self.number}]" if self.number else self.transform

    @property
    def usual_name(self) -> str:
        """What Spark and PyIceberg call such a partition field: `ts_day`, `id_bucket_16`, `name_trunc_4`."""
        return ".".join(self.column) + _SUFFIX[self.transform].format(self.number)


def parse_partition(text: str) -> Partition:
    """Raises ValueError with the rule broken."""
    call = _CALL.fullmatch(text)
    if call is None:
        return Partition("identity", _column(text, text))
    transform, inside = call[1], call[2]
    if transform not in TRANSFORMS:
        raise ValueError(f"must be {PARTITION_FORMS}: there is no {transform}")
    if transform not in NUMBERED:
        return Partition(transform, _column(inside, text))
    numbered = _NUMBER.fullmatch(inside)
    if numbered is None or not 1 <= int(numbered[1]) <= NUMBER_MAX:
        raise ValueError(f"must begin with a number 1..{NUMBER_MAX}, as in {transform}(16, id)")
    return Partition(transform, _column(numbered[2], text), int(numbered[1]))


def parse_partition_by(texts: Sequence[str]) -> tuple[Partition, ...]:
    """All of a table's, together. Raises ValueError with the rule broken."""
    found = tuple(parse_partition(text) for text in texts)
    times: dict[tuple[str, ...], Partition] = {}
    for place, one in enumerate(found):
        if one in found[:place]:
            raise ValueError(f"must name each partition once: {one} is there twice")
        if one.transform in TIMES:
            other = times.setdefault(one.column, one)
            if other != one:  # Iceberg calls it redundant, and other programs refuse to make such a table.
                raise ValueError(f"must name one of {other} and {one}: the finer one tells the other")
    return found


def _column(written: str, text: str) -> tuple[str, ...]:
    names, rest = [], written.strip()
    while True:
        match = _QUOTED_NAME.match(rest) or _PLAIN_NAME.match(rest)
        if match is None:
            break
        names.append(match[1].replace('""', '"') if match.lastindex else match[0])
        rest = rest[match.end() :]
        if not rest:
            return tuple(names)
        if rest[0] != ".":
            break
        rest = rest[1:]
    raise ValueError(
        f'must be {PARTITION_FORMS}; a name with other signs in it is quoted, as in day("created.at")' if text.strip() else _EMPTY
    )


_EMPTY = f"must not be empty: {PARTITION_FORMS}"


def _written(name: str) -> str:
    if _PLAIN_NAME.fullmatch(name):
        return name
    return '"' + name.replace('"', '""') + '"'

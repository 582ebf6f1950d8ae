"""What `dolake send` is told of its input's format, held against what the format can be told, and the decoder made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dolake.errors import ConfigurationError, Mistake

if TYPE_CHECKING:
    from dolake.cdc.formats import Format


class FormatName(StrEnum):
    NATIVE = "native"
    WAL2JSON = "wal2json"
    DEBEZIUM = "debezium"
    ROWS = "rows"


class BinaryMode(StrEnum):
    BASE64 = "base64"
    BASE64_URL_SAFE = "base64-url-safe"
    HEX = "hex"


class ResumeBy(StrEnum):
    PLACE = "place"
    LSN = "lsn"


class Nanoseconds(StrEnum):
    LONG = "long"
    TIMESTAMP = "timestamp"


FormatOption = Annotated[FormatName, typer.Option("--format", help="What the lines are.")]
TableOption = Annotated[str | None, typer.Option("--table", metavar="NAME", help="rows: their table. debezium: if lines do not say it.")]
KeyOption = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="A,B", help="rows: the columns of the key. debezium: the same where no key is sent; also TABLE=A,B."),
]
TypesOption = Annotated[list[str] | None, typer.Option("--types", metavar="COL=TYPE,…", help="rows: types of columns, not to be inferred.")]
UnavailableOption = Annotated[
    str | None, typer.Option("--unavailable", metavar="TEXT", help="debezium: the connector's unavailable.value.placeholder.")
]
NanosecondsOption = Annotated[
    Nanoseconds | None, typer.Option("--nanoseconds", help="debezium: what moments in nanoseconds become; long unless given.")
]
BinaryModeOption = Annotated[
    BinaryMode | None,
    typer.Option("--binary-mode", help="debezium: the connector's binary.handling.mode, where it propagates source types."),
]


ResumeOption = Annotated[
    ResumeBy,
    typer.Option(
        "--resume",
        help="What tells events that are there from new ones: their place in the input, which begins where it always did; or, wal2json: "
        "the lsn of their commit, for a stream that may begin anywhere at or before what is there.",
    ),
]


@dataclass(frozen=True)
class FormatOptions:
    """As given on the command line; None or empty where nothing was said."""

    name: FormatName
    table: str | None = None
    key: Sequence[str] = ()
    types: Sequence[str] = ()
    unavailable: str | None = None
    nanoseconds: Nanoseconds | None = None
    binary_mode: BinaryMode | None = None
    resume: ResumeBy = ResumeBy.PLACE

    def decoder(self, now_ms: int) -> Format:
        """Raises ConfigurationError with every mistake."""
        mistakes = list(self._mistakes())
        if mistakes:
            raise ConfigurationError(mistakes)
        if self.name is FormatName.ROWS:
            from dolake.cdc.formats.rows import Rows

            return Rows(str(self.table), timestamp_ms=now_ms, key=self._keys().get("", ()), types=self._types())
        if self.name is FormatName.DEBEZIUM:
            from dolake.cdc.formats.connect import Reading
            from dolake.cdc.formats.debezium import Debezium, Options
            from dolake.cdc.formats.placeholders import UNAVAILABLE, Placeholders

            reading = Reading(str(self.binary_mode or ""), str(self.nanoseconds or Nanoseconds.LONG))
            return Debezium(Options(self.table or "", self._keys(), reading, Placeholders(self.unavailable or UNAVAILABLE)))
        if self.name is FormatName.WAL2JSON:
            from dolake.cdc.formats.wal2json import Wal2json

            return Wal2json(by_lsn=self.resume is ResumeBy.LSN)
        from dolake.cdc.formats.native import Native

        return Native()

    def _mistakes(self) -> Iterator[Mistake]:
        given = {
            "--table": (self.table, (FormatName.ROWS, FormatName.DEBEZIUM)),
            "--key": (", ".join(self.key), (FormatName.ROWS, FormatName.DEBEZIUM)),
            "--types": (", ".join(self.types), (FormatName.ROWS,)),
            "--unavailable": (self.unavailable, (FormatName.DEBEZIUM,)),
            "--nanoseconds": (self.nanoseconds, (FormatName.DEBEZIUM,)),
            "--binary-mode": (self.binary_mode, (FormatName.DEBEZIUM,)),
            "--resume": ("" if self.resume is ResumeBy.PLACE else self.resume, (FormatName.WAL2JSON,)),
        }
        for option, (value, formats) in given.items():
            if value and self.name not in formats:
                yield Mistake(option, str(value), f"must not be given with --format {self.name}; it is for {' and '.join(formats)}")
        if self.name is FormatName.ROWS and not self.table:
            yield Mistake("--table", "nothing", "is required by --format rows: where do the rows go?")
        yield from self._wrong_tables()
        for column, text in self._split_types():
            yield from _wrong_type(column, text)
        if self.name is FormatName.ROWS and any("=" in one for one in self.key):
            yield Mistake("--key", ", ".join(self.key), "is a list of columns: rows go into one table")
        for table, columns in self._keys().items():
            if not all(columns) or len(set(columns)) < len(columns):
                yield Mistake("--key", f"{table}={','.join(columns)}" if table else ",".join(columns), "names each column once, none empty")

    def _wrong_tables(self) -> Iterator[Mistake]:
        from dolake.model import TableName

        for option, table in (("--table", self.table), *(("--key", table) for table in self._keys() if table)):
            if table:
                try:
                    TableName.parse(table)
                except ValueError as error:
                    yield Mistake(option, table, str(error))

    def _keys(self) -> Mapping[str, tuple[str, ...]]:
        """Key columns by table; "" where none is said."""
        split = [one.rpartition("=") for one in self.key]
        return {table.strip(): tuple(column.strip() for column in columns.split(",")) for table, _, columns in split}

    def _types(self) -> Mapping[str, str]:
        return dict(self._split_types())

    def _split_types(self) -> Iterator[tuple[str, str]]:
        """`a=decimal(12,2),b=list<string>` into its columns; a comma within brackets belongs to its type."""
        for text in self.types:
            depth = begin = 0
            for place, letter in enumerate(text + ","):
                depth += (letter in "(<[") - (letter in ")>]")
                if letter == "," and depth <= 0:
                    column, _, kind = text[begin:place].partition("=")
                    yield column.strip(), kind.strip()
                    begin, depth = place + 1, 0


def _wrong_type(column: str, text: str) -> Iterator[Mistake]:
    from dolake.column_types import parse_type

    if not column or not text:
        yield Mistake("--types", f"{column}={text}", "is a list of column=type, as in amount=decimal(12,2)")
        return
    try:
        parse_type(text)
    except ValueError as error:
        yield Mistake("--types", f"{column}={text}", str(error))

"""Streams of rows that nobody would send on purpose, and what must have become of every event at the end.

Rows whose values drift between JSON kinds, whose columns vanish, come back and clash, from several sources, some of which
declare schemas and declare them anew. `findings` is the oracle: it knows only what was sent, and what readers see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st
from pyiceberg.schema import Schema

OPERATIONS = ("INSERT", "INSERT", "INSERT", "UPDATE", "DELETE")
BESIDE = re.compile(r".+__(boolean|long|double|string|json)")
COLUMNS_MAX, FEW_COLUMNS = 1000, 6

# -- what is sent


@dataclass(frozen=True)
class Sent:
    """One event. `members` are the image's values as JSON text."""

    source: str
    table: str
    operation: str
    members: tuple[tuple[str, str], ...]
    before: tuple[tuple[str, str], ...] = ()

    def raw(self, sequence: int) -> bytes:
        image = "before" if self.operation == "DELETE" else "after"
        text = f'{{"sequence":{sequence},"timestamp":1767225600000,"operation":"{self.operation}","table":"{self.table}","rowId":"r"'
        if self.before and image == "after":
            text += f',"before":{_object(self.before)}'
        return f'{text}, "{image}":{_object(self.members)}}}'.encode()


@dataclass(frozen=True)
class Batch:
    events: tuple[Sent, ...]


@dataclass(frozen=True)
class Declare:
    source: str
    table: str
    columns: tuple[dict[str, Any], ...]

    def message(self, sequence: int) -> dict[str, Any]:
        """The `schema` message; the key is the first column."""
        return {
            "type": "schema",
            "sourceDoId": self.source,
            "sequenceNumber": sequence,
            "table": self.table,
            "primaryKey": [self.columns[0]["name"]],
            "columns": list(self.columns),
        }


@dataclass(frozen=True)
class Flush:
    pass


@dataclass(frozen=True)
class Die:
    """The writer ends: at a failpoint of a flush after it was passed so many times, or with all in memory where it names none.

    Its successor lets events bring a table to `columns_max`.
    """

    point: str
    passes: int
    columns_max: int


@dataclass(frozen=True)
class Stumble:
    """A commit fails on its way, and is looked at again."""

    point: str
    passes: int


Step = Batch | Declare | Flush | Die | Stumble


def _object(members: Sequence[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{json.dumps(name)}: {value}" for name, value in members) + "}"


# -- how it is drawn

_DIGITS = st.text("0123456789", min_size=1, max_size=20).map(lambda digits: digits.lstrip("0") or "0")


@st.composite
def _fraction(draw: st.DrawFn) -> str:
    digits, sign = draw(_DIGITS), draw(st.sampled_from(["", "-"]))
    point = draw(st.integers(0, len(digits)))
    text = f"{digits[:point].lstrip('0') or '0'}.{digits[point:] or '0'}"
    exponent = draw(st.sampled_from(["", "", "", "e3", "E-5", "e+10", "e-99", "e300", "e-310", "e-400"]))
    return sign + text + exponent


_LEAVES = st.one_of(
    st.sampled_from(["true", "false", "0", "1", "-1", "2.5", '""', '"a"', "-0", "-0.0", "1.0", "1e2", "0.1"]),
    st.integers(-(1 << 20), 1 << 20).map(str),
    st.sampled_from([1 << 53, 1 << 63, 1 << 64, 10**25]).flatmap(
        lambda edge: st.sampled_from([edge - 1, edge, edge + 1, -edge - 1, -edge, 1 - edge]).map(str)
    ),
    _fraction(),
    st.sampled_from(
        ["1e400", "-1e400", "1e-400", "123456789012345678e-5", "0." + "0" * 330 + "1", "9223372036854775807.0", "1e18", "1e19"]
    ),
    st.text(max_size=6).map(json.dumps),
    st.text('aé🚀\x00"\\\n ', max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['"12"', '"1.50"', '"true"', '"null"', '"2026-11-20"', '"{\\"a\\": 1}"', '"\\u0031"', '"NaN"']),
)
_NESTED = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(st.tuples(st.sampled_from(["a", "b", "é"]), inner), max_size=3).map(_object),
    ),
    max_leaves=5,
)
VALUES = st.one_of(st.just("null"), _LEAVES, _LEAVES, _NESTED)
_PLAIN_NAMES = ("a", "b", "c", "d")
_ODD_NAMES = ("A", "a__string", "a__long", "b__json", "b__double", "_cdc_x", "", "é", "x.y", "x\u0000")
NAMES = st.one_of(*[st.sampled_from(_PLAIN_NAMES)] * 5, st.sampled_from(_ODD_NAMES))
_ROWS = st.dictionaries(NAMES, VALUES, max_size=5).map(lambda row: tuple(row.items()))
# What many rows of one shape are made of: this is what the fast way reads.
_STEADY = st.dictionaries(
    st.sampled_from(_PLAIN_NAMES), st.sampled_from(["{n}", "{n}.5", '"v{n}"', "true", '{{"k": {n}}}', "null"]), min_size=1, max_size=4
)
_TYPES = ("int", "long", "float", "double", "decimal(10,2)", "decimal(20,2)", "string", "boolean", "json", "date", "list<long>")
KILLS = (
    "", "", "flush.after_claim", "flush.after_letters", "flush.after_letters", "flush.before_put",
    "commit.before_swap", "commit.after_swap", "catalog.after_swap", "flush.after_commit", "flush.after_commit",
)  # fmt: skip


@st.composite
def _events(draw: st.DrawFn, source: str, tables: Sequence[str]) -> Batch:
    if draw(st.booleans()):
        rows = draw(st.lists(_ROWS, min_size=1, max_size=6))
        found = [(draw(st.sampled_from(tables)), draw(st.sampled_from(OPERATIONS)), row) for row in rows]
    else:
        shape, table = draw(_STEADY), draw(st.sampled_from(tables))
        rows = [tuple((name, text.format(n=n)) for name, text in shape.items()) for n in range(draw(st.sampled_from([3, 40, 90])))]
        for row in draw(st.lists(_ROWS, max_size=2)):
            rows[draw(st.integers(0, len(rows) - 1))] = row
        found = [(table, "INSERT", row) for row in rows]
    before = draw(st.one_of(st.just(()), _ROWS))
    return Batch(tuple(Sent(source, table, operation, row, before if operation == "UPDATE" else ()) for table, operation, row in found))


@st.composite
def _declaration(draw: st.DrawFn, source: str, table: str) -> Declare:
    names = draw(st.lists(st.sampled_from(_PLAIN_NAMES), min_size=1, max_size=4, unique=True))
    columns: list[dict[str, Any]] = [{"name": name, "type": draw(st.sampled_from(_TYPES)), "nullable": True} for name in names]
    if draw(st.integers(0, 3)) == 0:
        columns[-1] |= {"name": draw(st.sampled_from(["e", "f", "a__string"])), "renamedFrom": columns[-1]["name"]}
    return Declare(source, table, tuple(columns))


@st.composite
def streams(draw: st.DrawFn, *, deaths: bool = True) -> list[Step]:
    """Up to 12 steps of 1 to 3 sources into one or two tables; at most one of the sources declares nothing."""
    sources = ["s", "t", "u"][: draw(st.integers(1, 3))]
    tables = ["t", "u"][: draw(st.integers(1, 2))]
    declaring = [name for name in sources if draw(st.booleans())]
    steps: list[Step] = []
    for _ in range(draw(st.integers(2, 12))):
        kind = draw(st.sampled_from(["rows"] * 6 + ["declare"] * 2 + ["flush"] * 2 + ["die", "die", "stumble"]))
        source = draw(st.sampled_from(sources))
        if kind == "declare" and declaring:
            steps.append(draw(_declaration(draw(st.sampled_from(declaring)), draw(st.sampled_from(tables)))))
        elif kind == "flush":
            steps.append(Flush())
        elif kind == "die" and deaths:
            # With something to lose: rows of which some are likely to be kept out.
            rows = draw(st.lists(_ROWS, min_size=2, max_size=6))
            steps.append(Batch(tuple(Sent(source, draw(st.sampled_from(tables)), "INSERT", row) for row in (*rows, (("_cdc_x", "1"),)))))
            point = draw(st.sampled_from(KILLS))
            # Of the commits of a flush the first may be a claim or its dead letters'.
            passes = draw(st.integers(0, 3)) if point.startswith("c") else draw(st.sampled_from([0, 0, 0, 1]))
            steps.append(Die(point, passes, draw(st.sampled_from([COLUMNS_MAX, FEW_COLUMNS]))))
        elif kind == "stumble" and deaths:
            steps.append(Stumble(draw(st.sampled_from(["commit.before_swap", "commit.after_swap"])), draw(st.integers(0, 3))))
        else:
            steps.append(draw(_events(source, tables)))
    return steps


# -- what must have become of it


@dataclass
class Ledger:
    """Everything that was sent, by source and event sequence. `few_columns`: somebody may have bounded the columns."""

    events: dict[tuple[str, int], Sent] = field(default_factory=dict)
    places: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    declared: list[Declare] = field(default_factory=list)
    few_columns: bool = False
    _next: dict[str, int] = field(default_factory=dict)

    def send(self, sent: Sent) -> tuple[int, bytes]:
        """The event's sequence at its source, and its bytes."""
        sequence = self._next[sent.source] = self._next.get(sent.source, -1) + 1
        self.events[sent.source, sequence] = sent
        return sequence, sent.raw(sequence)

    def tables(self) -> list[str]:
        return sorted({sent.table for sent in self.events.values()} | {declared.table for declared in self.declared})

    def names_of(self, table: str, name: str) -> set[str]:
        """The names that a column may have by now that a source calls `name`."""
        found = {name}
        renames = [
            (column["renamedFrom"], column["name"])
            for declared in self.declared
            if declared.table == table
            for column in declared.columns
            if "renamedFrom" in column
        ]
        for _ in renames:
            found |= {new for old, new in renames if old in found}
        return found

    def declared_names(self, table: str) -> set[str]:
        return {column["name"] for declared in self.declared if declared.table == table for column in declared.columns}

    def sent_names(self, table: str) -> set[str]:
        return {name for sent in self.events.values() if sent.table == table for name, _ in (*sent.members, *sent.before)}


def findings(
    ledger: Ledger, schemas: Mapping[str, Schema], rows: Mapping[str, Sequence[Mapping[str, Any]]], letters: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """One sentence for each event that is not where it must be, or is not what was sent. `rows` and `schemas` by table."""
    seen: dict[tuple[str, int], str] = {}
    for table, found in rows.items():
        for row in found:
            key = (row["_cdc_source"], row["_cdc_sequence"])
            yield from _judge_place(ledger, seen, key, table, row, "a row")
            if key in ledger.events:
                yield from (f"{key} of {table}: {sentence}" for sentence in _judge_row(ledger, ledger.events[key], schemas[table], row))
    for letter in letters:
        key = (letter["_cdc_source"], letter["_cdc_sequence"])
        yield from _judge_place(ledger, seen, key, letter["table_name"].removeprefix("default."), letter, "a dead letter")
        if key in ledger.events:
            yield from (f"{key}: {sentence}" for sentence in _judge_letter(ledger, ledger.events[key], key[1], letter))
    for key in ledger.events.keys() - seen.keys():
        yield f"{key} is nowhere: {ledger.events[key]}"


def _judge_place(
    ledger: Ledger, seen: dict[tuple[str, int], str], key: tuple[str, int], table: str, found: Mapping[str, Any], what: str
) -> Iterator[str]:
    if key not in ledger.events:
        yield f"{key} is {what} of {table} and was never sent"
        return
    if key in seen:
        yield f"{key} is {what} of {table}, and {seen[key]} too"
    seen[key] = what
    if ledger.events[key].table != table:
        yield f"{key} is {what} of {table}, and was sent to {ledger.events[key].table}"
    place = (found["_cdc_offset"], found["_cdc_index"])
    if ledger.places and ledger.places[key] != place:
        yield f"{key} is {what} at {place}, and was sent at {ledger.places[key]}"
    if found["_cdc_operation"] != ledger.events[key].operation:
        yield f"{key} is {what} of a {found['_cdc_operation']}"


def _judge_row(ledger: Ledger, sent: Sent, schema: Schema, row: Mapping[str, Any]) -> Iterator[str]:
    """Each value that was sent in a column of its own, and no other value."""
    there = {name: value for name, value in row.items() if value is not None and not name.startswith("_cdc_")}
    wanted = [(name, text) for name, text in sent.members if text != "null"]
    homes = []
    for name, text in wanted:
        names = ledger.names_of(sent.table, name)
        inside = [
            column
            for column, value in there.items()
            if (column in names or any(column.startswith(f"{one}__") and BESIDE.fullmatch(column) for one in names))
            and _same(schema, column, value, text)
        ]
        homes.append(inside)
    if len(there) != len(wanted) or not _matched(homes):
        yield f"sent {wanted}, and the row holds {there}"


def _matched(homes: Sequence[Sequence[str]], taken: frozenset[str] = frozenset()) -> bool:
    if not homes:
        return True
    return any(_matched(homes[1:], taken | {home}) for home in homes[0] if home not in taken)


def _same(schema: Schema, column: str, value: Any, text: str) -> bool:
    """Whether a column's value says the same as the JSON text that was sent: numbers by their digits, text by its characters."""
    kind, doc = str(schema.find_field(column).field_type), schema.find_field(column).doc or ""
    sent = _parsed(text)
    holds_json = re.match(r"(inferred )?json\b", doc) is not None
    if kind == "string" and holds_json and not (isinstance(sent, str) and doc == "json"):
        return bool(_parsed(value) == sent)
    if kind == "string":
        return isinstance(sent, str) and bool(value == sent)
    if isinstance(sent, Digits):
        return _same_number(kind, value, sent.text, inferred="inferred" in doc)
    if kind == "boolean":
        return isinstance(sent, bool) and value is sent
    if kind == "date":
        return isinstance(sent, str) and bool(value == date.fromisoformat(sent))
    if kind.startswith("decimal"):
        return isinstance(sent, str) and bool(value == Decimal(sent))
    if kind in ("float", "double"):
        return sent in ("NaN", "Infinity", "-Infinity") and repr(value) == {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[sent]
    if kind.startswith("list"):
        return isinstance(sent, list) and value == [None if one is None else int(Decimal(one.text)) for one in sent]
    return False


def _same_number(kind: str, value: Any, text: str, *, inferred: bool) -> bool:
    if kind in ("int", "long") or kind.startswith("decimal"):
        return Decimal(value) == Decimal(text)
    if kind == "double":
        return bool(value == float(text)) and (not inferred or _is_held(value, text))
    # Single precision: no neighbour is nearer.
    return kind == "float" and abs(Decimal(value) - Decimal(text)) <= abs(Decimal(text)) * Decimal(2) ** -24 + Decimal(2) ** -150


def _is_held(value: float, text: str) -> bool:
    """Whether a double says what the text says: 17 digits are as many as it has (IEEE 754), and only nought is nought."""
    digits = re.sub(r"[eE].*|[-.]", "", text).lstrip("0")
    return (value != 0 or not digits) and (len(digits) <= 17 or Decimal(repr(value)) == Decimal(text))


@dataclass(frozen=True)
class Digits:
    """A JSON number by its text."""

    text: str


def _parsed(text: str) -> Any:
    """JSON with numbers as text and objects as pairs, so that nothing is lost in comparing."""
    return json.loads(text, parse_int=Digits, parse_float=Digits, object_pairs_hook=lambda pairs: ("object", pairs))


def _judge_letter(ledger: Ledger, sent: Sent, sequence: int, letter: Mapping[str, Any]) -> Iterator[str]:
    """Its bytes are those that were sent, and it had to be kept out."""
    if letter["event"] != sent.raw(sequence):
        yield f"the letter holds {letter['event']!r}"
    if letter["outcome"] != "dead":
        yield f"the letter is {letter['outcome']}"
    name = letter["field"].removeprefix("before.")
    told = {*(name for name, _ in (*sent.members, *sent.before)), ""}
    about = {one for one in told if name == (one or "event") or name.startswith((f"{one}.", f"{one}["))}
    if not any(_deserved(ledger, sent, one, letter) for one in about):
        yield f"a letter without need: {letter['reason']} {letter['field']!r} {letter['rule']!r} {letter['value']}"


def _deserved(ledger: Ledger, sent: Sent, name: str, letter: Mapping[str, Any]) -> bool:
    names = ledger.names_of(sent.table, name)
    declared = ledger.declared_names(sent.table)
    known = ledger.sent_names(sent.table) | declared
    match letter["reason"]:
        case "too_many_columns":
            return ledger.few_columns
        case "column_name":
            clashes = any(other != name and other.casefold() == name.casefold() for other in known)
            invalid = not name or name.startswith("_cdc_") or not name.isprintable()
            beside = BESIDE.fullmatch(name) or any(other.startswith(f"{one}__") for other in known for one in names)
            return bool(clashes or invalid or beside)
        case "does_not_fit":
            return bool(names & declared or len(names) > 1)
    return False

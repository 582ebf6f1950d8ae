"""What each source will ever send, decided beforehand: the truth that the tables are held to in the end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import orjson

from tests.simulation.invariants import Event, Journal

TABLES = ("default.orders", "shop.items")
Columns = tuple[dict[str, Any], ...]
NARROW: Columns = (
    {"name": "id", "type": "string"},
    {"name": "n", "type": "long"},
    {"name": "note", "type": "string"},
    {"name": "small", "type": "int"},
)
WIDE: Columns = (*NARROW[:3], {"name": "small", "type": "long"}, {"name": "extra", "type": "long"})
STRICT = {"name": "must", "type": "string", "nullable": False}  # of mirrors, where that binds
LARGE = 1 << 40  # fits into `small` only once that is wide


class Fits(Enum):
    """Whether a table takes an event as a row."""

    ALWAYS = "always"
    ONCE_WIDE = "once the table is wide"
    NEVER = "never"


@dataclass(frozen=True)
class Batch:
    """One message of a source. `body` is the raw `events`, or the columns of a schema; `events` are the names of its events."""

    epoch: str
    sequence: int
    body: bytes
    table: str = ""
    events: tuple[Event, ...] = ()
    first_event: int = -1
    last_event: int = -1
    transaction: tuple[str, bool] | None = None

    def frame(self, source: str, *, retry_count: int, now_ms: int, body: bytes | None = None, sequence: int | None = None) -> bytes:
        number = self.sequence if sequence is None else sequence
        message: dict[str, Any] = {"sourceDoId": source, "sequenceNumber": number, "timestamp": now_ms}
        if self.epoch:
            message["epoch"] = self.epoch
        if self.table:
            columns = orjson.loads(body or self.body)
            return orjson.dumps({"type": "schema", **message, "table": self.table, "primaryKey": ["id"], "columns": columns})
        message |= {"type": "cdc_batch", "firstEventSequence": self.first_event, "lastEventSequence": self.last_event}
        message |= {"sizeBytes": len(self.body), "isRetry": retry_count > 0, "retryCount": retry_count}
        if self.transaction is not None:
            message["transaction"] = {"id": self.transaction[0], "last": self.transaction[1]}
        return orjson.dumps(message)[:-1] + b',"events":' + (body or self.body) + b"}"


@dataclass
class Script:
    """All batches of one source, epoch after epoch."""

    source: str
    epochs: list[str]
    transactions: bool
    columns: tuple[Columns, ...] = (NARROW, WIDE)  # what it may declare: before, and once it is wide
    batches: dict[str, list[Batch]] = field(default_factory=dict)

    @property
    def event_count(self) -> int:
        return sum(len(batch.events) for batches in self.batches.values() for batch in batches)


@dataclass(frozen=True)
class Manners:
    """What kind of events a source sends.

    `misfits` is the share of those that do not fit what is declared: some never, some only until a later schema. `is_mirrored`:
    few keys that change, TRUNCATEs, unchanged columns, events that a mirror refuses. `is_contested`: all sources write the same keys.
    """

    transactions: bool = False
    misfits: float = 0.0
    is_mirrored: bool = False
    is_contested: bool = False
    truncates: float = 0.0


def write_script(source: str, draw: random.Random, journal: Journal, batch_count: int, manners: Manners) -> Script:
    """Some epochs of some batches: schemas first, then inserts, updates, deletes in transactions or not."""
    epochs = [""] if draw.random() < 0.7 else ["first", "second"]
    script = Script(source, epochs, manners.transactions)
    if manners.is_mirrored:
        script.columns = ((*NARROW, STRICT), (*WIDE, {**STRICT, "nullable": draw.random() < 0.7}))
    tables = draw.sample(TABLES, draw.randint(1, len(TABLES)))
    for epoch in epochs:
        writer = _ScriptWriter(source, epoch, draw, journal, tables, manners, script.columns)
        writer.write(max(2, batch_count // len(epochs)), transactions=manners.transactions)
        script.batches[epoch] = writer.batches
    return script


class _ScriptWriter:
    def __init__(
        self,
        source: str,
        epoch: str,
        draw: random.Random,
        journal: Journal,
        tables: list[str],
        manners: Manners,
        columns: tuple[Columns, ...],
    ) -> None:
        self._manners, self._misfits, self._columns = manners, manners.misfits, columns
        self._source, self._epoch, self._draw, self._journal, self._tables = source, epoch, draw, journal, tables
        self._sequence = draw.choice([0, 1, 500])
        self._event = 0
        self._wide: set[str] = set()
        self.batches: list[Batch] = []

    def write(self, count: int, *, transactions: bool) -> None:
        for table in self._tables:
            self._add_schema(table)
        while len(self.batches) < count:
            draw = self._draw.random()
            if draw < 0.05 or (draw > 0.9 and self._misfits):
                self._add_schema(self._draw.choice(self._tables), wider=True)
            elif draw < 0.08:
                self._add_batch(0, None)
            elif draw < 0.25 and transactions:
                name = f"{self._epoch}/{self._event}"
                parts = self._draw.randint(2, 3)
                first = self._event
                for part in range(parts):
                    self._add_batch(self._draw.randint(1, 3), (name, part == parts - 1))
                self._note_transaction(range(first, self._event))
            else:
                self._add_batch(self._draw.randint(1, 4), None)
        if self._misfits and self._draw.random() < 0.7:  # In the end what was kept out fits, and may come again.
            for table in self._tables:
                self._add_schema(table, wider=True)

    def _add_schema(self, table: str, *, wider: bool = False) -> None:
        if wider:
            self._wide.add(table)
        columns = self._columns[table in self._wide]
        body = orjson.dumps([{"nullable": True, **column} for column in columns])
        self.batches.append(Batch(self._epoch, self._sequence, body, table=table))
        self._sequence += 1

    def _add_batch(self, count: int, transaction: tuple[str, bool] | None) -> None:
        first = self._event if count else -1
        events = [self._add_event() for _ in range(count)]
        names = tuple((self._source, self._epoch, event["sequence"]) for event in events)
        last = self._event - 1 if count else -1
        batch = Batch(
            self._epoch, self._sequence, orjson.dumps(events), events=names, first_event=first, last_event=last, transaction=transaction
        )
        self.batches.append(batch)
        self._sequence += 1

    def _note_transaction(self, numbers: range) -> None:
        """What of a transaction lies in one table must be committed together."""
        events = [(self._source, self._epoch, number) for number in numbers]
        self._journal.transactions.append(frozenset((self._journal.sent[event]["table"], event) for event in events))
        for table in self._tables:
            whole = frozenset(event for event in events if self._journal.sent[event]["table"] == table)
            self._journal.whole.update(dict.fromkeys(whole, whole))

    def _add_event(self) -> dict[str, Any]:
        table = self._draw.choice(self._tables)
        number = self._event
        self._event += 1
        operation = self._draw.choice(["INSERT", "INSERT", "UPDATE", "DELETE"])
        row: dict[str, Any] = {"id": self._key(5), "n": number, "small": number}
        if self._draw.random() < 0.7:
            row["note"] = self._draw.choice(["", "x" * 60, "y" * 400])
        if table in self._wide:
            row["extra"] = number * 10
        fits = self._misfit(row)
        name = table.removeprefix("default.") if self._draw.random() < 0.5 else table  # Two spellings of one table.
        event = {"sequence": number, "timestamp": 1_767_225_600_000 + number, "operation": operation, "table": name, "rowId": row["id"]}
        event["before" if operation == "DELETE" else "after"] = row
        if self._manners.is_mirrored:
            row["must"] = "m" * self._draw.randint(0, 2)
            self._make_mirrored(event)
            row = event.get("after") or event.get("before") or {}
            fits = fits_of(row)
        known = {"table": table, "row": row, "operation": event["operation"], "fits": fits, "event": event}
        self._journal.sent[(self._source, self._epoch, number)] = known
        return event

    def _key(self, last: int) -> str:
        return f"{'k' if self._manners.is_contested else self._source}-{self._draw.randint(0, last)}"

    def _make_mirrored(self, event: dict[str, Any]) -> None:
        """Some events become what only a mirror cares about."""
        draw, image = self._draw, event.get("after") or event["before"]
        if draw.random() < 0.3:
            del event["rowId"]  # The key is declared.
        if draw.random() < self._manners.truncates:
            event["operation"] = "TRUNCATE"
            event.pop("after", None)
            event.pop("before", None)
            return
        if draw.random() < 0.03:
            del image["id"]
        if event["operation"] == "DELETE":
            return
        if draw.random() < 0.04:
            image["must"] = None
        if event["operation"] == "UPDATE" and draw.random() < 0.3:
            event["before"] = {"id": self._key(5)}
        if event["operation"] == "UPDATE" and draw.random() < 0.4:
            unchanged = draw.choice([["note"], ["note"], ["note", "must"], ["note", "n"]])
            for name in unchanged:
                image.pop(name, None)
            event["metadata"] = {"unchanged": unchanged}

    def _misfit(self, row: dict[str, Any]) -> Fits:
        """Puts a value into some rows that their columns do not take."""
        if not self._misfits or self._draw.random() >= self._misfits:
            return Fits.ALWAYS
        if self._draw.random() < 0.7:
            row["id"] += f"-{row['n']}"  # Nothing overtakes it.
        if self._draw.random() < 0.2:
            row["n"] = "many"
            return Fits.NEVER
        row["small"] += LARGE
        return Fits.ONCE_WIDE


def fits_of(row: dict[str, Any]) -> Fits:
    if row.get("n") == "many":
        return Fits.NEVER
    return Fits.ONCE_WIDE if row.get("small", 0) >= LARGE else Fits.ALWAYS

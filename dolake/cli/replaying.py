"""Dead letters as the commands see them: what is decided of each, and sending some again.

A letter is known by its id, `table@log:offset:index`. They go back to the daemon as a source of their own (`_dead_letters`),
in batches of one table and one original source, in the order of that source's numbers. A mirror and the changelog beside it hear
the same events: one that was kept out of both goes back once, under the mirror's name, and each takes it by its own letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dolake.cdc.client import Producer
from dolake.cli.lake import Lake
from dolake.errors import ConfigurationError, Mistake
from dolake.model import DEAD_LETTERS_SOURCE, DEAD_LETTERS_TABLE, TableName
from dolake.writer.letters import read_letters

BATCH_EVENTS = 500
BATCH_BYTES_MAX = 4 << 20

_Members = dict[str, msgspec.Raw]
_members = msgspec.json.Decoder(_Members).decode
_COLUMNS = [
    "table_name", "_cdc_log", "_cdc_offset", "_cdc_index", "outcome", "judged_at", "reason", "field", "rule", "value",
    "_cdc_source", "_cdc_epoch", "_cdc_sequence", "_cdc_timestamp", "_cdc_operation", "_cdc_row_id", "event",
    "replayed_log", "replayed_offset", "replayed_index",
]  # fmt: skip


@dataclass(frozen=True)
class KnownLetter:
    """One dead letter: every verdict on it, oldest first."""

    id: str
    verdicts: tuple[Mapping[str, Any], ...]

    @property
    def state(self) -> str:
        return str(self.verdicts[-1]["outcome"])

    @property
    def newest(self) -> Mapping[str, Any]:
        return self.verdicts[-1]

    @property
    def why(self) -> Mapping[str, Any]:
        """The newest verdict that kept it out."""
        return next((verdict for verdict in reversed(self.verdicts) if verdict["outcome"] in ("dead", "expired")), self.newest)


def known_letters(lake: Lake, table: TableName | None = None) -> list[KnownLetter]:
    """All letters (of one table), in the order of their logs. Raises DolakeError."""
    base = lake.catalog.load(DEAD_LETTERS_TABLE) if lake.catalog is not None else None
    rows = [] if base is None else read_letters(lake.store, base, table, _COLUMNS)
    found: dict[tuple[str, str, int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["table_name"], row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"]), []).append(row)
    return [KnownLetter(letter_id(key), tuple(verdicts)) for key, verdicts in sorted(found.items())]


def letter_id(key: tuple[str, str, int, int]) -> str:
    table, log, offset, index = key
    return f"{table}@{log}:{offset}:{index}"


def require(letters: Sequence[KnownLetter], ids: Iterable[str]) -> list[KnownLetter]:
    """The letters with these ids. Raises ConfigurationError naming each id that none has."""
    by_id = {letter.id: letter for letter in letters}
    wanted = list(dict.fromkeys(ids))
    missing = [
        Mistake("ID", name, "is the id of no dead letter; `dolake dead-letters list` shows them") for name in wanted if name not in by_id
    ]
    if missing:
        raise ConfigurationError(missing)
    return [by_id[name] for name in wanted]


async def send_again(producer: Producer, letters: Sequence[KnownLetter]) -> int:
    """Sends them and waits until they are judged and committed; how many batches that took."""
    batches = 0
    async with producer:
        for batch in batches_of(letters):
            first = batch[0].newest
            places = [list(_place(letter)) for letter in batch]
            about = {"source": first["_cdc_source"], "epoch": first["_cdc_epoch"], "places": places}
            await producer.send([event_of(letter) for letter in batch], letters=about)
            batches += 1
        await producer.flush()
        await producer.drain("persisted")
    return batches


def batches_of(letters: Sequence[KnownLetter]) -> Iterator[list[KnownLetter]]:
    """Each of one table (and the changelog beside it) and one source, its numbers rising; no event twice."""

    def order(letter: KnownLetter) -> tuple[str, str, str, int]:
        row = letter.newest
        return sent_to(letter), row["_cdc_source"], row["_cdc_epoch"], row["_cdc_sequence"]

    batch: list[KnownLetter] = []
    size_bytes = 0
    for letter in sorted({(sent_to(letter), _place(letter)): letter for letter in letters}.values(), key=order):
        before, now = (order(batch[-1]) if batch else None), order(letter)
        full = len(batch) >= BATCH_EVENTS or size_bytes + len(letter.newest["event"]) > BATCH_BYTES_MAX
        if before is not None and (full or before[:3] != now[:3] or before[3] >= now[3]):
            yield batch
            batch, size_bytes = [], 0
        batch.append(letter)
        size_bytes += len(letter.newest["event"])
    if batch:
        yield batch


def sent_to(letter: KnownLetter) -> str:
    """The table whose name it goes back under."""
    return TableName.in_lake(letter.newest["table_name"]).sent


def _place(letter: KnownLetter) -> tuple[str, int, int]:
    return letter.newest["_cdc_log"], letter.newest["_cdc_offset"], letter.newest["_cdc_index"]


def event_of(letter: KnownLetter) -> bytes:
    """The event as it was received, but for the table's name: in the lake it may be called otherwise than at its source."""
    raw, table = bytes(letter.newest["event"]), sent_to(letter)
    members = _members(raw)
    if msgspec.json.decode(members["table"]) in (table, table.removeprefix("default.")):
        return raw
    members["table"] = msgspec.Raw(msgspec.json.encode(table))
    return msgspec.json.encode(members)


def dead_letters_producer(url: str, **options: Any) -> Producer:
    return Producer(url, DEAD_LETTERS_SOURCE, **options)

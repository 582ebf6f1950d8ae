"""Dead letters of a mirror that still wait to be sent again, watched for later events of their keys.

A mirror's rows do not say which event they came from, and a row that was deleted says nothing at all. So whether a letter was
overtaken cannot be asked when it is sent again: it is noticed when the later event passes, and committed as a verdict on the letter
(`superseded`) before that event's row. Where there are no letters there is nothing to watch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema

from dolake.buffer.fold import Flags
from dolake.parquet.keys import KeyHashes, key_hashes
from dolake.parquet.letters import DEAD, REPLAYED, SUPERSEDED, Letter, Place
from dolake.parquet.mirror import MirrorKey, event_keys, old_key_columns
from dolake.writer.folding import MirrorRows
from dolake.writer.replay import OVERTAKEN


class _Described(msgspec.Struct):
    sequence: int
    operation: str


_DESCRIBED = msgspec.json.Decoder(_Described)
Hash = tuple[int, int]


@dataclass
class Watch:
    """The open letters of one table, by their place."""

    letters: dict[Place, Letter] = field(default_factory=dict)
    _hashed: tuple[MirrorKey, int] | None = None
    _by_hash: dict[Hash, list[Place]] = field(default_factory=dict)
    _truncates: list[Place] = field(default_factory=list)
    _sequences: dict[Place, int] = field(default_factory=dict)

    @classmethod
    def of(cls, letters: Iterable[Letter]) -> Watch:
        return cls({letter.place: letter for letter in letters})

    def with_flight(self, letters: Sequence[Letter], overtaken: Collection[Place]) -> Watch:
        """What is open once these verdicts stand."""
        found = dict(self.letters)
        for letter in letters:
            if letter.outcome == DEAD:
                found[letter.place] = letter
            else:
                found.pop(letter.place, None)
        return Watch({place: letter for place, letter in found.items() if place not in overtaken})

    def is_over(self, letter: Letter) -> bool:
        """Whether one that was sent again was decided since it was read: a later event has passed it, or it was applied."""
        return letter.again is not None and letter.outcome in (DEAD, REPLAYED) and letter.place not in self.letters

    def overtaken(self, rows: MirrorRows, taken: Flags, key: MirrorKey, schema: Schema, seed: int) -> list[Letter]:
        """Verdicts on the letters that one of these events, by the numbers of their own source, comes after."""
        if not self.letters:
            return []
        self._hash(key, schema, seed)
        found: set[Place] = set()
        touches = rows.touches(taken, -1)
        wanted = np.array(sorted({high for high, _ in self._by_hash}), np.uint64)
        for place in np.flatnonzero(np.isin(touches.high, wanted)).tolist():
            touched = (int(touches.high[place]), int(touches.low[place]))
            found |= self._before(rows, int(touches.rows[place]), self._by_hash.get(touched, ()))
        if self._truncates:
            for row in np.flatnonzero(taken).tolist():
                found |= self._before(rows, row, self._truncates)
        for row in rows.truncates:
            if taken[row]:
                found |= self._before(rows, row, self.letters)
        return [_superseded(self.letters[place]) for place in sorted(found, key=lambda place: (place.log, place.offset, place.index))]

    def _before(self, rows: MirrorRows, row: int, places: Iterable[Place]) -> set[Place]:
        """Which of these letters the event in `row` comes after."""
        source = rows.source_names[rows.sources[row]]
        epoch, sequence = (rows.rows[name][row].as_py() for name in ("_cdc_epoch", "_cdc_sequence"))
        found = set()
        for place in places:
            letter = self.letters[place]
            if letter.source == source and (letter.epoch != epoch or self._sequences[place] < sequence):
                found.add(place)
        return found

    def _hash(self, key: MirrorKey, schema: Schema, seed: int) -> None:
        if self._hashed == (key, seed):
            return
        self._hashed, self._by_hash, self._truncates = (key, seed), {}, []
        places, texts = [], []
        for place, letter in self.letters.items():
            described = _DESCRIBED.decode(letter.event)
            self._sequences[place] = described.sequence
            if described.operation == "TRUNCATE":
                self._truncates.append(place)
            for text in event_keys(letter.event, key):
                places.append(place)
                texts.append(text)
        readable, columns = old_key_columns(texts, key.names, schema)
        hashes = key_hashes(columns, seed) if readable else KeyHashes.joined(())
        for number, high, low in zip(readable, hashes.high.tolist(), hashes.low.tolist(), strict=True):
            self._by_hash.setdefault((high, low), []).append(places[number])


def outrun_letters(
    letters: Iterable[Letter], rows: MirrorRows, taken: Flags, key: MirrorKey, schema: Schema, seed: int, watch: Watch | None = None
) -> dict[int, Letter]:
    """Of letters that would be applied with these rows, those that a later event of theirs stands before: row → the verdict instead.

    When they were read only events of their very key were looked at: not those of a key that one of the two changes, nor TRUNCATEs.
    `watch` knows what has been committed since then.
    """
    again = {letter.seen: letter for letter in letters if letter.outcome == REPLAYED}
    if not again:
        return {}
    found: dict[int, Letter] = {}
    near = pc.is_in(rows.rows["_cdc_offset"], value_set=pa.array(sorted({place.offset for place in again}), pa.int64()))
    for row in np.flatnonzero(np.asarray(near.combine_chunks()) & taken).tolist():
        letter = again.get(rows.place(row))
        before = taken.copy()
        before[row:] = False
        before[list(found)] = False
        if letter is None:
            continue
        if (watch is not None and watch.is_over(letter)) or Watch.of([letter]).overtaken(rows, before, key, schema, seed):
            found[row] = superseded_again(letter)
    return found


def superseded_again(letter: Letter) -> Letter:
    """The verdict on a letter that was sent again and counts no more."""
    return replace(letter, reason=SUPERSEDED, field="", rule=OVERTAKEN, value="", outcome=SUPERSEDED)


def _superseded(letter: Letter) -> Letter:
    return Letter(letter.place, letter.source, letter.epoch, "", "", OVERTAKEN, "", letter.event, SUPERSEDED)


def open_letters(rows: Iterable[Mapping[str, object]]) -> list[Letter]:
    """The letters whose newest outcome is that they are dead; `rows` of the letters' table in the order they were judged."""
    newest: dict[Place, Mapping[str, object]] = {}
    for row in rows:
        newest[Place(str(row["_cdc_log"]), int(str(row["_cdc_offset"])), int(str(row["_cdc_index"])))] = row
    return [
        Letter(place, str(row["_cdc_source"]), str(row["_cdc_epoch"]), "", "", "", "", bytes(row["event"]))  # type: ignore[call-overload]
        for place, row in newest.items()
        if row["outcome"] == DEAD
    ]

"""Events into rows and dead letters, the way every table's events go: what must not be seen is taken out, then they are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dolake.parquet.layout import EventChunk
from dolake.parquet.letters import Letter, Place
from dolake.parquet.redact import Redactor
from dolake.parquet.rows import ChangelogDecoder, Decoded


def read_rows(
    decoder: ChangelogDecoder, redactor: Redactor | None, chunks: Sequence[EventChunk], aliases: Mapping[str, Mapping[str, str]]
) -> Decoded:
    """Blocks; `decoder` and `redactor` are used by one thread at a time."""
    if redactor is None:
        return decoder.decode(chunks, aliases)
    letters: list[Letter] = []
    clean = [_readable(redactor, chunk, letters) for chunk in chunks]
    found = decoder.decode(clean, aliases)
    return replace(found, letters=(*letters, *found.letters))


def redacted(redactor: Redactor, chunk: EventChunk) -> EventChunk:
    """All the events, without what must not be seen."""
    return replace(chunk, events=redactor.events(chunk.events, replayed=bool(chunk.originals)).events, batch=None)


def _readable(redactor: Redactor, chunk: EventChunk, letters: list[Letter]) -> EventChunk:
    found = redactor.events(chunk.events, replayed=bool(chunk.originals))
    for place, rule in found.refused.items():
        where = Place(chunk.log, chunk.offset, chunk.indexes[place])
        letters.append(Letter(where, chunk.source, chunk.epoch, "not_readable", "event", rule, "", found.events[place]))
    clean = replace(chunk, events=found.events, batch=None)
    return clean.only([place for place in range(len(clean.events)) if place not in found.refused]) if found.refused else clean

"""A mirror table by itself: one row a key (I8), and the counts of its events add up to its rows (I13)."""

from __future__ import annotations

from collections.abc import Iterator

from dolake.iceberg.metadata import LoadedTable
from dolake.storage.store import ObjectStore
from dolake.verify.breach import Breach, Note
from dolake.verify.keys import KeyedRows, TableKey, key_text
from dolake.verify.letters import DEAD_COUNT
from dolake.verify.rows import ACCEPTED, ROLLED_BACK_COUNT, SHOWN_MAX, expired_count
from dolake.verify.strangers import FOREIGN_COUNT, Strangers

FOLDED_COUNT, REMOVED_COUNT = "dolake.count.folded", "dolake.count.removed"


def verify_keys(table: LoadedTable, store: ObjectStore, rows: KeyedRows, key: TableKey) -> Iterator[Breach | Note]:
    """Rows that others have written are told apart: a key they are in may have several, until it is written next."""
    subject = str(table.name)
    for one in rows.files:
        if not len(one.keyless):
            continue
        sentence = f"{one.file.location}: {len(one.keyless)} rows have no value in their key ({', '.join(key.names)}), row {one.keyless[0]}"
        apart = one.foreign[one.keyless].all() or key.moved
        yield Note(subject, f"{sentence}: nothing will replace them") if apart else Breach("I8", subject, sentence)
    shown, foreign_keys, older_keys = 0, 0, 0
    for double in rows.doubles():
        if rows.foreign[double].any():
            foreign_keys += 1
        elif key.moved:
            older_keys += 1
        elif shown < SHOWN_MAX:
            shown += 1
            where = " and ".join(f"row {rows.positions[row]} of {rows.file_of(int(row)).location}" for row in double[:2])
            text = key_text(store, rows.file_of(int(double[0])), int(rows.positions[double[0]]), key)
            yield Breach("I8", subject, f"key {text} has {len(double)} rows: {where}")
    if foreign_keys:
        yield Note(
            subject, f"{foreign_keys} keys have several rows, some of them in files of others; the next event of such a key mends it"
        )
    if older_keys:
        yield Note(subject, f"{older_keys} keys have several rows: the key was another one when they were written")


def verify_counts(table: LoadedTable, live_count: int, strangers: Strangers) -> Iterator[Breach | Note]:
    """Accepted = rows + dead letters + folded + removed + rolled back + expired - rows of others."""
    accepted = table.properties.get(ACCEPTED)
    if accepted is None:
        return
    dead, folded, removed, rolled_back, foreign = (
        int(table.properties.get(name, "0")) for name in (DEAD_COUNT, FOLDED_COUNT, REMOVED_COUNT, ROLLED_BACK_COUNT, FOREIGN_COUNT)
    )
    expired = expired_count(table)
    stated = int(accepted) - dead - folded - removed - rolled_back - expired + foreign
    since = strangers.rows_since
    if since:
        yield Note(str(table.name), f"others have changed it since dolake did: {since:+,} rows")
    # The next flush counts what others did; one that changes no rows has counted it already.
    if live_count in (stated, stated + since):
        return
    parts = [f"{accepted} events were accepted for it up to its offsets, {dead} of them dead letters, {folded} folded away"]
    parts.append(f"{removed} rows removed again")
    if rolled_back:
        parts.append(f"{rolled_back} rows rolled back")
    if expired:
        parts.append(f"{expired} rows expired")
    if foreign or since:
        parts.append(f"{foreign + since:+} rows by others")
    yield Breach("I13", str(table.name), f"{', '.join(parts)}: that makes {stated + since} rows, and {live_count} are there")

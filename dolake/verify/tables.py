"""One table: its history, every file of its retained snapshots, and the rows of its head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.metadata import LoadedTable
from dolake.model import DEAD_LETTERS_TABLE, RESERVED_SUFFIX
from dolake.parquet.decode import column_names, read_columns
from dolake.parquet.deletes import decode_deletes
from dolake.storage.store import ObjectStore
from dolake.verify.breach import Breach, Note
from dolake.verify.deletes import DeletedRows
from dolake.verify.files import verify_file, verify_sizes
from dolake.verify.history import verify_history
from dolake.verify.keys import KeyedFile, KeyedRows, KeyOf, TableKey, is_mirror, of_strangers
from dolake.verify.letters import JudgedEvents, count_by_record, verify_against_letters, verify_letter_count, verify_letters
from dolake.verify.logs import LogView
from dolake.verify.mirrors import verify_counts, verify_keys
from dolake.verify.rows import PLACE_COLUMNS, verify_against_log, verify_rows
from dolake.verify.strangers import Strangers
from dolake.verify.totals import verify_totals

_NUMBERS = ("_cdc_offset", "_cdc_index", "_cdc_sequence")
_NO_ROWS = pa.schema([(name, pa.int64() if name in _NUMBERS else pa.string()) for name in PLACE_COLUMNS]).empty_table()


@dataclass(frozen=True)
class Surroundings:
    """What a table is held against. `key_of`: its key's columns, as the settings have them."""

    store: ObjectStore
    views: Sequence[LogView]
    judged: JudgedEvents
    key_of: KeyOf


@dataclass
class TableRows:
    """What the head holds, as it turns out while the table is verified. `whole` is false where a file of it cannot be trusted.

    `keyed` are a mirror's rows; None for every other table, and for one that has no key.
    """

    table: LoadedTable
    files: tuple[LiveFile, ...] = ()
    deleted: DeletedRows | None = None
    strangers: Strangers | None = None
    key: TableKey | None = None
    keyed: KeyedRows | None = None
    whole: bool = True


def verify_table(found: TableRows, around: Surroundings) -> Iterator[Breach | Note]:
    """Leaves in `found` what the head holds."""
    table, store = found.table, around.store
    yield from verify_history(table)
    reader = ContentsReader(store)
    contents = {snapshot["snapshot-id"]: reader.read(snapshot) for snapshot in table.metadata.get("snapshots") or ()}
    yield from verify_sizes(store, str(table.name), contents.values())
    yield from verify_totals(table, contents)
    if table.head_id is None:
        return
    found.files = contents[table.head_id].files
    found.strangers = Strangers.of(table, found.files)
    data_files = {file.location: file for file in found.files if file.kind == "data"}
    found.deleted = DeletedRows(str(table.name), data_files, found.strangers.been_here)
    if is_mirror(table):
        found.key = TableKey.of(table, around.key_of(table.name))
        yield from _verify_mirror(found, around)
    else:
        yield from _verify_rows(found, around)


def _verify_files(found: TableRows, store: ObjectStore) -> Iterator[Breach | Note | tuple[LiveFile, bytes]]:
    """Every live file: what is deleted, then the data, which comes out whole; after a bad one nothing does any more."""
    assert found.deleted is not None
    for file in sorted(found.files, key=lambda file: file.kind == "data"):
        data = store.get(file.location)
        breaches = list(verify_file(file, data, str(found.table.name)))
        yield from breaches
        found.whole = found.whole and not breaches
        if file.kind == "position deletes" and found.whole:
            yield from found.deleted.take(file, decode_deletes(data))
        if file.kind == "data" and found.whole:
            yield file, data


def _verify_mirror(found: TableRows, around: Surroundings) -> Iterator[Breach | Note]:
    table, key = found.table, found.key
    assert found.deleted is not None
    assert found.strangers is not None
    keyed: list[KeyedFile] = []
    live_count = 0
    for item in _verify_files(found, around.store):
        if isinstance(item, Breach | Note):
            yield item
            continue
        file, data = item
        kept = found.deleted.kept(file.location, file.row_count)
        live_count += len(kept)
        if key is not None:
            keyed.append(KeyedFile.of(file, data, kept, key))
    if not found.whole:
        return
    if key is None:
        yield Note(str(table.name), "it is a mirror without the columns of its key: its rows are not told apart")
    else:
        found.keyed = KeyedRows.of(keyed)
        yield from verify_keys(table, around.store, found.keyed, key)
    yield from verify_counts(table, live_count, found.strangers)
    yield from verify_letter_count(table, around.judged)


def _verify_rows(found: TableRows, around: Surroundings) -> Iterator[Breach | Note]:
    """Of a changelog, of the dead letters, or of somebody else's table."""
    table, judged = found.table, around.judged
    assert found.deleted is not None
    pieces: list[pa.Table] = []
    others_count = 0
    for item in _verify_files(found, around.store):
        if isinstance(item, Breach | Note):
            yield item
            continue
        file, data = item
        columns = [name for name in PLACE_COLUMNS if name in column_names(data)]
        rows = read_columns(data, columns)
        kept = found.deleted.kept(file.location, file.row_count)
        rows = rows if len(kept) == rows.num_rows else rows.take(pa.array(kept))
        if "_cdc_log" in columns and of_strangers(file, data).any():  # It may hold rows of ours, rewritten, and rows that no log ever held.
            events = rows.filter(pc.is_in(rows["_cdc_log"].cast(pa.string()), pa.array(table.offsets(), pa.string())))
            others_count += rows.num_rows - events.num_rows
            rows = events
        pieces.append(rows)
    if table.name == DEAD_LETTERS_TABLE:
        yield from verify_letters(table, judged)
        return
    if not found.whole or any(set(piece.column_names) != set(PLACE_COLUMNS) for piece in pieces):
        return  # Its rows say nothing while its files do not; and rows of others carry no places.
    if not pieces and not judged.kept_out(table):
        return
    if others_count:
        yield Note(str(table.name), f"{others_count} rows that others have put in are of no log that feeds it: nothing is said of them")
    # Files of others may hold texts as large texts, or dictionaries.
    rows = pa.concat_tables([piece.select(PLACE_COLUMNS).cast(_NO_ROWS.schema) for piece in pieces]) if pieces else _NO_ROWS
    kept_out = judged.kept_out(table)
    been_here = found.strangers is not None and found.strangers.been_here
    yield from verify_rows(table, rows, len(kept_out), judged.replayed(table), others_were_here=been_here)
    yield from verify_against_letters(table, rows, judged)
    yield from verify_against_log(table, rows, _logged(table, around.views), count_by_record(kept_out))


def _logged(table: LoadedTable, views: Sequence[LogView]) -> pa.Table:
    """Events of the table in the logs. A changelog beside a mirror has the mirror's."""
    sent = table.name.sent if table.name.name.endswith(RESERVED_SUFFIX) else str(table.name)
    records = [(view.log_id, offset, count) for view in views for (name, offset), count in view.events.items() if name == sent]
    return pa.table(
        {
            "log": pa.array([record[0] for record in records], pa.string()),
            "offset": pa.array([record[1] for record in records], pa.int64()),
            "events": pa.array([record[2] for record in records], pa.int64()),
        }
    )

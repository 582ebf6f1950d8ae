"""All of it: the logs, then each table's history, files and rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dolake.errors import DolakeError
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.metadata import LoadedTable
from dolake.model import DEAD_LETTERS_TABLE, TableName
from dolake.parquet.decode import column_names, read_columns
from dolake.parquet.deletes import decode_deletes, positions_by_file, without_rows
from dolake.storage.disk import Disk
from dolake.storage.store import ObjectStore
from dolake.verify.breach import Breach
from dolake.verify.files import verify_file, verify_sizes
from dolake.verify.history import verify_history
from dolake.verify.letters import LETTER_COLUMNS, JudgedEvents, count_by_record, verify_against_letters, verify_letters
from dolake.verify.logs import LogView, TableOf, verify_logs, verify_not_ahead, verify_trimmed
from dolake.verify.parked import Elsewhere, verify_elsewhere
from dolake.verify.rows import PLACE_COLUMNS, verify_against_log, verify_rows

_NUMBERS = ("_cdc_offset", "_cdc_index", "_cdc_sequence")
_NO_ROWS = pa.schema([(name, pa.int64() if name in _NUMBERS else pa.string()) for name in PLACE_COLUMNS]).empty_table()


def verify_lake(
    *,
    disk: Disk,
    data: str,
    directories: Sequence[str],
    catalog: TableCatalog | None,
    store: ObjectStore,
    names: Sequence[TableName],
    progress: Callable[[str], None] = lambda subject: None,
    table_of: TableOf = lambda source, text: TableName.parse(text),
) -> Iterator[Breach]:
    """Every breach of I2–I7, I10, I12–I15 that can be seen from the logs, the catalog and the files. Blocks; reads only.

    It may run while dolake does: tables are loaded before the logs are read, so that what is committed meanwhile is not
    looked for, and a table's rows are compared with the logs up to the offsets it had then. `table_of` says which table a
    source means by a name; side logs and the notes of dropped tables lie below `data`.
    """
    tables = [table for name in names if catalog is not None and (table := catalog.load(name)) is not None]
    views: list[LogView] = []
    progress("logs")
    for item in verify_logs(disk, directories, table_of):
        if isinstance(item, LogView):
            views.append(item)
        else:
            yield item
    yield from verify_not_ahead(tables, views)
    elsewhere: list[Elsewhere] = []
    for found in verify_elsewhere(disk, data):
        if isinstance(found, Breach):
            yield found
        else:
            elsewhere.append(found)
    if catalog is not None and set(names) >= set(catalog.list_tables()):
        yield from verify_trimmed(tables, views, [one.bounds for one in elsewhere])
    letters = catalog.load(DEAD_LETTERS_TABLE) if catalog is not None and tables else None
    judged = _judged(store, letters)
    for table in tables:
        progress(str(table.name))
        try:
            yield from _verify_table(table, store, views, judged)
        except (DolakeError, ValueError) as error:
            yield Breach("I10", str(table.name), f"cannot be read: {error}")


def _judged(store: ObjectStore, letters: LoadedTable | None) -> JudgedEvents:
    """Raises DolakeError if the dead letters cannot be read: without them no table's counts mean anything."""
    if letters is None or letters.head is None:
        return JudgedEvents()
    files = ContentsReader(store).read(letters.head).files
    data = [store.get(file.location) for file in files if file.kind == "data"]
    rows = [row for one in data for row in read_columns(one, LETTER_COLUMNS).to_pylist()]
    return JudgedEvents.of(rows)


def _verify_table(table: LoadedTable, store: ObjectStore, views: Sequence[LogView], judged: JudgedEvents) -> Iterator[Breach]:
    subject = str(table.name)
    yield from verify_history(table)
    reader = ContentsReader(store)
    yield from verify_sizes(store, subject, [reader.read(snapshot) for snapshot in table.metadata.get("snapshots") or ()])
    head = table.head
    if head is None:
        return
    pieces: list[pa.Table] = []
    whole = True
    gone: dict[str, npt.NDArray[np.int64]] = {}
    for file in sorted(reader.read(head).files, key=lambda file: file.kind == "data"):  # What is deleted, then what there is.
        data = store.get(file.location)
        breaches = list(verify_file(file, data, subject))
        yield from breaches
        whole = whole and not breaches
        if file.kind == "position deletes" and whole:
            for path, positions in positions_by_file([decode_deletes(data)]).items():
                gone[path] = np.union1d(gone.get(path, positions), positions)
        if file.kind == "data" and whole:
            columns = [name for name in PLACE_COLUMNS if name in column_names(data)]
            rows = read_columns(data, columns)
            pieces.append(without_rows(rows, gone[file.location]) if file.location in gone else rows)
    if table.name == DEAD_LETTERS_TABLE:
        yield from verify_letters(table, judged)
        return
    if not whole or any(set(piece.column_names) != set(PLACE_COLUMNS) for piece in pieces):
        return  # Its rows say nothing while its files do not; and rows of others carry no places.
    if not pieces and not judged.kept_out(table):
        return
    rows = pa.concat_tables([_plain(piece) for piece in pieces]) if pieces else _NO_ROWS
    kept_out = judged.kept_out(table)
    yield from verify_rows(table, rows, len(kept_out), judged.replayed(table))
    yield from verify_against_letters(table, rows, judged)
    yield from verify_against_log(table, rows, _logged(subject, views), count_by_record(kept_out))


def _plain(piece: pa.Table) -> pa.Table:
    """Dictionary columns as their values, so that pieces of several files are of one type."""
    schema = pa.schema(
        [
            (field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
            for field in piece.select(PLACE_COLUMNS).schema
        ]
    )
    return piece.select(PLACE_COLUMNS).cast(schema)


def _logged(subject: str, views: Sequence[LogView]) -> pa.Table:
    records = [(view.log_id, offset, count) for view in views for (table, offset), count in view.events.items() if table == subject]
    return pa.table(
        {
            "log": pa.array([record[0] for record in records], pa.string()),
            "offset": pa.array([record[1] for record in records], pa.int64()),
            "events": pa.array([record[2] for record in records], pa.int64()),
        }
    )

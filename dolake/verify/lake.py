"""All of it: the logs, then each table's history, files and rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dolake.errors import DolakeError, MetadataMissing, ObjectDamaged, ObjectMissing, TableStopped
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.contents import ContentsReader, check_metadata
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.objects import read_file
from dolake.model import DEAD_LETTERS_TABLE, RESERVED_SUFFIX, TableName
from dolake.parquet.decode import read_columns
from dolake.storage.disk import Disk
from dolake.storage.store import ObjectStore
from dolake.verify.against import THE_LOG, RedactorOf, verify_against_logs
from dolake.verify.breach import Breach, Damage, Note
from dolake.verify.changes import may_compare, verify_mirror_of
from dolake.verify.compare import Compared
from dolake.verify.cuts import verify_cuts
from dolake.verify.keys import KeyOf
from dolake.verify.letters import LETTER_COLUMNS, JudgedEvents
from dolake.verify.logs import LogView, TableOf, verify_logs, verify_not_ahead, verify_trimmed
from dolake.verify.parked import Elsewhere, verify_elsewhere
from dolake.verify.tables import Surroundings, TableRows, verify_table


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
    key_of: KeyOf = lambda name: (),
    note: Callable[[Note], None] = lambda note: None,
    against_log: Compared | None = None,
    redactor_of: RedactorOf = lambda name, key: None,
) -> Iterator[Breach]:
    """Every breach of I2–I8, I10, I12–I16 that can be seen from the logs, the catalog and the files. Blocks; reads only.

    It may run while dolake does: tables are loaded before the logs are read, so that what is committed meanwhile is not
    looked for, and a table's rows are compared with the logs up to the offsets it had then. `table_of` says which table a
    source means by a name, `key_of` the key that the settings give a table; side logs and the notes of dropped tables lie below
    `data`. `note` hears what is no breach and not to be passed over. With `against_log` every event that the logs still hold is
    decoded once more and compared with its table, by `redactor_of` without what must not be seen; it counts what was compared.
    """
    loaded = _Loaded()
    yield from loaded.load(catalog, names, note)
    tables = loaded.tables
    views: list[LogView] = []
    progress("logs")
    for found_log in verify_logs(disk, directories, table_of):
        if isinstance(found_log, LogView):
            views.append(found_log)
        else:
            yield found_log
    yield from verify_not_ahead(tables, views)
    yield from verify_cuts(tables)
    elsewhere: list[Elsewhere] = []
    for one in verify_elsewhere(disk, data):
        if isinstance(one, Breach):
            yield one
        else:
            elsewhere.append(one)
    if catalog is not None and loaded.is_all_of(catalog):
        yield from verify_trimmed(tables, views, [one.bounds for one in elsewhere])
    letters = catalog.load(DEAD_LETTERS_TABLE) if catalog is not None and tables else None
    around = Surroundings(store, views, _judged(store, letters), key_of)
    by_name = {table.name: TableRows(table) for table in tables}
    for name, rows in by_name.items():
        progress(str(name))
        yield from _each(str(name), verify_table(rows, around), note)
    for name, rows in by_name.items():
        changes = by_name.get(TableName(name.namespace, name.name + RESERVED_SUFFIX))
        if changes is not None and may_compare(rows, changes):
            progress(f"{name} against {changes.table.name}")
            yield from _each(str(name), verify_mirror_of(rows, changes, around), note)
    if against_log is not None:
        found = verify_against_logs(disk, data, list(by_name.values()), around, table_of, redactor_of, against_log, progress)
        yield from _each(THE_LOG, found, note)


@dataclass
class _Loaded:
    """The tables that there are; `strangers` are those of others in a shared catalog, whose files lie elsewhere."""

    tables: list[LoadedTable] = field(default_factory=list)
    strangers: set[TableName] = field(default_factory=set)

    def load(self, catalog: TableCatalog | None, names: Sequence[TableName], note: Callable[[Note], None]) -> Iterator[Breach]:
        """Which of them nobody can read."""
        for name in names:
            try:
                table = catalog.load(name) if catalog is not None else None
                if table is not None:
                    check_metadata(table)
                    self.tables.append(table)
            except TableStopped as stopped:
                self.strangers.add(name)
                note(Note(str(name), f"not verified: {stopped.reason}"))
            except (MetadataMissing, ObjectDamaged) as error:
                yield Damage("I10", str(name), f"cannot be loaded: {error}")

    def is_all_of(self, catalog: TableCatalog) -> bool:
        return {table.name for table in self.tables} >= set(catalog.list_tables()) - self.strangers


def _each(subject: str, found: Iterator[Breach | Note], note: Callable[[Note], None]) -> Iterator[Breach]:
    try:
        for said in found:
            if isinstance(said, Breach):
                yield said
            else:
                note(said)
    except (DolakeError, ValueError) as error:
        kind = Damage if isinstance(error, ObjectDamaged | ObjectMissing | ValueError) else Breach
        yield kind("I10", subject, f"cannot be read: {error}")


def _judged(store: ObjectStore, letters: LoadedTable | None) -> JudgedEvents:
    """Raises DolakeError if the dead letters cannot be read: without them no table's counts mean anything."""
    if letters is None or letters.head is None:
        return JudgedEvents()
    files = ContentsReader(store).read(letters.head).files
    data = [read_file(store, file.location, file.size_bytes) for file in files if file.kind == "data"]
    rows = [row for one in data for row in read_columns(one, LETTER_COLUMNS).to_pylist()]
    return JudgedEvents.of(rows)

"""How one table's events are read: what its sources have declared, the schema that makes, and the decoder for it.

Derived from the table and the log, as everything in the writer half. Both kinds of table read their events alike; which columns the
table itself keeps is decided when they are flushed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pyiceberg.schema import Schema

from dolake.iceberg.metadata import LoadedTable
from dolake.model import DeclaredSchema
from dolake.parquet.align import schema_from_json
from dolake.parquet.layout import EventChunk
from dolake.parquet.mirror import MirrorKey, events_schema, is_mirror, mirror_key
from dolake.parquet.rows import ChangelogDecoder, Decoded
from dolake.parquet.schema import aliases_of, evolve_declared
from dolake.writer.declared import declared_schemas, renamed_columns
from dolake.writer.rows import read_rows, redacted
from dolake.writer.rules import TableRules


class EventReader:
    """`schema` is that of the events' rows; it grows with what is declared, and with what events bring along."""

    def __init__(self, table: str, rules: TableRules) -> None:
        self._table, self._rules = table, rules
        self._base: LoadedTable | None = None
        self.schema: Schema = evolve_declared([], None).schema
        self.declared: dict[str, DeclaredSchema] = {}
        self.renamed: dict[str, int] = {}
        self.primary_key: tuple[str, ...] = ()
        self.troubles: dict[str, str] = {}  # what of the declarations could not be had, by column

    def load(self, base: LoadedTable | None, noted: Mapping[str, str]) -> None:
        """Takes over what is committed; `noted`: declarations of a table of this name that was dropped. Raises ValueError."""
        properties: Mapping[str, str] = base.properties if base else {}
        self._base = base
        self.declared = {**dict(declared_schemas(noted)), **dict(declared_schemas(properties))}
        self.renamed = renamed_columns(properties)
        self.schema = evolve_declared([], None).schema
        if base is not None:
            committed = schema_from_json(base.schema)
            self.schema = events_schema(committed) if is_mirror(committed) else committed
        self._derive()

    def declare(self, source: str, declared: DeclaredSchema) -> None:
        """A `schema` message: applies to the events after it. Raises SchemaRejected, DolakeError, ValueError."""
        seen = self._redactor.schema(declared) if self._redactor else declared
        # The newest declaration goes last: where sources disagree on the key, it is the one that holds.
        self.declared.pop(source, None)
        self.declared[source] = seen
        self._derive()

    def read(self, chunks: Sequence[EventChunk]) -> Decoded:
        """Events of one run (`runs_of`) as rows and letters. Blocks."""
        found = read_rows(self._decoder, self._redactor, chunks, self.aliases({chunk.source for chunk in chunks}))
        self.schema = found.schema
        return found

    def redacted(self, chunk: EventChunk) -> EventChunk:
        """The events without what must not be seen."""
        return chunk if self._redactor is None else redacted(self._redactor, chunk)

    def aliases(self, sources: set[str]) -> dict[str, Mapping[str, str]]:
        """By source: former column names that it still uses → the columns' names now."""
        if not self.renamed:
            return {}
        return {source: aliases_of(self.declared.get(source), self.schema, self.renamed) for source in sources}

    @property
    def key(self) -> MirrorKey:
        """What tells the rows of a mirror of these events apart."""
        return mirror_key(self.schema, self.primary_key)

    def never_null(self) -> set[str]:
        """Columns that every source that has declared any has declared to be `nullable: false`."""
        found: set[str] | None = None
        for declared in self.declared.values():
            names = aliases_of(declared, self.schema, self.renamed) if self.renamed else {}
            mine = {names.get(column.name, column.name) for column in declared.columns if not column.nullable}
            found = mine if found is None else found & mine
        return found or set()

    def _derive(self) -> None:
        """The schema that the declarations make of the present one: ids given to columns that are not committed yet stay theirs."""
        declarations = [*self._rules.declared(self._table), *self.declared.values()]
        last_id = self._base.metadata["last-column-id"] if self._base else 0
        evolved = evolve_declared(declarations, self.schema, renamed=self.renamed, last_column_id=last_id)
        key = self._rules.primary_key
        if not key and self.declared:
            newest = list(self.declared.values())[-1]
            names = aliases_of(newest, evolved.schema, evolved.renamed)
            key = tuple(names.get(name, name) for name in newest.primary_key)
        defaults = {column.name: column.default for schema in declarations for column in schema.columns if column.default is not None}
        self._decoder = ChangelogDecoder(
            self._table, evolved.schema, key, defaults=defaults, columns_max=self._rules.columns_max, last_column_id=last_id
        )
        self._redactor = self._rules.redactor(key)
        self.schema, self.renamed, self.primary_key = evolved.schema, dict(evolved.renamed), key
        self.troubles = {trouble.field: trouble.rule for trouble in evolved.troubles}


def runs_of(chunks: Sequence[EventChunk]) -> Iterator[Sequence[EventChunk]]:
    """Chunks to be decoded together, in order: letters that are sent again by themselves, after everything before them."""
    run: list[EventChunk] = []
    for chunk in chunks:
        if not chunk.originals:
            run.append(chunk)
            continue
        if run:
            yield run
            run = []
        if len(chunk.events):
            yield [chunk]
    if run:
        yield run

"""What the configuration says of one table's rows: declared columns, the key, what is left out or masked, how wide it may grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dolake.config.settings import Settings
from dolake.config.tables import TableSettings
from dolake.model import DeclaredColumn, DeclaredSchema
from dolake.parquet.redact import Redactor


@dataclass(frozen=True)
class TableRules:
    """`columns`: name → type in Iceberg's notation. `columns_max` bounds what events may add to a table."""

    columns: Mapping[str, str] = field(default_factory=dict)
    primary_key: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    mask_key: str = ""
    columns_max: int = 1000
    truncate: str = "source"

    @classmethod
    def of(cls, settings: Settings, table: TableSettings) -> TableRules:
        return cls(
            columns=table.columns,
            primary_key=table.primary_key,
            drop=table.drop,
            mask=table.mask,
            mask_key=settings.mask_key or "",
            columns_max=settings.limits.columns,
            truncate=table.truncate,
        )

    def declared(self, table: str) -> list[DeclaredSchema]:
        """The configuration as a declaration; none where it says nothing."""
        if not self.columns and not self.primary_key:
            return []
        return [DeclaredSchema(table, self.primary_key, tuple(DeclaredColumn(name, kind) for name, kind in self.columns.items()))]

    def redactor(self, primary_key: Sequence[str]) -> Redactor | None:
        if not self.drop and not self.mask:
            return None
        return Redactor(self.drop, self.mask, self.mask_key, primary_key)

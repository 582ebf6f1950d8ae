"""The tables that a writer half knows, each with the settings that hold for it, loaded when they are first met."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dolake.buffer.dropped import Dropped
from dolake.buffer.plan import FlushPolicy
from dolake.config import Settings
from dolake.errors import DolakeError
from dolake.model import TableName
from dolake.partitioning import parse_partition_by
from dolake.writer.flight import stopped_by
from dolake.writer.flush import Flusher
from dolake.writer.kinds import wanted_mode
from dolake.writer.rules import TableRules
from dolake.writer.table import Table


class Tables(dict[TableName, Table]):
    """By name. `note_of`: what is noted of tables of a name that were dropped."""

    def __init__(self, settings: Settings, flusher: Flusher, note_of: Callable[[TableName], Dropped]) -> None:
        super().__init__()
        self._settings, self._flusher, self._note_of = settings, flusher, note_of
        self._loading: dict[TableName, asyncio.Lock] = {}

    @property
    def may_be_grouped(self) -> bool:
        """Whether any setting puts tables into a group."""
        return any(overrides.group for overrides in self._settings.tables.values())

    async def named(self, name: TableName) -> Table:
        """The table, as the catalog has it if it was not known; whether the logs have rows of it or not."""
        if name not in self:
            async with self._loading.setdefault(name, asyncio.Lock()):
                if name not in self:
                    self[name] = await self._load(name)
        return self[name]

    async def _load(self, name: TableName) -> Table:
        table = self.new(name)
        try:
            base = await self._flusher.load(name)
            if str(name) != name.sent and (mirror := await self._flusher.load(TableName.in_lake(name.sent))) is not None:
                # One that begins later than its mirror hears no more of what was declared before.
                table.beside = mirror.properties
            table.load(base, await self._flusher.verdicts(name, base))
        except (DolakeError, ValueError) as error:  # ValueError: columns of a kind that dolake does not write
            table.stop(stopped_by(error))
        return table

    def new(self, name: TableName) -> Table:
        """With the settings that hold for it, and nothing known of it yet."""
        settings = self._settings.settings_for(name)
        is_fed = str(name) == name.sent or settings.mode == "both"  # What of a changelog that is off lies in the logs may still come.
        return Table(
            name,
            policy=FlushPolicy(settings.flush_age_s, settings.flush_bytes, settings.flush_rows),
            group=settings.group if is_fed else "",
            partition_by=None if settings.partition_by is None else parse_partition_by(settings.partition_by),
            rules=TableRules.of(self._settings, settings),
            mode=wanted_mode(name, settings.mode, settings.mode_is_said),
            looker=self._flusher.look,
            dropped=self._note_of(name),
        )

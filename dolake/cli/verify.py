"""`dolake verify [TABLE]`: holds logs and tables against the invariants; a sentence for each breach, exit 1 on any, and 4
where something of the lake cannot be read at all.

What others have done to a table is noted, and no breach. `--against log` compares the tables with every event that the logs still
hold, and says how much that was.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.options import Config, Data, Json, settings_from
from dolake.errors import ConfigurationError, Mistake

if TYPE_CHECKING:
    from dolake.verify import Breach, Compared, Note

app = typer.Typer(add_completion=False)

_BREACH = 1
_DAMAGE = 4
_LOG = "log"


@app.command()
def verify(
    table: Annotated[str | None, typer.Argument(help="One table; all of them unless given.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="log", help="Also compare the tables with the events that the logs still hold.")
    ] = None,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Check the invariants over the logs, the catalog and every file. Reads only; the daemon may run."""
    from dolake.cli.lake import open_lake
    from dolake.config import TableNames
    from dolake.storage.disk import LocalDisk
    from dolake.verify import Compared, Damage, verify_lake
    from dolake.writer.rules import TableRules

    if against not in (None, _LOG):
        raise ConfigurationError([Mistake("--against", str(against), f"must be {_LOG}: what tables can be compared with")])
    settings = settings_from(data, config)
    lake = open_lake(settings)
    names = lake.names() if table is None else [lake.table(table).name]
    found = _Found(as_json)
    compared = None if against is None else Compared()
    for breach in verify_lake(
        disk=LocalDisk(),
        data=settings.data,
        directories=settings.log.directories,
        catalog=lake.catalog,
        store=lake.store,
        names=names,
        progress=_show_progress,
        table_of=TableNames(settings).of,
        key_of=lambda name: settings.settings_for(name).primary_key,
        note=found.note,
        against_log=compared,
        redactor_of=lambda name, key: TableRules.of(settings, settings.settings_for(name)).redactor(key),
    ):
        try:
            found.breach(breach)
        except BrokenPipeError:  # Its reader has seen enough, of a lake that has a breach all the same.
            return _BREACH
    found.finish(compared)
    if any(isinstance(breach, Damage) for breach in found.breaches):
        return _DAMAGE
    return _BREACH if found.breaches else 0


class _Found:
    """What verifying comes to: said as it is found, or all at once as JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.breaches: list[Breach] = []
        self.notes: list[Note] = []

    def breach(self, breach: Breach) -> None:
        self.breaches.append(breach)
        if not self._as_json:
            print(breach, flush=True)

    def note(self, note: Note) -> None:
        self.notes.append(note)
        if not self._as_json:
            print(note)

    def finish(self, compared: Compared | None) -> None:
        breaches = [asdict(breach) for breach in self.breaches]
        if not self._as_json:
            if compared is not None:
                print(_summary(asdict(compared)))
            if not breaches:
                print("no breach")
        elif compared is None:
            print(json.dumps(breaches, ensure_ascii=False))
            for note in self.notes:
                print(note, file=sys.stderr)
        else:
            notes = [asdict(note) for note in self.notes]
            print(json.dumps({"breaches": breaches, "notes": notes, "compared": asdict(compared)}, ensure_ascii=False))


_LEFT_OUT = {
    "dead_letters": "dead letters",
    "contested_keys": "contested keys",
    "foreign_keys": "keys in files of others",
    "unsure_keys": "keys from before their declaration",
    "unknown_values": "values from before the log begins",
    "expired_rows": "rows that have expired",
}


def _summary(counts: dict[str, Any]) -> str:
    left_out = ", ".join(f"{counts[name]:,} {what}" for name, what in _LEFT_OUT.items() if counts[name])
    said = f"compared with the log: {counts['events']:,} events, {counts['keys']:,} keys of mirrors, {counts['rows']:,} rows of changelogs"
    return f"{said}; left out: {left_out}" if left_out else said


def _show_progress(subject: str) -> None:
    if sys.stderr.isatty():
        print(f"verifying {subject} …", file=sys.stderr)

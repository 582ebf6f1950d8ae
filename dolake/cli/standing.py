"""How a daemon stands: as it says itself, or, where none runs, as its files have it. Reads only."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dolake.buffer.inspect import inspect_log
from dolake.clock import Runtime
from dolake.config import Settings
from dolake.config.namespaces import TableNames
from dolake.control import asking
from dolake.errors import DaemonUnreachable, DolakeError, RequestRefused
from dolake.model import Record, RecordKind, TableName
from dolake.storage.disk import Disk, LocalDisk

_ASK_S_MAX = 5.0
ROLES = ("ingest", "writer", "http")


async def ask_standing(settings: Settings, runtime: Runtime) -> dict[str, Any]:
    """What a running daemon says of itself. Raises DaemonUnreachable."""
    async with asking(settings.control_path, runtime=runtime) as client:
        ready = await client.ask("ready", timeout_s=_ASK_S_MAX)
        state = await client.ask("state", timeout_s=_ASK_S_MAX)
        metrics = (await client.ask("metrics", timeout_s=_ASK_S_MAX))["metrics"]
    writer = state["writer"]
    found = _ready_file(settings)
    return {
        "time": runtime.clock.now_ms(),
        "data": settings.data,
        "running": True,
        "addresses": {name: found.get(name) for name in ("cdc", "http")},
        "processes": _processes(found.get("pids", {}), {"ingest": True, "writer": writer["connected"]}),
        "ready": {"ready": ready["ready"], "reasons": ready["reasons"]},
        "readyWriter": {name: ready["writer"][name] for name in ("ready", "reasons", "circuits")},
        "logs": [_log(directory, said) for directory, said in state["logs"].items()],
        "sources": sorted((_source(name, said) for name, said in state["sources"].items()), key=lambda one: str(one["source"])),
        "tables": [_table(name, said, writer["connected"]) for name, said in sorted((writer.get("tables") or {}).items())],
        "counts": {
            "ackedEvents": _total(metrics.get("ingest"), "dolake_cdc_events_total"),
            "committedEvents": _total(metrics.get("writer"), "dolake_table_events_total"),
        },
        "rates": None,
    }


def standing_from_files(settings: Settings, committed: Mapping[str, Mapping[str, int]], now_ms: int) -> dict[str, Any]:
    """The same where no daemon answers. `committed` are each table's offsets by log. Raises OSError for what cannot be read."""
    logs, sources, uncommitted = [], [], Counter(dict.fromkeys(committed, 0))
    names = TableNames(settings)
    for directory in settings.log.directories:
        log, its_sources, its_uncommitted = log_from_files(LocalDisk(), directory, committed, names.of)
        logs.append(log)
        sources += its_sources
        uncommitted.update(its_uncommitted)  # `+=` would lose the tables that are level.
    reasons = ["no daemon answers on this data directory"]
    return {
        "time": now_ms,
        "data": settings.data,
        "running": False,
        "addresses": {"cdc": None, "http": None},
        "processes": _processes(_ready_file(settings).get("pids", {}), {}),
        "ready": {"ready": False, "reasons": reasons},
        "readyWriter": {"ready": False, "reasons": reasons, "circuits": {}},
        "logs": logs,
        "sources": sorted(sources, key=lambda one: str(one["source"])),
        "tables": [
            _table(name, {"offsets": dict(committed.get(name, {})), "uncommitted_events": count})
            for name, count in sorted(uncommitted.items())
        ],
        "counts": {"ackedEvents": None, "committedEvents": None},
        "rates": None,
    }


def log_from_files(
    disk: Disk, directory: str, committed: Mapping[str, Mapping[str, int]], table_of: Callable[[str, str], TableName]
) -> tuple[dict[str, Any], list[dict[str, Any]], Counter[str]]:
    """One log, its sources and its events that a table has not committed, from its segments alone.

    `table_of`: the table that a source means by a name. A source's persisted sequence is the one before its first record that
    some table of it has not committed.
    """
    log: dict[str, Any] = {
        "directory": directory, "log": None, "serving": False, "trouble": "", "low": None, "syncedEnd": None,
        "backlogBytes": None, "backlogBytesMax": None,
    }  # fmt: skip
    if not disk.exists(directory):
        return {**log, "trouble": "there is no log here"}, [], Counter()
    waiting: dict[tuple[str, str], int] = {}
    sources: dict[str, Any] = {}
    uncommitted: Counter[str] = Counter()
    backlog_bytes = 0
    for segment in inspect_log(disk, directory):
        log["log"], log["syncedEnd"] = segment.log_id, segment.end
        log["trouble"] = log["trouble"] or segment.problem
        for record in segment.records:
            entry = record.entry
            if not entry.source or _is_committed(record, committed, table_of):
                continue
            waiting.setdefault((entry.source, entry.epoch), entry.sequence)
            uncommitted += _uncommitted_events(record, committed, table_of)
            backlog_bytes += record.size_bytes
            log["low"] = record.offset if log["low"] is None else log["low"]
        sources = segment.standing.sources if segment.standing is not None else sources
    log["low"] = log["syncedEnd"] if log["low"] is None else log["low"]
    log["backlogBytes"] = backlog_bytes
    if log["log"] is None:
        log["trouble"] = "there is no log here"
    described = []
    for name, state in sources.items():
        said = {
            "log": log["log"],
            "epoch": state.epoch,
            "last_sequence": state.last_sequence,
            "last_event_sequence": state.last_event_sequence,
            "last_lsn": state.last_lsn,
            "persisted_sequence": waiting.get((name, state.epoch), state.last_sequence + 1) - 1,
            "connected": False,
        }
        described.append(_source(name, said))
    return log, described, uncommitted


def with_rates(standing: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """Events a second since an earlier look; null where a process has begun anew in between, or is away."""
    if before is None or standing["time"] <= before["time"]:
        return standing
    seconds = (standing["time"] - before["time"]) / 1000
    rates: dict[str, float | None] = {"seconds": seconds}
    for rate, count in (("ackedEventsPerSecond", "ackedEvents"), ("committedEventsPerSecond", "committedEvents")):
        now, then = standing["counts"][count], before["counts"][count]
        rates[rate] = round((now - then) / seconds, 1) if now is not None and then is not None and now >= then else None
    return {**standing, "rates": rates}


async def ask_or_none(settings: Settings, runtime: Runtime) -> dict[str, Any] | None:
    """None where no daemon answers."""
    try:
        return await ask_standing(settings, runtime)
    except (DaemonUnreachable, RequestRefused):
        return None


def committed_offsets(settings: Settings) -> dict[str, dict[str, int]]:
    """Each table's offsets by log, as the catalog has them; nothing where that cannot be asked."""
    from dolake.cli.lake import open_lake

    try:
        return {str(table.name): dict(table.offsets()) for table in open_lake(settings).tables()}
    except DolakeError:
        return {}


def _is_committed(record: Record, committed: Mapping[str, Mapping[str, int]], table_of: Callable[[str, str], TableName]) -> bool:
    """Whether every table of a record has applied it. What a `schema` record declares is not said outside its payload."""
    return record.entry.kind != RecordKind.BATCH or not _uncommitted_events(record, committed, table_of)


def _uncommitted_events(
    record: Record, committed: Mapping[str, Mapping[str, int]], table_of: Callable[[str, str], TableName]
) -> Counter[str]:
    """A record's events for each table that has not applied it."""
    found: Counter[str] = Counter()
    for table, count in record.entry.tables.items():
        name = str(table_of(record.entry.source, table))
        if record.offset >= committed.get(name, {}).get(record.log_id, 0):
            found[name] += count
    return found


def _ready_file(settings: Settings) -> dict[str, Any]:
    try:
        with open(settings.ready_path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _processes(pids: Mapping[str, int], said: Mapping[str, bool]) -> dict[str, Any]:
    """`said`: which processes the daemon knows to be there; of others the system is asked."""
    return {role: {"pid": pids.get(role), "running": said.get(role, _is_alive(pids.get(role)))} for role in ROLES}


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not _has_ended(pid)


def _has_ended(pid: int) -> bool:
    """Whether it is only a name that nobody has asked about yet (a zombie); where the system does not say, it is not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].startswith(b"Z")
    except OSError:
        return False


def _log(directory: str, said: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "directory": directory,
        "log": said["log"],
        "serving": said["serving"],
        "trouble": said["trouble"],
        "low": said.get("low"),
        "syncedEnd": said.get("synced_end"),
        "backlogBytes": said.get("backlog_bytes"),
        "backlogBytesMax": said.get("backlog_bytes_max"),
    }


def _source(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    last, persisted = said["last_sequence"], said["persisted_sequence"]
    return {
        "source": name,
        "log": said["log"],
        "epoch": said["epoch"],
        "lastSequence": last,
        "lastEventSequence": said["last_event_sequence"],
        "lastLsn": said["last_lsn"] or None,
        "persistedSequence": persisted if persisted >= 0 else None,
        "pendingBatches": last - persisted if persisted >= 0 else 0 if last < 0 else None,
        "connected": said["connected"],
    }


def _table(name: str, said: Mapping[str, Any], is_measured: bool = True) -> dict[str, Any]:
    """`is_measured` is false where the writer that said it is away: nobody knows what has come since."""
    return {
        "table": name,
        "mode": said.get("mode") or None,
        "rows": said.get("rows"),
        "pendingRows": said.get("pending_rows"),
        "uncommittedEvents": said.get("uncommitted_events") if is_measured else None,
        "uncommittedSeconds": said.get("uncommitted_age_s") if is_measured else None,
        "state": said.get("state"),
        "offsets": said.get("offsets", {}),
        "stopped": said.get("stopped"),
    }


def _total(values: Mapping[str, Any] | None, name: str) -> int | None:
    """A counter over all its labels; None where its process is away."""
    return None if values is None else round(sum(value for _, value in values.get(name, [])))

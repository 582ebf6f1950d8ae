"""Giving up logs that are gone for good: what may be made anew, what is refused, what that loses. For `dolake log init`.

An empty directory where a sibling says that a log should be looks like a disk that is not mounted, so a daemon refuses to
begin a new log there by itself. Here somebody says that it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dolake.buffer.inspect import inspect_log
from dolake.buffer.segment import Sibling
from dolake.errors import ConfigurationError, LogRefused, Mistake
from dolake.storage.disk import Disk


@dataclass(frozen=True)
class FoundLog:
    """What lies in a directory; `log_id` is empty where there is no log. `source_count` of those that it holds records of."""

    directory: str
    log_id: str = ""
    siblings: tuple[Sibling, ...] = ()
    source_count: int = 0
    problem: str = ""


@dataclass(frozen=True)
class GivenUp:
    """A log that is not coming back. `renewed`: a new one takes its place; else the daemon goes on with a directory less."""

    directory: str
    log_id: str
    renewed: bool


def look_at_log(disk: Disk, directory: str) -> FoundLog:
    """Reads the whole log, touches nothing."""
    if not disk.exists(directory):
        return FoundLog(directory)
    found = FoundLog(directory)
    for segment in inspect_log(disk, directory):
        problem = found.problem or segment.problem
        if segment.state == "quarantined":
            problem = problem or f"{segment.path}: quarantined"
        standing = segment.standing
        if standing is None:
            found = FoundLog(directory, segment.log_id or found.log_id, found.siblings, found.source_count, problem)
        else:
            found = FoundLog(directory, standing.log_id, standing.siblings, len(standing.sources), problem)
    return found


def plan_renewal(found: Sequence[FoundLog], named: Sequence[str]) -> tuple[GivenUp, ...]:
    """Which logs are given up when the directories `named` begin anew. `found` are all that are configured.

    Nothing is given up where no log misses one. Raises ConfigurationError for a directory that nobody knows, LogRefused
    where something lies that may still be wanted, or another log is missed that was not named.
    """
    here = {one.directory: one for one in found}
    missed = dict(_missed(found))
    unknown = [directory for directory in named if directory not in here and directory not in missed]
    if unknown:
        known = ", ".join(sorted({*here, *missed}))
        raise ConfigurationError([Mistake("DIR", directory, f"must be a directory of the log: {known}") for directory in unknown])
    for one in found:
        if one.problem:
            remedy = "move this directory away and keep it, then give it up" if one.directory in named else "mend it first"
            raise LogRefused(f"{one.directory}: the log here cannot be read ({one.problem}); {remedy}")
    for directory in missed.keys() - set(named):
        raise LogRefused(f"{directory}: log {missed[directory]} is missed here too; bring it back, or name this directory as well")
    given_up = []
    for directory in dict.fromkeys(directory for directory in named if directory in missed):
        other = here.get(directory)
        if other is not None and other.source_count:
            raise LogRefused(
                f"{directory}: log {other.log_id} with records of {other.source_count} sources lies here where {missed[directory]} "
                "should be; mount the right disk, or move this log away and keep it"
            )
        given_up.append(GivenUp(directory, missed[directory], renewed=other is not None))
    return tuple(given_up)


def _missed(found: Sequence[FoundLog]) -> Iterator[tuple[str, str]]:
    """(directory, log id) of every log that another one names and that is nowhere."""
    present = {one.log_id for one in found}
    for one in found:
        for sibling in one.siblings:
            if sibling.log_id not in present:
                yield sibling.directory, sibling.log_id

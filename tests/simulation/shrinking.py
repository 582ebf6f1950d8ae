"""Makes a failing world smaller as long as an invariant of the same number breaks in it: fewer sources, batches, faults, kinds of them.

Greedy: each change that keeps the breach stays, and all are tried again until none does. Every try is a whole world, so what is
found replays exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.simulation.changes import ALL, Changes
from tests.simulation.world import Outcome, Rules, profile_of, run_world

TRIES_MAX = 400
# From the smallest: the first with which it still breaks is taken.
SMALLER: dict[str, tuple[object, ...]] = {
    "sources": (1, 2),
    "batches": (1, 2, 3, 6, 12),
    "strikes": (0, 1, 2, 4, 8),
    "parkings": (0, 1, 2),
    "replays": (0, 1, 2),
    "polite": (0, 1),
    "logs": (1,),
    "misfits": (0.0,),
    "truncates": (0.0,),
    "rudeness": (0.0, 1.0),
    "linger_s": (0.0, 2.0),
    "index_faults": (0.0,),
    "foreign_rows": (False,),
    "is_contested": (False,),
    "shared_truncate": (False,),
    "grouped": (False,),
    "compaction_s": (0.0,),
    "spare_share": (0.0,),
    "maintenance_s": (0.0,),
    "transactions": (False,),
    "modes": (("changelog",), ("mirror",)),
    "changelogs": ((),),
    "partitions": (((),),),
    "columns": (({},),),
    "backlog_bytes": (None,),
    "disk_bytes": (1 << 40,),
    "snapshots_kept": (100,),
    "flush_rows": (1000, 10),
    "clocks_off_s": (0.0,),
    "sync_s": (0.0,),
    "store_s": (0.0,),
    "catalog_s": (0.0,),
}


def invariant_of(breach: str) -> str:
    """The number that the first sentence names: `I7`; `-` if it names none."""
    found = re.search(r"\bI\d+\b", breach.split("; ")[0])
    return found[0] if found else "-"


@dataclass
class Shrunk:
    """`outcome` is that of the smallest world found, `tries` how many were run."""

    changes: Changes
    outcome: Outcome
    tries: int


def shrink(seed: int, rules: Rules, changes: Changes | None = None) -> Shrunk | None:
    """None if nothing breaks in the world as it is."""
    best = Shrunk(changes or Changes(), run_world(seed, rules, changes=changes), 1)
    if not best.outcome.breach:
        return None
    invariant = invariant_of(best.outcome.breach)
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for tried in _candidates(seed, rules, best):
            if best.tries >= TRIES_MAX:
                return best
            outcome = run_world(seed, rules, changes=tried)
            best.tries += 1
            if outcome.breach and invariant_of(outcome.breach) == invariant:
                best.changes, best.outcome, is_smaller = tried, outcome, True
    return best


def _candidates(seed: int, rules: Rules, best: Shrunk) -> Iterator[Changes]:
    """What might go next, the most at once first. Looks at `best` anew each time: it may have become smaller."""
    profile = profile_of(seed, rules, best.changes)[0]
    if profile.chances or profile.strike_kinds:
        yield best.changes.leaving_out([ALL])
        if ALL not in best.changes.without:
            yield best.changes.leaving_out(profile.chances)
    for name, values in SMALLER.items():
        for value in values:
            if value == getattr(profile_of(seed, rules, best.changes)[0], name):
                break
            before = best.changes
            yield before.setting(name, value)
            if best.changes is not before:
                break
    profile = profile_of(seed, rules, best.changes)[0]
    for name in (*profile.chances, *dict.fromkeys(profile.strike_kinds)):
        if name not in best.changes.without:
            yield best.changes.leaving_out([name])

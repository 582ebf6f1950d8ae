"""What kind of world a seed is: how big, how rough, on which store and catalog. Most are small, and have few kinds of trouble at a time."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

DISK = {
    "sync_eio": 0.01,
    "sync_enospc": 0.005,
    "write_eio": 0.003,
    "write_enospc": 0.01,
    "sync_directory_eio": 0.008,
    "sync_directory_enospc": 0.005,
    "read_eio": 0.002,
    "rename_eio": 0.01,
    "rename_enospc": 0.01,
    "create_eio": 0.006,
    "create_enospc": 0.006,
}
QUIET_DISK = {"write_split": 0.05, "cache_evicted": 0.05, "sync_slow": 0.04}
STORE = {"put_lost_before": 0.1, "put_lost_after": 0.1, "put_late": 0.1, "get_lost": 0.05}
CATALOG = {
    "load_lost": 0.1,
    "swap_lost_before": 0.1,
    "swap_lost_after": 0.15,
    "swap_late": 0.25,
    "swap_conflict_after_own": 0.15,
    "swap_slow": 0.2,
}
FOREIGN = {"foreign_change": 0.02, "foreign_change_between": 0.05}
INDEX = {"index_create_eio": 0.1, "index_write_enospc": 0.05, "index_rename_eio": 0.2, "index_read_eio": 0.2}
NETWORK = {"wire_cut": 0.02, "frame_twice": 0.02}
PARTITIONS: list[tuple[tuple[str, ...], ...]] = [
    *([((),)] * 3),
    (("id",),),
    (("bucket(2, id)", "_cdc_source"),),
    ((), ("bucket(2, id)", "n"), ("truncate(1, id)",)),
]

MIRRORED = 0.4  # of all seeds
MODES: list[tuple[str, ...]] = [("mirror",), ("mirror",), ("both",), ("mirror", "both")]
MIRROR_PARTITIONS: list[tuple[tuple[str, ...], ...]] = [
    *([((),)] * 2),
    (("bucket(2, id)",),),
    (("bucket(2, n)",),),  # A row moves with nearly every update.
    (("note",),),  # The column that updates leave out.
    ((), ("bucket(2, n)", "must"), ("truncate(1, id)",)),
]

SHORT = 0.9375  # Fifteen of sixteen seeds: a few commits and a trouble or two. What takes many troubles in a row the others find.

GROUPED = 0.3  # of those whose catalog can
COMPACTED = 0.4

COLUMNS: list[tuple[dict[str, str], ...]] = [({},), ({},), ({}, {"small": "long"})]


def drawn_compaction(draw: random.Random) -> dict[str, Any]:
    """Drawn by itself, too: a seed without it is the world that it always was. Small flushes, so that there is something to do."""
    if draw.random() >= COMPACTED:
        return {}
    often = {"flush_age_s": draw.choice([0.2, 0.2, 1.0]), "flush_rows": draw.choice([3, 3, 10])}
    said = {
        "compaction_s": draw.choice([0.02, 0.1, 0.5]),
        "inputs_min": draw.choice([2, 2, 3]),
        **often,
        "maintenance_s": draw.choice([0.0, 0.3, 1.0]),
        "dead_letters_s": draw.choice([None, 0.1, 1.0]),
    }
    # Where time is spared for what the plan does not want yet, it wants little.
    spare_share = draw.choice([0.0, 0.0, 0.0, 0.3, 1.0])
    return {**said, "spare_share": spare_share, "inputs_min": 6} if spare_share else said


@dataclass(frozen=True)
class Profile:
    sources: int
    polite: int
    batches: int
    logs: int
    local: bool
    catalog_style: str
    partitions: tuple[tuple[str, ...], ...]  # what each start of the writer finds in its settings, in turn
    chances: dict[str, float]
    strikes: int
    strike_kinds: tuple[str, ...]
    steps_between_strikes: int
    strike_at_changes: bool
    rudeness: float
    misfits: float
    columns: tuple[dict[str, str], ...]  # what each start of the writer finds declared in its settings, in turn
    replays: int
    transactions: bool
    flush_age_s: float
    flush_rows: int
    snapshots_kept: int
    backlog_bytes: int | None
    disk_bytes: int
    linger_s: float
    sync_s: float
    store_s: float
    catalog_s: float
    clocks_off_s: float
    parkings: int
    modes: tuple[str, ...] = ("changelog",)  # of all tables, as each start of the writer finds it in its settings, in turn
    changelogs: tuple[str, ...] = ()  # tables that are changelogs whatever the others are
    truncates: float = 0.0  # the share of events that are TRUNCATEs
    is_contested: bool = False  # sources write each other's keys
    shared_truncate: bool = False  # one source's TRUNCATE takes the others' rows
    index_faults: float = 0.0  # how often something befalls the key indexes when a writer starts
    foreign_rows: bool = False  # whether others change mirrors' rows
    grouped: bool = False  # all tables are committed together
    compaction_s: float = 0.0  # how often the writer looks whether files are worth a rewrite; 0 is never
    inputs_min: int = 2  # files that one rewrite takes at least
    spare_share: float = 0.0  # of the time in which more is rewritten than that
    maintenance_s: float = 0.0  # how often it looks for what nobody needs; 0 is never
    dead_letters_s: float | None = None  # how long the events of dead letters are kept
    short: bool = False

    @property
    def is_mirrored(self) -> bool:
        return self.modes != ("changelog",)

    @property
    def is_beside(self) -> bool:
        """Whether every mirror has its changelog, all the time."""
        return self.modes == ("both",)

    @classmethod
    def draw(cls, draw: random.Random) -> Profile:
        local = draw.random() < 0.4
        chances = dict(QUIET_DISK)
        for kinds, likely in ((DISK, 0.35), (STORE, 0.5), (CATALOG, 0.6), (FOREIGN, 0.2), (NETWORK, 0.6)):
            if draw.random() < likely:
                scale = draw.choice([0.3, 1.0, 2.0])
                chances |= {name: chance * scale for name, chance in kinds.items()}
        kinds = ["kill one", "kill one", "kill both", "cut power", "freeze"]
        if not local and draw.random() < 0.7:
            kinds += ["zombie one", "zombie one", "zombie both"]
        at_changes = draw.random() < 0.5
        misfits = draw.choice([0.0, 0.0, 0.2, 0.4])
        drawn = cls(
            sources=draw.randint(1, 3),
            polite=draw.randint(0, 2),
            batches=draw.choice([6, 6, 12] if misfits else [6, 12, 24]),  # Dead letters take two more commits each time.
            logs=1 if draw.random() < 0.8 else 2,
            local=local,
            catalog_style=draw.choice(["row", "service", "sql"]) if local else draw.choice(["row", "row", "service"]),
            partitions=draw.choice(PARTITIONS),
            chances=chances,
            strikes=draw.choice([0, 4, 8, 12]),
            strike_kinds=tuple(kinds),
            steps_between_strikes=40 if at_changes else draw.choice([40, 100, 250]),
            strike_at_changes=at_changes,
            rudeness=draw.choice([0.0, 1.0, 3.0]),
            misfits=misfits,
            columns=draw.choice(COLUMNS),
            replays=draw.choice([0, 2, 4]),
            transactions=draw.random() < 0.5,
            flush_age_s=draw.choice([0.2, 1.0, 3.0]),
            flush_rows=draw.choice([3, 3, 10, 1000]),
            snapshots_kept=draw.choice([1, 3, 100]),
            backlog_bytes=draw.choice([None, None, 6000]),
            disk_bytes=draw.choice([1 << 40, 1 << 40, 60_000]) if not local else 1 << 40,
            linger_s=draw.choice([0.0, 2.0, 8.0]),
            sync_s=draw.choice([0.0, 0.01, 0.5]),
            store_s=draw.choice([0.0, 0.02, 0.2]),
            catalog_s=draw.choice([0.0, 0.02, 0.2]),
            clocks_off_s=draw.choice([0.0, 5.0, 600.0]),
            parkings=draw.choice([0, 0, 2, 5]),
        )
        return drawn.mirrored(draw) if draw.random() < MIRRORED else drawn

    def shortened(self, draw: random.Random) -> Profile:
        """The same world, and less of everything that happens in it. Drawn by itself, so that a long seed is what it always was."""
        return replace(
            self,
            short=True,
            sources=min(self.sources, draw.choice([1, 1, 2])),
            batches=draw.choice([1, 2, 2, 3]),
            strikes=min(self.strikes, draw.choice([1, 1, 2, 3])),
            replays=min(self.replays, 1),
            parkings=min(self.parkings, 1),
            linger_s=min(self.linger_s, draw.choice([0.0, 0.0, 2.0])),
        )

    def mirrored(self, draw: random.Random) -> Profile:
        """The same world with mirror tables in it."""
        foreign = not self.local and draw.random() < 0.5
        chances = {**self.chances, **{name: 4 * chance for name, chance in FOREIGN.items()}} if foreign else self.chances
        if draw.random() < 0.5:
            chances = {**chances, **INDEX}
        contested = draw.random() < 0.15
        return replace(
            self,
            modes=draw.choice(MODES),
            changelogs=draw.choice([(), (), ("shop.items",)]),
            truncates=draw.choice([0.0, 0.03, 0.1]),
            sources=1 if draw.random() < 0.4 else self.sources,
            batches=min(self.batches, 12),
            partitions=draw.choice(MIRROR_PARTITIONS),
            columns=({},),
            chances=chances,
            replays=draw.choice([0, 0, self.replays]),
            is_contested=contested,
            shared_truncate=draw.random() < 0.3,
            index_faults=draw.choice([0.0, 1.0, 1.0]),
            foreign_rows=foreign,
        )

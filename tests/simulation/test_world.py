"""The whole daemon, simulated: no invariant breaks, whatever befalls it; broken rules are noticed; a seed is a schedule."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.simulation.__main__ import main, parse, report, report_mutants
from tests.simulation.catching import Caught, catch
from tests.simulation.changes import Changes
from tests.simulation.mutants import MUTANTS
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.schedules import catch_all, run_all
from tests.simulation.shrinking import invariant_of
from tests.simulation.world import Outcome, run_world

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "150"))
RARE = (200,)  # A power cut tears a name of the log, which few schedules see.
MUTANT_SEEDS = 600  # At most: most are caught by the first ten. `make faults` has the same seeds pass without them.
REPOSITORY = Path(__file__).parents[2]


def test_no_schedule_breaks_an_invariant() -> None:
    """As they are drawn, mostly short; and long ones, in which everything happens that can."""
    broken, faults = {}, Counter[str]()
    for seeds, changes in ((range(2 * SEEDS), Changes()), ((*range(SEEDS // 2), *RARE), Changes({"short": False}))):
        for outcome in run_all(seeds, "", jobs=2, changes=changes):
            faults += outcome.counts
            if outcome.breach:
                broken[" ".join(["python -m tests.simulation --seeds", str(outcome.seed), *changes.arguments()])] = outcome.breach
    assert broken == {}, "each by the command that shows it again"
    assert faults.keys() >= EXPECTED


# A fault that never happens proves nothing.
EXPECTED = {
    *("kill one", "kill both", "cut power", "freeze", "zombie one", "zombie both", "producer crash", "control link cut", "wire_cut"),
    *(
        f"{what} {fate} of {area}"
        for area in ("log", "warehouse")
        for what in ("blocks", "names")
        for fate in ("dropped", "torn", "reordered")
    ),
    *(f"{fault} of {area}" for area in ("log", "warehouse") for fault in ("sync_eio", "sync_enospc", "sync_slow", "write_enospc")),
    *("write_eio", "rename_eio", "rename_enospc", "create_eio", "create_enospc", "sync_directory_eio", "sync_directory_enospc"),
    *("read_eio", "write_split", "cache_evicted", "recycled blocks"),
    *("put_lost_before", "put_lost_after", "put_late", "get_lost", "frame_twice", "segments trimmed", "writer fenced"),
    *("load_lost", "swap_lost_before", "swap_lost_after", "swap_late", "swap_conflict_after_own", "swap_slow"),
    *("late request landed", "late request refused"),
    *("letters sent again", "verdicts: dead", "verdicts: replayed", "verdicts: superseded"),
    *("tables parked", "tables unparked", "park refused", "side segments unlinked"),
    *("mirror commits", "mirror rows deleted", "mirrors folded from changelogs", "cuts committed", "rewrites committed", "objects purged"),
    *("foreign: append", "foreign: delete", "foreign: rewrite", "foreign: rewrite all", "foreign: equality deletes"),
    *("index_create_eio", "index_write_enospc", "index_rename_eio", "index_read_eio"),
    *("index: lost", "index: a file lost", "index: cut", "index: a bit flipped", "index: older"),
}


def test_a_letter_that_a_mirror_takes_later_than_its_changelog_took_it_is_no_breach() -> None:
    """Verification folded the changelog in its own order, and missed another source's event in between."""
    values = {
        "strikes": 0,
        "replays": 1,
        "linger_s": 0.0,
        "index_faults": 0.0,
        "transactions": False,
        "partitions": ((),),
        "compaction_s": 0.0,
        "short": False,
    }
    changes = Changes({**values, "store_s": 0.0, "sync_s": 0.0}, frozenset(["all"]))
    found = [run_world(seed, changes=changes) for seed in (5021, *range(5030, 5034))]
    assert [outcome.breach for outcome in found] == [""] * len(found)


FOUND = {
    "a changelog refused what its mirror took: verify folded it as if it had not": (101027, 101614, 103617, 106329),
    "the world ended between a verdict and the rows that it let in": (102607, 105471, 106110),
    "a source's TRUNCATE took in the fold what another log's source had written by then": (107295,),
    "what was sent again was a letter of the changelog alone": (110433,),
    "an append that failed left its record in a side log, and the log still had it": (102047,),
    "a side log that could not be read sent its table back to be parked": (107362,),
    "a changelog was off while its log let go of what its letters, and not yet its rows, had decided": (101685,),
    "a side log that had failed, and could not be opened anew, was fed as an empty one": (201392,),
    "a schema was being taken in while its table came to be read again, and all before it was passed over": (201547,),
    "a flush succeeded of a log that had just failed: nobody knew what it holds": (208335,),
    "a transaction that began in a side log was cut when its table had come back": (301947,),
    "a source was told where to resume though its log had just failed: what it had sent was durable after all": (301740,),
    "a letter was read again while the flush on its way had not yet decided that it overtakes it: dead again, it was applied later": (
        316317,
    ),
    "what was refused for want of a row, by an order of two logs that never landed, had one by the order that did": (311938,),
    "a letter of a transaction was sent again before the rest of that was committed": (318391,),
    "a mirror was compared with its changelog, which had come further": (331902,),
    "a changelog was off while its log let go of what was to be applied when it was sent again": (441168,),
    "what was sent again by another log was refused for want of a row that the same flush was about to make": (452007,),
    "a park refused midway left an empty side log, and no commit came to take it away": (109959,),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_ten_thousand_schedules_called_a_breach_is_none(what: str) -> None:
    # No table was grouped or compacted then, and no world was short.
    as_found = Changes({"grouped": False, "compaction_s": 0.0, "short": False})
    assert [run_world(seed, changes=as_found).breach for seed in FOUND[what]] == [""] * len(FOUND[what])


FOUND_IN_GROUPS = {
    "a power cut amid a trim had brought back some of what it removed, and verify took the gaps for losses": (342654,),
    "a TRUNCATE was refused by an order of two logs that never landed": (342993,),
    "a changelog that was off had a cut of the number that its mirror was given next": (349527,),
    "a writer before had committed a member of a cut by the time that it was tried, and the others landed without it": (
        351632,
        352173,
        356023,
    ),
    "two cuts of one group were under way, as a member of the first was being parked": (321445,),
}


def test_two_writers_that_have_some_of_a_group_each_do_not_both_give_the_next_number() -> None:
    assert run_world(422517, changes=Changes({"short": False, "spare_share": 0.0})).breach == ""


AS_FOUND = Changes({"spare_share": 0.0})  # No time was spared then.


def test_a_head_that_others_have_left_behind_and_purged_stops_no_table() -> None:
    assert run_world(719944, changes=AS_FOUND).breach == ""


def test_a_letter_sent_again_through_another_log_is_not_held_against_a_mirror() -> None:
    """verify, which reads the logs one after the other, took the event before it for the last of its key."""
    assert run_world(2264, changes=AS_FOUND).breach == ""


@pytest.mark.parametrize("what", FOUND_IN_GROUPS)
def test_what_schedules_of_grouped_tables_called_a_breach_is_none(what: str) -> None:
    as_found = Changes({"compaction_s": 0.0, "short": False})
    assert [run_world(seed, changes=as_found).breach for seed in FOUND_IN_GROUPS[what]] == [""] * len(FOUND_IN_GROUPS[what])


# Those that take many seeds, and a seed somewhat before the first that does: so the quick run is quick, and
# `--mutants` begins at 0 with all of them.
LATE = {
    "check and swap on different metadata": 110,
    "overtaken letters applied": 95,
    "a cut through another table's transaction": 90,
    "a changelog that is off moved by a cut": 90,
    "purged without a claim": 260,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_rule_is_caught_within_600_seeds_or_by_its_scenario(mutant: str) -> None:
    assert catch(mutant, MUTANT_SEEDS, first=LATE.get(mutant, 0)).breach


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_finds_nothing_where_no_rule_is_broken(scenario: str) -> None:
    assert SCENARIOS[scenario]() == ""


def test_the_mutants_table_says_what_caught_each_and_which_none_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = parse(["--mutants", "--json", str(tmp_path / "figures.json")])
    caught = catch_all(["ack before fsync", "trim judged by a damaged prefix"], 10, jobs=1)
    assert report_mutants([*caught, Caught("old keys left", "simulation", 10, "")], asked) == 1
    lines = {line[:40].strip(): line[40:].strip() for line in capsys.readouterr().out.splitlines()}
    assert [what for mutant, what in lines.items() if mutant.startswith("ack before fsync")] == ["simulation, after 1 seeds, I1"]
    said = [*lines.values()]
    assert "a trim meets a damaged segment, after 1 seeds, I6" in said[1]
    assert "NOT CAUGHT by 10 seeds" in said[2]
    figures = orjson.loads((tmp_path / "figures.json").read_bytes())
    assert (figures["family"], figures["cases"], figures["breaches"]) == ("mutants", 3, 1)
    assert [(row["mutant"], row["invariant"], row["seeds"]) for row in figures["detail"]] == [
        ("ack before fsync", "I1", 1),
        ("trim judged by a damaged prefix", "I6", 1),
        ("old keys left", "", 10),
    ]


def test_a_seed_is_one_schedule_whatever_the_order_of_sets() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--jobs", "1", "--seeds"]
    for seed in ("3", "8", "113"):  # 113 cancels tasks in a set, whose order was that of their addresses.
        said = set()
        for hash_seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
            ran = subprocess.run([*command, seed], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
            said.add(next(line for line in ran.stdout.splitlines() if "trace" in line))
        assert said == {f"seed {seed}: trace {run_world(int(seed)).digest}"}


def test_a_breach_is_told_with_the_commands_that_show_it_again_and_make_it_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    assert main(["--seeds", "0..2", "--jobs", "1", "--json", str(figures)]) == 0
    assert "2 schedules" in capsys.readouterr().out
    found = orjson.loads(figures.read_bytes())
    assert (found["family"], found["cases"], found["breaches"], found["detail"]["seeds"]) == ("simulation", 2, 0, [0, 2])
    assert found["figures"]["faults"] > 0
    assert main(["--seeds", "1", "--mutant", "fsync removed"]) == 1
    told = capsys.readouterr().out
    command = 'python -m tests.simulation --seeds 1 --mutant "fsync removed"'
    assert f"see it again: {command} --steps\n" in told
    assert f"make it smaller: {command} --shrink\n" in told
    assert main(["--seeds", "1", "--mutant", "fsync removed", "--steps"]) == 1
    again = capsys.readouterr().out
    assert "world breach I1" in again
    assert told.splitlines()[-1] == again.splitlines()[-1]
    assert next(line for line in told.splitlines() if "trace" in line) in again


def test_a_run_that_is_cut_short_leaves_the_figures_of_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.__main__.SAY_EVERY_S", 0.0)
    figures = tmp_path / "figures.json"

    def cut_short() -> Iterator[Outcome]:
        yield from (run_world(seed) for seed in range(2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report(cut_short(), parse(["--seeds", "0..9", "--json", str(figures)]))
    found = orjson.loads(figures.read_bytes())
    assert (found["cases"], found["breaches"], found["detail"]["seeds"]) == (2, 0, [0, 9])
    assert found["figures"]["steps"] == sum(run_world(seed).step_count for seed in range(2))


def test_a_shrunk_world_is_smaller_and_replays_the_same_breach_from_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    whole = run_world(8, MUTANTS["fsync removed"], changes=Changes({"short": False}))
    assert main(["--seeds", "8", "--mutant", "fsync removed", "--set", "short=False", "--shrink"]) == 1
    _, breach, told = capsys.readouterr().out.splitlines()
    arguments = shlex.split(told.split("python -m tests.simulation ")[1])
    assert "batches=1" in arguments
    asked = parse(arguments)
    assert asked.steps
    shrunk = run_world(asked.seeds[0], MUTANTS[asked.mutant], changes=asked.changes)
    assert invariant_of(shrunk.breach) == invariant_of(whole.breach) == "I1"
    assert shrunk.breach == breach.strip()
    assert shrunk.step_count < whole.step_count
    assert asked.changes.without == {"all"}
    assert "frame_twice" in whole.counts
    assert "frame_twice" not in shrunk.counts


def test_a_world_where_nothing_breaks_is_not_shrunk(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--shrink", "--set", "batches=1"]) == 0
    assert capsys.readouterr().out == "seed 1: nothing breaks\n"
    with pytest.raises(SystemExit):
        main(["--seeds", "1", "--set", "batch=1"])
    assert "batch: no profile has it; one of" in capsys.readouterr().err

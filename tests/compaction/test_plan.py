"""What is rewritten and what is left, each case from the files that a table has; then plans carried out on tables of known rows."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolake.compaction.plan import Choice, CompactionPolicy, Plan, Why, plan_compaction
from dolake.compaction.sizes import is_full, size_class
from dolake.iceberg.contents import LiveFile
from tests.compaction.rows import ROW_BYTES, Table, bounds

MIB = 1 << 20
PATIENT, ASKED = CompactionPolicy(), CompactionPolicy(wait_for_more=False)


def data(name: str, mib: float = 1, *, rows: int = 1000, sequence: int = 1, partition: tuple[Any, ...] = (), spec: int = 0) -> LiveFile:
    return LiveFile(name, "data", int(mib * MIB), rows, partition, spec_id=spec, sequence_number=sequence)


def several(count: int, mib: float = 1, name: str = "d", **more: Any) -> list[LiveFile]:
    return [data(f"{name}{place:04}", mib, sequence=place + 1, **more) for place in range(count)]


def deletes(
    name: str,
    rows: int,
    *,
    of: str | tuple[str, str] | None = None,
    sequence: int = 10_000,
    partition: tuple[Any, ...] = (),
    spec: int = 0,
    size_bytes: int = 1000,
) -> LiveFile:
    lower, upper = of if isinstance(of, tuple) else (of, of)
    file = LiveFile(name, "position deletes", size_bytes, rows, partition, spec_id=spec, sequence_number=sequence)
    return replace(file, **bounds(lower, upper))


def equality(name: str, *, partition: tuple[Any, ...] = (), spec: int = 0) -> LiveFile:
    return LiveFile(name, "equality deletes", 1000, 10, partition, spec_id=spec, sequence_number=10_000)


def plan(*files: LiveFile, policy: CompactionPolicy = PATIENT, spec_id: int = 0, **more: Any) -> Plan:
    return plan_compaction(files, policy, spec_id=spec_id, **more)


def names(files: tuple[LiveFile, ...]) -> list[str]:
    return [file.location for file in files]


def chosen(a_plan: Plan) -> list[tuple[Why, list[str]]]:
    return [(choice.why, names(choice.rewritten)) for choice in a_plan.choices]


def only(a_plan: Plan) -> Choice:
    (choice,) = a_plan.choices
    return choice


def left(a_plan: Plan) -> list[tuple[str, list[str]]]:
    return [(one.why, sorted(names(one.files))) for one in a_plan.left]


# -- small files


def test_nothing_is_worth_rewriting_of_no_files():
    assert plan() == Plan((), ())
    assert plan().debt_bytes == 0


def test_four_small_files_are_rewritten_and_three_wait():
    assert plan(*several(3)) == Plan((), ())
    choice = only(plan(*reversed(several(4))))
    assert (choice.spec_id, choice.partition, choice.why) == (0, (), Why.SMALL_FILES)
    assert names(choice.data) == [f"d000{place}" for place in range(4)], "oldest first"
    assert (choice.deletes, choice.deletes_removed) == ((), ())
    assert (choice.bytes_read, choice.bytes_written) == (4 * MIB, 4 * MIB)
    assert (choice.files_saved, choice.delete_files_saved, choice.deleted_rows) == (3, 0, 0)
    assert choice.read_s_saved == pytest.approx(3 * 0.02)


def test_how_many_files_are_waited_for_is_the_policy_s():
    assert plan(*several(4), policy=CompactionPolicy(inputs_min=5)).choices == ()
    assert len(only(plan(*several(5), policy=CompactionPolicy(inputs_min=5))).data) == 5


def test_the_target_is_the_policy_s():
    assert plan(*several(8, 20), policy=CompactionPolicy(target_bytes=16 * MIB)).choices == ()
    halves = plan(*several(4, 8), policy=CompactionPolicy(target_bytes=16 * MIB))
    assert sorted(chosen(halves)) == sorted([(Why.SMALL_FILES, ["d0000", "d0001"]), (Why.SMALL_FILES, ["d0002", "d0003"])])


def test_a_file_of_three_quarters_of_the_target_is_full():
    assert plan(*several(20, 96)).choices == ()
    assert plan(*several(20, 96), policy=ASKED).choices == ()
    assert sorted(len(choice.data) for choice in plan(*several(9, 40)).choices) == [3, 3, 3]


def test_partitions_and_specs_are_never_mixed():
    files = [
        *(file for day in range(3) for file in several(3, name=f"day{day}", partition=(day,))),
        *several(3, name="old", partition=(0,), spec=1),
        *several(8, name="x", partition=("x", None)),
    ]
    choice = only(plan(*files))
    assert choice.partition == ("x", None)
    assert names(choice.data) == [f"x000{place}" for place in range(8)]


def test_partitions_are_told_apart_where_equal_values_are_not_the_same():
    """NaN is one partition though it is equal to nothing; 0.0 and -0.0 are two."""
    nans = [replace(file, partition=(float("nan"),)) for file in several(8, name="nan")]
    zeros = [*several(3, name="zero", partition=(0.0,)), *several(3, name="minus", partition=(-0.0,))]
    choice = only(plan(*nans, *zeros, deletes("p", 100, partition=(float("nan"),))))
    assert names(choice.data) == [f"nan000{place}" for place in range(8)]
    assert names(choice.deletes) == ["p"]
    assert len(plan(*several(2, partition=(float("nan"),)), resting=[(0, (float("nan"),))]).choices) == 1


def test_empty_files_go_along_with_the_group():
    empty = data("empty", 0.001, rows=0, sequence=99)
    assert plan(*several(3), empty).choices == ()
    choice = only(plan(*several(4), empty))
    assert names(choice.data)[-1] == "empty"
    assert (choice.bytes_written, choice.files_saved) == (4 * MIB, 4)


def test_enough_empty_files_go_by_themselves():
    assert plan(*several(3, rows=0)).choices == ()
    choice = only(plan(*several(4, rows=0)))
    assert (choice.bytes_written, choice.files_saved, len(choice.data)) == (0, 4, 4)
    assert only(plan(*several(2, rows=0), policy=ASKED)).files_saved == 2
    assert plan(data("d", rows=0), policy=ASKED).choices == ()
    assert only(plan(data("d", 95.9), data("e", rows=0), policy=ASKED)).files_saved == 1
    assert names(only(plan(data("d", 100), data("e", 32, rows=0, sequence=2), deletes("p", 300, of="d"), policy=ASKED)).data) == ["d", "e"]


# -- deleted rows


def test_a_full_file_is_rewritten_once_more_than_the_share_of_its_rows_is_deleted():
    file = data("d", 128)
    assert plan(file, deletes("p", 200)).choices == ()
    choice = only(plan(file, deletes("p", 250)))
    assert (choice.why, names(choice.data), names(choice.deletes), names(choice.deletes_removed)) == (Why.DELETED_ROWS, ["d"], ["p"], ["p"])
    assert (choice.bytes_read, choice.bytes_written) == (128 * MIB + 1000, 96 * MIB)
    assert (choice.files_saved, choice.delete_files_saved, choice.deleted_rows) == (0, 1, 250)
    assert choice.read_s_saved == pytest.approx(0.02 + (32 * MIB + 1000) / (100 * MIB))


def test_a_file_with_no_row_left_is_removed():
    choice = only(plan(data("d", 128), deletes("p", 700), deletes("q", 300)))
    assert (choice.bytes_written, choice.files_saved, choice.delete_files_saved, choice.deleted_rows) == (0, 1, 2, 1000)


def test_the_share_is_the_policy_s():
    assert only(plan(data("d", 128), deletes("p", 60), policy=CompactionPolicy(deleted_share_max=0.05))).deleted_rows == 60


def test_files_that_lost_rows_go_together_while_they_fit():
    files = [data(name, 40, sequence=sequence) for sequence, name in enumerate("abcd")]
    gone = [deletes(f"p{name}", 500, of=name) for name in "abcd"]
    assert sorted(chosen(plan(*files, *gone))) == [(Why.DELETED_ROWS, ["a", "b", "c"]), (Why.DELETED_ROWS, ["d"])]


def test_a_small_file_that_lost_rows_waits_for_its_like():
    """A table whose rows change at every flush would be rewritten after every flush."""
    files = several(3)
    gone = [deletes(f"p{file.location}", 900, of=file.location) for file in files]
    assert plan(*files, *gone).choices == ()
    more = [*files, data("more", sequence=99), *gone]
    assert chosen(plan(*more)) == [(Why.SMALL_FILES, [*(file.location for file in files), "more"])]
    assert only(plan(*more, deletes("pmore", 300, of="more"))).why == Why.DELETED_ROWS
    assert chosen(plan(data("large", 16), deletes("p", 900))) == [(Why.DELETED_ROWS, ["large"])]


def test_deletes_read_are_those_that_may_speak_of_the_data():
    files = several(8, partition=("x",))
    wide, after, before, outside, elsewhere, other_spec = (
        deletes("wide", 8, of=("d0000", "z"), partition=("x",)),
        deletes("after", 8, of=("d0007", "z"), sequence=8, partition=("x",)),
        deletes("before", 8, of=("d0004", "z"), sequence=3, partition=("x",)),
        deletes("outside", 8, of=("e", "z"), partition=("x",)),
        deletes("elsewhere", 8, partition=("y",)),
        deletes("other_spec", 8, partition=("x",), spec=1),
    )
    choice = only(plan(*files, wide, after, before, outside, elsewhere, other_spec, data("full", 128, partition=("x",), sequence=9)))
    assert names(choice.deletes) == ["after", "wide"]
    assert names(choice.deletes_removed) == ["after"], "wide may speak of full as well"
    assert choice.delete_files_saved == 1


def test_a_delete_file_that_two_choices_read_leaves_with_neither():
    choices = plan(*several(6, 60), deletes("wide", 10)).choices
    assert [names(choice.deletes) for choice in choices] == [["wide"]] * 3
    assert [choice.deletes_removed for choice in choices] == [()] * 3


# -- delete files


def test_four_delete_files_of_a_class_are_merged_and_three_wait():
    full = data("full", 128, rows=10**7)
    gone = [deletes(f"p{place}", 100, sequence=place + 2) for place in range(4)]
    assert plan(full, *gone[:3], deletes("q", 200_000)).choices == ()
    choice = only(plan(full, *gone, deletes("q", 200_000)))
    assert (choice.why, choice.data, names(choice.deletes)) == (Why.DELETE_FILES, (), [f"p{place}" for place in range(4)])
    assert choice.deletes_removed == choice.deletes
    assert (choice.bytes_read, choice.bytes_written, choice.delete_files_saved, choice.files_saved) == (4000, 4000, 3, 0)
    assert choice.read_s_saved == pytest.approx(3 * 0.02)


def test_small_delete_files_are_of_one_class_whatever_their_rows():
    full = data("full", 128, rows=10**7)
    small = [deletes(f"p{rows}", rows) for rows in (10, 1000, 20_000)]
    assert names(only(plan(full, *small, deletes("q", 128 << 10))).deletes) == ["p10", "p1000", "p20000", "q"]
    assert plan(full, *small, deletes("q", (128 << 10) + 1)).choices == ()


def test_two_delete_files_are_enough_where_nothing_is_waited_for():
    full = data("full", 128, rows=10**6)
    assert chosen(plan(full, deletes("p", 10), deletes("q", 50_000), policy=ASKED)) == [(Why.DELETE_FILES, ["p", "q"])]
    assert plan(full, deletes("p", 10), policy=ASKED).choices == ()


def test_delete_files_that_a_rewrite_reads_are_not_merged():
    files = [data("a_full", 128, rows=10**6), *several(8, name="s")]
    read = [deletes(f"p{place}", 10, of=("s0000", "s0001")) for place in range(8)]
    merged = [deletes(f"q{place}", 10, of=("a_full", "a_full")) for place in range(8)]
    found = plan(*files, *read, *merged)
    assert sorted((why.value, where) for why, where in chosen(found)) == [
        ("delete files", [f"q{place}" for place in range(8)]),
        ("small files", [f"s000{place}" for place in range(8)]),
    ]
    assert only(plan(*files, *read, *merged, busy=[f"q{place}" for place in range(8)])).why == Why.SMALL_FILES


def test_merged_delete_files_do_not_grow_for_ever():
    full = data("full", 128, rows=10**12)
    assert plan(full, *(deletes(f"p{place}", 6 << 20) for place in range(9)), deletes("q", 10), policy=ASKED).choices == ()
    halves = plan(full, *(deletes(f"p{place}", 4 << 20) for place in range(4)), policy=ASKED)
    assert sorted(where for _, where in chosen(halves)) == [["p0", "p1"], ["p2", "p3"]]


def test_delete_files_that_speak_of_nothing_any_more_are_removed_unread():
    full = data("full", 128, rows=10**6, sequence=50)
    spent = [deletes(f"p{place}", 10 ** (place % 5), of=("a", "b")) for place in range(3)]
    older = deletes("older", 10, sequence=49)
    assert plan(full, *spent).choices == ()
    choice = only(plan(full, *spent, older))
    assert (choice.why, names(choice.deletes)) == (Why.DELETE_FILES, ["older", *(f"p{place}" for place in range(3))])
    assert (choice.bytes_read, choice.bytes_written, choice.delete_files_saved) == (0, 0, 4)
    assert choice.in_words().startswith(
        "Removes 4 delete files of unpartitioned spec 0 (delete files): reads 0 B, writes 0 B; 4 delete files"
    )
    assert len(only(plan(full, *spent[:2], policy=ASKED)).deletes) == 2
    assert plan(full, spent[0], policy=ASKED).choices == ()


def test_many_delete_files_that_speak_of_many_files_are_merged_before_they_are_read_with_each():
    files = several(8)
    wide = [deletes(f"p{place:03}", 1, sequence=100 + place) for place in range(257)]
    of_one = deletes("one", 1, of="d0003")
    found = plan(*files, *wide, of_one)
    assert chosen(found) == [(Why.DELETE_FILES, names(tuple(wide)))]
    assert left(found) == [
        ("257 delete files may speak of many data files each, and are merged first", [file.location for file in files]),
    ]
    assert only(plan(*files, *wide[1:], of_one)).why == Why.SMALL_FILES
    # Nothing to merge is no reason to wait.
    assert only(plan(*several(8, rows=10**12), *(replace(file, row_count=8 << 20) for file in wide))).why == Why.SMALL_FILES


# -- what is left alone


def test_a_partition_with_equality_deletes_is_left_alone_wholly():
    there, elsewhere = several(8, partition=(1,), name="t"), several(8, partition=(2,), name="e")
    found = plan(*there, *elsewhere, equality("q", partition=(1,)), deletes("p", 1, partition=(1,)))
    assert chosen(found) == [(Why.SMALL_FILES, [file.location for file in elsewhere])]
    why = "equality deletes are in the partition, and a rewritten file would be newer than they are"
    assert left(found) == [(why, ["p", "q", *(file.location for file in there)])]
    assert found.left[0].in_words() == f"10 files of partition (1) of spec 0 left alone: {why}"


@pytest.mark.parametrize("nowhere", [(), (None,)])
def test_equality_deletes_of_no_partition_speak_of_all(nowhere: tuple[None, ...]):
    found = plan(*several(8, partition=(1,), spec=1), equality("q", partition=nowhere), policy=ASKED)
    assert found.choices == ()
    assert [names(one.files) for one in found.left if "speak of all" in one.why] == [[f"d000{place}" for place in range(8)]]


def test_a_file_too_large_to_be_read_is_left_alone_and_said_so():
    large, gone = data("large", 513), deletes("p", 900, of="large")
    assert plan(large) == Plan((), ()), "of which nobody wants a rewrite"
    found = plan(large, gone)
    assert found.choices == ()
    why = "larger than 512.0 MiB, which is what can be read whole in the memory that there is"
    assert left(found) == [(why, ["large"])]
    assert found.left[0].in_words() == f"1 file of unpartitioned spec 0 left alone: {why}"
    assert chosen(plan(large, gone, policy=CompactionPolicy(input_bytes_max=513 * MIB))) == [(Why.DELETED_ROWS, ["large"])]


def test_data_whose_deletes_are_too_large_to_be_read_is_left_alone():
    found = plan(*several(5), data("e", 128), deletes("p", 900, of=("d0000", "d0001"), size_bytes=513 * MIB))
    assert found.choices == ()
    assert [where for _, where in left(found)] == [["d0000", "d0001"], ["p"]]
    assert left(found)[0][0] == "a delete file that may speak of it is being rewritten, or is too large to be read"


def test_what_is_being_rewritten_is_in_no_choice():
    found = plan(*several(9), busy=["d0000", "unknown"])
    assert chosen(found) == [(Why.SMALL_FILES, [f"d000{place}" for place in range(1, 9)])]
    assert left(found) == [("being rewritten already", ["d0000"])]


def test_data_that_a_delete_file_speaks_of_waits_while_that_is_rewritten():
    files = [*several(5), deletes("p", 1, of="d0002", sequence=9), deletes("q", 1, of=("d0003", "d0004"), sequence=4)]
    assert plan(*files, busy=["p", "q"]).choices == (), "p speaks of one of five, and q of another that is not newer"
    found = plan(*files, busy=["p"])
    assert [file for _, file in chosen(found)] == [[f"d000{place}" for place in range(5) if place != 2]]
    assert [where for _, where in left(found)] == [["d0002"], ["p"]]


def test_a_file_that_is_named_twice_is_left_alone():
    files = [*several(8, partition=(1,)), *several(8, partition=(2,), name="e")]
    found = plan(*files, replace(files[0], sequence_number=7))
    assert chosen(found) == [(Why.SMALL_FILES, [file.location for file in files[8:]])]
    assert left(found) == [
        ("a file is named more than once, and would leave the table more than once", ["d0000", *names(tuple(files[:8]))]),
    ]


# -- resting partitions, people who ask, older specs


def test_two_small_files_are_enough_in_a_resting_partition():
    files = [*several(2, partition=(1,)), *several(2, partition=(2,), name="e")]
    assert chosen(plan(*files, resting=[(0, (1,))])) == [(Why.SMALL_FILES, ["d0000", "d0001"])]
    assert plan(*files, resting={(1, (1,)), (0, (3,))}).choices == ()
    assert plan(files[0], resting=[(0, (1,))]).choices == ()


def test_whoever_asks_gets_all_small_files_of_whatever_class_at_once():
    files = [data("a", 0.001), data("b", 20), data("c", 95), data("d", 96), data("e", 30)]
    assert chosen(plan(*files, policy=ASKED)) == [(Why.SMALL_FILES, ["a", "b", "c"])]


def test_whoever_asks_gets_rid_of_deleted_rows_of_small_files():
    assert chosen(plan(data("d"), deletes("p", 1), policy=ASKED)) == [(Why.DELETED_ROWS, ["d"])]
    assert plan(data("d"), policy=ASKED).choices == ()
    assert plan(data("d", 96), deletes("p", 1), policy=ASKED).choices == (), "a full file"
    assert only(plan(data("d", 96), data("e", 20), deletes("p", 500, of="d"), policy=ASKED)).why == Why.DELETED_ROWS


def test_files_of_an_older_spec_are_rewritten_like_others_and_wholly_when_asked():
    small, full = data("d", 1, partition=(1,)), data("e", 96, partition=(1,))
    assert plan(small, full, spec_id=1).choices == ()
    assert plan(small, full, spec_id=1, resting=[(0, (1,))]).choices == ()
    assert only(plan(*several(8), spec_id=1)).why == Why.SMALL_FILES
    assert only(plan(*several(2), spec_id=1, resting=[(0, ())])).why == Why.OTHER_SPEC
    assert chosen(plan(small, full, spec_id=1, policy=ASKED)) == [(Why.OTHER_SPEC, ["d"])]
    assert chosen(plan(data("d", rows=0), spec_id=1, policy=ASKED)) == [(Why.OTHER_SPEC, ["d"])]
    lost = plan(full, deletes("p", 500, partition=(1,)), spec_id=1)
    assert chosen(lost) == [(Why.DELETED_ROWS, ["e"])]


# -- the plan as a whole


def test_the_best_gain_for_its_cost_comes_first():
    tiny = several(16, 0.01, name="t", partition=("t",))
    middle = several(8, 2, name="m", partition=("m",))
    lost = [data("full", 128, partition=("f",)), deletes("p", 300, partition=("f",))]
    found = plan(*lost, *middle, *tiny)
    assert [choice.partition for choice in found.choices] == [("t",), ("m",), ("f",)]
    ratios = [choice.read_s_saved / choice.cost_s for choice in found.choices]
    assert ratios == sorted(ratios, reverse=True)
    assert found.debt_bytes == sum(file.size_bytes for file in (*tiny, *middle, lost[0]))


def test_debt_is_of_merged_delete_files_too_but_not_of_those_that_are_only_read():
    merged = [deletes(f"p{place}", 100, partition=("x",)) for place in range(8)]
    found = plan(data("full", 128, rows=10**6, partition=("x",)), *merged, *several(8), deletes("read", 1))
    assert found.debt_bytes == 8 * 1000 + 8 * MIB


def test_a_choice_says_in_words_what_and_why_at_what_cost_for_what_gain():
    files = several(8, 1.5, partition=(19723, "a\x1b[2J", None))
    choice = only(plan(*files, deletes("p", 1000, partition=(19723, "a\x1b[2J", None))))
    assert choice.in_words() == (
        "Rewrites 8 data files of partition (19723, 'a\\x1b[2J', null) of spec 0 as one (small files): "
        "reads 12.0 MiB with 1 delete file, writes 10.5 MiB; "
        "7 data files fewer, 1 delete file fewer, some 1,000 deleted rows gone, a whole read some 0.18 s shorter"
    )
    gone = only(plan(data("d", 128), deletes("p", 1000)))
    assert gone.in_words().startswith(
        "Removes 1 data file of unpartitioned spec 0 (deleted rows): reads 128.0 MiB with 1 delete file, writes 0 B;"
    )


# -- a table that grows


@pytest.mark.parametrize("file_bytes", [4096, MIB, 128 * MIB // 50], ids=["tiny", "small", "near the target"])
def test_each_row_is_rewritten_a_logarithm_of_times_while_a_table_grows(file_bytes: int):
    flushes, target = 10_000, PATIENT.target_bytes
    rewrites_max = math.ceil(math.log(flushes, 4)) + 2
    levels = size_class(file_bytes, target) + 1
    files: dict[str, LiveFile] = {}
    full: list[LiveFile] = []  # The planner takes no interest in them, which is asserted at the end.
    rewrites: dict[str, int] = {}
    for flush in range(1, flushes + 1):
        location = f"flush{flush}"
        files[location] = LiveFile(location, "data", file_bytes, 10, sequence_number=flush)
        rewrites[location] = 0
        for choice in plan_compaction(list(files.values()), PATIENT, spec_id=0).choices:
            location = f"of{choice.data[0].location}to{choice.data[-1].location}"
            rewrites[location] = 1 + max(rewrites[file.location] for file in choice.data)
            assert rewrites[location] <= rewrites_max
            for file in choice.data:
                del files[file.location]
            output = LiveFile(location, "data", sum(file.size_bytes for file in choice.data), 10, sequence_number=flush)
            if is_full(output.size_bytes, target):
                full.append(output)
            else:
                files[location] = output
        assert len(files) <= 4 * levels + 4
    everything = [*files.values(), *full]
    assert sum(file.size_bytes for file in everything) == flushes * file_bytes
    assert len(full) <= flushes * file_bytes / (0.75 * target)
    assert plan(*full).choices == ()
    assert max(rewrites[file.location] for file in everything) >= 2 or levels == 1


# -- any table: rows stay, and there is an end

SPECS = {0: [(), ("x",)], 1: [(1,), (None,)]}
PLACES = [(spec_id, partition) for spec_id, partitions in SPECS.items() for partition in partitions]
POLICIES = st.builds(
    CompactionPolicy,
    target_bytes=st.sampled_from([200, 1000, 8192]),
    inputs_min=st.integers(2, 8),
    deleted_share_max=st.sampled_from([0.0, 0.2, 0.6]),
    input_bytes_max=st.sampled_from([150, 900, 10**6]),
    wait_for_more=st.booleans(),
)
ROUNDS_MAX = 12


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Flushes and deletes in any order; the bounds of delete files say exactly, widely or nothing of what is in them."""
    table = Table(draw(st.sampled_from([0, 1])))
    random_ = random.Random(draw(st.integers(0, 2**32)))
    # Drawn as one seed: lists of lists of places would take Hypothesis longer than the plans.
    for _ in range(draw(st.integers(0, 60))):
        files = [file for file in table.of("data") if file.row_count]
        if not files or random_.random() < 0.6:
            table.flush(random_.choice([0, 1, 2, 5, 5, 5, 20, 40, 60]), *random_.choice(PLACES))
            continue
        of = random_.choice(files)
        same = [file for file in files if (file.spec_id, file.partition) == (of.spec_id, of.partition)]
        some = random_.sample(same, random_.randint(1, min(3, len(same))))
        every = [(file.location, position) for file in some for position in range(file.row_count)]
        places = random_.sample(every, random_.randint(1, len(every)))
        exact = (min(places)[0], max(places)[0])
        table.delete(places, *random_.choice([exact, exact, ("data/", "data0"), (None, None), (exact[0], None)]))
    return table


def check_plan(a_plan: Plan, policy: CompactionPolicy) -> None:
    leaving = Counter(file.location for choice in a_plan.choices for file in (*choice.data, *choice.deletes_removed))
    assert set(leaving.values()) <= {1}, "a file leaves with one choice"
    merged = {file.location for choice in a_plan.choices if not choice.data for file in choice.deletes}
    assert not merged & {file.location for choice in a_plan.choices if choice.data for file in choice.deletes}
    left_alone = {file.location for one in a_plan.left for file in one.files}
    assert not left_alone & {file.location for choice in a_plan.choices for file in (*choice.data, *choice.deletes)}
    for choice in a_plan.choices:
        assert {(file.spec_id, file.partition) for file in (*choice.data, *choice.deletes)} == {(choice.spec_id, choice.partition)}
        assert {file.kind for file in choice.data} <= {"data"}
        assert {file.kind for file in choice.deletes} <= {"position deletes"}
        assert set(names(choice.deletes_removed)) <= set(names(choice.deletes))
        assert bool(choice.data) == (choice.why != Why.DELETE_FILES)
        holding = [file for file in choice.data if file.row_count]
        assert sum(file.size_bytes for file in holding) <= policy.target_bytes or len(holding) == 1
        assert all(file.size_bytes <= policy.input_bytes_max for file in (*choice.data, *choice.deletes) if choice.bytes_read)
        assert 0 <= choice.bytes_written <= choice.bytes_read
        assert 0 <= choice.deleted_rows <= sum(file.row_count for file in choice.data)
        assert choice.in_words()


@settings(max_examples=300)
@given(tables(), POLICIES)
def test_carrying_plans_out_changes_no_row_and_comes_to_an_end(table: Table, policy: CompactionPolicy):
    rows = table.visible()
    for _ in range(ROUNDS_MAX):
        a_plan = table.plan(policy)
        check_plan(a_plan, policy)
        planned_at = table.sequence_number
        for choice in a_plan.choices:
            table.carry_out(choice, planned_at)
            assert table.visible() == rows
        if not a_plan.choices:
            break
    else:
        pytest.fail(f"still not done: {[choice.in_words() for choice in a_plan.choices]}")
    if not policy.wait_for_more:
        assert_nothing_small_is_left(table, policy)


def assert_nothing_small_is_left(table: Table, policy: CompactionPolicy) -> None:
    sizes: dict[Any, list[int]] = {}
    held = {file.location for one in table.plan(policy).left for file in one.files}
    for file in table.of("data"):
        if not is_full(file.size_bytes, policy.target_bytes) and file.location not in held:
            sizes.setdefault((file.spec_id, file.partition), []).append(file.size_bytes)
    for (spec_id, _), small in sizes.items():
        assert spec_id == table.spec_id, "older specs are gone"
        assert len(small) < 2 or sum(sorted(small)[:2]) > policy.target_bytes


@settings(max_examples=50)
@given(tables(), POLICIES, st.randoms(use_true_random=False), st.data())
def test_a_plan_depends_on_no_order_and_leaves_busy_files_alone(
    table: Table, policy: CompactionPolicy, random_: random.Random, drawn: st.DataObject
):
    files = list(table.files.values())
    shuffled = random_.sample(files, len(files))
    assert plan_compaction(shuffled, policy, spec_id=table.spec_id) == table.plan(policy)
    busy = drawn.draw(st.sets(st.sampled_from(sorted(table.files)))) if files else set()
    found = plan_compaction(files, policy, spec_id=table.spec_id, resting=PLACES[:2], busy=busy)
    check_plan(found, policy)
    assert not busy & {file.location for choice in found.choices for file in (*choice.data, *choice.deletes)}
    spoken = {location for name in busy & set(table.gone) for location, _ in table.gone[name]}
    assert not spoken & {file.location for choice in found.choices for file in choice.data}


def test_a_table_under_updates_keeps_few_files_and_loses_none_of_its_rows():
    """Plans and flushes by turns: each flush deletes what the one before wrote, and some of what is older."""
    table, policy, random_ = Table(), CompactionPolicy(target_bytes=400 * ROW_BYTES), random.Random(7)
    live: set[int] = set()
    for _ in range(300):
        live.update(table.rows[table.flush(10).location])
        where = {row: (file.location, at) for file in table.of("data") for at, row in enumerate(table.rows[file.location])}
        gone = random_.sample(sorted(live), 5)
        live.difference_update(gone)
        places = [where[row] for row in gone]
        table.delete(places, min(places)[0], max(places)[0])
        planned_at = table.sequence_number
        for choice in table.plan(policy).choices:
            table.carry_out(choice, planned_at)
        assert table.visible() == sorted(live)
        assert len(table.of("data")) <= 40
        assert len(table.of("position deletes")) <= 40

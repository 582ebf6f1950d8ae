"""A few hundred mutations of each target, the same every time. More: `python -m tests.fuzz`."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.engine import smaller, try_for
from tests.fuzz.mutations import KINDS, Mutation, any_mutations, mutated
from tests.fuzz.target import Target, plain, require
from tests.fuzz.targets import TARGETS

mutations = st.builds(Mutation, st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True), st.integers(0, 60), st.integers(0, 65_535))


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_understood_or_refused(name: str) -> None:
    target = TARGETS[name]
    corpus = list(target.corpus())
    with target.open() as check:
        for data in corpus:
            check(data)

        @settings(max_examples=target.example_count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.sampled_from(range(len(corpus))), st.lists(mutations, min_size=1, max_size=5))
        def tried(base: int, changes: list[Mutation]) -> None:
            check(mutated(corpus, corpus[base], changes))

        tried()


def test_mutations_are_values() -> None:
    """The same ones make the same bytes, so that what the long run found can be tried again."""
    corpus = TARGETS["message"].corpus()
    drawn = [any_mutations(random.Random(seed)) for seed in range(200)]
    assert {change.kind for changes in drawn for change in changes} == set(KINDS)
    for changes in drawn:
        assert mutated(corpus, corpus[0], changes) == mutated(corpus, corpus[0], changes)
    assert sum(mutated(corpus, corpus[0], changes) != corpus[0] for changes in drawn) > 180


def broken(data: bytes) -> str:
    """A decoder with three mistakes: it dies of a byte, lets an error out, and changes a value."""
    text = data.decode("utf-8", "replace")
    if "NaN" in text:
        raise ZeroDivisionError
    require("[[[[" not in text, "too deep")
    return "right"


def test_the_engine_finds_what_is_wrong_and_makes_it_small() -> None:
    target = Target("broken", "", lambda: [b'{"a":1,"b":[2,3],"c":"d"}'], plain(broken))
    report = try_for(target, 3.0, seed=1)
    places = {one.place.split(" ")[0]: one.data for one in report.findings}
    assert places == {"ZeroDivisionError": b"NaN", "Changed": b"[[[["}


def test_a_finding_is_made_small_only_where_it_stays_the_same() -> None:
    assert smaller(broken, b"xx NaN [[[[ yy", "ZeroDivisionError at fuzz/test_fuzz.py:0") == b"xx NaN [[[[ yy"

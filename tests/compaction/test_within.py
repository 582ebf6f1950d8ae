"""Which partitions a request is about: named as engines show them."""

from __future__ import annotations

from typing import Any

import pytest

from dolake.compaction.plan import CompactionPolicy, Plan, plan_compaction
from dolake.compaction.within import Within
from dolake.errors import RequestRefused
from dolake.iceberg.contents import LiveFile
from tests.compaction.test_spark import data, table

EAGER = CompactionPolicy(wait_for_more=False)


def narrowed(files: list[LiveFile], *texts: str, fields: tuple[tuple[str, str], ...]) -> Plan:
    plan = plan_compaction(files, EAGER, spec_id=0)
    return Within.parse(texts).narrowed(plan, table(*fields), files)


def two_of_each(*partitions: tuple[Any, ...]) -> list[LiveFile]:
    return [data(2 * place + twice, *partition) for place, partition in enumerate(partitions) for twice in (0, 1)]


@pytest.mark.parametrize(
    ("fields", "partition", "other", "texts"),
    [
        ((("at", "day"),), (20785,), (20786,), ["p0=2026-11-28"]),
        ((("day", "identity"),), (20785,), (None,), ["p0=2026-11-28"]),
        ((("day", "month"),), (682,), (683,), ["p0=2026-11"]),
        ((("region", "identity"),), ("a=b c",), ("a",), ["p0=a=b c"]),
        ((("region", "identity"),), (None,), ("null and void",), ["p0=null"]),
        ((("open", "identity"),), (True,), (False,), ["p0=true"]),
        ((("at", "day"), ("id", "bucket[4]")), (20785, 3), (20785, 2), ["p0=2026-11-28", "p1=3"]),
        ((("at", "day"), ("id", "bucket[4]")), (20785, 3), (20786, 3), ["p0=2026-11-28"]),
        ((("region", "void"), ("id", "bucket[4]")), (None, 1), (None, 2), ["p1=1"]),
    ],
)
def test_only_what_is_named_is_chosen(
    fields: tuple[tuple[str, str], ...], partition: tuple[Any, ...], other: tuple[Any, ...], texts: list[str]
) -> None:
    plan = narrowed(two_of_each(other, partition), *texts, fields=fields)
    assert [(choice.partition, len(choice.data)) for choice in plan.choices] == [(partition, 2)]


def test_fields_that_are_not_named_may_be_anything() -> None:
    files = two_of_each((20785, 0), (20785, 1), (20786, 0))
    plan = narrowed(files, "p0=2026-11-28", fields=(("at", "day"), ("id", "bucket[4]")))
    assert {choice.partition for choice in plan.choices} == {(20785, 0), (20785, 1)}


@pytest.mark.parametrize(
    ("text", "fields", "says"),
    [
        ("p0=2026-11-29", (("at", "day"),), r"p0=2026-11-29; there are p0=2026-11-28"),
        ("p9=1", (("at", "day"),), r"a partition p9=1; there are p0=2026-11-28"),
        ("p0=null", (("region", "void"),), r"it has no partitions"),
    ],
)
def test_none_of_it_is_refused_with_what_there_is(text: str, fields: tuple[tuple[str, str], ...], says: str) -> None:
    partition = (None,) if fields[0][1] == "void" else (20785,)
    with pytest.raises(RequestRefused, match=says):
        narrowed(two_of_each(partition), text, fields=fields)


def test_few_of_many_partitions_are_named() -> None:
    files = two_of_each(*((20785 + day,) for day in range(9)))
    with pytest.raises(RequestRefused, match=r"p0=2026-12-02 and 4 more$"):
        narrowed(files, "p0=today", fields=(("at", "day"),))


@pytest.mark.parametrize(
    ("texts", "says"), [(["day"], "is not NAME=VALUE"), (["=1"], "is not NAME=VALUE"), (["a=1", "a=2"], "both '1' and '2'")]
)
def test_what_is_no_condition_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Within.parse(texts)

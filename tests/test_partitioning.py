"""The notation of partitions: what each form means, what is no form."""

from __future__ import annotations

import pytest

from dolake.partitioning import NUMBER_MAX, Partition, parse_partition, parse_partition_by

FORMS = {
    "region": Partition("identity", ("region",)),
    "identity(region)": Partition("identity", ("region",)),
    "day": Partition("identity", ("day",)),
    "year(ts)": Partition("year", ("ts",)),
    "month(ts)": Partition("month", ("ts",)),
    "day(ts)": Partition("day", ("ts",)),
    " hour ( ts ) ": Partition("hour", ("ts",)),
    "void(x)": Partition("void", ("x",)),
    "bucket(16, id)": Partition("bucket", ("id",), 16),
    f"bucket({NUMBER_MAX},id)": Partition("bucket", ("id",), NUMBER_MAX),
    "truncate( 4 ,name )": Partition("truncate", ("name",), 4),
    "day(payload.at)": Partition("day", ("payload", "at")),
    "payload.region": Partition("identity", ("payload", "region")),
    'day("created.at")': Partition("day", ("created.at",)),
    'day(payload."created (utc)")': Partition("day", ("payload", "created (utc)")),
    '"say ""hi"""': Partition("identity", ('say "hi"',)),
    "created at": Partition("identity", ("created at",)),
    "größe": Partition("identity", ("größe",)),
}


@pytest.mark.parametrize("text", FORMS)
def test_every_form_is_read_and_written_so_that_it_is_read_the_same(text: str) -> None:
    found = parse_partition(text)
    assert found == FORMS[text]
    assert parse_partition(str(found)) == found


@pytest.mark.parametrize(
    ("text", "name", "transform"),
    [
        ("region", "region", "identity"),
        ("year(ts)", "ts_year", "year"),
        ("month(ts)", "ts_month", "month"),
        ("day(ts)", "ts_day", "day"),
        ("hour(ts)", "ts_hour", "hour"),
        ("void(x)", "x_null", "void"),
        ("bucket(16, id)", "id_bucket_16", "bucket[16]"),
        ("truncate(4, payload.name)", "payload.name_trunc_4", "truncate[4]"),
    ],
)
def test_names_and_transforms_are_those_of_iceberg(text: str, name: str, transform: str) -> None:
    found = parse_partition(text)
    assert (found.usual_name, found.iceberg_transform) == (name, transform)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        ("days(ts)", "there is no days"),
        ("Day(ts)", "there is no Day"),
        ("day()", "must be a column"),
        ("day(a, b)", "quoted"),
        ("day(ts", "must be a column"),
        ("day(day(ts))", "must be a column"),
        ("a,b", "must be a column"),
        ("a..b", "must be a column"),
        (".a", "must be a column"),
        ("a.", "must be a column"),
        ('"a', "must be a column"),
        ('""', "must be a column"),
        ("bucket(id)", "must begin with a number"),
        ("bucket(-1, id)", "must begin with a number"),
        ("bucket(1.5, id)", "must begin with a number"),
        ("truncate(0, id)", "1..2147483647"),
        (f"truncate({NUMBER_MAX + 1}, id)", "1..2147483647"),
        ("truncate(4,)", "must be a column"),
    ],
)
def test_what_is_no_form_breaks_a_rule(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse_partition(text)


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (["a", "b", "a"], "each partition once: a is there twice"),
        (["bucket(4, a)", 'bucket(4,"a")'], "bucket.4, a. is there twice"),
        (["year(t)", "hour(t)"], r"one of year\(t\) and hour\(t\)"),
    ],
)
def test_what_says_the_same_twice_breaks_a_rule(texts: list[str], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse_partition_by(texts)


def test_one_column_may_be_there_in_several_ways() -> None:
    texts = ["bucket(4, a)", "bucket(8, a)", "a", "day(a)", "day(b)", "truncate(2, a)", "truncate(3, a)"]
    assert [str(one) for one in parse_partition_by(texts)] == texts

"""A table that stops says so once, in one line: which record it does not take, what is at fault, which rule, and no row's value."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField, StringType, TimestampType
from structlog.testing import capture_logs

from tests.harness.waiting import wait_until_async
from tests.writer.half import COLUMNS, Half, half

Work = Callable[[Half], Any]


async def fenced(h: Half) -> int:
    """A newer writer owns it."""
    h.hand.declare()
    h.hand.insert({"id": 1, "note": "a"})
    assert (await h.flush())["success"]
    with h.catalog().load_table("default.t").transaction() as claim:
        claim.set_properties({"dolake.epoch": "99"})
    return h.hand.insert({"id": 2, "note": "b"})


async def gone(h: Half) -> int:
    """Somebody dropped it from the catalog."""
    h.hand.declare()
    h.hand.insert({"id": 1, "note": "a"})
    assert (await h.flush())["success"]
    h.catalog().drop_table("default.t")
    return h.hand.insert({"id": 2, "note": "b"})


async def not_truncated(h: Half) -> int:
    """A value that its partition has no name for."""
    first = h.hand.declare()
    h.hand.insert({"id": -(2**63), "note": "secret"})
    return first


async def renamed_away(h: Half) -> int:
    """A masked column gets a name that is not masked."""
    h.hand.declare()
    h.hand.insert({"id": 1, "note": "a"})
    return h.hand.declare(columns=[COLUMNS[0], {"name": "remark", "type": "string", "nullable": True, "renamedFrom": "note"}])


async def not_ours(h: Half) -> int:
    """Somebody else made it, with a column of a type that dolake does not write."""
    make_foreign_table(h)
    return h.hand.insert({"id": 1, "note": "a"})


def make_foreign_table(h: Half) -> None:
    catalog = h.catalog()
    catalog.create_namespace("default")
    schema = Schema(NestedField(1, "id", LongType()), NestedField(2, "at", TimestampType()))
    metadata = Path(catalog.create_table("default.t", schema).metadata_location.removeprefix("file://"))
    metadata.write_text(metadata.read_text().replace('"timestamp"', '"timestamp_ns"'))  # PyIceberg cannot write it either.


async def not_our_offset(h: Half) -> int:
    """Somebody made it with a column named as one of ours, of another type."""
    h.catalog().create_namespace("default")
    h.catalog().create_table("default.t", Schema(NestedField(1, "id", LongType()), NestedField(2, "_cdc_offset", StringType())))
    return h.hand.insert({"id": 1, "note": "a"})


def by(partition: str) -> dict[str, Any]:
    return {"tables": {"t": {"partition_by": [partition]}}}


@pytest.mark.parametrize(
    ("happens", "sections", "field", "rule"),
    [
        (fenced, {}, "dolake.epoch", "fenced: a newer writer owns it (epoch 99, ours is 1)"),
        (gone, {}, "table", "it was dropped from the catalog"),
        (not_truncated, by("truncate(10, id)"), "partition_by", "truncate[10] rounds it down below every long"),
        (renamed_away, {"tables": {"t": {"mask": ["note"]}}, "mask_key": "k" * 16}, "remark", "column remark was note"),
        (not_our_offset, {}, "columns", "_cdc_offset is of type string, and dolake writes long"),
        (not_ours, {}, "columns", "columns of type timestamp_ns are not written by dolake"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_stopped_table_is_logged_once_with_record_field_and_rule(
    tmp_path: Path, happens: Work, sections: dict[str, Any], field: str, rule: str
) -> None:
    async def work() -> None:
        with capture_logs() as lines:
            async with half(tmp_path, **sections) as h:
                offset = await happens(h)
                h.hand.insert({"id": 7, "note": "c"}, table="other")
                result = await h.flush()
                assert not result["success"]
                h.hand.insert({"id": 3, "note": "d"})  # More that it does not take is no news.
                await h.flush()
                await wait_until_async(lambda: h.values("default.other") == [7], "another table to go on")
                log = h.log.log_id
                stopped = h.reports[-1]["tables"]["default.t"]["stopped"]
        said = [line for line in lines if line["event"] == "table stopped"]
        assert len(said) == 1, said
        line = said[0]
        assert set(line) == {"event", "log_level", "table", "log", "offset", "field", "rule"}
        assert (line["log_level"], line["table"], line["log"], line["offset"]) == ("error", "default.t", log, offset)
        assert line["field"] == field
        assert rule in line["rule"]
        assert str(2**63) not in str(lines)
        assert {name: stopped[name] for name in ("log", "offset", "field", "rule")} == {
            name: line[name] for name in ("log", "offset", "field", "rule")
        }

    asyncio.run(work())

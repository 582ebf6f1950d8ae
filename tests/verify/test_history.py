"""Histories made by hand: each rule about offsets, epochs and time flags its own breach."""

from __future__ import annotations

from typing import Any

from dolake.iceberg.metadata import LoadedTable
from dolake.model import TableName
from dolake.verify.history import verify_history


def snapshot(number: int, *, time: int = 0, epoch: int = 1, instance: str = "a", offset: int | None = None, **more: str) -> dict[str, Any]:
    summary = {"operation": "append", "dolake.epoch": str(epoch), "dolake.instance": instance, **more}
    if offset is not None:
        summary["dolake.offset.x"] = str(offset)
    return {"snapshot-id": number, "parent-snapshot-id": number - 1, "timestamp-ms": time or number, "summary": summary}


def found(*snapshots: dict[str, Any], **properties: str) -> list[str]:
    head = snapshots[-1]
    ours = {
        "dolake.offset.x": head["summary"].get("dolake.offset.x", "0"),
        "dolake.epoch": head["summary"].get("dolake.epoch", "1"),
        **{key.replace("_", "."): value for key, value in properties.items()},
    }
    metadata = {"snapshots": list(snapshots), "current-snapshot-id": head["snapshot-id"], "properties": ours}
    table = LoadedTable(TableName("default", "t"), metadata, "file:///m.json")
    return [f"{breach.invariant}: {breach.sentence}" for breach in verify_history(table)]


def test_a_history_that_only_rises_is_sound():
    assert found(snapshot(1, offset=3), snapshot(2, offset=3), snapshot(3, offset=9, epoch=2, instance="b")) == []


def test_offsets_that_fall_are_i4_unless_somebody_rewound():
    assert found(snapshot(1, offset=3), snapshot(2, offset=2)) == ["I4: snapshot 2 takes log x back from offset 3 to 2"]
    first = snapshot(1, offset=2), snapshot(2, offset=3)
    assert found(*first, snapshot(3, offset=2, **{"dolake.rewind": "1"})) == []
    sentence = "I4: snapshot 3 rewinds log x to offset 1, and the snapshot it names is at 2"
    assert found(*first, snapshot(3, offset=1, **{"dolake.rewind": "1"})) == [sentence]
    falls = "I4: snapshot 4 takes log x back from offset 2 to 1"
    assert found(*first, snapshot(3, offset=2, **{"dolake.rewind": "1"}), snapshot(4, offset=1)) == [falls]


def test_a_property_that_is_not_what_the_newest_snapshot_says_is_i4():
    assert found(snapshot(1, offset=3), dolake_offset_x="2") == ["I4: property says offset 2 of log x, the newest snapshot 3"]


def test_an_epoch_with_two_owners_is_i12():
    assert found(snapshot(1, offset=1), snapshot(2, offset=2, instance="b")) == ["I12: snapshot 2: epoch 1 belongs to writer a, not to b"]


def test_an_epoch_that_falls_is_i14():
    (sentence,) = found(snapshot(1, offset=1, epoch=2), snapshot(2, offset=2, epoch=1, instance="b"))
    assert sentence == "I14: snapshot 2 was committed under epoch 1 after epoch 2: a writer that was replaced"


def test_time_that_goes_back_is_i14():
    (sentence,) = found(snapshot(1, offset=1, time=9), snapshot(2, offset=2, time=8))
    assert sentence == "I14: snapshot 2 is dated 8 ms, before its parent at 9 ms"


def test_snapshots_of_others_are_passed_over():
    foreign = {"snapshot-id": 2, "parent-snapshot-id": 1, "timestamp-ms": 5, "summary": {"operation": "append"}}
    assert found(snapshot(1, offset=3), foreign, snapshot(3, offset=4, time=6)) == []

"""Which letters go back together, and under which name."""

from __future__ import annotations

import json
from typing import Any

from dolake.cli.replaying import KnownLetter, batches_of, event_of, letter_id


def letter(table: str, offset: int, sequence: int, *, source: str = "s", named: str = "t") -> KnownLetter:
    event = json.dumps({"sequence": sequence, "table": named}).encode()
    row: dict[str, Any] = {
        "table_name": table, "_cdc_log": "log", "_cdc_offset": offset, "_cdc_index": 0, "_cdc_source": source, "_cdc_epoch": "",
        "_cdc_sequence": sequence, "event": event, "outcome": "dead",
    }  # fmt: skip
    return KnownLetter(letter_id((table, "log", offset, 0)), (row,))


def test_an_event_that_a_mirror_and_its_changelog_kept_out_goes_back_once_under_the_mirrors_name() -> None:
    letters = [
        letter("default.t__changes", 2, 7), letter("default.t", 1, 3), letter("default.t", 2, 7), letter("default.t__changes", 3, 9),
        letter("default.u", 1, 4), letter("default.t", 5, 1, source="other"),
    ]  # fmt: skip
    sent = [[(one.newest["_cdc_sequence"], json.loads(event_of(one))["table"]) for one in batch] for batch in batches_of(letters)]
    assert sent == [[(1, "t")], [(3, "t"), (7, "t"), (9, "t")], [(4, "default.u")]]


def test_numbers_that_do_not_rise_go_in_another_batch() -> None:
    letters = [letter("default.t", 1, 3), letter("default.t", 8, 3)]
    assert [len(batch) for batch in batches_of(letters)] == [1, 1]

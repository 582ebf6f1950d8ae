"""Any sequence of changes, schema changes, flushes, deaths and damaged indexes leaves in a mirror what a dict holds."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.writer.half import Half, half

KEYS = st.integers(0, 8)
NUMBERS = st.integers(-(1 << 31), (1 << 31) - 1)
LARGE = st.integers(1 << 31, (1 << 63) - 1)
TEXTS = st.one_of(st.none(), st.text(max_size=4))
Row = dict[str, Any]


class MirrorMachine(RuleBasedStateMachine):
    """`rows` is what the table must be; `sent` events since the last flush are in the log, and may not be in the table yet."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.path = Path(tempfile.mkdtemp(prefix="dolake-machine-"))
        self.rows: dict[int, Row] = {}
        self.letters = 0
        self.columns: dict[str, str] = {"big": "string", "n": "int"}
        self.running: AbstractAsyncContextManager[Half] | None = None
        self.sequences: dict[str, Any] = {}
        self.numbers: dict[str, Any] = {}
        self.flushed = False

    # -- a writer

    @initialize(partitioned=st.booleans())
    def begin(self, partitioned: bool) -> None:
        partition = {"partition_by": ["bucket(2, n)"]} if partitioned else {}
        self.tables = {"*.*": {"mode": "mirror", **partition}}
        self.start()
        self.declare()

    def start(self, clean: bool = False) -> None:
        self.running = half(self.path, stop_cleanly=clean, tables=self.tables)
        self.half = self.loop.run_until_complete(self.running.__aenter__())
        self.half.hand.sequences, self.half.hand.numbers = self.sequences, self.numbers

    def stop(self) -> None:
        if self.running is not None:
            self.loop.run_until_complete(self.running.__aexit__(None, None, None))
            self.running = None

    @rule(clean=st.booleans(), clean_next=st.booleans())
    def begin_again(self, clean: bool, clean_next: bool) -> None:
        """Another writer takes over, from one that stopped in order or died with all that it had in memory."""
        self.stop()
        self.start(clean_next)

    @rule(share=st.floats(0, 1), lost=st.booleans())
    def damage_the_index(self, share: float, lost: bool) -> None:
        self.stop()
        for path in sorted((self.path / "index").rglob("*")):
            if path.is_file():
                whole = path.read_bytes()
                path.write_bytes(whole[: int(len(whole) * share)])
        if lost:
            shutil.rmtree(self.path / "index", ignore_errors=True)
        self.start()

    # -- a source

    def declare(self) -> None:
        columns = [{"name": "id", "type": "long", "nullable": False}]
        self.half.hand.declare(columns=[*columns, *({"name": n, "type": t, "nullable": True} for n, t in self.columns.items())])

    def image(self, key: int, number: int, text: str | None) -> Row:
        more = {name: text for name in self.columns if name.startswith("more")}
        return {"id": key, "n": number, "big": text, **more}

    @rule(key=KEYS, number=NUMBERS, text=TEXTS)
    def insert(self, key: int, number: int, text: str | None) -> None:
        image = self.image(key, number, text)
        self.half.hand.change({"operation": "INSERT", "after": image})
        self.rows[key] = image

    @rule(old=KEYS, key=KEYS, number=NUMBERS, text=TEXTS)
    def update(self, old: int, key: int, number: int, text: str | None) -> None:
        image = self.image(key, number, text)
        self.half.hand.change({"operation": "UPDATE", "before": {"id": old}, "after": image})
        self.rows.pop(old, None)
        self.rows[key] = image

    @rule(old=KEYS, key=KEYS, number=NUMBERS)
    def update_without_its_large_value(self, old: int, key: int, number: int) -> None:
        event = {"operation": "UPDATE", "before": {"id": old}, "after": {"id": key, "n": number}, "metadata": {"unchanged": ["big"]}}
        self.half.hand.change(event)
        if old not in self.rows:
            self.letters += 1
            return
        big = self.rows.pop(old)["big"]
        self.rows[key] = {"id": key, "n": number, "big": big}

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        self.half.hand.change({"operation": "DELETE", "before": {"id": key}})
        self.rows.pop(key, None)

    @rule()
    def truncate(self) -> None:
        self.half.hand.change({"operation": "TRUNCATE"})
        self.rows.clear()

    @rule(key=KEYS, number=LARGE)
    def insert_too_large_a_number(self, key: int, number: int) -> None:
        image = self.image(key, number, None)
        self.half.hand.change({"operation": "INSERT", "after": image})
        if self.columns["n"] == "int":
            self.letters += 1
        else:
            self.rows[key] = image

    @rule()
    def add_a_column(self) -> None:
        self.columns[f"more{len(self.columns)}"] = "string"
        self.declare()

    @rule()
    def widen(self) -> None:
        if self.columns["n"] == "int" and "bucket" not in str(self.tables):
            self.columns["n"] = "long"
            self.declare()

    # -- what must hold

    @rule()
    def flush(self) -> None:
        result = self.loop.run_until_complete(self.half.flush())
        assert result["success"], result
        catalog = self.half.catalog()
        if not catalog.table_exists("default.t"):
            return
        names = ["id", "n", "big", *(name for name in self.columns if name.startswith("more"))]
        found = {key: {name: row.get(name) for name in names} for key, row in self.half.mirrored().items()}
        assert found == {key: {name: row.get(name) for name in names} for key, row in self.rows.items()}
        properties = catalog.load_table("default.t").properties
        counts = [int(properties.get(f"dolake.count.{name}", "0")) for name in ("accepted", "dead-lettered", "folded", "removed")]
        assert counts[0] - sum(counts[1:]) == len(self.rows)
        assert counts[1] == self.letters

    @rule(key=KEYS, number=NUMBERS, text=TEXTS)
    def flush_a_change_of_its_own(self, key: int, number: int, text: str | None) -> None:
        self.insert(key, number, text)
        self.flush()

    @rule(key=KEYS)
    def flush_a_deletion_of_its_own(self, key: int) -> None:
        self.delete(key)
        self.flush()

    @invariant()
    def nothing_has_stopped(self) -> None:
        if self.running is not None:
            assert [table.stopped for table in self.half.service.tables.values() if table.stopped] == []

    def teardown(self) -> None:
        try:
            if self.running is not None:
                self.flush()
        finally:
            self.stop()
            self.loop.close()
            shutil.rmtree(self.path)


MirrorMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # A step takes tens of milliseconds: what is found is told as it was found.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestMirrorMachine = MirrorMachine.TestCase

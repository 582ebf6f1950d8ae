"""Equal names of two databases kept apart: which table a source means by a name, everywhere the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from dolake.config import Settings, TableNames, mapped_name
from dolake.model import TransactionMark
from tests.cdc.samples import SCHEMA, batch, event
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.ingest.rig import Peer, serving
from tests.writer.half import half, until

EU = {"sources": {"eu": {"namespace": "eu_*"}, "us": {"namespace": "america"}}}


@pytest.mark.parametrize(
    ("text", "namespace", "table"),
    [
        ("orders", None, "default.orders"),
        ("public.orders", None, "public.orders"),
        ("public.orders", "eu", "eu.orders"),
        ("other.orders", "eu", "eu.orders"),
        ("orders", "eu", "eu.orders"),
        ("public.orders", "eu_*", "eu_public.orders"),
        ("orders", "eu_*", "eu_default.orders"),
        ("public.orders", "*_eu", "public_eu.orders"),
        ("public.orders", "*", "public.orders"),
        ("public.orders", "default", "default.orders"),
    ],
)
def test_a_name_and_a_namespace_are_a_table(text: str, namespace: str | None, table: str) -> None:
    assert str(mapped_name(text, namespace)) == table


@pytest.mark.parametrize(
    ("text", "namespace", "rule"),
    [
        ("../evil", "eu", "each part"),
        ("dolake.dead_letters", "eu", "dolake's own"),
        ("public.orders__changes", "eu", "dolake's own"),
        ("lake.orders", "do*", "dolake's own; this source's tables live in the namespace 'do*', so it is 'dolake.orders'"),
        ("n" * 128 + ".orders", "eu_*", "each part"),
    ],
)
def test_the_rules_of_a_name_hold_before_and_after(text: str, namespace: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule.replace("*", r"\*")):
        mapped_name(text, namespace)


def test_the_most_specific_pattern_of_a_source_decides() -> None:
    namespaces = {"*": {"namespace": "all"}, "eu*": {"namespace": "eu"}, "eu.db": {"namespace": "exact"}, "eu*x": {}}
    names = TableNames(Settings.model_validate({"data": "/d", "sources": namespaces}))
    found = {source: names.of(source, "public.t").namespace for source in ("eu.db", "eu-db", "eu x", "ü\n", "_dead_letters")}
    assert found == {"eu.db": "exact", "eu-db": "eu", "eu x": "eu", "ü\n": "all", "_dead_letters": "public"}


def test_the_writer_keeps_sources_apart_and_their_transactions_whole(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, **EU) as h:
            for source in ("eu", "us", "asia"):
                h.hand.declare("public.orders", source=source)
                h.hand.declare("orders", source=source)
                h.hand.batch([("public.orders", {"id": 1, "note": source}), ("default.orders", {"id": 2})], source=source)
            h.hand.insert({"id": 3}, table="public.orders", source="eu", transaction=TransactionMark("t", last=False))
            end = h.log.synced_end
            await until(lambda: h.service.tails and h.service.tails[h.log.log_id].position == end)
            (open_,) = h.service.tails[h.log.log_id].transactions.open()
            assert open_.tables == {"eu_public.orders"}
            h.hand.insert({"id": 4}, table="public.orders", source="eu", transaction=TransactionMark("t", last=True))
            assert (await h.flush())["success"]
            notes = {table: h.values(table, "note") for table in ("eu_public.orders", "eu_default.orders", "public.orders")}
            assert notes == {"eu_public.orders": ["eu", None, None], "eu_default.orders": [None], "public.orders": ["asia"]}
            assert h.values("america.orders") == [1, 2]
            assert {row["_cdc_source"] for row in h.rows("america.orders")} == {"us"}

    asyncio.run(work())


def test_a_name_that_the_settings_make_impossible_stops_the_log_and_says_what_to_change(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, stop_cleanly=False, sources={"s": {"namespace": "do*"}}) as h:
            h.hand.declare("lake.orders")
            await until(lambda: h.service.tails and h.service.tails[h.log.log_id].trouble)
            trouble = h.service.tails[h.log.log_id].trouble
            assert trouble.startswith("sources.s.namespace: ")
            assert "so it is 'dolake.orders' (got lake.orders)" in trouble

    asyncio.run(work())


def test_a_source_hears_at_once_that_its_table_cannot_be_called_so(tmp_path: Path) -> None:
    async def work() -> None:
        async with asyncio.timeout(30), serving(tmp_path, sources={"*": {"namespace": "do*"}}) as service:
            peer = Peer(service)
            await peer.greet()
            for message in ({**SCHEMA, "table": "lake.orders"}, batch(0, count=1, events=[event(0, table="lake.orders")])):
                answer: dict[str, Any] = await peer.ask(message)
                assert (answer["type"], answer["reason"], answer["shouldRetry"]) == ("nack", "invalid_format", False)
                assert "table: " in answer["errorMessage"]
                assert "'dolake.orders' (got lake.orders)" in answer["errorMessage"]
            assert (await peer.ask(batch(0)))["status"] == "ok"

    asyncio.run(work())


def test_two_databases_with_one_schema_are_two_tables_of_a_daemon(tmp_path: Path) -> None:
    toml = '[sources.eu]\nnamespace = "eu_*"\n'
    lines = [
        {"type": "schema", "table": "public.orders", "primaryKey": ["id"], "columns": [{"name": "id", "type": "long", "nullable": False}]},
        {"timestamp": 1, "operation": "INSERT", "table": "public.orders", "after": {"id": 7}},
    ]
    file = tmp_path / "events"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Daemon(tmp_path / "data", table_settings=toml) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        for source in ("eu", "us"):
            sent = daemon.run("send", str(file), "--source", source, "--wait", "persisted")
            assert sent.returncode == 0, sent.stderr
        for table, source in (("eu_public.orders", "eu"), ("public.orders", "us")):
            assert lake.query(f"SELECT id, _cdc_source FROM iceberg_scan('{lake.metadata_location(table)}')") == [(7, source)]
        verified = daemon.run("verify")
        assert (verified.returncode, verified.stdout) == (0, "no breach\n")


def test_dead_letters_of_a_mapped_source_come_back_into_its_own_table(tmp_path: Path) -> None:
    """The events still say the source's name for the table; the other table of that name must not get them."""
    columns = [{"name": "id", "type": "long", "nullable": False}, {"name": "n", "type": "int", "nullable": True}]
    declared = {"type": "schema", "table": "public.orders", "primaryKey": ["id"], "columns": columns}
    wide = {**declared, "columns": [columns[0], {**columns[1], "type": "long"}]}
    large = {"timestamp": 1, "operation": "INSERT", "table": "public.orders", "after": {"id": 7, "n": 1 << 40}}
    file = tmp_path / "events"
    with Daemon(tmp_path / "data", table_settings='[sources.eu]\nnamespace = "eu_*"\n') as daemon, Lake(daemon.data) as lake:
        daemon.start()
        for source, *lines in (
            ("eu", declared, large),
            ("us", wide, {**large, "after": {"id": 8}}),
            ("eu", wide, large, {**large, "after": {"id": 9}}),
        ):
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            sent = daemon.run("send", str(file), "--source", str(source), "--wait", "persisted")
            assert sent.returncode == 0, sent.stderr
        again = daemon.run("dead-letters", "replay", "--json")
        assert json.loads(again.stdout) == {"sent": 1, "dead": 0, "replayed": 1, "superseded": 0}, again.stderr
        for table, rows in (("eu_public.orders", [(7, 1 << 40, "eu"), (9, None, "eu")]), ("public.orders", [(8, None, "us")])):
            scan = f"iceberg_scan('{lake.metadata_location(table)}')"
            assert lake.query(f"SELECT id, n, _cdc_source FROM {scan} ORDER BY id") == rows
        assert daemon.run("verify").stdout == "no breach\n"

"""Metrics: one table of names, values that add up, and text that Prometheus reads."""

from __future__ import annotations

import re

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dolake.metrics import METRICS, Metrics, observe_process, render

UNITS = ("bytes", "seconds", "count", "offset", "total")


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(text.decode())
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def test_every_name_says_its_part_and_unit_and_counters_end_in_total() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"dolake_[a-z]+(_[a-z]+)+", name), name
        assert name.endswith(UNITS), name
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.help, name


def test_values_survive_the_control_socket_and_come_out_as_prometheus_text() -> None:
    ingest, writer = Metrics(), Metrics()
    ingest.add("dolake_cdc_acks_total", 2, status="ok")
    ingest.add("dolake_cdc_acks_total", status="ok")
    ingest.add("dolake_cdc_acks_total", status='odd "one"\n')
    ingest.set("dolake_wal_synced_offset", 2**53, log="a")
    for seconds in (0.0005, 0.001, 0.004, 99):
        ingest.observe("dolake_cdc_ack_seconds", seconds)
    observe_process(writer, "writer")
    carried = {name: orjson.loads(orjson.dumps(half.values())) for name, half in {"ingest": ingest, "writer": writer}.items()}
    found = samples(render(carried))
    assert found[("dolake_cdc_acks_total", (("status", "ok"),))] == 3
    assert found[("dolake_cdc_acks_total", (("status", 'odd "one"\n'),))] == 1
    assert found[("dolake_wal_synced_offset", (("log", "a"),))] == 2**53
    assert found[("dolake_cdc_ack_seconds_bucket", (("le", "0.001"),))] == 2
    assert found[("dolake_cdc_ack_seconds_bucket", (("le", "0.005"),))] == 3
    assert found[("dolake_cdc_ack_seconds_bucket", (("le", "+Inf"),))] == 4
    assert found[("dolake_cdc_ack_seconds_count", ())] == 4
    assert found[("dolake_cdc_ack_seconds_sum", ())] == pytest.approx(99.0055)
    assert found[("dolake_process_memory_bytes", (("process", "writer"),))] > 10**6


def test_every_metric_is_announced_even_without_a_value() -> None:
    text = render({}).decode()
    for name in METRICS:
        assert f"# HELP {name} " in text


def test_values_of_another_version_do_not_break_the_page() -> None:
    assert b"dolake_cdc_events_total 7" in render({"ingest": {"dolake_new_things_count": [[[], 1]], "dolake_cdc_events_total": [[[], 7]]}})


def test_names_and_labels_outside_the_table_are_refused() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.add("dolake_cdc_evnts_total")
    with pytest.raises(KeyError):
        metrics.add("dolake_cdc_acks_total")
    with pytest.raises(KeyError):
        metrics.add("dolake_cdc_acks_total", reason="ok")
    with pytest.raises(KeyError):
        metrics.add("dolake_wal_synced_offset", log="a")
    with pytest.raises(KeyError):
        metrics.observe("dolake_cdc_events_total", 1)
    assert metrics.values() == {}


def test_a_value_can_be_read_and_forgotten() -> None:
    metrics = Metrics()
    metrics.set("dolake_wal_low_offset", 5, log="a")
    assert metrics.get("dolake_wal_low_offset", log="a") == 5
    metrics.forget("dolake_wal_low_offset", log="a")
    assert metrics.get("dolake_wal_low_offset", log="a") == 0
    assert metrics.values() == {"dolake_wal_low_offset": []}

from __future__ import annotations

import pytest

from dolake.ingest.pressure import Pressure, plan_backlog_bytes_max, plan_pressure, plan_retry_ms


@pytest.mark.parametrize(
    ("backlog", "pressure"),
    [
        (0, Pressure(0.0)),
        (800, Pressure(0.8)),
        (801, Pressure(0.801, 5)),
        (900, Pressure(0.9, 500)),
        (999, Pressure(0.999, 995)),
        (1000, Pressure(1.0, 1000, full=True)),
        (5000, Pressure(5.0, 1000, full=True)),
    ],
)
def test_pressure_rises_with_the_backlog(backlog, pressure):
    assert plan_pressure(backlog, 1000) == pressure


@pytest.mark.parametrize(("refused", "delay_ms"), [(0, 100), (1, 200), (5, 3200), (8, 25_600), (9, 30_000), (10_000, 30_000)])
def test_retries_back_off_to_thirty_seconds(refused, delay_ms):
    assert plan_retry_ms(refused, 1.0) == delay_ms
    assert plan_retry_ms(refused, 0.5) == delay_ms / 2


def test_the_bound_is_what_is_set_or_a_fifth_of_the_disk():
    assert plan_backlog_bytes_max(None, 1000) == 200
    assert plan_backlog_bytes_max(7, 1000) == 7
    assert plan_backlog_bytes_max(None, 0) == 1

"""When a source is slowed down and when it is refused: pure arithmetic on bytes.

The backlog is what the log holds and the lake does not. Above 80 % of its bound acks suggest a delay, at 100 % batches are
nacked (protocol, Defaults).
"""

from __future__ import annotations

from dataclasses import dataclass

SLOW_ABOVE = 0.8
SUGGESTED_DELAY_MS_MAX = 1000
RETRY_DELAY_MS_FIRST, RETRY_DELAY_MS_MAX = 100, 30_000
BACKLOG_SHARE_OF_DISK = 0.2


@dataclass(frozen=True)
class Pressure:
    """`utilization` is backlog ÷ bound; `suggested_delay_ms` is None below the line."""

    utilization: float
    suggested_delay_ms: int | None = None
    full: bool = False


def plan_pressure(backlog_bytes: int, backlog_bytes_max: int) -> Pressure:
    utilization = backlog_bytes / backlog_bytes_max
    if utilization <= SLOW_ABOVE:
        return Pressure(utilization)
    share = min(1.0, (utilization - SLOW_ABOVE) / (1 - SLOW_ABOVE))
    return Pressure(utilization, max(1, round(share * SUGGESTED_DELAY_MS_MAX)), utilization >= 1)


def plan_retry_ms(refused_before: int, jitter: float) -> int:
    """100·2ⁿ ms, at most 30 s, times the jitter (0.5 to 1.5)."""
    longest_ms: int = min(RETRY_DELAY_MS_FIRST << min(refused_before, 20), RETRY_DELAY_MS_MAX)
    return round(longest_ms * jitter)


def plan_backlog_bytes_max(configured: int | None, disk_bytes: int) -> int:
    """The bound of one log's backlog: as configured, else a fifth of its disk."""
    return configured if configured is not None else max(1, int(disk_bytes * BACKLOG_SHARE_OF_DISK))

"""What dolake counts: one table of every metric, and the place where each process keeps its values.

A `Metrics` belongs to one process and is handed in. Its `values()` travel over the control socket to the `http` process,
which renders them all as Prometheus text (`render`). Names are `dolake_<part>_<noun>_<unit>[_total]`. Counters begin at 0 when
their process starts (`dolake_process_started_seconds`), as Prometheus expects; what must outlive processes, such as each
table's accepted events, is kept in the tables themselves.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# What `values()` gives: name → [[label values], value] for each combination seen. A histogram's value is the counts of its
# buckets, the last one unbounded, followed by the sum.
Values = dict[str, list[list[Any]]]


@dataclass(frozen=True)
class Metric:
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = _SECONDS


def _counter(help: str, *labels: str) -> Metric:
    return Metric("counter", help, labels)


def _gauge(help: str, *labels: str) -> Metric:
    return Metric("gauge", help, labels)


def _histogram(help: str, *labels: str) -> Metric:
    return Metric("histogram", help, labels)


METRICS: dict[str, Metric] = {
    "dolake_auth_tokens_count": _gauge("Tokens that the ingest half knows, expired ones included; 0 is open to anybody on loopback"),
    "dolake_auth_reloads_total": _counter("Reloads of tokens and certificates: reloaded, or refused for what they hold", "outcome"),
    "dolake_cdc_connections_count": _gauge("Websocket connections open"),
    "dolake_cdc_handshakes_refused_total": _counter("Websocket handshakes refused for their token, or the lack of one", "status"),
    "dolake_cdc_connections_refused_total": _counter("Connections refused at the handshake because there are too many", "reason"),
    "dolake_cdc_dropped_connections_total": _counter("Connections ended because of how the client behaves", "reason"),
    "dolake_cdc_held_bytes": _gauge("Bytes of messages in memory that are in no log yet"),
    "dolake_cdc_loop_lag_seconds": _gauge("How late the ingest half's event loop is"),
    "dolake_cdc_received_bytes_total": _counter("Bytes of messages received"),
    "dolake_cdc_events_total": _counter("Events accepted into a log; repeats not counted"),
    "dolake_cdc_batches_total": _counter("Batches and schema messages accepted into a log; repeats not counted", "kind"),
    "dolake_cdc_acks_total": _counter("Acks sent", "status"),
    "dolake_cdc_nacks_total": _counter("Nacks sent", "reason"),
    "dolake_cdc_duplicate_events_total": _counter("Events of batches that were durable already"),
    "dolake_cdc_takeovers_total": _counter("Connections closed because the source connected again"),
    "dolake_cdc_lost_batches_total": _counter("Batches a source was acked for and no log holds any more: a disk is gone"),
    "dolake_cdc_ack_seconds": _histogram("From a batch's arrival to its ack"),
    "dolake_wal_appended_bytes_total": _counter("Bytes of records written, as they are stored", "log"),
    "dolake_wal_records_total": _counter("Records written for sources: batches and schema messages", "log"),
    "dolake_wal_sync_seconds": _histogram("One group commit: write and fdatasync", "log"),
    "dolake_wal_backlog_bytes": _gauge(
        "Bytes in the log that are not committed yet; of a segment committed in part, the even share", "log"
    ),
    "dolake_wal_backlog_limit_bytes": _gauge("Backlog at which batches are refused", "log"),
    "dolake_wal_synced_offset": _gauge("First offset that is not synced", "log"),
    "dolake_wal_low_offset": _gauge("First offset that some table still needs", "log"),
    "dolake_wal_uncommitted_events_count": _gauge("Events in the log that are not committed yet", "log"),
    "dolake_wal_uncommitted_age_seconds": _gauge("Age of the oldest record that some table still needs; 0 without any", "log"),
    "dolake_wal_trimmed_segments_total": _counter("Segments removed below the low offset", "log"),
    "dolake_wal_lost_records_total": _counter("Records that had been synced and are gone: the disk forgot them", "log"),
    "dolake_wal_torn_tail_total": _counter("Torn tails found and left behind by recovery", "log"),
    "dolake_wal_corrupt_count": _gauge("1 while the log in this directory is stopped at bytes that do not verify", "directory"),
    "dolake_wal_failures_total": _counter("Failed writes or syncs: each closes the log and reopens it by recovery", "log"),
    "dolake_wal_degraded_count": _gauge("1 while the log takes no batches", "log"),
    "dolake_writer_report_age_seconds": _gauge("Since the writer half last said how it stands"),
    "dolake_writer_read_offset": _gauge("First offset that the writer half has not read yet", "log"),
    "dolake_writer_read_bytes_total": _counter("Bytes read from the logs", "log"),
    "dolake_writer_memory_bytes": _gauge("Rows held in memory for coming flushes"),
    "dolake_writer_cut_transactions_total": _counter("Source transactions cut because they were open too long or too large"),
    "dolake_table_events_total": _counter("Events committed", "table"),
    "dolake_table_dead_letters_total": _counter("Events kept out of their table as dead letters", "table"),
    "dolake_table_committed_offset": _gauge("First offset of a log that the table has not committed", "table", "log"),
    "dolake_table_uncommitted_events_count": _gauge("Events that are read and not committed yet", "table"),
    "dolake_table_uncommitted_age_seconds": _gauge("How long the oldest of them has been waiting since it was read", "table"),
    "dolake_table_stopped_count": _gauge("Tables that take no more rows until somebody looks; parked ones not counted"),
    "dolake_table_parked_count": _gauge("Tables whose records wait in side logs"),
    "dolake_table_parked_bytes": _gauge("Bytes of the side logs of parked tables"),
    "dolake_table_contested_keys_total": _counter("Keys of a mirror that were found written by more than one source", "table"),
    "dolake_flush_folded_events_total": _counter("Events of mirrors without a row: later ones of their key have one, or they delete"),
    "dolake_flush_delete_files_total": _counter("Files of position deletes written"),
    "dolake_flush_deleted_rows_total": _counter("Rows that mirrors' flushes took out of their tables"),
    "dolake_index_rows_count": _gauge("Living rows that the key index of a mirror knows", "table"),
    "dolake_index_bytes": _gauge("Bytes of a key index, in memory and in mapped files", "table"),
    "dolake_index_lookups_total": _counter("Keys that were looked up in key indexes"),
    "dolake_index_hits_total": _counter("Rows that were found for them"),
    "dolake_index_rebuilds_total": _counter("Key indexes made anew from their table"),
    "dolake_index_repairs_total": _counter("Key indexes brought to their table's head by the files they did not know"),
    "dolake_flush_files_total": _counter("Data files written"),
    "dolake_flush_file_bytes_total": _counter("Bytes of data files written"),
    "dolake_flush_runs_total": _counter("Flushes committed, by what made them due", "reason"),
    "dolake_flush_seconds": _histogram("One flush of a table: encode, put, commit"),
    "dolake_compaction_runs_total": _counter("Rewrites of a table's files, by how they ended: done, given_up, failed", "outcome"),
    "dolake_compaction_running_count": _gauge("Rewrites under way"),
    "dolake_compaction_seconds": _histogram("One rewrite, from its beginning to its snapshot"),
    "dolake_compaction_read_bytes_total": _counter("Bytes of files that rewrites have read"),
    "dolake_compaction_written_bytes_total": _counter("Bytes of data files that rewrites have written"),
    "dolake_compaction_files_removed_total": _counter("Data and delete files whose place fewer ones have taken"),
    "dolake_compaction_carried_rows_total": _counter("Rows deleted while their file was rewritten, and deleted again in the new one"),
    "dolake_compaction_debt_bytes": _gauge("Bytes that would be rewritten now if there were time", "table"),
    "dolake_compaction_left_files_count": _gauge("Files that a rewrite could be wanted of and that are left alone", "table"),
    "dolake_maintenance_purged_objects_total": _counter("Objects deleted that no snapshot needed any more", "table"),
    "dolake_maintenance_purged_bytes_total": _counter("Bytes of these", "table"),
    "dolake_maintenance_unreferenced_objects_count": _gauge("Objects that no snapshot needs and that are still there", "table"),
    "dolake_maintenance_unreferenced_bytes": _gauge("Bytes of these", "table"),
    "dolake_ttl_expired_rows_total": _counter("Rows that a table's ttl has removed", "table"),
    "dolake_ttl_removed_files_total": _counter("Data files that left a table because all their rows had expired", "table"),
    "dolake_ttl_put_off_count": _gauge("1 where rows cannot expire for now: the log says why", "table"),
    "dolake_table_data_files_count": _gauge("Data files of the table's newest snapshot", "table"),
    "dolake_table_delete_files_count": _gauge("Delete files of the table's newest snapshot", "table"),
    "dolake_cut_commits_total": _counter("Cuts committed: all tables of a group in one transaction of the catalog", "group"),
    "dolake_cut_left_behind_count": _gauge("Tables of the group that are not committed with it now: stopped, or parked", "group"),
    "dolake_commit_attempts_total": _counter("Tries to swap a table's metadata"),
    "dolake_commit_landed_total": _counter("Snapshots of ours that landed, those found by looking included"),
    "dolake_commit_conflicts_total": _counter("Tries that came second to somebody else's commit"),
    "dolake_commit_unknown_total": _counter("Tries whose outcome had to be looked up"),
    "dolake_commit_seconds": _histogram("One commit, all its tries"),
    "dolake_http_refused_requests_total": _counter("HTTP requests refused for their token, or the lack of one", "status"),
    "dolake_store_up_count": _gauge("1 while the object store answers the writer"),
    "dolake_catalog_up_count": _gauge("1 while the catalog answers the writer"),
    "dolake_circuit_open_count": _gauge(
        "1 while the store or the catalog has failed so often that one try at a time is made, at each step of one backoff", "part"
    ),
    "dolake_circuit_failures_total": _counter("Tries that the store or the catalog did not answer, or refused", "part"),
    "dolake_http_catalog_reports_total": _counter("Metrics reports that clients of the REST catalog sent in: scan or commit", "kind"),
    "dolake_http_requests_total": _counter("HTTP requests answered; status `gone`: the client left before", "path", "status"),
    "dolake_http_request_seconds": _histogram("From an HTTP request's head to its answer", "path"),
    "dolake_process_up_count": _gauge("1 while the process answers", "process"),
    "dolake_process_memory_bytes": _gauge("Resident memory of the process", "process"),
    "dolake_process_cpu_seconds_total": _counter("Processor time used by the process", "process"),
    "dolake_process_started_seconds": _gauge("When the process started, seconds since the epoch", "process"),
}


class Metrics:
    """The values of one process. A name or label that METRICS does not list is a KeyError, so that the table stays whole."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[str, dict[tuple[str, ...], list[float]]] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Counts up a counter."""
        key = _key(name, "counter", labels)
        values = self._numbers.setdefault(name, {})
        values[key] = values.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge, or a counter that somebody else counts (the system's processor time)."""
        self._numbers.setdefault(name, {})[_key(name, None, labels)] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds an observation to a histogram."""
        key = _key(name, "histogram", labels)
        buckets = METRICS[name].buckets
        counts = self._histograms.setdefault(name, {}).setdefault(key, [0.0] * (len(buckets) + 2))
        counts[bisect.bisect_left(buckets, value)] += 1
        counts[-1] += value

    def forget(self, name: str, **labels: str) -> None:
        """Drops one combination of labels: its log or table is gone."""
        self._numbers.get(name, {}).pop(_key(name, None, labels), None)

    def get(self, name: str, **labels: str) -> float:
        """The value now; 0 before the first."""
        return self._numbers.get(name, {}).get(_key(name, None, labels), 0)

    def values(self) -> Values:
        """Everything, as JSON can carry it."""
        found: Values = {}
        for source in (self._numbers, self._histograms):
            for name, values in source.items():
                found[name] = [[list(key), value if not isinstance(value, list) else list(value)] for key, value in values.items()]
        return found


def _key(name: str, kind: str | None, labels: Mapping[str, str]) -> tuple[str, ...]:
    metric = METRICS[name]
    if kind is not None and metric.kind != kind:
        raise KeyError(f"{name} is a {metric.kind}, not a {kind}")
    if len(labels) != len(metric.labels):
        raise KeyError(f"{name} has the labels {metric.labels}, not {tuple(labels)}")
    return tuple([labels[label] for label in metric.labels])


def observe_process(metrics: Metrics, process: str) -> None:
    """Memory and processor time of this process, as the system says now."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    metrics.set("dolake_process_cpu_seconds_total", usage.ru_utime + usage.ru_stime, process=process)
    metrics.set("dolake_process_memory_bytes", _resident_bytes(usage.ru_maxrss * 1024), process=process)


def _resident_bytes(otherwise: int) -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as figures:
            pages = int(figures.read().split()[1])
    except OSError:
        return otherwise
    import resource

    return pages * resource.getpagesize()


def prepare_to_render() -> None:
    """Imports what `render` needs, which takes its time: two threads that do it at once for the first time may both fail."""
    import prometheus_client.core  # noqa: F401


def render(processes: Mapping[str, Values]) -> bytes:
    """The Prometheus text of the values of several processes. A name that METRICS does not know is left out: it is from
    another version of dolake, half way through an upgrade."""
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import CollectorRegistry

    class Collector:
        def collect(self) -> Iterator[Any]:
            return _families(processes)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def _together(metric: Metric, entries: list[list[Any]]) -> list[tuple[list[str], Any]]:
    """What several processes counted under the same labels is one sum; of gauges the first stands."""
    found: dict[tuple[str, ...], Any] = {}
    for labels, value in entries:
        key = tuple(labels)
        if key not in found:
            found[key] = value
        elif metric.kind == "counter":
            found[key] += value
        elif metric.kind == "histogram":
            found[key] = [one + other for one, other in zip(found[key], value, strict=True)]
    return [(list(key), value) for key, value in found.items()]


def _families(processes: Mapping[str, Values]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for name, metric in METRICS.items():
        found = _together(metric, [entry for values in processes.values() for entry in values.get(name, [])])
        if metric.kind == "histogram":
            family: Any = HistogramMetricFamily(name, metric.help, labels=metric.labels)
            for key, counts in found:
                *buckets, total = counts
                bounds = [*(str(bound) for bound in metric.buckets), "+Inf"]
                rising = [sum(buckets[: index + 1]) for index in range(len(buckets))]
                family.add_metric(key, list(zip(bounds, rising, strict=True)), sum_value=total)
        else:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(name, metric.help, labels=metric.labels)
            for key, value in found:
                family.add_metric(key, value)
        yield family

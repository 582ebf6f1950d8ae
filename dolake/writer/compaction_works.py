"""How compaction goes by the settings, and what is next when somebody asks for all of it: with a daemon and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dolake.compaction.compactor import Compactor
from dolake.compaction.plan import Choice, CompactionPolicy, Plan
from dolake.compaction.spark import SparkRewrite
from dolake.config import Settings
from dolake.iceberg.metadata import LoadedTable
from dolake.model import TableName
from dolake.writer.compaction_runs import Run, RunState

NOTHING_BY_SPARK = "Spark found nothing to rewrite"
# So often is Spark handed a table again, which may be written all the while.
_SPARK_ROUNDS_MAX = 3


def spark_catalog_of(settings: Settings) -> str | None:
    """None where another engine rewrites."""
    return settings.compaction.spark_catalog if settings.compaction.engine == "spark" else None


def policy_of(settings: Settings) -> CompactionPolicy:
    compaction = settings.compaction
    return CompactionPolicy(
        target_bytes=compaction.target_bytes, inputs_min=compaction.inputs_min, deleted_share_max=compaction.deleted_share_max
    )


def policy_of_request(policy: CompactionPolicy) -> CompactionPolicy:
    """Who asks does not wait for more files."""
    return CompactionPolicy(policy.target_bytes, policy.inputs_min, policy.deleted_share_max, policy.input_bytes_max, wait_for_more=False)


def next_work(
    compactor: Compactor, base: LoadedTable, plan: Plan, policy: CompactionPolicy, runs: Sequence[Run]
) -> Choice | SparkRewrite | None:
    """What is to be carried out after `runs`, when somebody asks for all: nothing twice, and Spark as long as it gets somewhere."""
    done = {run.what for run in runs}
    work = next((work for work in compactor.works(base, plan.choices, policy) if work.in_words() not in done), None)
    if isinstance(work, SparkRewrite) and runs and (runs[-1].state is not RunState.DONE or len(runs) >= _SPARK_ROUNDS_MAX):
        return None
    return work


def described(name: TableName, plan: Plan, runs: list[Run], last: list[Run]) -> dict[str, Any]:
    """For whoever asked: what is (still) worth it, what is left alone, what was done now and what before."""
    return {
        "table": str(name),
        "choices": [choice.in_words() for choice in plan.choices],
        "next": [],
        "left": [left.in_words() for left in plan.left],
        "debt_bytes": plan.debt_bytes,
        "runs": [asdict(run) for run in runs],
        "last": [asdict(run) for run in last if run not in runs],
    }

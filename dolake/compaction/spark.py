"""What Spark is asked to do for a table: the plan says when it is worth it, and which files; the calls are Iceberg's own. Pure.

    rewrite_position_delete_files   first where deletes matter: afterwards each delete file speaks of one data file, and Spark, which
                                    counts no other towards the share of a file's rows that is deleted, sees what the plan saw
    rewrite_data_files              the files of the sizes that the plan took, and those that lost too many rows

Each is one commit of Spark's own. It fails where rows of the rewritten files were deleted while it ran (Iceberg looks at every delete
since the snapshot that it began at), so that no deleted row comes back; files keep the sequence number of that snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from dolake.compaction.choice import Choice, Why, in_numbers
from dolake.compaction.plan import CompactionPolicy, Plan
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.entries import FILE_PATH_ID
from dolake.iceberg.metadata import LoadedTable

# So many partitions are named to Spark one by one; of more it is handed the whole table.
_PLACES_MAX = 16
_EPOCH_DAY = date(1970, 1, 1)
# Text that is the same inside two quotations of SQL, whatever the session makes of backslashes.
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9 _.:/+@#-]{0,200}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]{1,128}")


@dataclass(frozen=True)
class SparkRewrite:
    """All of a table that is worth it, as one request: `statements` are for one session, in their order."""

    choices: tuple[Choice, ...]
    statements: tuple[str, ...]

    @property
    def rewritten(self) -> tuple[LiveFile, ...]:
        return tuple(file for choice in self.choices for file in choice.rewritten)

    @property
    def worth(self) -> float:
        """Seconds that readers save for each that it costs."""
        return sum(choice.read_s_saved for choice in self.choices) / sum(choice.cost_s for choice in self.choices)

    def in_words(self) -> str:
        """What Spark is told, and why."""
        data = sum(len(choice.data) for choice in self.choices)
        deletes = len({file.location for choice in self.choices for file in choice.deletes})
        whys = ", ".join(sorted({choice.why.value for choice in self.choices}))
        what = f"Spark rewrites some {in_numbers(data, 'data file')} with {in_numbers(deletes, 'delete file')} ({whys})"
        return f"{what}: {'; '.join(self.statements[1:])}"


def plan_for_spark(plan: Plan, policy: CompactionPolicy) -> Plan:
    """The plan without choices of delete files that Spark would leave as they are.

    It writes a delete file for each data file that has deleted rows: such a file is as small as it gets, and no debt. Fewer become of
    several for one data file, and of those that speak of more.
    """
    enough = policy.inputs_min if policy.wait_for_more else 1
    return Plan(tuple(choice for choice in plan.choices if choice.data or _surplus(choice) >= enough), plan.left)


def spark_rewrite(catalog: str, base: LoadedTable, choices: Sequence[Choice], policy: CompactionPolicy) -> SparkRewrite:
    """`choices`, at least one, are of the table's plan (`plan_for_spark`)."""
    table = f"`{base.name.namespace}`.`{base.name.name}`"
    where = _where(base.metadata, choices)
    statements = [f"REFRESH TABLE {catalog}.{table}"]  # Or Spark would begin at the snapshot that it has looked at last.
    if any(choice.why is not Why.SMALL_FILES for choice in choices if choice.deletes):
        statements.append(_call(catalog, "rewrite_position_delete_files", table, {"rewrite-all": "true"}, where))
    if any(choice.data for choice in choices):
        statements.append(_call(catalog, "rewrite_data_files", table, _data_options(choices, policy), where))
    return SparkRewrite(tuple(choices), tuple(statements))


def _surplus(choice: Choice) -> int:
    """Delete files that go, or speak of one data file each afterwards, if Spark rewrites these."""
    if not choice.bytes_written:
        return len(choice.deletes)
    targets = [_only_target(file) for file in choice.deletes]
    return len(targets) - len({target for target in targets if target is not None})


def _only_target(file: LiveFile) -> bytes | None:
    """The location of the data file that it speaks of, if that is one for sure."""
    lower, upper = file.lower_bounds.get(FILE_PATH_ID), file.upper_bounds.get(FILE_PATH_ID)
    return lower if lower == upper else None


def _data_options(choices: Sequence[Choice], policy: CompactionPolicy) -> dict[str, str]:
    """Files below the size that the plan took, and no others: or Spark rewrote with every few small files the larger ones again."""
    small = [choice for choice in choices if choice.data and choice.why is not Why.DELETED_ROWS]
    largest = max((file.size_bytes for choice in small for file in choice.data), default=-1)
    count_min = min([policy.inputs_min, *(len(choice.data) for choice in small)])
    deleted = {"delete-ratio-threshold": repr(policy.deleted_share_max)} if policy.wait_for_more else {"delete-file-threshold": "1"}
    return {
        "target-file-size-bytes": str(policy.target_bytes),
        "min-file-size-bytes": str(min(largest + 1, policy.target_bytes - 1)),
        "min-input-files": str(max(2, count_min)),
        **deleted,
        "use-starting-sequence-number": "true",
        "partial-progress.enabled": "false",
    }


def _call(catalog: str, procedure: str, table: str, options: Mapping[str, str], where: str | None) -> str:
    said = ", ".join(f"'{name}', '{value}'" for name, value in options.items())
    part = "" if where is None else f', where => "{where}"'
    return f"CALL {catalog}.system.{procedure}(table => '{table}', options => map({said}){part})"


def _where(metadata: Mapping[str, Any], choices: Sequence[Choice]) -> str | None:
    """The choices' partitions as a condition on columns; None where that is not simple, or is everything.

    Fields that are not the column itself are passed over: a condition that takes in more is good, files are taken by their sizes.
    """
    specs = {spec["spec-id"]: spec for spec in metadata["partition-specs"]}
    schema = next(one for one in metadata["schemas"] if one["schema-id"] == metadata["current-schema-id"])
    columns = {column["id"]: column for column in schema["fields"]}
    places: dict[str, None] = {}
    for choice in choices:
        place = _place(specs[choice.spec_id]["fields"], columns, choice.partition)
        if place is None:
            return None
        places[place] = None
    return " OR ".join(f"({place})" for place in places) if len(places) <= _PLACES_MAX else None


def _place(fields: Sequence[Mapping[str, Any]], columns: Mapping[int, Mapping[str, Any]], partition: Sequence[Any]) -> str | None:
    said = []
    for field, value in zip(fields, partition, strict=True):
        column = columns.get(field["source-id"])
        if field["transform"] != "identity" or column is None:
            continue
        literal = "" if value is None else _literal(column["type"], value)
        if literal is None or not _PLAIN_NAME.fullmatch(column["name"]):
            return None
        said.append(f"`{column['name']}` = {literal}" if literal else f"`{column['name']}` IS NULL")
    return " AND ".join(said) or None


def _literal(kind: object, value: Any) -> str | None:
    """A partition's value, as stored, in SQL; None for kinds whose text is not plainly one value."""
    if kind == "boolean":
        return "true" if value else "false"
    if kind in ("int", "long") and isinstance(value, int):
        return str(value)
    if kind == "date" and isinstance(value, int) and abs(value) < 700_000:
        return f"DATE '{_EPOCH_DAY + timedelta(days=value)}'"
    if kind == "string" and isinstance(value, str) and _PLAIN_TEXT.fullmatch(value):
        return f"'{value}'"
    return None

"""Which partitions a request is about: `NAME=VALUE` of partition fields, each value as engines show it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dolake.compaction.plan import Plan
from dolake.errors import RequestRefused
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.partition import texts_of_partitions

_SHOWN_MAX = 5

Place = tuple[int, tuple[Any, ...]]


@dataclass(frozen=True)
class Within:
    """Partitions whose fields have these texts: a date `2026-11-28`, a bucket `3`, `null`. Fields that are not named may be anything."""

    fields: Mapping[str, str]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Within:
        """Of `NAME=VALUE` each. Raises ValueError, which says what is wrong."""
        fields: dict[str, str] = {}
        for text in texts:
            name, separator, value = text.partition("=")
            if not (name and separator):
                raise ValueError(f"{text!r} is not NAME=VALUE, as in created_at_day=2026-11-28")
            if fields.setdefault(name, value) != value:
                raise ValueError(f"{name} cannot be both {fields[name]!r} and {value!r}")
        return cls(fields)

    def narrowed(self, plan: Plan, base: LoadedTable, files: Iterable[LiveFile]) -> Plan:
        """What of the plan is of these partitions. `files` are all of the table. Raises RequestRefused where none is in them."""
        places = {(file.spec_id, file.partition) for file in files}
        is_here = self._test(base, places)
        if not any(map(is_here, places)):
            raise RequestRefused(self._nothing_here(base, places))
        choices = tuple(choice for choice in plan.choices if is_here((choice.spec_id, choice.partition)))
        return Plan(choices, tuple(left for left in plan.left if is_here((left.spec_id, left.partition))))

    def _test(self, base: LoadedTable, places: Iterable[Place]) -> Callable[[Place], bool]:
        texts = texts_of_partitions(base, places)
        here = {place for place, said in texts.items() if all(said.get(name) == value for name, value in self.fields.items())}
        return here.__contains__

    def _nothing_here(self, base: LoadedTable, places: Iterable[Place]) -> str:
        asked = ", ".join(f"{name}={value}" for name, value in self.fields.items())
        every = sorted(
            {", ".join(f"{name}={value}" for name, value in said.items()) for said in texts_of_partitions(base, places).values()}
        )
        there = [one for one in every if one]
        if not there:
            return f"no file of {base.name} is in a partition {asked}: it has no partitions"
        shown = "; ".join(there[:_SHOWN_MAX])
        more = f" and {len(there) - _SHOWN_MAX:,} more" if len(there) > _SHOWN_MAX else ""
        return f"no file of {base.name} is in a partition {asked}; there are {shown}{more}"

"""What a command line may have otherwise in a seed's world: fields of its profile, and kinds of faults that it shall not have."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tests.simulation.profile import Profile

ALL = "all"


@dataclass(frozen=True)
class Changes:
    """`without`: names of chances and kinds of strikes; `all` is all of them."""

    values: Mapping[str, Any] = field(default_factory=dict)
    without: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, settings: Iterable[str], without: Iterable[str]) -> Changes:
        """Of `field=value` texts, values as Python writes them. Raises ValueError for a field that no profile has."""
        known = {one.name for one in fields(Profile)}
        values = {}
        for text in settings:
            name, _, value = text.partition("=")
            if name not in known:
                raise ValueError(f"{name}: no profile has it; one of {', '.join(sorted(known))}")
            values[name] = _value(value)
        return cls(values, frozenset(without))

    def of(self, profile: Profile) -> Profile:
        profile = replace(profile, **self.values)
        if ALL in self.without:
            return replace(profile, chances={}, strike_kinds=(), strikes=0)
        chances = {name: chance for name, chance in profile.chances.items() if name not in self.without}
        kinds = tuple(kind for kind in profile.strike_kinds if kind not in self.without)
        return replace(profile, chances=chances, strike_kinds=kinds, strikes=profile.strikes if kinds else 0)

    def setting(self, name: str, value: Any) -> Changes:
        return Changes({**self.values, name: value}, self.without)

    def leaving_out(self, names: Iterable[str]) -> Changes:
        names = set(names)
        return Changes(self.values, frozenset([ALL]) if ALL in names else self.without | names)

    def arguments(self) -> list[str]:
        """As `parse` takes them, for a shell."""
        values = [f"--set {shlex.quote(f'{name}={value!r}')}" for name, value in self.values.items()]
        return [*values, *(f"--without {shlex.quote(name)}" for name in sorted(self.without))]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

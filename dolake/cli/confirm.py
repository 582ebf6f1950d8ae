"""Asking before something is done that cannot be undone."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dolake.errors import ConfigurationError, Mistake

Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]


def confirmed(warning: str, *, yes: bool) -> bool:
    """Whether to go on. The warning goes to stderr. Raises ConfigurationError where nobody can be asked and `--yes` is missing."""
    print(warning, file=sys.stderr)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigurationError([Mistake("--yes", "nothing", "must be given where nobody can be asked")])
    return typer.confirm("Go on?", err=True)

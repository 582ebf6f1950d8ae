"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dolake.config import Settings, load_settings

Data = Annotated[str | None, typer.Option("--data", metavar="DIR", help="The data directory.")]
Config = Annotated[str | None, typer.Option("--config", metavar="FILE", help="Settings; DIR/dolake.toml or ./dolake.toml if present.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_from(data: str | None, config: str | None, *, writing: bool = False, **flags: Any) -> Settings:
    """The settings of a command: its flags (by dotted key) over environment, file and defaults. Raises ConfigurationError.

    `writing`: it runs a half, and must be able to write to the directories.
    """
    return load_settings({"data": data, **flags}, config=config, writing=writing)

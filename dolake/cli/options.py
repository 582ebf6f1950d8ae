"""Options that several commands share, and how they become settings."""

from __future__ import annotations

import contextlib
import sys
import urllib.parse
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.config import Settings, load_settings, process_environment
from dolake.config.rules import is_loopback
from dolake.errors import ConfigurationError, Mistake

if TYPE_CHECKING:
    from dolake.cdc.dial import Dial
    from dolake.iceberg.points import Point

Data = Annotated[str | None, typer.Option("--data", metavar="DIR", help="The data directory.")]
Config = Annotated[str | None, typer.Option("--config", metavar="FILE", help="Settings; DIR/dolake.toml or ./dolake.toml if present.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
At = Annotated[str | None, typer.Option("--at", metavar="POINT", help="A point of the table's history; its newest snapshot unless given.")]
# How a daemon is reached that wants to know who comes.
Token = Annotated[str | None, typer.Option("--token", help="Who we are; better in DOLAKE_TOKEN, where other users do not see it.")]
Ca = Annotated[str | None, typer.Option("--ca", metavar="FILE", help="Over wss: the CA to trust, in place of the system's.")]
Certificate = Annotated[str | None, typer.Option("--certificate", metavar="FILE", help="Over wss: the certificate to show.")]
CertificateKey = Annotated[str | None, typer.Option("--certificate-key", metavar="FILE", help="The key that belongs to --certificate.")]


def dial_with(url: str, token: str | None, ca: str | None, certificate: str | None, key: str | None) -> Dial:
    """How to reach the daemon at `url`: with the token given or DOLAKE_TOKEN's. Raises ConfigurationError for files that are not right."""
    from dolake.auth.tls import client_context
    from dolake.cdc.dial import websocket_dial

    token = token or process_environment().get("DOLAKE_TOKEN") or None
    with contextlib.suppress(ValueError):  # What is no URL is refused by the dial, by name.
        address = urllib.parse.urlsplit(url)
        if token and address.scheme == "ws" and not is_loopback(address.hostname or ""):
            print(f"dolake: the token travels to {address.hostname} in the clear; with wss:// it would not", file=sys.stderr)
    tls = client_context(ca, certificate, key) if ca or certificate or key else None
    return websocket_dial(token, tls)


def point_of(text: str, option: str) -> Point:
    """A point in a table's history (`iceberg.points`). Raises ConfigurationError."""
    from dolake.iceberg.points import parse_point

    try:
        return parse_point(text)
    except ValueError as error:
        raise ConfigurationError([Mistake(option, text, str(error))]) from None


def settings_from(
    data: str | None, config: str | None, *, writing: bool = False, with_tokens: bool | None = None, **flags: Any
) -> Settings:
    """The settings of a command: its flags (by dotted key) over environment, file and defaults. Raises ConfigurationError.

    `writing`: it runs a half, and must be able to write to the directories. `with_tokens`: it needs the file of tokens.
    """
    return load_settings({"data": data, **flags}, config=config, writing=writing, with_tokens=with_tokens)

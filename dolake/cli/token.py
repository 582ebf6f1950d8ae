"""`dolake token new|list|check`: makes tokens, and says which are good. What is kept of one is its hash."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from dolake.cli.options import Config, Data, Json, settings_from

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Make tokens, list them, try one.")

_DAY_MS = 86_400_000


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called in the configuration and in messages.")],
    source: Annotated[list[str] | None, typer.Option("--source", metavar="PATTERN", help="It may send as these; `*` is anything.")] = None,
    table: Annotated[list[str] | None, typer.Option("--table", metavar="PATTERN", help="It may write these, as in `public.*`.")] = None,
    read: Annotated[bool, typer.Option("--read", help="It may read metrics, and why the daemon is not ready.")] = False,
    catalog: Annotated[bool, typer.Option("--catalog", help="It may change the REST catalog; takes --read.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="It may flush every table.")] = False,
    expires_days: Annotated[int | None, typer.Option("--expires-days", min=1, max=36_500, help="Good for so many days.")] = None,
    as_json: Json = False,
) -> int:
    """Make a token and print it, this once, with the section that makes it good: for dolake.toml or auth.tokens_file."""
    from dolake.auth.tokens import hash_of, new_token
    from dolake.clock import real_runtime
    from dolake.config.sources import check_token

    runtime = real_runtime()
    token = new_token(runtime.random)
    grants: dict[str, Any] = {"hash": hash_of(token), "sources": source, "tables": table, "read": read, "catalog": catalog, "admin": admin}
    if expires_days is not None:
        grants["expires"] = _moment(runtime.clock.now_ms() // 1000 * 1000 + expires_days * _DAY_MS)
    grants = {key: value for key, value in grants.items() if value}
    check_token(name, grants)
    section = "\n".join([f"[tokens.{name}]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in grants.items())])
    if as_json:
        print(json.dumps({"name": name, "token": token, "hash": grants["hash"], "section": section}))
        return 0
    print(token)
    print(f"\n# The token is shown this once. Into dolake.toml or auth.tokens_file, then SIGHUP to the daemon:\n\n{section}")
    return 0


@app.command("list")
def list_tokens(data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """The tokens of the configuration: what each may do, until when."""
    from dolake.cli.screen import plain_table, stdout_console

    tokens = settings_from(data, config, with_tokens=True).tokens
    if as_json:
        print(json.dumps({name: _grants(token) for name, token in tokens.items()}))
        return 0
    if not tokens:
        print("no tokens: anybody who reaches the loopback address may do anything")
        return 0
    table = plain_table(["token", "sources", "tables", "read", "catalog", "admin", "expires"])
    for name, token in tokens.items():
        said = _grants(token)
        cells = (
            *(", ".join(said[key]) for key in ("sources", "tables")),
            *("yes" if said[key] else "" for key in ("read", "catalog", "admin")),
        )
        table.add_row(name, *cells, said["expires"] or "never")
    stdout_console().print(table)
    return 0


@app.command("check")
def check(data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """Say whose token DOLAKE_TOKEN is, or else the line on standard input, and what it may do. Exit code 5 if it is not good."""
    from dolake.auth.tokens import TokenBook
    from dolake.clock import real_runtime
    from dolake.config import process_environment

    token = process_environment().get("DOLAKE_TOKEN") or sys.stdin.readline().strip()
    settings = settings_from(data, config, with_tokens=True)
    principal = TokenBook(settings.tokens).principal_of(token or None, real_runtime().clock.now_ms())
    said = _grants(settings.tokens[principal.name]) if principal.name in settings.tokens else {}
    if as_json:
        print(json.dumps({"name": principal.name, **said}))
    else:
        print(f"{principal.name}: " + ", ".join(f"{key} {value}" for key, value in said.items() if value))
    return 0


def _grants(token: Any) -> dict[str, Any]:
    """One token's scopes as JSON can carry them; its hash is nobody's business."""
    expires = None if token.expires_ms is None else _moment(token.expires_ms)
    return {
        "sources": list(token.sources),
        "tables": list(token.tables),
        "read": token.read,
        "catalog": token.catalog,
        "admin": token.admin,
        "expires": expires,
    }


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

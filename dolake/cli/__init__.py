"""The command line: one module for each group of commands, imported only when its command is called.

`COMMANDS` says which module holds a command's Typer app. Every error that dolake names ends as one line on stderr with
its exit code (design: 0 ok, 1 a breach, 2 usage or configuration, 3 unreachable, 4 corrupt, 5 refused, 6 partly done,
130 interrupted); data goes to stdout and nothing else does.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dolake.errors import ConfigurationError, DolakeError

if TYPE_CHECKING:
    import typer

USAGE_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """Where a command is (`module:app`), and its line in `dolake --help`."""

    app: str
    summary: str


COMMANDS: dict[str, Command] = {
    "serve": Command("dolake.cli.serve:serve_app", "Run a whole daemon: ingest, writer, http."),
    "ingest": Command("dolake.cli.serve:ingest_app", "Run the ingest half alone: sockets → log."),
    "writer": Command("dolake.cli.serve:writer_app", "Run the writer half alone: log → tables."),
    "catalog": Command("dolake.cli.serve:catalog_app", "Serve the REST catalog alone, without a daemon."),
    "send": Command("dolake.cli.send:app", "Send a file of changes to a daemon, resuming where it stopped."),
    "flush": Command("dolake.cli.flush:app", "Commit what is in the log now: all tables, or one."),
    "status": Command("dolake.cli.status:app", "Show how a daemon stands; --watch looks again and again."),
    "sources": Command("dolake.cli.sources:app", "List the sources: numbering, what is committed, who is connected."),
    "tables": Command("dolake.cli.tables:app", "List the tables: rows, offsets, and why one has stopped."),
    "inspect": Command("dolake.cli.inspect:app", "Show one table: schema, snapshots, files, offsets."),
    "snapshots": Command("dolake.cli.snapshots:app", "List a table's snapshots: when, what changed, what names them."),
    "tags": Command("dolake.cli.refs:tags_app", "Names for snapshots: list, create, delete."),
    "branches": Command("dolake.cli.refs:branches_app", "Lines of history beside main: list, create, delete, publish."),
    "rollback": Command("dolake.cli.rollback:app", "Take a table back to an earlier snapshot, in a new one."),
    "compact": Command("dolake.cli.compact:app", "Rewrite small files as large ones; --dry-run says what and why."),
    "maintenance": Command("dolake.cli.maintenance:app", "What no snapshot needs any more; --purge deletes it."),
    "query": Command("dolake.cli.query:app", "Run SQL over the committed tables."),
    "verify": Command("dolake.cli.verify:app", "Check the invariants; one sentence for each breach."),
    "dead-letters": Command("dolake.cli.letters:app", "Events that fit nowhere: list, show, send them again."),
    "log": Command("dolake.cli.log:app", "Look into the log's segment files, verify them, give a lost log up."),
    "token": Command("dolake.cli.token:app", "Make tokens, list them, try one."),
    "demo": Command("dolake.cli.demo:app", "See it work: a daemon on a temporary folder, a sample, a few queries."),
    "docs": Command("dolake.cli.docs:app", "Print the reference of settings, metrics or failpoints."),
}


def main() -> None:
    """The console script."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        _silence_stdout()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns the exit code. Raises nothing that dolake knows."""
    try:
        return _dispatch(list(arguments))
    except ConfigurationError as error:
        for mistake in error.mistakes:
            print(f"dolake: {mistake}", file=sys.stderr)
        return error.exit_code
    except DolakeError as error:
        print(f"dolake: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # Whoever read our output has seen enough (`| head`).
        _silence_stdout()
        return 0
    except OSError as error:  # The machine's no: a full disk, a missing right. It names the file itself.
        print(f"dolake: {error}", file=sys.stderr)
        return DolakeError.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    import typer

    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        module, _, attribute = COMMANDS[name].app.partition(":")
        app: typer.Typer = getattr(importlib.import_module(module), attribute)
        program, rest = f"dolake {name}", arguments[1:]
    else:
        app, program, rest = _overview(), "dolake", arguments
    try:
        command = typer.main.get_command(app)
        with command.make_context(program, list(rest)) as context:
            outcome = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        message = error.format_message().rstrip(".") or "a command is missing"
        if offending := _offending(error, rest):
            message += f" (got {offending})"
        print(f"dolake: {message}; see `{program} --help`", file=sys.stderr)
        return USAGE_ERROR
    except typer.Abort:
        return INTERRUPTED
    return outcome if isinstance(outcome, int) else 0


def _offending(error: typer.TyperException, arguments: list[str]) -> str:
    """The value of the option that an error is about, as it was typed; empty where that cannot be said."""
    for name in getattr(getattr(error, "param", None), "opts", ()):
        for place, argument in enumerate(arguments):
            if argument == name and place + 1 < len(arguments):
                return arguments[place + 1]
            if argument.startswith(f"{name}="):
                return argument.partition("=")[2]
    return ""


def _overview() -> typer.Typer:
    """`dolake --help` without importing what it lists."""
    import typer

    app = typer.Typer(
        help="dolake: changes from databases, durable on arrival, in Apache Iceberg tables exactly once.",
        no_args_is_help=True,
        add_completion=False,
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version

            print(version("dolake"))
            raise typer.Exit

    @app.callback()
    def _root(version: bool = typer.Option(False, "--version", is_eager=True, callback=show_version, help="Show the version.")) -> None:
        pass

    for name, command in COMMANDS.items():
        app.command(name, help=command.summary)(lambda: None)
    return app


def _silence_stdout() -> None:
    """Python flushes stdout once more at its end; that must not fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""`dolake docs`: references that are made from the code, so that they cannot be wrong."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Print a reference as Markdown.")


@app.command("config")
def config() -> None:
    """Every setting: key, environment variable, default, what is allowed, meaning."""
    _print("config")


@app.command("metrics")
def metrics() -> None:
    """Every metric of /metrics: name, kind, labels, meaning."""
    _print("metrics")


@app.command("errors")
def errors() -> None:
    """Every answer, close code, error and exit code, with its remedy."""
    _print("errors")


@app.command("failpoints")
def failpoints() -> None:
    """Every moment at which a test may break the program."""
    _print("failpoints")


@app.command("write")
def write(directory: Annotated[str, typer.Argument(metavar="DIR", help="Where the files go; made if need be.")]) -> None:
    """Write all of them as files into DIR."""
    import os

    from dolake.cli.reference import REFERENCES

    os.makedirs(directory, exist_ok=True)
    for file, text in REFERENCES.values():
        with open(os.path.join(directory, file), "w", encoding="utf-8") as output:
            output.write(text())


def _print(name: str) -> None:
    from dolake.cli.reference import REFERENCES

    print(REFERENCES[name][1](), end="")

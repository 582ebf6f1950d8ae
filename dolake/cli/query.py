"""`dolake query "SELECT …"`: SQL over the committed tables, with the daemon running or not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dolake.cli.options import At, Config, Data, point_of, settings_from
from dolake.errors import ConfigurationError, Mistake

if TYPE_CHECKING:
    from dolake.query import Result

app = typer.Typer(add_completion=False)

SHOWN_ROWS_MAX = 1_000


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One statement that reads; `-` reads it from standard input.")],
    data: Data = None,
    config: Config = None,
    at: At = None,
    as_json: Annotated[bool, typer.Option("--json", help="An array of objects.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help='CSV with a header; null is nothing, an empty text is "".')] = False,
) -> int:
    """Run SQL over the committed tables. Every table is a view: `public.orders`; one of `default` by its bare name.

    With --at every table is as it was at that point: `2026-01-01T00:00:00Z` (or `time:…`), `lsn:0/16B3748` or `lsn:SOURCE=…`,
    `tag:NAME`, `branch:NAME`, `snapshot:ID`, `-3` or `3 versions ago`. Ends with 5 where a table has nothing there.
    `SHOW ALL TABLES` lists them. Decimals keep all their digits, times are UTC, binary is base64.
    """
    from dolake.cli.lake import open_lake
    from dolake.clock import real_runtime
    from dolake.query import open_connection, run_query

    settings = settings_from(data, config)
    if as_json and as_csv:
        raise ConfigurationError([Mistake("--csv", "--json too", "one output format at a time")])
    lake = open_lake(settings)
    connection = open_connection(lake.catalog, lake.store, None if at is None else point_of(at, "--at"), real_runtime().clock.now_ms())
    try:
        result = run_query(connection, sys.stdin.read() if sql == "-" else sql)
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        (_print_json if as_json else _print_csv if as_csv else _print_table)(result)
    finally:
        connection.close()
    return 0


def _print_json(result: Result) -> None:
    from dolake.cli import values

    names = values.column_names(result.schema)
    separator = "["
    for batch in result.batches():
        for row in values.rows(batch):
            sys.stdout.write(f"{separator}\n{values.json_object(names, row)}")
            separator = ","
    sys.stdout.write("[]\n" if separator == "[" else "\n]\n")


def _print_csv(result: Result) -> None:
    from dolake.cli import values

    print(values.csv_line(tuple(values.column_names(result.schema))))
    for batch in result.batches():
        for row in values.rows(batch):
            print(values.csv_line(row))


def _print_table(result: Result) -> None:
    from dolake.cli.screen import result_table, stdout_console

    table, count = result_table(result, SHOWN_ROWS_MAX)
    console = stdout_console()
    console.print(table)
    console.print(count, style="dim")

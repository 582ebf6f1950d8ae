"""`dolake docs`: references that are made from the code, so that they cannot be wrong."""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Print a reference as Markdown.")


@app.command("config")
def config() -> None:
    """Every setting: key, environment variable, default, meaning."""
    from dolake.config.sources import OTHER_VARIABLES, setting_keys, variable_name

    print("# Settings\n")
    print("From flags over `DOLAKE_…` variables over `dolake.toml` over these defaults. Sizes may be written `64 MiB`.\n")
    print("| key | variable | default | meaning |\n|---|---|---|---|")
    for key, about in setting_keys():
        default = "" if about.is_required() or about.default in (None, "", ()) else f"`{about.default}`"
        print(f"| `{key}` | `{variable_name(key)}` | {default} | {about.description} |")
    print("\n## Tables\n")
    print('In `dolake.toml` only, under `[tables."namespace.name"]`; `*` stands for anything. Each setting of a table comes from')
    print("the most specific pattern that sets it: the exact name, then the longest text before the first `*`.\n")
    print("| key | default | meaning |\n|---|---|---|")
    print('| `mode` | `"changelog"` | every event is a row; the only mode so far |')
    print("| `flush.age_s`, `flush.bytes`, `flush.rows` | those of `[flush]` | when this table is due |")
    print("| `partition_by` | `[]` | columns by whose values the table's files are kept apart (identity partitions) |")
    print("| `drop` | `[]` | columns left out of the table; adds up over all patterns that match |")
    print("| `mask` | `[]` | columns of which only the HMAC-SHA-256 under `mask_key` is kept; adds up over all patterns that match |")
    print("\n## Other variables\n")
    print("| variable | meaning |\n|---|---|")
    for variable, meaning in OTHER_VARIABLES.items():
        print(f"| `{variable}` | {meaning} |")


@app.command("metrics")
def metrics() -> None:
    """Every metric of /metrics: name, kind, labels, meaning."""
    from dolake.metrics import METRICS

    print("# Metrics\n")
    print("| name | kind | labels | meaning |\n|---|---|---|---|")
    for name, metric in METRICS.items():
        print(f"| `{name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |")


@app.command("failpoints")
def failpoints() -> None:
    """Every moment at which a test may break the program."""
    from dolake import failpoints as registry

    print("# Failpoints\n")
    print("Armed by `DOLAKE_FAILPOINTS`, a list of `name=action` separated by `;`, in every process of a daemon. An action is")
    print("`[COUNT*][PERCENT%]raise[(text)] | errno(EIO[, path]) | sleep(seconds) | pause(path) | kill[(path)]`; `3*off->1*kill` kills")
    print(
        "at the fourth hit. `wal.before_sync@/mnt/disk2=errno(EIO, /tmp/broken)` fails the log on one disk while `/tmp/broken` is there.\n"
    )
    print("| name | the moment |\n|---|---|")
    for name in sorted(registry.POINTS):
        print(f"| `{name}` | {registry.POINTS[name]} |")

"""The references as Markdown, made from the code, so that they cannot be wrong. The files under docs/ are their output."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, get_args

_MIB = 1 << 20
_HEAD = "<!-- Written by `dolake docs {}`; change the code, then run `make docs`. -->\n"


def configuration() -> str:
    """Every setting: key, environment variable, default, what is allowed, meaning."""
    from dolake.config.access import TokenSettings
    from dolake.config.settings import SourceOverrides
    from dolake.config.sources import OTHER_VARIABLES, setting_keys, variable_name
    from dolake.config.tables import TableOverrides

    lines = [
        "# Settings\n",
        "From flags over `DOLAKE_…` variables over `dolake.toml` (`--config FILE`, else `DIR/dolake.toml`, else `./dolake.toml`) over",
        'these defaults. Sizes may be written `"64 MiB"`. Every mistake is told at once, and nothing is created before all are mended.\n',
        *_table(
            ("key", "variable", "default", "allowed", "meaning"),
            ((f"`{key}`", f"`{variable_name(key)}`", _default(about), _allowed(about), about.description) for key, about in setting_keys()),
        ),
        "\n## Tables\n",
        'In `dolake.toml` only, under `[tables."namespace.name"]`; `*` stands for anything. Each setting of a table comes from the most',
        "specific pattern that sets it (the exact name, then the longest text before the first `*`), then from the section of the same",
        "name.\n",
        *_table(("key", "allowed", "meaning"), _overrides(TableOverrides)),
        "\n## Sources\n",
        'In `dolake.toml` only, under `[sources."name"]`; patterns as above.\n',
        *_table(("key", "allowed", "meaning"), _overrides(SourceOverrides)),
        "\n## Tokens\n",
        "In `dolake.toml` or the file that `auth.tokens_file` names, under `[tokens.NAME]`, as `dolake token new` prints them. What is not",
        "said is not allowed. Read again on SIGHUP.\n",
        *_table(("key", "allowed", "meaning"), _overrides(TokenSettings)),
        "\n## Other variables\n",
        *_table(("variable", "meaning"), ((f"`{variable}`", meaning) for variable, meaning in OTHER_VARIABLES.items())),
    ]
    return _page("config", lines)


def metrics() -> str:
    """Every metric of /metrics: name, kind, labels, meaning."""
    from dolake.metrics import METRICS

    rows = ((f"`{name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.help) for name, one in METRICS.items())
    return _page("metrics", ["# Metrics\n", *_table(("name", "kind", "labels", "meaning"), rows)])


def errors() -> str:
    """Every answer, close code, error and exit code, with what to do about it."""
    from dolake.cdc.answer import SHOULD_RETRY, AckStatus, Reason
    from dolake.cdc.session import CloseCode
    from dolake.cli.remedies import ACKS, CLOSES, ERRORS, EXITS, NACKS

    retry = {True: "yes", False: "no"}
    lines = [
        "# Answers, errors, exit codes\n",
        "What each means and what to do about it. Sections named in *italics* are in [operations.md](operations.md).\n",
        "## Acks\n",
        *_table(("status", "means", "the source should"), ((f"`{one}`", *ACKS[one]) for one in AckStatus)),
        "\n## Nacks\n",
        "`shouldRetry` in the nack itself decides: a gap is worth a retry, an ended epoch is not.\n",
        *_table(
            ("reason", "retry", "when", "remedy"), ((f"`{one}`", _retry(one, one in SHOULD_RETRY, retry), *NACKS[one]) for one in Reason)
        ),
        "\n## Close codes\n",
        *_table(
            ("code", "why", "remedy"),
            ((str(code), *CLOSES[code]) for code in sorted({*map(int, CloseCode), *_LIBRARY_CLOSES} & set(CLOSES))),
        ),
        "\n## Errors\n",
        "As a command prints them, or a log line's `reason`.\n",
        *_table(("error", "exit", "what happened", "remedy"), (_error(kind, ERRORS[kind.__name__]) for kind in error_classes())),
        "\n## Exit codes\n",
        *_table(("code", "means", "remedy"), ((str(code), *words) for code, words in EXITS.items())),
    ]
    return _page("errors", lines)


def failpoints() -> str:
    """Every moment at which a test may break the program."""
    from dolake import failpoints as registry

    lines = [
        "# Failpoints\n",
        "For tests. Armed by `DOLAKE_FAILPOINTS`, a list of `name=action` separated by `;`, in every process of a daemon. An action is",
        "`[COUNT*][PERCENT%]raise[(text)] | errno(EIO[, path]) | sleep(seconds) | pause(path) | kill[(path)]`; `3*off->1*kill` kills at",
        "the fourth hit. `wal.before_sync@/mnt/disk2=errno(EIO, /tmp/broken)` fails the log on one disk while `/tmp/broken` is there.\n",
        *_table(("name", "the moment"), ((f"`{name}`", registry.POINTS[name]) for name in sorted(registry.POINTS))),
    ]
    return _page("failpoints", lines)


# Command → (file under docs/, what writes it).
REFERENCES = {
    "config": ("configuration.md", configuration),
    "metrics": ("metrics.md", metrics),
    "errors": ("errors.md", errors),
    "failpoints": ("failpoints.md", failpoints),
}
_LIBRARY_CLOSES = (1009,)  # Given by the websocket library for us.


def error_classes() -> list[Any]:
    """Every error class that dolake may raise, in the order of their module."""
    from dolake import errors as module

    return [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, module.DolakeError) and kind is not module.DolakeError
    ]


def _error(kind: Any, remedy: str) -> tuple[str, str, str, str]:
    happened = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return f"`{kind.__name__}`", str(kind.exit_code), happened, remedy


def _retry(reason: str, should: bool, words: dict[bool, str]) -> str:
    return "after a gap" if reason == "invalid_sequence" else words[should]


def _overrides(model: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, allowed, meaning) of every setting of a pattern."""
    for name, about in model.model_fields.items():
        if hasattr(about.annotation, "model_fields"):
            yield from _overrides(about.annotation, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}`", _allowed(about), about.description or ""


def _default(about: Any) -> str:
    if about.is_required() or about.default in (None, "", ()):
        return ""
    if isinstance(about.default, int) and about.default >= _MIB and about.default % _MIB == 0:
        return f"`{about.default // _MIB} MiB`"
    return f"`{about.default}`"


def _allowed(about: Any) -> str:
    """What the field itself checks: one of some words, or a range."""
    words = [argument for argument in _leaves(about.annotation) if isinstance(argument, str)]
    if words:
        return ", ".join(f"`{word}`" for word in words)
    bounds: dict[str, Any] = {}
    for part in [*about.metadata, *_constraints(about.annotation)]:
        for sign in ("ge", "gt", "le", "lt"):
            limit = getattr(part, sign, None)
            if limit is not None:
                tighter = max if sign in ("ge", "gt") else min
                bounds[sign] = tighter(limit, bounds.get(sign, limit))
    signs = {"ge": "from {}", "gt": "more than {}", "le": "to {}", "lt": "less than {}"}
    return " ".join(text.format(f"{bounds[sign]:,}") for sign, text in signs.items() if sign in bounds and bounds[sign] < 2**53)


def _leaves(annotation: Any) -> Iterator[Any]:
    """The words of a Literal, also inside a union."""
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        elif get_args(argument) and not hasattr(argument, "__metadata__"):
            yield from _leaves(argument)


def _constraints(annotation: Any) -> Iterator[Any]:
    """What stands in `Annotated[…]` inside a union, and in what pydantic wraps around it."""
    for part in getattr(annotation, "__metadata__", ()):
        yield from getattr(part, "metadata", None) or [part]
    for argument in get_args(annotation):
        if not isinstance(argument, str):
            yield from _constraints(argument)


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def _page(command: str, lines: Iterable[str]) -> str:
    return "\n".join([_HEAD.format(command), *lines, ""])

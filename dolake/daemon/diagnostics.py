"""Where log lines go: to stderr, readable on a terminal, JSON otherwise, one line each. Never rows, never secrets.

Every line has `time` (ISO 8601, UTC), `level`, `process`, `pid` and `event`; what else it says stands in fields of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog

from dolake.errors import DolakeError, InvalidMessage

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

# An exception's words are shown where they are about the program or the machine. Those of all others (ValueError, KeyError, a
# decoder's own) quote what they tripped over, which may be a row.
_SPEAKABLE = (
    *(OSError, DolakeError, RuntimeError, ImportError, AttributeError, NameError, AssertionError, MemoryError, ArithmeticError),
    *(KeyboardInterrupt, SystemExit),
)
_QUOTING = (InvalidMessage,)


class _Unbreakable:
    """A stream whose reader may go away: a log line that nobody reads must not end a daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _Forward(logging.Handler):
    """Libraries' own log lines, from warnings up, as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(structlog.get_logger(record.name), level)(record.getMessage(), exc_info=record.exc_info)


def configure_logging(process: str, stream: TextIO | None = None, *, level: Level = "info", format: Format = "auto") -> None:
    """Called by each process before its first line, and again when it knows its settings."""
    stream = stream or sys.stderr
    as_json = format == "json" or (format == "auto" and not stream.isatty())

    def name_process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.update(process=process, pid=os.getpid())
        return event

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            name_process,
            structlog.processors.ExceptionRenderer(_explain),
            _as_json() if as_json else structlog.dev.ConsoleRenderer(colors=stream.isatty(), timestamp_key="time"),
        ],
        logger_factory=structlog.PrintLoggerFactory(_Unbreakable(stream)),  # type: ignore[arg-type]
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(logging.WARNING)


def _as_json() -> structlog.processors.JSONRenderer:
    return structlog.processors.JSONRenderer(default=str, ensure_ascii=False)


def _explain(exc_info: Any) -> str:
    """Where an exception came from, with those behind it, the first of them on top."""
    return "\n".join(_explained(exc_info[1], set()))


def _explained(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _explained(before, seen)
        yield "and then:"
    yield from (line.rstrip("\n") for line in traceback.format_tb(error.__traceback__))
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, _SPEAKABLE) and not isinstance(error, _QUOTING):
        yield f"{name}: {error}"
    else:
        yield f"{name} (its words may quote a row and are left out)"
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _explained(inner, seen)


def report_surprise(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As `sys.excepthook`: what ends a process by surprise is a log line like any other."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger("dolake.daemon").error("ended by an error that nobody expected", exc_info=(kind, error, trace))

"""Where log lines go: to stderr, readable on a terminal, JSON otherwise, one line each. Never rows, never secrets."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any, TextIO

import structlog


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


def configure_logging(process: str, stream: TextIO | None = None) -> None:
    """Called once by each process, before its first line."""
    stream = stream or sys.stderr

    def name_process(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        return {**event, "process": process, "pid": os.getpid()}

    processors: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    if stream.isatty():
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [name_process, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=processors,
        logger_factory=structlog.PrintLoggerFactory(_Unbreakable(stream)),  # type: ignore[arg-type]
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(logging.WARNING)

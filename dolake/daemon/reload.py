"""SIGHUP: who may come in is read again, and told to those that let people in. A reload that is wrong changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from dolake.clock import Runtime
from dolake.config import Settings
from dolake.config.rules import is_loopback
from dolake.daemon.handover import Handover, LoadSettings, RefusedReload
from dolake.errors import ConfigurationError

log = structlog.get_logger("dolake.daemon")


class Reloading:
    """`current` is what is in force; `tell` hears of each change, and of each that was refused."""

    def __init__(self, runtime: Runtime, current: Handover, load: LoadSettings, tell: Callable[[Handover | RefusedReload], None]) -> None:
        self.current = current
        self._runtime, self._load, self._tell = runtime, load, tell
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def ask(self) -> None:
        """For a signal handler. One at a time; asked while one is under way, there is one more after it."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = self._runtime.tasks.spawn("reload", self._run())

    async def _run(self) -> None:
        while self._again:
            self._again = False
            try:
                fresh = await self._runtime.tasks.run(self._load)
                self.current = await self._runtime.tasks.run(self.current.reloaded, fresh)
            except ConfigurationError as error:
                reasons = "; ".join(str(mistake) for mistake in error.mistakes)
                log.error("reload refused: what was in force stays so", reason=reasons)
                self._tell(RefusedReload())
            else:
                log.info("reloaded: tokens and certificates", token_count=len(self.current.settings.tokens))
                if later := self.current.differences(fresh):
                    log.warning("other settings have changed too: they hold from the next start on", settings=later)
                self._tell(self.current)


def announce(settings: Settings) -> None:
    """Says at the start who may come in."""
    if not settings.tokens:
        log.info("no tokens are configured: listening on loopback only, for anybody there", host=settings.host)
    elif settings.tls.certificate is None and not is_loopback(settings.host):
        rule = "tokens travel in the clear to and from this address; set tls.certificate and tls.key"
        log.warning(rule, host=settings.host, token_count=len(settings.tokens))
    else:
        log.info("tokens are asked for", token_count=len(settings.tokens))

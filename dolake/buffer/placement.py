"""Which log a source lives in: decided once, kept for good, rebuilt from what the logs hold. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dolake.errors import LogFailed, SourceRefused


class Placement:
    """Sources → directories. A source's order and its deduplication hold only inside one log, so it never moves."""

    def __init__(self, directories: Sequence[str]) -> None:
        self.directories = tuple(directories)
        self._homes: dict[str, list[str]] = {}
        self._read: set[str] = set()
        self._last = -1

    def found(self, directory: str, sources: Iterable[str]) -> None:
        """A log was opened there and holds these sources."""
        self._read.add(directory)
        for source in sources:
            homes = self._homes.setdefault(source, [])
            if directory not in homes:
                homes.append(directory)

    def was_read(self, directory: str) -> bool:
        return directory in self._read

    def home(self, source: str) -> str | None:
        """The directory of a source, None if it has none. Raises SourceRefused for one that lives in two."""
        homes = self._homes.get(source, [])
        if len(homes) > 1:
            raise SourceRefused(
                f"source {source!r} has records in {' and in '.join(homes)}: which came first cannot be told; "
                "move one of these logs away, or let the source go on under another name"
            )
        return homes[0] if homes else None

    def place(self, source: str, serving: Collection[str], unread: Collection[str]) -> str:
        """The directory of a source; a new one goes, in turn, to the least loaded of `serving`.

        Raises SourceRefused, and LogFailed for a new source while a log that may hold it (`unread`) cannot be asked.
        """
        home = self.home(source)
        if home is not None:
            return home
        if unread:
            raise LogFailed(f"source {source!r} may live in {', '.join(sorted(unread))}, which cannot be read now")
        if not serving:
            raise LogFailed("no log is being served")
        loads = self.loads()
        lowest = min(loads[directory] for directory in serving)
        count = len(self.directories)
        turns = [(self._last + 1 + step) % count for step in range(count)]
        self._last = next(turn for turn in turns if self.directories[turn] in serving and loads[self.directories[turn]] == lowest)
        self._homes[source] = [self.directories[self._last]]
        return self.directories[self._last]

    def loads(self) -> dict[str, int]:
        """How many sources live in each directory."""
        loads = dict.fromkeys(self.directories, 0)
        for homes in self._homes.values():
            for directory in homes:
                loads[directory] = loads.get(directory, 0) + 1
        return loads

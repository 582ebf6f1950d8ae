"""Somebody who sends dead letters again, as `dolake dead-letters replay` does, and may die in the midst of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dolake.cdc.client import Producer
from dolake.cli.lake import Lake
from dolake.cli.replaying import KnownLetter, known_letters, send_again
from dolake.errors import CatalogUnreachable, ObjectMissing, StoreUnreachable
from dolake.model import DEAD_LETTERS_SOURCE
from dolake.parquet.letters import DEAD
from tests.simulation.faults import Breach, Chaos
from tests.simulation.invariants import Journal
from tests.simulation.letters import Letters, Spot
from tests.simulation.loop import Process
from tests.simulation.network import Wire
from tests.simulation.polite import URL, Producing

LETTERS_MAX = 6
PAUSE_S_MAX = 1.0


class Replayer(Producing):
    """Sends some of the dead letters again, `rounds` times, if there are any. `lake` is opened by each life."""

    name = DEAD_LETTERS_SOURCE

    def __init__(
        self,
        rounds: int,
        hire: Callable[[str], Process],
        journal: Journal,
        letters: Letters,
        dial: Callable[[Process], Wire | None],
        chaos: Chaos,
        lake: Callable[[Process], Lake],
        are_others_done: Callable[[], bool],
    ) -> None:
        super().__init__(hire, journal, dial, chaos)
        self._rounds_left, self._letters, self._lake = rounds, letters, lake
        self._are_others_done = are_others_done
        self._sent: dict[int, list[tuple[str, Spot]]] = {}

    async def work(self, process: Process) -> None:
        while self._rounds_left:
            await process.runtime.clock.sleep(process.random.uniform(0.0, PAUSE_S_MAX))
            is_last = self._are_others_done()
            chosen = await self._choose(process)
            self._rounds_left -= bool(chosen) or is_last  # Before they are sent: one who dies does not know either.
            if chosen:
                self._chaos.counts["letters sent again"] += len(chosen)
                dial = self.dialler(process, "")
                await send_again(Producer(URL, self.name, unreachable_s_max=1e9, runtime=process.runtime, dial=dial), chosen)

    async def _choose(self, process: Process) -> list[KnownLetter]:
        lake = self._lake(process)
        while True:
            try:
                letters = await process.runtime.tasks.run(known_letters, lake)
            except (CatalogUnreachable, StoreUnreachable, ObjectMissing, OSError):  # What it was reading may be purged at any time here.
                await process.runtime.clock.sleep(0.1)
            else:
                return self.pick(process, letters)

    def pick(self, process: Process, letters: Sequence[KnownLetter]) -> list[KnownLetter]:
        """Mostly those that nothing was decided of since; now and then one of the others."""
        kept = [letter for letter in letters if letter.newest["event"]]
        wanted = [letter for letter in kept if letter.state == DEAD or process.random.random() < 0.3]
        return process.random.sample(wanted, min(len(wanted), process.random.randint(1, LETTERS_MAX)))

    def note_message(self, message: dict[str, Any]) -> None:
        places = message["letters"]["places"]
        tables = [event["table"] if "." in event["table"] else f"default.{event['table']}" for event in message["events"]]
        self._sent[message["sequenceNumber"]] = [(table, tuple(place)) for table, place in zip(tables, places, strict=True)]

    def note_ack(self, sequence: int, status: str) -> None:
        if status != "persisted":
            return
        for number, letters in self._sent.items():
            for table, first in letters:
                if number <= sequence and not self._letters.is_judged_again(table, first):
                    raise Breach(f"{self.name}: persisted up to {sequence}, and the letter of {table} at {first} is not judged again")

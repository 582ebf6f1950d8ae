"""`python -m tests.verify.bits`: flips one bit after the other in what a table is made of, and looks what `dolake verify` says.

In data and delete files each is found, and the file named. What describes a table has bits that mean nothing to anybody: there nothing
ends in an error without a name. Ends with 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pyiceberg.manifest import read_manifest_list

from dolake.iceberg.file_io import StoreFileIO
from dolake.model import TableName
from tests.reliability import summary
from tests.verify.damage import Hands, lake, opened, verified
from tests.verify.test_mirrors import three_flushes
from tests.writer.half import Half
from tests.writer.test_mirrors import insert

FLIPS = 150
T, U = TableName("default", "t"), TableName("default", "u")
MADE_OF = ("metadata", "manifest list", "manifest")


@dataclass(frozen=True)
class Flip:
    """`complaint`: what is wrong with what verifying made of it; empty where nothing is."""

    file: str
    bit: int
    is_found: bool
    complaint: str = ""


async def two_tables(h: Half) -> None:
    await three_flushes(h)
    h.hand.declare("u")
    h.hand.change(*(insert(key, "u") for key in range(3)), table="u")
    await h.flush()


def path_of(location: str) -> Path:
    return Path(location.removeprefix("file://"))


def made_of(data: Path, what: str) -> Path:
    """A file of table `t`."""
    with opened(data) as (store, catalog):
        table = catalog.load(T)
        assert table is not None
        assert table.head is not None
        listed = table.head["manifest-list"]
        (manifest, *_) = read_manifest_list(StoreFileIO(store).new_input(listed))
        return path_of({"metadata": table.metadata_location, "manifest list": listed, "manifest": manifest.manifest_path}[what])


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def files_of_rows(data: Path) -> list[Path]:
    with opened(data) as (store, catalog):
        hands = Hands(store, catalog)
        return [path_of(file.location) for kind in ("data", "position deletes") for file in hands.files(kind)]


def flips_in_rows(data: Path, count: int, seed: object = "rows") -> Iterator[Flip]:
    """In each file in turn, and the file is as it was afterwards."""
    chance, files = random.Random(f"{seed}"), files_of_rows(data)
    for number in range(count):
        file = files[number % len(files)]
        content = file.read_bytes()
        bit = chance.randrange(8 * len(content))
        file.write_bytes(flipped(content, bit))
        breaches = verified(data).breaches
        found = any((breach.invariant, breach.subject) == ("I15", str(T)) and file.name in breach.sentence for breach in breaches)
        file.write_bytes(content)
        yield Flip(file.name, bit, found, "" if found else f"not named; found was {list(map(str, breaches))}")


def flips_in_descriptions(data: Path, what: str, count: int, seed: object = "") -> Iterator[Flip]:
    """`what` of MADE_OF. The file is as it was afterwards."""
    path, chance = made_of(data, what), random.Random(f"{what}{seed}")
    content = path.read_bytes()
    for _ in range(count):
        bit = chance.randrange(8 * len(content))
        path.write_bytes(flipped(content, bit))
        try:
            yield Flip(path.name, bit, bool(verified(data).breaches))
        except Exception as error:  # Of whatever kind: it is the finding.
            yield Flip(path.name, bit, False, repr(error))
    path.write_bytes(content)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.verify.bits", description=__doc__)
    parser.add_argument("--flips", type=int, default=FLIPS, help="in data and delete files; of each other kind six times as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    asked = parser.parse_args(arguments)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dolake-bits-") as directory:
        data = Path(directory)
        lake(data, two_tables)
        rows = list(flips_in_rows(data, asked.flips, asked.seed))
        described = [one for what in MADE_OF for one in flips_in_descriptions(data, what, 6 * asked.flips, asked.seed)]
    wrong = [one for one in (*rows, *described) if one.complaint]
    for one in wrong:
        print(f"bit {one.bit} of {one.file}: {one.complaint}")
    figures = {"in_rows_found": sum(one.is_found for one in rows), "in_descriptions": len(described)}
    print(f"bits: {figures['in_rows_found']} of {len(rows)} found in data and delete files, {len(described)} others: {len(wrong)} breaches")
    if asked.json is not None:
        summary.write(
            asked.json,
            family="bits",
            cases=len(rows) + len(described),
            breaches=len(wrong),
            seconds=time.monotonic() - began_s,
            figures=figures,
            detail=[asdict(one) for one in wrong],
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

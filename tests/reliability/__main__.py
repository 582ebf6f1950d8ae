"""`python -m tests.reliability --write docs/reliability.md`: takes in what the runs left in build/faults, and writes the page.

The figures are kept beside it, in a file of the same name that ends in .json, so that the page can be written again without the runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.reliability.page import PAGE, TEMPLATE, from_json, gathered, mistakes, page, to_json
from tests.reliability.summary import FOLDER


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--write", type=Path, default=PAGE, help="the page; docs/reliability.md if not given")
    parser.add_argument("--from", dest="folder", type=Path, default=FOLDER, help="where the summaries are; build/faults if not given")
    asked = parser.parse_args(arguments)
    figures = asked.write.with_suffix(".json")
    try:
        summaries = gathered(asked.folder, from_json(figures.read_text(encoding="utf-8")) if figures.exists() else {})
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    text = page(TEMPLATE.read_text(encoding="utf-8"), summaries)
    if broken := [family for family, summary in summaries.items() if summary.breaches]:
        print(f"{', '.join(broken)}: mend the breaches first; nothing was written", file=sys.stderr)
        return 1
    if wrong := list(mistakes(text)):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    figures.write_text(to_json(summaries), encoding="utf-8")
    asked.write.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

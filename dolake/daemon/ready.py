"""`DIR/ready.json`: where a running daemon is found. It exists while the daemon serves, and is always whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping


class ReadyFile:
    """Written when all children are ready for the first time, again at every restart, removed at the end."""

    def __init__(self, path: str, *, cdc: str, http: str) -> None:
        self._path = path
        self._addresses = {"cdc": cdc, "http": http}

    def write(self, pids: Mapping[str, int]) -> None:
        new = f"{self._path}.new"
        with open(new, "w", encoding="utf-8") as file:
            json.dump({**self._addresses, "pids": dict(pids)}, file)
            file.write("\n")
        os.replace(new, self._path)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

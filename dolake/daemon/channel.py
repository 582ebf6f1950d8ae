"""A child's end of the channel to its supervisor: lines down (the settings first), one word up, and the news that it is gone."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable

import structlog

SUPERVISOR_GONE = 3
_LINE_BYTES_MAX = 4 << 20
_READ_BYTES = 65_536

log = structlog.get_logger("dolake.daemon")


class Channel:
    """Over a socket that the child has inherited."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._read = b""

    def first_line(self) -> bytes:
        """Waits for it, however long: a spare does. Ends the process if the supervisor goes first."""
        self._link.setblocking(True)
        while b"\n" not in self._read and len(self._read) < _LINE_BYTES_MAX:
            try:
                piece = self._link.recv(_READ_BYTES)
            except ConnectionResetError:
                piece = b""
            if not piece:
                sys.exit(SUPERVISOR_GONE)
            self._read += piece
        self._link.setblocking(False)
        line, _, self._read = self._read.partition(b"\n")
        return line

    def listen(self, heard: Callable[[bytes], None]) -> None:
        """Has each further line heard, on the running loop. Ends the process at once when the supervisor has gone."""

        def readable() -> None:
            try:
                piece = self._link.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                piece = b""
            if not piece:
                self._end()
            self._read += piece
            *lines, self._read = self._read.split(b"\n")
            for line in lines:
                heard(line)

        asyncio.get_running_loop().add_reader(self._link.fileno(), readable)

    def tell_ready(self) -> None:
        try:
            self._link.send(b"ready\n")
        except OSError:
            self._end()

    def _end(self) -> None:
        log.warning("the supervisor has gone, ending")
        os._exit(SUPERVISOR_GONE)

"""A server that notes every request and gives the answers it was told to give."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Notebook:
    """`answers` are (status, body, length that is claimed) of the next requests; the last one stays."""

    endpoint: str = ""
    answers: list[tuple[int, bytes, int]] = field(default_factory=lambda: [(200, b"", 0)])
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextlib.contextmanager
def noting_server() -> Iterator[Notebook]:
    """Over HTTP, on a port of its own."""
    notes = Notebook()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            notes.paths.append(self.path)
            notes.requests.append((self.command, {name.lower(): value for name, value in self.headers.items()}, body))
            status, answer, length = notes.answers.pop(0) if len(notes.answers) > 1 else notes.answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)
            self.close_connection = length != len(answer)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        notes.endpoint = f"http://127.0.0.1:{listening.server_port}"
        serving = threading.Thread(target=listening.serve_forever)
        serving.start()
        yield notes
        listening.shutdown()
        serving.join()

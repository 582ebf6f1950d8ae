"""`POST /cdc` as any HTTP client would send it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Posted:
    """An answer: HTTP's part, and the ack or nack."""

    status: int
    headers: Mapping[str, str]
    answer: dict[str, Any]

    @property
    def summary(self) -> tuple[Any, ...]:
        """(HTTP status, sequence number, ack's status or nack's reason)"""
        return self.status, self.answer["sequenceNumber"], self.answer.get("status") or self.answer["reason"]


def post(http_url: str, message: Any, headers: Mapping[str, str] = JSON, timeout_s: float = 60.0) -> Posted:
    """Sends one message on a connection of its own; bytes go as they are, anything else as JSON."""
    body = message if isinstance(message, bytes) else json.dumps(message, ensure_ascii=False).encode()
    link = http.client.HTTPConnection(urlsplit(http_url).netloc, timeout=timeout_s)
    try:
        link.request("POST", "/cdc", body, dict(headers))
        response = link.getresponse()
        text = response.read()
        assert response.headers["Content-Type"] == "application/json", text
        return Posted(response.status, dict(response.headers), json.loads(text))
    finally:
        link.close()


def post_batch(source: str, sequence: int, events: list[Any], **more: Any) -> dict[str, Any]:
    """As short as a batch may be; `events` are the oracle's."""
    return {"sourceDoId": source, "sequenceNumber": sequence, "events": [event.to_wire() for event in events], **more}

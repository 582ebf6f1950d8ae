"""The value that stands for one the database did not send: PostgreSQL's large columns that an update left alone.

Debezium puts a text in their place, in whichever form the column's type has: the text, its bytes in one of the binary
encodings, an array of it or of its bytes' codes, a map of it to itself.
"""

from __future__ import annotations

import base64
import re

import msgspec

UNAVAILABLE = "__debezium_unavailable_value"


class Placeholders:
    """The JSON values that stand for what was not sent."""

    def __init__(self, text: str = UNAVAILABLE) -> None:
        plain, written = text.encode(), msgspec.json.encode(text)
        url_safe = base64.urlsafe_b64encode(plain)
        texts = {written, *(b'"%b"' % form for form in (base64.b64encode(plain), url_safe, url_safe.rstrip(b"="), plain.hex().encode()))}
        codes = [b"%d" % code for code in plain]
        self._forms = frozenset({*texts, b"[%b]" % written, b"[%b]" % b",".join(codes), b"{%b:%b}" % (written, written)})
        self._length_max = 2 * max(map(len, self._forms))
        self._somewhere = re.compile(b"|".join([*map(re.escape, texts), rb"\s*,\s*".join(codes)]))

    def has(self, value: bytes) -> bool:
        """Whether a value, without spaces around it, is one."""
        if value in self._forms:
            return True
        # Arrays and maps may be written with spaces inside.
        return value[:1] in b"[{" and len(value) <= self._length_max and msgspec.json.format(value, indent=-1) in self._forms

    def may_be_in(self, image: bytes) -> bool:
        return self._somewhere.search(image) is not None

"""Where websocket frames begin and end in a stream of bytes (RFC 6455, section 5.2), seen before anything is made of them.

    byte 0   fin 1, reserved 3, opcode 4 bits (from 8 on: a control frame)
    byte 1   masked 1, length 7 bits: 126 = two more bytes hold it, 127 = eight more
    then     the mask (4 bytes, where masked), then the payload

So many tiny frames fit into one read of a socket that taking them all at once would hold up everybody else; this says where
to cut. It judges nothing: what is wrong with a frame the websocket library says.
"""

from __future__ import annotations

from typing import NamedTuple

_LENGTH_BYTES = {126: 2, 127: 8}


class Piece(NamedTuple):
    """The part of some bytes that may be taken now: up to `end`, in which so many frames begin."""

    end: int
    frame_count: int
    control_count: int


class FrameWalk:
    """Follows one direction of one connection."""

    def __init__(self) -> None:
        self._head = bytearray()  # of a frame whose header is not whole yet
        self._payload_left = 0

    def piece(self, data: bytes, frames_max: int, controls_max: int) -> Piece:
        """As much of `data` as holds at most so many frames, and so many control frames among them.

        What it leaves must be given again, first. A frame that has begun is not held up.
        """
        position = frames = controls = 0
        while position < len(data):
            if self._payload_left:
                step = min(self._payload_left, len(data) - position)
                self._payload_left -= step
                position += step
                continue
            if not self._head and (frames >= frames_max or (data[position] & 8 and controls >= controls_max)):
                break
            part = data[position : position + _head_size(self._head) - len(self._head)]
            self._head += part
            position += len(part)
            if len(self._head) == _head_size(self._head) > 1:
                frames += 1
                controls += self._head[0] >> 3 & 1
                self._payload_left = _payload_size(self._head)
                self._head.clear()
        return Piece(position, frames, controls)


def _head_size(head: bytearray) -> int:
    """Bytes of a header, as far as what there is of it tells."""
    if len(head) < 2:
        return 2
    return 2 + _LENGTH_BYTES.get(head[1] & 0x7F, 0) + (4 if head[1] & 0x80 else 0)


def _payload_size(head: bytearray) -> int:
    short = head[1] & 0x7F
    return int.from_bytes(head[2 : 2 + _LENGTH_BYTES[short]], "big") if short in _LENGTH_BYTES else short

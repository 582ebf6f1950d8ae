"""Frames are found in a stream however it is cut, and no piece holds more of them than asked for."""

from __future__ import annotations

import random

import pytest
from websockets.frames import Frame, Opcode

from dolake.cdc.frames import FrameWalk, Piece

SIZES = (0, 1, 125, 126, 127, 65_535, 65_536, 70_000)


def stream(chance: random.Random, count: int) -> tuple[bytes, list[int], list[bool]]:
    """Some frames: their bytes, where each begins, and which are control frames."""
    data, begins, controls = b"", [], []
    for _ in range(count):
        control = chance.random() < 0.3
        size = chance.choice((0, 3, 125)) if control else chance.choice(SIZES)
        frame = Frame(Opcode.PING if control else Opcode.TEXT, b"x" * size)
        begins.append(len(data))
        controls.append(control)
        data += frame.serialize(mask=chance.random() < 0.8)
    return data, begins, controls


@pytest.mark.parametrize("seed", range(30))
def test_pieces_end_where_frames_begin_and_hold_as_many_as_allowed(seed):
    chance = random.Random(seed)
    data, begins, controls = stream(chance, 40)
    walk, position, pending, seen = FrameWalk(), 0, b"", 0
    had_begun = False  # A frame whose first byte was let through comes whole, whatever it is.
    while position < len(data) or pending:
        step = chance.choice((1, 2, 3, 7, 1000, 100_000))
        pending += data[position : position + step]
        position += step
        frames_max, controls_max = chance.randint(1, 5), chance.randint(0, 2)
        piece = walk.piece(pending, frames_max, controls_max)
        assert piece.frame_count <= frames_max
        assert piece.control_count == sum(controls[seen : seen + piece.frame_count])
        assert piece.control_count <= controls_max + had_begun
        had_begun = bool(walk._head)
        seen += piece.frame_count
        pending = pending[piece.end :]
        stops_at = min(position, len(data)) - len(pending)
        was_enough = piece.frame_count == frames_max or (seen < len(begins) and controls[seen] and piece.control_count >= controls_max)
        assert not pending or (stops_at == begins[seen] and was_enough)  # It stops at a frame, and because there were enough.
    assert seen == len(begins)


def test_the_bytes_are_counted_the_same_one_by_one():
    data, begins, controls = stream(random.Random(1), 20)
    walk = FrameWalk()
    pieces = [walk.piece(data[place : place + 1], 100, 100) for place in range(len(data))]
    assert sum(piece.frame_count for piece in pieces) == len(begins)
    assert sum(piece.control_count for piece in pieces) == sum(controls)
    assert {piece.end for piece in pieces} == {1}


def test_nothing_is_nothing_and_a_frame_that_has_begun_is_not_held_up():
    walk = FrameWalk()
    assert walk.piece(b"", 0, 0) == Piece(0, 0, 0)
    ping = Frame(Opcode.PING, b"x" * 100).serialize(mask=True)
    assert walk.piece(ping, 1, 0) == Piece(0, 0, 0)
    assert walk.piece(ping[:1], 1, 1) == Piece(1, 0, 0)
    assert walk.piece(ping[1:] + ping, 1, 1) == Piece(len(ping) - 1, 1, 1)
    assert walk.piece(ping, 0, 1) == Piece(0, 0, 0)

"""Events, from bytes that were laid out by hand."""

from __future__ import annotations

import struct

import pytest

from tracer.kernel import events
from tracer.kernel.events import Absent, Event


def event(kind: int, layout: str, *values: int | bytes) -> bytes:
    return struct.pack("=QII", 7_000_000_001, 812, kind) + struct.pack(f"={layout}", *values)


EVENTS = [
    (event(1, ""), None),
    (event(2, "QQII", 7, 1 << 40, 9, 0), events.Punch(7_000_000_001, id=9, first=7, end=1 << 40)),
    (
        event(3, "QQqqqq136s136s136s136s", 11, 0, 3, -1, -2, 1, b"/a\0 left", b"left", b"", b""),
        events.LabelRead(812, 11, 0, ("/a", Absent.NONE, Absent.UNREADABLE, "")),
    ),
    (  # of a longer one there is room for a little more than is shown, which tells
        event(3, "QQqqqq136s136s136s136s", 11, 7, 136, 129, 130, 1, b"x" * 136, b"y" * 128, b"z" * 129, b"\0"),
        events.LabelRead(812, 11, 7, ("x" * 128 + "…", "y" * 128, "z" * 128 + "…", "")),
    ),
]


@pytest.mark.parametrize(("raw", "decoded"), EVENTS)
def test_decode(raw: bytes, decoded: Event | None) -> None:
    assert events.decode(raw) == decoded


@pytest.mark.parametrize(("raw", "decoded"), EVENTS)
def test_what_the_ring_buffer_pads_with_is_ignored(raw: bytes, decoded: Event | None) -> None:
    assert events.decode(raw + b"\xff" * 7) == decoded

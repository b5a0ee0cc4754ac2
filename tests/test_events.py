"""Events, from bytes that were laid out by hand."""

from __future__ import annotations

import os
import struct

import pytest

from tracer import events, wire
from tracer.events import Absent, Event, Head
from tracer.procfs import RegionKey

HEAD = Head(time_ns=7_000_000_001, start_time_ns=5_230_000_000, tgid=812)
MAKER = Head(time_ns=6_000_000_001, start_time_ns=5_210_000_000, tgid=811)
REGION = "QIIQQQIIII64s"


def event(kind: int, layout: str, *values: int | bytes) -> bytes:
    return struct.pack("=QQII", *HEAD, kind) + struct.pack(f"={layout}", *values)


EVENTS = [
    (
        event(1, "QII16s", 5_210_000_000, 811, 0, b"php-fpm8.2"),
        events.Fork(HEAD, parent_tgid=811, parent_start_time_ns=5_210_000_000, comm="php-fpm8.2"),
    ),
    (
        event(2, "II16s256s", 15, 1, b"ls", b"/bin/ls\0-l\0/x\0\0and what was there before"),
        events.Exec(HEAD, "ls", "/bin/ls", "/bin/ls -l /x", tracked=True),
    ),
    (
        event(2, "II16s256s", 0, 0, b"kthread", b"and what was there before"),
        events.Exec(HEAD, "kthread", "", "", tracked=False),
    ),
    (
        event(3, "II16s256s", 19, 0, b"php-fpm8.2", b"php-fpm: pool www  \0 that was longer once"),
        events.Exit(HEAD, "php-fpm8.2", "php-fpm: pool www"),
    ),
    (event(3, "II16s256s", 0, 0, b"true", b""), events.Exit(HEAD, "true", "")),
    (  # as long as there is room for, and one byte longer
        event(3, "II16s256s", 256, 0, b"java", b"java\0" + b"x" * 251),
        events.Exit(HEAD, "java", "java " + "x" * 251),
    ),
    (
        event(2, "II16s256s", 257, 1, b"java", b"java\0" + b"x" * 251),
        events.Exec(HEAD, "java", "java", "java " + "x" * 251 + "…", tracked=True),
    ),
    (
        event(3, "II16s256s", 2**32 - 1, 0, b"x", b"x" * 256),
        events.Exit(HEAD, "x", "x" * 256 + "…"),
    ),
    (
        event(4, REGION, 1047, 0x3A9C21F0, 1, 256 << 20, *MAKER, 9, 0x01021994, 8, b"dev/zero, and what was there"),
        events.Region(HEAD, RegionKey(1, 1047, 0x3A9C21F0), 9, 256 << 20, 0x01021994, "dev/zero", made=MAKER),
    ),
    (  # nobody saw it made, and hugetlbfs knows no generations
        event(4, REGION, 2, 0, 0, 4096, 0, 0, 0, 10, 0x958458F6, 64, b"x" * 64),
        events.Region(HEAD, RegionKey(0, 2, None), 10, 4096, 0x958458F6, "x" * 64, made=None),
    ),
    (
        event(5, "QIIII", 1047, 0x3A9C21F0, 1, 9, 0),
        events.Gone(HEAD, id=9, key=RegionKey(1, 1047, 0x3A9C21F0)),
    ),
    (event(6, "II16s", 9, 0, b"php-fpm8.2"), events.Touch(HEAD, id=9, comm="php-fpm8.2", stranger=False)),
    (event(6, "II16s", 9, 1, b"khugepaged\0\0left"), events.Touch(HEAD, id=9, comm="khugepaged", stranger=True)),
    (event(7, "II", 32769, 0), events.Segment(HEAD, shmid=32769)),
    (event(8, "QQII", 7, 1 << 40, 9, 0), events.Punch(HEAD, id=9, first=7, end=1 << 40)),
    (
        event(9, "QQqqqq136s136s136s136s", 11, 0, 3, -1, -2, 1, b"/a\0 left", b"left", b"", b""),
        events.Label(HEAD, 11, 0, ("/a", Absent.NONE, Absent.UNREADABLE, "")),
    ),
    (  # of a longer one there is room for a little more than is shown, which tells
        event(9, "QQqqqq136s136s136s136s", 11, 7, 136, 129, 130, 1, b"x" * 136, b"y" * 128, b"z" * 129, b"\0"),
        events.Label(HEAD, 11, 7, ("x" * 128 + "…", "y" * 128, "z" * 128 + "…", "")),
    ),
]

HOSTILE = [
    pytest.param(b"\xff\xfe\x80" + b"\xc3" * 13, id="no UTF-8"),
    pytest.param("€".encode()[:2], id="cut within a character"),
    pytest.param(b"\xed\xa0\x80", id="surrogate"),
    pytest.param(b"\x1b[2J\x1b]0;x\x07\r\n", id="escape sequences"),
    pytest.param("\u202e\u200b\u0301".encode(), id="reordering, invisible, combining"),
    pytest.param(b"n" * 16, id="no NUL"),
    pytest.param(b"\0" * 16, id="only NUL"),
]


@pytest.mark.parametrize(("raw", "decoded"), EVENTS)
def test_decode(raw: bytes, decoded: Event) -> None:
    assert events.decode(raw) == decoded


@pytest.mark.parametrize(("raw", "decoded"), EVENTS)
def test_what_the_ring_buffer_pads_with_is_ignored(raw: bytes, decoded: Event) -> None:
    assert events.decode(raw + b"\xff" * 7) == decoded


def test_every_event_is_tried() -> None:
    assert {type(decoded) for _, decoded in EVENTS} == set(events.Event.__args__)


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile_text_becomes_text(raw: bytes) -> None:
    decoded = [
        events.decode(event(wire.EVENT_FORK, "QII16s", 1, 1, 0, raw)).comm,
        *events.decode(event(wire.EVENT_EXEC, "II16s256s", 256, 1, raw, raw * 16))[1:4],
        *events.decode(event(wire.EVENT_EXIT, "II16s256s", 2**32 - 1, 0, raw, raw * 16))[1:3],
        events.decode(event(wire.EVENT_REGION, REGION, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2**32 - 1, raw * 4)).name,
        events.decode(event(wire.EVENT_TOUCH, "II16s", 1, 1, raw)).comm,
    ]
    for text in decoded:
        assert text.encode("utf-8").decode("utf-8") == text
        assert "\0" not in text


def test_bytes_that_are_no_text_can_be_told() -> None:
    assert events.text(b"a\xff\0b") == "a\\xff"


@pytest.mark.parametrize(
    ("kernel", "major", "minor"),
    [(1, 0, 1), (8 << 20 | 1, 8, 1), (259 << 20 | 0xFFFFF, 259, 0xFFFFF), (0xFFF << 20 | 256, 0xFFF, 256)],
)
def test_device_numbers(kernel: int, major: int, minor: int) -> None:
    assert events.user_dev(kernel) == os.makedev(major, minor)


def test_a_key_as_the_kernel_side_has_it() -> None:
    assert events.region_key(1047, 0x3A9C21F0, 8 << 20 | 300) == RegionKey(os.makedev(8, 300), 1047, 0x3A9C21F0)
    assert events.region_key(1047, 0, 1) == RegionKey(os.makedev(0, 1), 1047, None)

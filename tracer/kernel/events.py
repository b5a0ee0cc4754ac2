"""What has happened in the kernel, a record each. Those of a ring buffer are decoded here; most are made of what has
changed in the kernel side's maps (tracer/news.py).

A process is (tgid, start_time_ns). Times are CLOCK_MONOTONIC, start times CLOCK_BOOTTIME, both in nanoseconds.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Union

from tracer import wire
from tracer.proc import bounded
from tracer.proc.shmem import RegionKey


class Head(NamedTuple):
    """When, and in which process."""

    time_ns: int
    start_time_ns: int
    tgid: int


class Absent(enum.Enum):
    """In place of a text."""

    NONE = wire.TEXT_NONE
    """there was none: a null pointer"""
    UNREADABLE = wire.TEXT_UNREADABLE


class Fork(NamedTuple):
    """A tracked process made this one."""

    head: Head
    """of the child"""
    parent_tgid: int
    parent_start_time_ns: int
    comm: str
    number: int
    """of the child, on the kernel side"""
    watched: bool
    """it is not known yet whether it is of the tree"""


class Exec(NamedTuple):
    """A process runs another program."""

    head: Head
    comm: str
    title: str
    command: str
    number: int
    """of the process, on the kernel side"""


class Exit(NamedTuple):
    """The last thread of a process ended."""

    head: Head
    comm: str
    command: str
    """empty where the kernel had dropped it"""


class RegionMet(NamedTuple):
    """A region was made, or mapped by the tree for the first time."""

    head: Head
    key: RegionKey
    id: int
    size_bytes: int
    huge: bool
    """on hugetlbfs"""
    name: str
    made: Head | None
    """when and by whom; None: nobody saw it"""


class RegionGone(NamedTuple):
    """A region's last user let go."""

    id: int


class Touch(NamedTuple):
    """A process touched a region for the first time."""

    process: tuple[int, int]
    """tgid, start_time_ns"""
    id: int
    comm: str


class Punch(NamedTuple):
    """Pages [first, end) of a region are given back, and keep their words in the ledger."""

    time_ns: int
    id: int
    first: int
    end: int


class LabelRead(NamedTuple):
    """What a process does from a moment on, in microseconds since the capture began, as it touches a page."""

    tgid: int
    since_us: int
    lost_us: int
    """from when until then it is not known; 0: it is"""
    texts: tuple[str | Absent, ...]
    """as many as there are sources, and empty ones after them"""


Event = Union[Fork, Exec, Exit, RegionMet, RegionGone, Touch, Punch, LabelRead]


def decode(raw: bytes) -> Event | None:
    """One event of the ring buffer; None: no more than that something has changed in the maps."""
    time_ns, tgid, kind = wire.EVENT.unpack_from(raw)
    rest = raw[wire.EVENT.size :]
    if kind == wire.EVENT_PUNCH:
        first, end, number, _ = wire.PUNCH.unpack_from(rest)
        return Punch(time_ns, number, first, end)
    return _label(tgid, rest) if kind == wire.EVENT_LABEL else None


def _label(tgid: int, raw: bytes) -> LabelRead:
    since_us, lost_us = wire.LABEL_SINCE.unpack_from(raw)
    *lengths, texts = wire.TEXTS.unpack_from(raw, wire.LABEL_SINCE.size)
    starts = range(0, wire.TEXTS_BYTES, wire.TEXT_BYTES)
    found = (texts[start : start + wire.TEXT_BYTES] for start in starts)
    return LabelRead(tgid, since_us, lost_us, tuple(map(_shown, lengths, found)))


def _shown(length: int, raw: bytes) -> str | Absent:
    return Absent(length) if length < 0 else bounded.text(raw.split(b"\0", 1)[0], wire.SHOWN_BYTES)

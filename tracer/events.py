"""The events of bpf/wire.h, decoded: one record per event, bytes in, record out.

A process is (tgid, start_time_ns). Times are CLOCK_MONOTONIC, start times CLOCK_BOOTTIME, both in nanoseconds.
"""

from __future__ import annotations

import enum
import os
from typing import NamedTuple, Union

from tracer import bounded, wire
from tracer.procfs import RegionKey, titles


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


class Exec(NamedTuple):
    """A process runs another program."""

    head: Head
    comm: str
    title: str
    command: str
    tracked: bool
    """it was before this; else it is watched until user space knows its name"""


class Exit(NamedTuple):
    """The last thread of a process ended."""

    head: Head
    comm: str
    command: str
    """empty where the kernel had dropped it"""


class Region(NamedTuple):
    """A region was made, or mapped by the tree for the first time."""

    head: Head
    key: RegionKey
    id: int
    vss_bytes: int
    file_system: int
    """its magic number"""
    name: str
    made: Head | None
    """when and by whom; None: nobody saw it"""


class Gone(NamedTuple):
    """A region's last user let go; the process did it, or a kernel worker for it."""

    head: Head
    id: int
    key: RegionKey


class Touch(NamedTuple):
    """A process touched a region for the first time."""

    head: Head
    id: int
    comm: str
    stranger: bool
    """it is not of the tree"""


class Punch(NamedTuple):
    """Pages [first, end) of a region are given back, and keep their words in the ledger."""

    head: Head
    id: int
    first: int
    end: int


class Segment(NamedTuple):
    """A process called shmget."""

    head: Head
    shmid: int


class Label(NamedTuple):
    """What a process does from a moment on, in microseconds since the capture began, as it touches a page."""

    head: Head
    since_us: int
    lost_us: int
    """from when until then it is not known; 0: it is"""
    texts: tuple[str | Absent, ...]
    """as many as there are sources, and empty ones after them"""


Event = Union[Fork, Exec, Exit, Region, Gone, Touch, Segment, Punch, Label]


def text(raw: bytes) -> str:
    """A C string."""
    return raw.split(b"\0", 1)[0].decode(errors="backslashreplace")


def user_dev(dev: int) -> int:
    """The kernel's dev_t (major << 20 | minor) as os.makedev would have it."""
    return os.makedev(dev >> 20, dev & 0xFFFFF)


def region_key(ino: int, generation: int, dev: int) -> RegionKey:
    """From bpf/wire.h's; hugetlbfs knows no generations."""
    return RegionKey(user_dev(dev), ino, generation or None)


def decode(raw: bytes) -> Event:
    """One event of the ring buffer."""
    time_ns, start_time_ns, tgid, kind = wire.EVENT.unpack_from(raw)
    return _DECODERS[kind](Head(time_ns, start_time_ns, tgid), raw[wire.EVENT.size :])


def _fork(head: Head, raw: bytes) -> Event:
    start_time_ns, tgid, _shares_memory, comm = wire.FORK.unpack_from(raw)
    return Fork(head, tgid, start_time_ns, text(comm))


def _exec(head: Head, raw: bytes) -> Event:
    title_bytes, tracked, comm, title = wire.EXEC.unpack_from(raw)
    return Exec(head, text(comm), *_titles(title, title_bytes), bool(tracked))


def _exit(head: Head, raw: bytes) -> Event:
    title_bytes, _, comm, title = wire.EXIT.unpack_from(raw)
    return Exit(head, text(comm), _titles(title, title_bytes)[1])


def _titles(title: bytes, size_bytes: int) -> tuple[str, str]:
    """size_bytes: of the whole command line, of which the event has the beginning."""
    more = b" " if size_bytes > wire.TITLE_BYTES else b""
    return titles(title[:size_bytes] + more, wire.TITLE_BYTES)


def _region(head: Head, raw: bytes) -> Event:
    values = wire.NEW_REGION.unpack_from(raw)
    *key, vss_bytes, made_ns, maker_start_time_ns, maker_tgid, number, file_system, name_bytes, name = values
    made = Head(made_ns, maker_start_time_ns, maker_tgid) if made_ns else None
    return Region(head, region_key(*key), number, vss_bytes, file_system, text(name[:name_bytes]), made)


def _gone(head: Head, raw: bytes) -> Event:
    *key, number, _ = wire.GONE.unpack_from(raw)
    return Gone(head, number, region_key(*key))


def _touch(head: Head, raw: bytes) -> Event:
    number, stranger, comm = wire.TOUCH.unpack_from(raw)
    return Touch(head, number, text(comm), bool(stranger))


def _punch(head: Head, raw: bytes) -> Event:
    first, end, number, _ = wire.PUNCH.unpack_from(raw)
    return Punch(head, number, first, end)


def _segment(head: Head, raw: bytes) -> Event:
    return Segment(head, wire.SEGMENT.unpack_from(raw)[0])


def _label(head: Head, raw: bytes) -> Event:
    since_us, lost_us = wire.LABEL_SINCE.unpack_from(raw)
    *lengths, texts = wire.TEXTS.unpack_from(raw, wire.LABEL_SINCE.size)
    starts = range(0, wire.TEXTS_BYTES, wire.TEXT_BYTES)
    found = (texts[start : start + wire.TEXT_BYTES] for start in starts)
    return Label(head, since_us, lost_us, tuple(map(_shown, lengths, found)))


def _shown(length: int, raw: bytes) -> str | Absent:
    return Absent(length) if length < 0 else bounded.text(raw.split(b"\0", 1)[0], wire.SHOWN_BYTES)


_DECODERS = {
    wire.EVENT_FORK: _fork,
    wire.EVENT_EXEC: _exec,
    wire.EVENT_EXIT: _exit,
    wire.EVENT_REGION: _region,
    wire.EVENT_GONE: _gone,
    wire.EVENT_TOUCH: _touch,
    wire.EVENT_SEGMENT: _segment,
    wire.EVENT_PUNCH: _punch,
    wire.EVENT_LABEL: _label,
}

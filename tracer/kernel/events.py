"""Events: what happened in the kernel, one record each.

Those in the ring buffer are decoded here. Most are made from changes in the BPF maps (tracer/kernel/updates.py).

A process is (tgid, start_time_ns). Times are CLOCK_MONOTONIC, start times CLOCK_BOOTTIME, both in nanoseconds.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Union

from tracer import wire
from tracer.proc import bounded
from tracer.proc.shmem import RegionKey


class Head(NamedTuple):
    """When it happened, and in which process."""

    time_ns: int
    start_time_ns: int
    tgid: int


class Absent(enum.Enum):
    """Why there is no text."""

    NONE = wire.TEXT_NONE
    """There was none: a null pointer."""
    UNREADABLE = wire.TEXT_UNREADABLE


class Fork(NamedTuple):
    """A tracked process forked."""

    head: Head
    """Of the child."""
    parent_tgid: int
    parent_start_time_ns: int
    comm: str
    number: int
    """Number of the child in the BPF map `processes`."""
    watched: bool
    """The child is a candidate: it is not known yet whether it is of the tree."""


class Exec(NamedTuple):
    """A process executed a program."""

    head: Head
    comm: str
    title: str
    command: str
    number: int
    """Number of the process in the BPF map `processes`."""


class Exit(NamedTuple):
    """The last thread of a process exited."""

    head: Head
    comm: str
    command: str
    """Empty if it is as last reported, or could not be read."""
    status: int | None
    """As wait(2) tells it. None: unknown."""
    oom_killed: bool = False
    """The OOM killer has chosen it."""


class RegionMet(NamedTuple):
    """The tree created a region, or mapped or wrote it for the first time."""

    head: Head
    key: RegionKey
    id: int
    size_bytes: int
    huge: bool
    """It is on hugetlbfs."""
    deep: bool
    """It is not in the root directory of its file system."""
    name: str
    made: Head | None
    """When and by which process it was created; None: not seen."""
    of_tree: bool
    """The process was of the tree then."""


class RegionGone(NamedTuple):
    """The last user of a region released it."""

    id: int


class Touch(NamedTuple):
    """A process touched a region for the first time."""

    process: tuple[int, int]
    """(tgid, start_time_ns)."""
    id: int
    comm: str
    of_tree: bool
    """The process was of the tree then."""


class Punch(NamedTuple):
    """Pages [first, end) of a region were given back, but their words stay in the ledger."""

    time_ns: int
    id: int
    first: int
    end: int


class OomKill(NamedTuple):
    """The OOM killer has chosen a process of the host, traced or not. The kernel may say so once for each thread."""

    head: Head
    """Of the victim. start_time_ns 0: only the PID of one of its threads is known."""
    comm: str
    number: int
    """Of all kills that the programs have seen; the first is 1."""
    cgroup: int
    """The inode number of its directory in the memory controller's hierarchy; 0: unknown."""
    limit_cgroup: int
    """Likewise of the cgroup whose limit was reached; 0: of none, the host was short of memory."""
    limit_pages: int
    anon_pages: int | None
    """In memory then, as the kernel's log shows it. None: unknown."""
    file_pages: int | None
    shmem_pages: int | None


class LabelRead(NamedTuple):
    """The label of a process from a moment on (microseconds since the capture began), read when it touched a page."""

    tgid: int
    since_us: int
    lost_us: int
    """Labels since this moment were lost until since_us; 0: none were."""
    texts: tuple[str | Absent, ...]
    """One per text of the source, then empty ones."""


Event = Union[Fork, Exec, Exit, OomKill, RegionMet, RegionGone, Touch, Punch, LabelRead]


def decode(raw: bytes) -> Event | None:
    """Decode a ring buffer record. None: it only says that the maps have changed."""
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

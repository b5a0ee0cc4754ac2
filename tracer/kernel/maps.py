"""Reads the arrays that the BPF programs write, through mmap(2) of the maps.

Only the programs write them. Exceptions are the change flags, and a process's kind and last exec read.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from tracer.kernel.fence import fence
from tracer.wire import (
    BLOCK,
    BLOCK_PAGES,
    COUNT,
    NR_OOMS,
    OOM,
    OOM_NUMBER_BYTES,
    PART,
    PROCESS,
    PROCESS_KIND_BYTES,
    PROCESS_NUMBER_BYTES,
    PROCESS_READ_BYTES,
    REGION,
    REGION_ID_BYTES,
    USAGE,
    USAGE_REGION_BYTES,
)

WINDOW_BYTES = 256 << 10
MOST_WINDOWS = 4
_WORD = struct.Struct("=I")
_TORN_BYTES, _PART_BYTES = BLOCK_PAGES * 8, (BLOCK_PAGES + 2) * 8


def _mapped(map_fd: int, size_bytes: int) -> mmap.mmap:
    return mmap.mmap(map_fd, -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)


class Slots:
    """An array of structures. Each has a 4-byte owner field, which is 0 while the place is free.

    All of a mapping counts as this process's memory. So only a few windows of a large array are mapped at a time.
    """

    def __init__(self, map_fd: int, nr_places: int, size_bytes: int, who_bytes: int) -> None:
        """who_bytes: offset of the owner field in the structure."""
        self._fd = map_fd
        self._nr_places, self._size_bytes, self._who_bytes = nr_places, size_bytes, who_bytes
        self._in_window = WINDOW_BYTES // size_bytes
        self._windows: dict[int, tuple[mmap.mmap, int]] = {}

    def close(self) -> None:
        for window, _ in self._windows.values():
            window.close()
        self._windows.clear()

    def __getitem__(self, place: int) -> bytes:
        """The bytes of the structure at a place, copied."""
        window, at = self._at(place)
        return window[at : at + self._size_bytes]

    def who(self, place: int) -> int:
        """The owner field of a place; 0: it is free."""
        return self._word(place, self._who_bytes)

    def taken(self) -> list[int]:
        """The places in use."""
        return [place for place in range(self._nr_places) if self.who(place)]

    def _word(self, place: int, offset: int) -> int:
        window, at = self._at(place)
        return int(_WORD.unpack_from(window, at + offset)[0])

    def _at(self, place: int) -> tuple[mmap.mmap, int]:
        """Where a place is mapped: a window, and the offset in it."""
        number, inner = divmod(place, self._in_window)
        window, first = self._windows.get(number) or self._open(number)
        return window, first + inner * self._size_bytes

    def _open(self, number: int) -> tuple[mmap.mmap, int]:
        if len(self._windows) >= MOST_WINDOWS:
            self._windows.pop(next(iter(self._windows)))[0].close()
        start = number * self._in_window * self._size_bytes
        end = min(start + self._in_window * self._size_bytes, self._nr_places * self._size_bytes)
        first = start % mmap.PAGESIZE
        window = mmap.mmap(self._fd, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE - (start - first), offset=start - first)
        self._windows[number] = window, first
        return window, first


def regions(map_fd: int, nr_regions: int) -> Slots:
    """struct region of bpf/wire.h, indexed by the place in its id. The owner field is the id."""
    return Slots(map_fd, nr_regions, REGION.size, REGION_ID_BYTES)


def usages(map_fd: int, nr_usages: int) -> Slots:
    """struct usage of bpf/wire.h, indexed by its number. The owner field is the region's id."""
    return Slots(map_fd, nr_usages, USAGE.size, USAGE_REGION_BYTES)


def ooms(map_fd: int) -> Slots:
    """struct oom of bpf/wire.h, a ring. The owner field is the number of the kill; 0: it is being written."""
    return Slots(map_fd, NR_OOMS, OOM.size, OOM_NUMBER_BYTES)


class ProcessSlots(Slots):
    """struct process of bpf/wire.h, indexed by its number."""

    def __init__(self, map_fd: int, nr_processes: int) -> None:
        super().__init__(map_fd, nr_processes, PROCESS.size, PROCESS_NUMBER_BYTES)

    def put(self, number: int, kind: int) -> int:
        """Set the kind of a process (wire.OF_TREE, WATCHED, OUTSIDE_TREE) and return the old one."""
        was = self._word(number, PROCESS_KIND_BYTES)
        window, at = self._at(number)
        _WORD.pack_into(window, at + PROCESS_KIND_BYTES, kind)
        return was

    def has_read(self, number: int, executed_ns: int) -> None:
        """Mark all execs up to this time as read."""
        window, at = self._at(number)
        COUNT.pack_into(window, at + PROCESS_READ_BYTES, executed_ns)


class Blocks(Slots):
    """struct block of bpf/wire.h, indexed by its number."""

    def __init__(self, map_fd: int, nr_blocks: int) -> None:
        super().__init__(map_fd, nr_blocks, BLOCK.size, _PART_BYTES)

    def part(self, number: int) -> tuple[int, int]:
        """(region id, part) of a block."""
        window, at = self._at(number)
        region, part = PART.unpack_from(window, at + _PART_BYTES)
        return region, part

    def block(self, number: int) -> Block:
        """A copy of the block."""
        window, at = self._at(number)
        words = array("Q", window[at : at + _TORN_BYTES + 8])
        torn = words.pop()
        return Block(words, torn)


class Changes:
    """Change flags: one 64-bit word per place of another array."""

    def __init__(self, map_fd: int, nr_places: int) -> None:
        self._map = _mapped(map_fd, nr_places * 8)
        self._changes = memoryview(self._map).cast("Q")

    def close(self) -> None:
        self._changes.release()
        self._map.close()

    def take(self) -> list[int]:
        """Clear the flags and return the places that were set."""
        found, at = [], -1
        while (at := self._map.find(b"\1", at + 1)) >= 0:
            self._changes[at // 8] = 0  # clear before the place is read, so that no later change is lost
            found.append(at // 8)
        fence()
        return found

    def add(self, place: int) -> None:
        """Set the flag of a place again, for the next take()."""
        self._changes[place] = 1


class Counts:
    """An array of 64-bit counters."""

    def __init__(self, map_fd: int, nr_counts: int) -> None:
        self._map = _mapped(map_fd, nr_counts * 8)
        self._nr_counts = nr_counts

    def close(self) -> None:
        self._map.close()

    def read(self) -> list[int]:
        """The current values."""
        return array("Q", self._map[: self._nr_counts * 8]).tolist()

    def clear(self) -> None:
        """Set all counters to 0."""
        self._map[: self._nr_counts * 8] = bytes(self._nr_counts * 8)


class Block(NamedTuple):
    """The ledger words of BLOCK_PAGES consecutive pages."""

    words: Sequence[int]
    torn: int
    """One bit per page: the page existed when the region was torn down."""


class Usage(NamedTuple):
    """struct usage of bpf/wire.h: what one process did to one region."""

    faults: int
    freed_pages: int


class MadeFor(NamedTuple):
    """Pages that one process made in another's address space. Processes are (tgid, start_time_ns)."""

    acting: tuple[int, int]
    whose: tuple[int, int]
    pages: int


class Stacked(NamedTuple):
    """struct stacked_key of bpf/wire.h: one count of pages."""

    region: int
    tgid: int
    start_time_ns: int
    stack: int
    """Its number in the map `stacks`, or wire.NO_STACK."""

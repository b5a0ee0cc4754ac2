"""What the kernel side has written: its arrays, mapped and read in place.

They are for the kernel side alone to write, but for what tells what has changed, and whose a process is.
"""

from __future__ import annotations

import mmap
from array import array
from itertools import compress

from tracer.ledger import Block
from tracer.wire import (
    BLOCK,
    BLOCK_PAGES,
    PROCESS,
    PROCESS_KIND_BYTES,
    PROCESS_NUMBER_BYTES,
    REGION,
    REGION_ID_BYTES,
    USAGE,
    USAGE_REGION_BYTES,
)

_BLOCK_WORDS = BLOCK.size // 8
_TORN, _, _PART = range(BLOCK_PAGES, _BLOCK_WORDS)


def _mapped(map_fd: int, size_bytes: int) -> mmap.mmap:
    return mmap.mmap(map_fd, -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)


class Places:
    """Structures of one kind, by their place; each says who has it, in a word of 4 bytes that is 0 where it is free."""

    def __init__(self, map_fd: int, nr_places: int, size_bytes: int, who_bytes: int) -> None:
        """who_bytes: where in a structure that word is."""
        self._map = _mapped(map_fd, nr_places * size_bytes)
        self._size_bytes = size_bytes
        self._raw = memoryview(self._map)[: nr_places * size_bytes]
        self._who = self._raw.cast("I")[who_bytes // 4 :: size_bytes // 4]

    def close(self) -> None:
        self._who.release()
        self._raw.release()
        self._map.close()

    def __getitem__(self, place: int) -> bytes:
        return self._map[place * self._size_bytes : (place + 1) * self._size_bytes]

    def who(self, place: int) -> int:
        """Who has this place."""
        return self._who[place]

    def taken(self) -> list[int]:
        """The places that somebody has."""
        return list(compress(range(len(self._who)), self._who))


def regions(map_fd: int, nr_regions: int) -> Places:
    """struct region of bpf/wire.h, by the place in its id."""
    return Places(map_fd, nr_regions, REGION.size, REGION_ID_BYTES)


def usages(map_fd: int, nr_usages: int) -> Places:
    """struct usage of bpf/wire.h, by its number; the region has it."""
    return Places(map_fd, nr_usages, USAGE.size, USAGE_REGION_BYTES)


class Processes(Places):
    """struct process of bpf/wire.h, by its number."""

    def __init__(self, map_fd: int, nr_processes: int) -> None:
        super().__init__(map_fd, nr_processes, PROCESS.size, PROCESS_NUMBER_BYTES)
        self._kinds = self._raw.cast("I")[PROCESS_KIND_BYTES // 4 :: PROCESS.size // 4]

    def close(self) -> None:
        self._kinds.release()
        super().close()

    def put(self, number: int, kind: int) -> int:
        """What it is from now on, of wire.OF_TREE and so on. What it was."""
        was, self._kinds[number] = self._kinds[number], kind
        return was


class Changes:
    """What has changed, of several arrays one after the other."""

    def __init__(self, map_fd: int, nr_places: int) -> None:
        self._map = _mapped(map_fd, nr_places * 8)
        self._changes = memoryview(self._map).cast("Q")

    def close(self) -> None:
        self._changes.release()
        self._map.close()

    def take(self, first: int, end: int) -> list[int]:
        """What has changed of [first, end) since this was last asked, counted from first."""
        found = []
        at = first * 8 - 1
        while (at := self._map.find(b"\1", at + 1, end * 8)) >= 0:
            self._changes[at // 8] = 0  # before it is read
            found.append(at // 8 - first)
        return found

    def add(self, place: int) -> None:
        """It has, for whoever asks next."""
        self._changes[place] = 1


class Blocks:
    """struct block of bpf/wire.h, by its number."""

    def __init__(self, map_fd: int, nr_blocks: int) -> None:
        self._map = _mapped(map_fd, nr_blocks * BLOCK.size)
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        self._words.release()
        self._map.close()

    def part(self, number: int) -> tuple[int, int]:
        """Which region's it is, and which part of it."""
        part, region = divmod(self._words[number * _BLOCK_WORDS + _PART], 1 << 32)
        return region, part

    def block(self, number: int) -> Block:
        """As it is now, its words copied."""
        first = number * BLOCK.size
        words = array("Q", self._map[first : first + 8 * BLOCK_PAGES])  # a view would be read number by number
        return Block(words, self._words[number * _BLOCK_WORDS + _TORN])


class Counts:
    """Numbers of 64 bits."""

    def __init__(self, map_fd: int, nr_counts: int) -> None:
        self._map = _mapped(map_fd, nr_counts * 8)
        self._nr_counts = nr_counts

    def close(self) -> None:
        self._map.close()

    def read(self) -> list[int]:
        return array("Q", self._map[: self._nr_counts * 8]).tolist()

    def clear(self) -> None:
        self._map[: self._nr_counts * 8] = bytes(self._nr_counts * 8)

"""What the kernel side has written: its arrays, mapped and read in place.

They are for the kernel side alone to write, but for what tells which blocks have changed.
"""

from __future__ import annotations

import mmap
from array import array
from itertools import compress

from tracer.ledger import Block
from tracer.wire import BLOCK, BLOCK_PAGES, REGION, USAGE

_BLOCK_WORDS = BLOCK.size // 8
_TORN, _NUMBER, _PART = range(BLOCK_PAGES, _BLOCK_WORDS)


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

    def taken(self) -> list[int]:
        """The places that somebody has."""
        return list(compress(range(len(self._who)), self._who))


def regions(map_fd: int, nr_regions: int) -> Places:
    """struct region of bpf/wire.h, by the place in its id."""
    return Places(map_fd, nr_regions, REGION.size, REGION.size - 20)


def usages(map_fd: int, nr_usages: int) -> Places:
    """struct usage of bpf/wire.h, by its number; the region has it."""
    return Places(map_fd, nr_usages, USAGE.size, 16)


class Blocks:
    """struct block of bpf/wire.h, by its number, and which of them have changed."""

    def __init__(self, map_fd: int, changes_fd: int, nr_blocks: int) -> None:
        self._map = _mapped(map_fd, nr_blocks * BLOCK.size)
        self._changes_map = _mapped(changes_fd, nr_blocks * 8)
        self._words = memoryview(self._map).cast("Q")
        self._changes = memoryview(self._changes_map).cast("Q")

    def close(self) -> None:
        self._words.release()
        self._changes.release()
        self._map.close()
        self._changes_map.close()

    def changed(self) -> list[tuple[int, int, int]]:
        """(region, which of its parts, number of the block) of those that have changed since this was last asked."""
        found = []
        at = -1
        while (at := self._changes_map.find(b"\1", at + 1)) >= 0:
            number = at // 8
            self._changes[number] = 0
            part, region = divmod(self._words[number * _BLOCK_WORDS + _PART], 1 << 32)
            found.append((region, part, number))
        return found

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

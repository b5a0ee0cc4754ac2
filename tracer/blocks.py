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
_REGION_ID = (REGION.size - 20) // 4  # in words of 4 bytes


def _mapped(map_fd: int, size_bytes: int) -> mmap.mmap:
    return mmap.mmap(map_fd, -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)


class Regions:
    """struct region of bpf/wire.h, by the place in its id."""

    def __init__(self, map_fd: int, nr_regions: int) -> None:
        self._map = _mapped(map_fd, nr_regions * REGION.size)
        self._raw = memoryview(self._map)[: nr_regions * REGION.size]
        self._ids = self._raw.cast("I")[_REGION_ID :: REGION.size // 4]

    def close(self) -> None:
        self._ids.release()
        self._raw.release()
        self._map.close()

    def __getitem__(self, place: int) -> bytes:
        return self._map[place * REGION.size : (place + 1) * REGION.size]

    def taken(self) -> list[int]:
        """Places that have a region."""
        return list(compress(range(len(self._ids)), self._ids))


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


class Usages:
    """struct usage of bpf/wire.h, by its number."""

    def __init__(self, map_fd: int, nr_usages: int) -> None:
        self._map = _mapped(map_fd, nr_usages * USAGE.size)
        self._words = memoryview(self._map).cast("Q")
        self._keys = self._words[2 : nr_usages * USAGE.size // 8 : USAGE.size // 8]  # their first words

    def close(self) -> None:
        self._keys.release()
        self._words.release()
        self._map.close()

    def __getitem__(self, number: int) -> bytes:
        return self._map[number * USAGE.size : (number + 1) * USAGE.size]

    def taken(self) -> list[int]:
        return list(compress(range(len(self._keys)), self._keys))


class Counts:
    """Numbers of 64 bits."""

    def __init__(self, map_fd: int, nr_counts: int) -> None:
        self._map = _mapped(map_fd, nr_counts * 8)
        self._nr_counts = nr_counts

    def close(self) -> None:
        self._map.close()

    def read(self) -> list[int]:
        return array("Q", self._map[: self._nr_counts * 8]).tolist()

"""Decodes the ledger: who first touched which page of a region. Pure: no I/O.

The input is blocks of words and sets of pages, the output extents and counts. A word is ``tgid << WHEN_BITS |
microseconds since the capture began``. The smaller values are the WORD_… constants of bpf/wire.h.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tracer.kernel.maps import Block
from tracer.proc.shmem import Pages
from tracer.wire import BLOCK_PAGES, WHEN_BITS, WORD_ABSENT, WORD_EXISTED, WORD_FREED

WHEN_MASK = (1 << WHEN_BITS) - 1
FIRST_OWNED = 1 << WHEN_BITS
EXTENT_US = 1_000_000
MAX_PAGES = 1 << 40
PIECES = 8  # split a run of words that may be several extents into so many parts; a few find the border fastest
JOINED_BLOCKS = 1024
# the bytes of a word that hold the tgid; no WORD_… constant has a bit there
TGID_BYTES = (5, 6, 7) if sys.byteorder == "little" else (0, 1, 2)
UPPER_HALF = sys.byteorder == "little"

Owner = Any
"""Whatever the caller's OwnerOf returns. This module only compares owners."""

OwnerOf = Callable[[int, int, int], Owner]
"""(tgid, first_us, last_us) to the owner in that time. None: not one owner, so ask for a shorter time.

For a single microsecond it never returns None.
"""


NO_BLOCK = Block((WORD_ABSENT,) * BLOCK_PAGES, 0)


class Extent(NamedTuple):
    """Pages [start, end) of one first toucher, all touched within one second."""

    start: int
    end: int
    owner: Owner
    """None: the pages are from before the trace."""
    first_us: int | None
    last_us: int | None


class Entries(NamedTuple):
    """What the ledger says of one region."""

    extents: list[Extent]
    touched_pages: int
    before_pages: int
    freed_pages: dict[Owner, int]
    """Pages given back whose words remained, by owner."""


class PageSet:
    """A set of page numbers, stored as sorted extents that neither overlap nor adjoin."""

    def __init__(self, extents: Iterable[Pages]) -> None:
        self.extents = sorted(extents)
        self._starts = [start for start, _ in self.extents]

    @classmethod
    def of_any(cls, extents: Iterable[Pages]) -> PageSet:
        """Build a set from extents that may overlap."""
        union: list[Pages] = []
        for start, end in sorted(extents):
            if union and start <= union[-1][1]:
                union[-1] = union[-1][0], max(end, union[-1][1])
            else:
                union.append((start, end))
        return cls(union)

    def __len__(self) -> int:
        return sum(end - start for start, end in self.extents)

    def __and__(self, other: PageSet) -> PageSet:
        return PageSet(overlap for start, end in self.extents for overlap in other.within(start, end))

    def less(self, other: PageSet) -> PageSet:
        """The pages of this set that are not in `other`."""
        left: list[Pages] = []
        for start, end in self.extents:
            at = start
            for taken_start, taken_end in other.within(start, end):
                left.append((at, taken_start))
                at = taken_end
            left.append((at, end))
        return PageSet((start, end) for start, end in left if start < end)

    def within(self, start: int, end: int) -> list[Pages]:
        """The extents of this set, clipped to [start, end)."""
        found = []
        at = max(bisect_right(self._starts, start) - 1, 0)
        while at < len(self.extents) and self.extents[at][0] < end:
            overlap = max(self.extents[at][0], start), min(self.extents[at][1], end)
            if overlap[0] < overlap[1]:
                found.append(overlap)
            at += 1
        return found

    def mask(self, block: int) -> int:
        """One bit per page of a block, the lowest for its first page."""
        first = block * BLOCK_PAGES
        mask = 0
        for start, end in self.within(first, first + BLOCK_PAGES):
            mask |= ((1 << (end - start)) - 1) << (start - first)
        return mask


ALL_PAGES = PageSet([(0, MAX_PAGES)])


def runs(numbers: Iterable[int]) -> Iterator[Pages]:
    """Join consecutive numbers into [first, end) ranges."""
    first = end = None
    for number in sorted(numbers):
        if first is not None and end is not None and number != end:
            yield first, end
            first = None
        first = number if first is None else first
        end = number + 1
    if first is not None and end is not None:
        yield first, end


def owned(blocks: Mapping[int, Block]) -> PageSet:
    """The pages whose word names an owner."""
    return PageSet.of_any(
        (start + first, start + end) for start, words in _joined(blocks) for first, end in _owned(words)
    )


class Punches:
    """When pages were last given back without clearing their words, in microseconds since the capture began."""

    def __init__(self) -> None:
        self._edges: list[int] = []
        self._when_us: list[int | None] = []  # the time from each edge to the next; None: never

    def add(self, start: int, end: int, when_us: int) -> None:
        """Record that [start, end) was given back. Call it in the order of time.

        An empty range is ignored: a punch inside a page zeroes the bytes, but keeps the page.
        """
        if start >= end:
            return
        first, last = bisect_left(self._edges, start), bisect_right(self._edges, end)
        after = self._when_us[last - 1] if last else None
        self._edges[first:last] = start, end
        self._when_us[first:last] = when_us, after

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first, end, when_us) for what was given back in [start, end), in page order."""
        for at in range(max(bisect_right(self._edges, start) - 1, 0), bisect_left(self._edges, end)):
            when_us = self._when_us[at]
            if when_us is not None:
                yield max(self._edges[at], start), min(self._edges[at + 1], end), when_us


NO_PUNCHES = Punches()


def read(
    blocks: Mapping[int, Block],
    baseline: PageSet,
    present: PageSet | None,
    owner_of: OwnerOf,
    left_pages: int = 0,
    punches: Punches = NO_PUNCHES,
) -> Entries:
    """Decode the ledger of one region.

    blocks: by block number.
    baseline: the pages that existed when the capture of this region began.
    present: the pages that exist now. None: the region is gone, and Block.torn says which pages it had at the end.
    left_pages: pages of a gone region whose teardown was not seen, mostly swapped pages. Any owned page may be one.
    punches: a word older than the punch of its page belongs to a page that was given back.
    """
    touched: list[Extent] = []
    not_before: list[Pages] = []  # baseline pages that were freed since, and perhaps allocated again
    freed: list[Extent] = []  # only their number counts, not their place
    there = present
    if there is None:
        there = ALL_PAGES if left_pages else _torn(blocks)
    for start, words in _joined(blocks):
        end = start + len(words)
        older = array("Q")
        for punched_start, punched_end, when_us in punches.within(start, end):
            for at in range(punched_start - start, punched_end - start):
                if words[at] >= FIRST_OWNED and words[at] & WHEN_MASK < when_us:
                    older.append(words[at])
                    words[at] = WORD_FREED
        if older:
            _touch(freed, start, older, owner_of)
        for first, last in there.within(start, end):
            _touch(touched, first, words[first - start : last - start], owner_of)
        for first, last in baseline.within(start, end):
            not_before += _no_less(WORD_EXISTED + 1, first, words[first - start : last - start])
    freed_pages: dict[Owner, int] = {}
    for extent in freed:
        freed_pages[extent.owner] = freed_pages.get(extent.owner, 0) + extent.end - extent.start
    before = baseline
    if baseline:
        before = before.less(PageSet.of_any(not_before))
        before = before.less(PageSet(gone[:2] for extent in before.extents for gone in punches.within(*extent)))
        before = before & present if present is not None else before
    return Entries(
        touched + [Extent(start, end, None, None, None) for start, end in before.extents],
        sum(extent.end - extent.start for extent in touched),
        len(before),
        freed_pages,
    )


def of_huge_pages(entries: Entries, order: int, start_pages: int, allocated_pages: int) -> Entries:
    """Convert the entries of a hugetlbfs region, which count in pages of 1 << order, to pages.

    How many pages existed at the start is known, but not which. They are placed on the first pages without an owner, as
    far as there is room.
    """
    touched = [
        extent._replace(start=extent.start << order, end=extent.end << order)
        for extent in entries.extents
        if extent.owner is not None
    ]
    touched_pages = entries.touched_pages << order
    before_pages = max(min(start_pages, allocated_pages - touched_pages), 0)
    before = []
    left = before_pages
    for start, end in ALL_PAGES.less(PageSet([extent[:2] for extent in touched])).extents:
        if left:
            before.append(Extent(start, min(end, start + left), None, None, None))
            left -= before[-1].end - start
    return Entries(touched + before, touched_pages, before_pages, entries.freed_pages)


def _joined(blocks: Mapping[int, Block]) -> Iterator[tuple[int, array[int]]]:
    """Yield (first page, words) of neighbouring blocks, at most JOINED_BLOCKS at once."""
    for first, end in runs(blocks):
        for start in range(first, end, JOINED_BLOCKS):
            words = array("Q")
            for number in range(start, min(start + JOINED_BLOCKS, end)):
                words.extend(blocks[number].words)
            yield start * BLOCK_PAGES, words


def _no_less(least: int, start: int, words: Sequence[int]) -> Iterator[Pages]:
    """The pages whose word is at least `least`, as [first, end). `start` is the page of the first word."""
    for found in re.finditer(b"\1+", bytes(map(operator.le, itertools.repeat(least), words))):
        yield start + found.start(), start + found.end()


def _torn(blocks: Mapping[int, Block]) -> PageSet:
    """The pages that a region still had when it was torn down."""
    bits = ((number * BLOCK_PAGES, f"{block.torn:0{BLOCK_PAGES}b}"[::-1]) for number, block in blocks.items())
    return PageSet.of_any(
        (start + found.start(), start + found.end()) for start, each in bits for found in re.finditer("1+", each)
    )


def _owned(words: array[int]) -> Iterator[Pages]:
    """Indexes of words that have an owner, as [first, end).

    A loop over a million words takes seconds. Operations on their bytes as one large integer do not.
    """
    raw = words.tobytes()
    any_of_tgid = functools.reduce(operator.or_, (int.from_bytes(raw[at::8], "little") for at in TGID_BYTES))
    for found in re.finditer(b"[^\0]+", any_of_tgid.to_bytes(len(words), "little")):
        yield found.span()


def _touch(extents: list[Extent], start: int, words: array[int], owner_of: OwnerOf) -> None:
    """Append extents for pages from `start` on, as if page by page: each page extends the last extent if it can."""
    for first, end in _owned(words):
        owned = words[first:end]
        # A tgid has several upper halves: the half also has high bits of the time and changes about each hour.
        halves = array("I", owned.tobytes())[UPPER_HALF::2]
        alike = halves == halves[:1] * len(halves)
        at = 0
        for _, group in [(halves[0], halves)] if alike else itertools.groupby(halves):
            after = at + len(list(group))
            _touch_as_one(extents, start + first + at, owned[at:after], owner_of)
            at = after


def _touch_as_one(extents: list[Extent], start: int, words: array[int], owner_of: OwnerOf) -> None:
    """Append the extents of words with one tgid.

    min() and max() of a run are fast, and mostly one extent takes it whole.
    """
    if not _continue(extents, start, start + len(words), min(words), max(words), owner_of):
        step = -(-len(words) // PIECES)
        for at in range(0, len(words), step):
            _touch_as_one(extents, start + at, words[at : at + step], owner_of)


def _continue(extents: list[Extent], start: int, end: int, low: int, high: int, owner_of: OwnerOf) -> bool:
    """Append pages of one tgid as one extent, from the lowest and highest of their words.

    False: they may be several extents, so nothing was appended.
    """
    first_us, last_us = low & WHEN_MASK, high & WHEN_MASK
    owner = owner_of(low >> WHEN_BITS, first_us, last_us) if last_us - first_us < EXTENT_US else None
    if owner is None:
        return False
    last = extents[-1] if extents else None
    if last and last.end == start and last.owner == owner and last.first_us is not None and last.last_us is not None:
        joined_us = min(last.first_us, first_us), max(last.last_us, last_us)
        if joined_us[1] - joined_us[0] < EXTENT_US:
            extents[-1] = Extent(last.start, end, owner, *joined_us)
            return True
        if end - start > 1:  # the first of these pages alone might extend the last extent
            return False
    extents.append(Extent(start, end, owner, first_us, last_us))
    return True

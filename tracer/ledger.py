"""The ledger's words, decoded: who first touched which page of a region, and what that adds up to.

Pure: blocks of words and sets of pages in, extents and counts out. A word is ``tgid << WHEN_BITS | microseconds since
the capture began``; the small values below any owner's word are bpf/wire.h's WORD_….
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tracer.procfs import Pages
from tracer.wire import BLOCK, BLOCK_PAGES, WHEN_BITS, WORD_ABSENT, WORD_EXISTED

WHEN_MASK = (1 << WHEN_BITS) - 1
FIRST_OWNED = 1 << WHEN_BITS
EXTENT_US = 1_000_000
MAX_PAGES = 1 << 40

Owner = Any
"""Whatever the caller's resolver gives for a (tgid, microsecond); here only compared."""


class Block(NamedTuple):
    """The words of BLOCK_PAGES neighbouring pages."""

    words: tuple[int, ...]
    torn: int
    """bit per page: it was there when the region was torn down"""

    @classmethod
    def unpack(cls, raw: bytes) -> Block:
        *words, torn, _round = BLOCK.unpack(raw)
        return cls(tuple(words), torn)


NO_BLOCK = Block((WORD_ABSENT,) * BLOCK_PAGES, 0)


class Extent(NamedTuple):
    """Pages [start, end) with one first toucher, touched within a second: who and when is told of each page."""

    start: int
    end: int
    owner: Owner
    """None: from before the capture"""
    first_us: int | None
    last_us: int | None


class Entries(NamedTuple):
    """What the ledger says of a region."""

    extents: list[Extent]
    touched_pages: int
    before_pages: int
    freed_pages: dict[Owner, int]
    """by owner: given back, and their words kept"""


class PageSet:
    """A set of pages: sorted extents that do not touch each other."""

    def __init__(self, extents: Iterable[Pages]) -> None:
        self.extents = sorted(extents)
        self._starts = [start for start, _ in self.extents]

    @classmethod
    def of_any(cls, extents: Iterable[Pages]) -> PageSet:
        """Of extents that may overlap."""
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
        """The pages of this set that are not in the other."""
        left: list[Pages] = []
        for start, end in self.extents:
            at = start
            for taken_start, taken_end in other.within(start, end):
                left.append((at, taken_start))
                at = taken_end
            left.append((at, end))
        return PageSet((start, end) for start, end in left if start < end)

    def within(self, start: int, end: int) -> list[Pages]:
        """The extents of this set inside [start, end)."""
        found = []
        at = max(bisect_right(self._starts, start) - 1, 0)
        while at < len(self.extents) and self.extents[at][0] < end:
            overlap = max(self.extents[at][0], start), min(self.extents[at][1], end)
            if overlap[0] < overlap[1]:
                found.append(overlap)
            at += 1
        return found

    def mask(self, block: int) -> int:
        """A bit per page of one block."""
        first = block * BLOCK_PAGES
        mask = 0
        for start, end in self.within(first, first + BLOCK_PAGES):
            mask |= ((1 << (end - start)) - 1) << (start - first)
        return mask


def owned(blocks: Mapping[int, Block]) -> PageSet:
    """The pages that have an owner's word."""
    return PageSet(
        (number * BLOCK_PAGES + slot, number * BLOCK_PAGES + slot + 1)
        for number, block in blocks.items()
        for slot, word in enumerate(block.words)
        if word >= FIRST_OWNED
    )


class Punches:
    """When, in microseconds since the capture began, pages were last given back that keep their words."""

    def __init__(self) -> None:
        self._edges: list[int] = []
        self._when_us: list[int | None] = []  # from each edge to the next; None: never

    def add(self, start: int, end: int, when_us: int) -> None:
        """In the order of time; of a part of a page nothing is given back."""
        if start >= end:
            return
        first, last = bisect_left(self._edges, start), bisect_right(self._edges, end)
        after = self._when_us[last - 1] if last else None
        self._edges[first:last] = start, end
        self._when_us[first:last] = when_us, after

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(first, end, microsecond) of what was given back in [start, end), in order."""
        for at in range(max(bisect_right(self._edges, start) - 1, 0), bisect_left(self._edges, end)):
            when_us = self._when_us[at]
            if when_us is not None:
                yield max(self._edges[at], start), min(self._edges[at + 1], end), when_us


NO_PUNCHES = Punches()


def read(
    blocks: Mapping[int, Block],
    baseline: PageSet,
    present: PageSet | None,
    owner_of: Callable[[int, int], Owner],
    swapped_pages: int = 0,
    punches: Punches = NO_PUNCHES,
) -> Entries:
    """What the ledger says of one region.

    blocks: by block number. baseline: the pages that were there when the capture of this region began. present: those
    there now; None for a region that is gone, whose blocks then carry it themselves (Block.torn). owner_of: the
    process that a (tgid, microsecond) was. swapped_pages: how many pages of a region that is gone were swapped out at
    its end, and so torn down unseen. punches: a word older than its page's is of one that is there no more.
    """
    touched: list[Extent] = []
    not_before: list[Pages] = []  # of the baseline: freed since, and perhaps made again
    freed: dict[Owner, int] = {}
    for number in sorted(blocks):
        block = blocks[number]
        there = _torn(block, swapped_pages) if present is None else present.mask(number)
        known = baseline.mask(number)
        punched_us = [-1] * BLOCK_PAGES
        for first, end, when_us in punches.within(number * BLOCK_PAGES, (number + 1) * BLOCK_PAGES):
            punched_us[first % BLOCK_PAGES : (end - 1) % BLOCK_PAGES + 1] = [when_us] * (end - first)
        for slot, word in enumerate(block.words):
            page = number * BLOCK_PAGES + slot
            when_us = word & WHEN_MASK
            if word >= FIRST_OWNED and when_us < punched_us[slot]:
                owner = owner_of(word >> WHEN_BITS, when_us)
                freed[owner] = freed.get(owner, 0) + 1
            elif word >= FIRST_OWNED and there >> slot & 1:
                _append(touched, Extent(page, page + 1, owner_of(word >> WHEN_BITS, when_us), when_us, when_us))
            if word > WORD_EXISTED and known >> slot & 1:
                not_before.append((page, page + 1))
    before = baseline
    if baseline:
        before = before.less(PageSet(not_before))
        before = before.less(PageSet(gone[:2] for extent in before.extents for gone in punches.within(*extent)))
        before = before & present if present is not None else before
    return Entries(
        touched + [Extent(start, end, None, None, None) for start, end in before.extents],
        sum(extent.end - extent.start for extent in touched),
        len(before),
        freed,
    )


def of_huge_pages(entries: Entries, order: int, start_pages: int, allocated_pages: int) -> Entries:
    """Of a region of hugetlbfs, whose words are of pages of 1 << order: the same in pages. Which of them were there
    at the start is not known; how many, as far as there is room, is: they get the first places that are nobody's."""
    touched = [
        extent._replace(start=extent.start << order, end=extent.end << order)
        for extent in entries.extents
        if extent.owner is not None
    ]
    touched_pages = entries.touched_pages << order
    before_pages = max(min(start_pages, allocated_pages - touched_pages), 0)
    before = []
    left = before_pages
    for start, end in PageSet([(0, MAX_PAGES)]).less(PageSet([extent[:2] for extent in touched])).extents:
        if left:
            before.append(Extent(start, min(end, start + left), None, None, None))
            left -= before[-1].end - start
    return Entries(touched + before, touched_pages, before_pages, entries.freed_pages)


def _torn(block: Block, swapped_pages: int) -> int:
    """The pages that a region that is gone had at its end."""
    if not swapped_pages:
        return block.torn
    return block.torn | sum(1 << slot for slot, word in enumerate(block.words) if word >= FIRST_OWNED)


def _append(extents: list[Extent], page: Extent) -> None:
    """One more page, in order: to the last extent if it continues it."""
    last = extents[-1] if extents else None
    if last is None or last.end != page.start or last.owner != page.owner:
        extents.append(page)
    elif last.first_us is not None and last.last_us is not None and page.first_us is not None:
        first_us, last_us = min(last.first_us, page.first_us), max(last.last_us, page.first_us)
        if last_us - first_us < EXTENT_US:
            extents[-1] = Extent(last.start, page.end, last.owner, first_us, last_us)
        else:
            extents.append(page)

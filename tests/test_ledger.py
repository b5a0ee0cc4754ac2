"""The ledger's words: sets of pages against Python's own sets, and accounts worked out by hand."""

from __future__ import annotations

import random

import pytest

from tracer import ledger
from tracer.ledger import Block, Entries, Extent, PageSet
from tracer.procfs import Pages
from tracer.wire import BLOCK, BLOCK_PAGES, WHEN_BITS, WORD_ABSENT, WORD_EXISTED, WORD_FREED, WORD_REAPPEARED

ROOM = 3 * BLOCK_PAGES + 5


def word(tgid: int, when_us: int) -> int:
    return tgid << WHEN_BITS | when_us


def ledger_of(words: dict[int, int], torn: set[int] = frozenset()) -> dict[int, Block]:
    """Blocks of these words by page, all others absent; torn: the pages that were there at the end."""
    return {
        number: Block(
            tuple(words.get(page, WORD_ABSENT) for page in range(number * BLOCK_PAGES, (number + 1) * BLOCK_PAGES)),
            sum(1 << page % BLOCK_PAGES for page in torn if page // BLOCK_PAGES == number),
        )
        for number in {page // BLOCK_PAGES for page in {*words, *torn}}
    }


def by_tgid(tgid: int, _when_us: int) -> int:
    return tgid


def before(start: int, end: int) -> Extent:
    return Extent(start, end, None, None, None)


def pages_of(extents: list[Pages]) -> set[int]:
    return {page for start, end in extents for page in range(start, end)}


def random_pages(chance: random.Random) -> list[Pages]:
    """Extents that do not overlap; some touch each other, as a survey's may."""
    cuts = sorted(chance.sample(range(ROOM), 3 * chance.randrange(12)))
    halves = [half for start, middle, end in zip(*[iter(cuts)] * 3) for half in ((start, middle), (middle, end))]
    return [half for half in halves if chance.random() < 0.8]


@pytest.fixture(params=range(50))
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


# ---- sets of pages ----


def test_sets_are_as_pythons(chance: random.Random) -> None:
    one, other = random_pages(chance), random_pages(chance)
    left, right = PageSet(chance.sample(one, len(one))), PageSet(other)
    assert left.extents == one
    assert len(left) == len(pages_of(one))
    assert pages_of((left & right).extents) == pages_of(one) & pages_of(other)
    assert pages_of(left.less(right).extents) == pages_of(one) - pages_of(other)
    assert len(left & right) + len(left.less(right)) == len(left)


def test_parts_of_a_set(chance: random.Random) -> None:
    extents = random_pages(chance)
    start, end = sorted(chance.sample(range(ROOM), 2))
    assert pages_of(PageSet(extents).within(start, end)) == pages_of(extents) & set(range(start, end))
    assert PageSet(extents).within(start, start) == []


def test_blocks_of_a_set(chance: random.Random) -> None:
    extents = random_pages(chance)
    masks = [PageSet(extents).mask(number) for number in range(4)]
    assert {page for page in range(ROOM) if masks[page // BLOCK_PAGES] >> page % BLOCK_PAGES & 1} == pages_of(extents)
    assert max(masks) < 1 << BLOCK_PAGES


def test_an_empty_set() -> None:
    empty, some = PageSet([]), PageSet([(0, 9)])
    assert (len(empty), empty.mask(7), empty.within(0, 99)) == (0, 0, [])
    assert (empty & some).extents == (some & empty).extents == empty.less(some).extents == []
    assert some.less(empty).extents == [(0, 9)]


# ---- words ----


def test_a_block_as_the_kernel_has_it() -> None:
    words = tuple(range(BLOCK_PAGES))
    assert Block.unpack(BLOCK.pack(*words, 0b101)) == Block(words, 0b101)


A, B = 811, 4_194_303  # the highest PID there is

ALIVE = {
    # title: words, baseline, present, what it adds up to
    "nothing seen, nothing there": ({}, [], [], Entries([], 0, 0)),
    "nothing seen of what is there": ({}, [], [(0, 9)], Entries([], 0, 0)),
    "from before": ({}, [(3, 7)], [(0, 9)], Entries([before(3, 7)], 0, 4)),
    "from before, known to the kernel": ({3: WORD_EXISTED}, [(3, 7)], [(3, 7)], Entries([before(3, 7)], 0, 4)),
    "there unseen, for the kernel too": ({3: WORD_EXISTED}, [], [(3, 4)], Entries([], 0, 0)),
    "from before, given back unseen": ({}, [(3, 7)], [(5, 9)], Entries([before(5, 7)], 0, 2)),
    "from before, given back": (
        {4: WORD_FREED},
        [(3, 7)],
        [(3, 4), (5, 7)],
        Entries([before(3, 4), before(5, 7)], 0, 3),
    ),
    "given back and there again": ({4: WORD_FREED}, [(3, 7)], [(3, 7)], Entries([before(3, 4), before(5, 7)], 0, 3)),
    "given back and there again, noticed": (
        {4: WORD_REAPPEARED},
        [(3, 7)],
        [(3, 7)],
        Entries([before(3, 4), before(5, 7)], 0, 3),
    ),
    "given back, and made again by another": (
        {4: word(A, 50)},
        [(3, 6)],
        [(3, 6)],
        Entries([Extent(4, 5, A, 50, 50), before(3, 4), before(5, 6)], 1, 2),
    ),
    "touched": ({0: word(A, 0)}, [], [(0, 1)], Entries([Extent(0, 1, A, 0, 0)], 1, 0)),
    "touched, given back unseen": ({0: word(A, 7)}, [], [], Entries([], 0, 0)),
    "touched, given back": ({0: WORD_FREED}, [], [], Entries([], 0, 0)),
    "the last moment and PID": (
        {0: word(B, ledger.WHEN_MASK)},
        [],
        [(0, 1)],
        Entries([Extent(0, 1, B, ledger.WHEN_MASK, ledger.WHEN_MASK)], 1, 0),
    ),
    "downwards, across blocks": (
        {page: word(A, 1000 - page) for page in range(60, 70)},
        [],
        [(0, 99)],
        Entries([Extent(60, 70, A, 931, 940)], 10, 0),
    ),
    "by turns": (
        {60: word(A, 1), 61: word(B, 2), 62: word(B, 3), 64: word(B, 4)},
        [],
        [(0, 99)],
        Entries([Extent(60, 61, A, 1, 1), Extent(61, 63, B, 2, 3), Extent(64, 65, B, 4, 4)], 4, 0),
    ),
    "with a hole": (
        {page: word(A, page) for page in range(60, 70)},
        [],
        [(0, 64), (66, 99)],
        Entries([Extent(60, 64, A, 60, 63), Extent(66, 70, A, 66, 69)], 8, 0),
    ),
    "far out": (
        {1 << 28: word(A, 1)},
        [],
        [(1 << 28, (1 << 28) + 1)],
        Entries([Extent(1 << 28, (1 << 28) + 1, A, 1, 1)], 1, 0),
    ),
}


@pytest.mark.parametrize(("words", "baseline", "present", "entries"), ALIVE.values(), ids=ALIVE)
def test_a_region_alive(words: dict[int, int], baseline: list[Pages], present: list[Pages], entries: Entries) -> None:
    assert ledger.read(ledger_of(words), PageSet(baseline), PageSet(present), by_tgid) == entries


GONE = {
    # title: words, pages seen torn down, how many were swapped, baseline, what it adds up to
    "it had what was torn down": (
        {0: word(A, 5), 1: word(B, 6), 2: word(A, 7)},
        {0, 2},
        0,
        [],
        Entries([Extent(0, 1, A, 5, 5), Extent(2, 3, A, 7, 7)], 2, 0),
    ),
    "a page that nobody was seen to touch": ({}, {3}, 0, [], Entries([], 0, 0)),
    "from before": ({1: WORD_EXISTED}, {0, 1, 2}, 0, [(0, 3)], Entries([before(0, 3)], 0, 3)),
    "from before, of which one was given back": ({1: WORD_FREED}, {0}, 0, [(0, 2)], Entries([before(0, 1)], 0, 1)),
    # which pages were swapped is not known, and their teardown is not seen: an owner's word stands for its page
    "swapped": (
        {0: word(A, 5), 1: word(A, 6), 2: WORD_FREED},
        {0},
        1,
        [],
        Entries([Extent(0, 2, A, 5, 6)], 2, 0),
    ),
}


@pytest.mark.parametrize(("words", "torn", "swapped_pages", "baseline", "entries"), GONE.values(), ids=GONE)
def test_a_region_that_is_gone(
    words: dict[int, int], torn: set[int], swapped_pages: int, baseline: list[Pages], entries: Entries
) -> None:
    assert ledger.read(ledger_of(words, torn), PageSet(baseline), None, by_tgid, swapped_pages) == entries


def test_the_time_tells_whose_pid_it_was() -> None:
    """Two neighbouring pages of one PID, and two processes: the second began at 100 µs."""
    blocks = ledger_of({7: word(A, 99), 8: word(A, 100), 9: word(A, 5000)})
    entries = ledger.read(blocks, PageSet([]), PageSet([(0, 64)]), lambda _, when_us: 1 if when_us < 100 else 2)
    assert entries.extents == [Extent(7, 8, 1, 99, 99), Extent(8, 10, 2, 100, 5000)]


def test_every_page_is_counted_once(chance: random.Random) -> None:
    """Against the same rules, page by page."""
    baseline, present = random_pages(chance), random_pages(chance)
    kinds = [WORD_ABSENT, WORD_EXISTED, WORD_FREED, WORD_REAPPEARED, word(A, 1), word(B, 2)]
    words = {page: chance.choice(kinds) for page in range(ROOM)}
    entries = ledger.read(ledger_of(words), PageSet(baseline), PageSet(present), by_tgid)
    owners = {page: owner for start, end, owner, _, _ in entries.extents for page in range(start, end)}
    assert owners == {
        page: words[page] >> WHEN_BITS or None
        for page in pages_of(present)
        if words[page] >> WHEN_BITS or (page in pages_of(baseline) and words[page] <= WORD_EXISTED)
    }
    assert sum(extent.end - extent.start for extent in entries.extents) == len(owners)
    assert entries.touched_pages == sum(owner is not None for owner in owners.values())
    assert entries.before_pages == sum(owner is None for owner in owners.values())

"""The ledger's words: sets of pages against Python's own sets, and accounts worked out by hand."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.kernel.maps import Block
from tracer.proc.shmem import Pages
from tracer.record import ledger
from tracer.record.ledger import Entries, Extent, PageSet, Punches
from tracer.wire import BLOCK_PAGES, WHEN_BITS, WORD_ABSENT, WORD_EXISTED, WORD_FREED, WORD_REAPPEARED

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


def punches_of(ranges: dict[Pages, int]) -> Punches:
    """By range, when it was given back."""
    punches = Punches()
    for (start, end), when_us in sorted(ranges.items(), key=lambda item: item[1]):
        punches.add(start, end, when_us)
    return punches


def by_tgid(tgid: int, _first_us: int, _last_us: int) -> int:
    return tgid


class Owners:
    """Who had a PID when: by it, the moments from which another did. Owners are (tgid, how many had it before)."""

    def __init__(self, since_us: dict[int, list[int]]) -> None:
        self._since_us = since_us

    def __call__(self, tgid: int, first_us: int, last_us: int) -> tuple[int, int] | None:
        since_us = self._since_us.get(tgid, [])
        owner = tgid, bisect_right(since_us, first_us)
        return owner if owner == (tgid, bisect_right(since_us, last_us)) else None


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


# ---- pages given back ----


def test_when_pages_were_last_given_back(chance: random.Random) -> None:
    """Page by page."""
    punches, last_us = Punches(), [-1] * ROOM
    for when_us in range(chance.randrange(30)):
        start, end = sorted(chance.sample(range(ROOM), 2))
        punches.add(start, end, when_us)
        last_us[start:end] = [when_us] * (end - start)
    start, end = sorted(chance.sample(range(ROOM), 2))
    found = list(punches.within(start, end))
    assert {page: us for first, last, us in found for page in range(first, last)} == {
        page: us for page, us in enumerate(last_us) if us >= 0 and start <= page < end
    }
    assert all(before[1] <= after[0] for before, after in zip(found, found[1:]))


# ---- words ----


A, B = 811, 4_194_303  # the highest PID there is

ALIVE = {
    # title: words, baseline, present, what it adds up to
    "nothing seen, nothing there": ({}, [], [], Entries([], 0, 0, {})),
    "nothing seen of what is there": ({}, [], [(0, 9)], Entries([], 0, 0, {})),
    "from before": ({}, [(3, 7)], [(0, 9)], Entries([before(3, 7)], 0, 4, {})),
    "from before, known to the kernel": ({3: WORD_EXISTED}, [(3, 7)], [(3, 7)], Entries([before(3, 7)], 0, 4, {})),
    "there unseen, for the kernel too": ({3: WORD_EXISTED}, [], [(3, 4)], Entries([], 0, 0, {})),
    "from before, given back unseen": ({}, [(3, 7)], [(5, 9)], Entries([before(5, 7)], 0, 2, {})),
    "from before, given back": (
        {4: WORD_FREED},
        [(3, 7)],
        [(3, 4), (5, 7)],
        Entries([before(3, 4), before(5, 7)], 0, 3, {}),
    ),
    "given back and there again": (
        {4: WORD_FREED},
        [(3, 7)],
        [(3, 7)],
        Entries([before(3, 4), before(5, 7)], 0, 3, {}),
    ),
    "given back and there again, noticed": (
        {4: WORD_REAPPEARED},
        [(3, 7)],
        [(3, 7)],
        Entries([before(3, 4), before(5, 7)], 0, 3, {}),
    ),
    "given back, and made again by another": (
        {4: word(A, 50)},
        [(3, 6)],
        [(3, 6)],
        Entries([Extent(4, 5, A, 50, 50), before(3, 4), before(5, 6)], 1, 2, {}),
    ),
    "touched": ({0: word(A, 0)}, [], [(0, 1)], Entries([Extent(0, 1, A, 0, 0)], 1, 0, {})),
    "touched, given back unseen": ({0: word(A, 7)}, [], [], Entries([], 0, 0, {})),
    "touched, given back": ({0: WORD_FREED}, [], [], Entries([], 0, 0, {})),
    "the last moment and PID": (
        {0: word(B, ledger.WHEN_MASK)},
        [],
        [(0, 1)],
        Entries([Extent(0, 1, B, ledger.WHEN_MASK, ledger.WHEN_MASK)], 1, 0, {}),
    ),
    "downwards, across blocks": (
        {page: word(A, 1000 - page) for page in range(60, 70)},
        [],
        [(0, 99)],
        Entries([Extent(60, 70, A, 931, 940)], 10, 0, {}),
    ),
    "by turns": (
        {60: word(A, 1), 61: word(B, 2), 62: word(B, 3), 64: word(B, 4)},
        [],
        [(0, 99)],
        Entries([Extent(60, 61, A, 1, 1), Extent(61, 63, B, 2, 3), Extent(64, 65, B, 4, 4)], 4, 0, {}),
    ),
    "with a hole": (
        {page: word(A, page) for page in range(60, 70)},
        [],
        [(0, 64), (66, 99)],
        Entries([Extent(60, 64, A, 60, 63), Extent(66, 70, A, 66, 69)], 8, 0, {}),
    ),
    "far out": (
        {1 << 28: word(A, 1)},
        [],
        [(1 << 28, (1 << 28) + 1)],
        Entries([Extent(1 << 28, (1 << 28) + 1, A, 1, 1)], 1, 0, {}),
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
        Entries([Extent(0, 1, A, 5, 5), Extent(2, 3, A, 7, 7)], 2, 0, {}),
    ),
    "a page that nobody was seen to touch": ({}, {3}, 0, [], Entries([], 0, 0, {})),
    "from before": ({1: WORD_EXISTED}, {0, 1, 2}, 0, [(0, 3)], Entries([before(0, 3)], 0, 3, {})),
    "from before, of which one was given back": ({1: WORD_FREED}, {0}, 0, [(0, 2)], Entries([before(0, 1)], 0, 1, {})),
    # which pages were swapped is not known, and their teardown is not seen: an owner's word stands for its page
    "swapped": (
        {0: word(A, 5), 1: word(A, 6), 2: WORD_FREED},
        {0},
        1,
        [],
        Entries([Extent(0, 2, A, 5, 6)], 2, 0, {}),
    ),
}


@pytest.mark.parametrize(("words", "torn", "swapped_pages", "baseline", "entries"), GONE.values(), ids=GONE)
def test_a_region_that_is_gone(
    words: dict[int, int], torn: set[int], swapped_pages: int, baseline: list[Pages], entries: Entries
) -> None:
    assert ledger.read(ledger_of(words, torn), PageSet(baseline), None, by_tgid, swapped_pages) == entries


EVERYTHING = (0, 1 << 40)
PUNCHED = {
    # title: words, baseline, present, what was given back and when, what it adds up to
    "older, and in it": (
        {0: word(A, 5), 1: word(A, 9), 2: word(B, 9)},
        [],
        [],
        {EVERYTHING: 10},
        Entries([], 0, 0, {A: 2, B: 1}),
    ),
    "older, and beside it": (
        {page: word(A, page) for page in range(6)},
        [],
        [(0, 2), (4, 6)],
        {(2, 4): 10},
        Entries([Extent(0, 2, A, 0, 1), Extent(4, 6, A, 4, 5)], 4, 0, {A: 2}),
    ),
    "younger": (
        {0: word(A, 10), 1: word(A, 11)},
        [],
        [(0, 2)],
        {EVERYTHING: 10},
        Entries([Extent(0, 2, A, 10, 11)], 2, 0, {}),
    ),
    "younger than one, older than another": (
        {0: word(A, 15), 1: word(A, 15), 2: word(B, 25)},
        [],
        [(1, 3)],
        {EVERYTHING: 10, (0, 1): 20, (2, 3): 20},
        Entries([Extent(1, 2, A, 15, 15), Extent(2, 3, B, 25, 25)], 2, 0, {A: 1}),
    ),
    "by two of them": ({0: word(A, 5)}, [], [], {EVERYTHING: 10, (0, 9): 20}, Entries([], 0, 0, {A: 1})),
    "a part of a page, which stays": (
        {1: word(A, 5)},
        [(0, 1)],
        [(0, 2)],
        {(1, 0): 10, (1, 1): 10},
        Entries([Extent(1, 2, A, 5, 5), before(0, 1)], 1, 1, {}),
    ),
    "narrow and wide": (
        {page: word(A, 5) for page in range(2000)},
        [],
        [(0, 10), (1990, 2000)],
        {(10, 1900): 10, (1900, 1990): 10},
        Entries([Extent(0, 10, A, 5, 5), Extent(1990, 2000, A, 5, 5)], 20, 0, {A: 1980}),
    ),
    "across blocks": (
        {page: word(A, 5) for page in range(60, 70)},
        [],
        [(60, 62), (69, 70)],
        {(62, 69): 10},
        Entries([Extent(60, 62, A, 5, 5), Extent(69, 70, A, 5, 5)], 3, 0, {A: 7}),
    ),
    "in memory, and seen to go": ({0: WORD_FREED}, [], [], {EVERYTHING: 10}, Entries([], 0, 0, {})),
    "from before": (
        {3: WORD_EXISTED},
        [(0, 9)],
        [(0, 2), (5, 9)],
        {(2, 5): 10},
        Entries([before(0, 2), before(5, 9)], 0, 6, {}),
    ),
    "from before, and there again unseen": (
        {},
        [(0, 3)],
        [(0, 3)],
        {(1, 2): 10},
        Entries([before(0, 1), before(2, 3)], 0, 2, {}),
    ),
    "from before, and made again": (
        {1: word(A, 11)},
        [(0, 3)],
        [(0, 3)],
        {EVERYTHING: 10},
        Entries([Extent(1, 2, A, 11, 11)], 1, 0, {}),
    ),
    "nothing there": ({}, [], [], {EVERYTHING: 10}, Entries([], 0, 0, {})),
}


@pytest.mark.parametrize(("words", "baseline", "present", "punches", "entries"), PUNCHED.values(), ids=PUNCHED)
def test_what_was_given_back_while_it_was_swapped_out(
    words: dict[int, int], baseline: list[Pages], present: list[Pages], punches: dict[Pages, int], entries: Entries
) -> None:
    """No probe sees it go: the words stay."""
    assert (
        ledger.read(ledger_of(words), PageSet(baseline), PageSet(present), by_tgid, 0, punches_of(punches)) == entries
    )


def test_a_region_that_is_gone_had_nothing_that_was_given_back_before() -> None:
    blocks = ledger_of({0: word(A, 5), 1: word(A, 6), 2: word(B, 11), 3: word(B, 12)}, torn={3})
    entries = ledger.read(blocks, PageSet([(0, 9)]), None, by_tgid, 2, punches_of({(0, 1): 10, (2, 9): 10}))
    assert entries == Entries([Extent(1, 2, A, 6, 6), Extent(2, 4, B, 11, 12)], 3, 0, {A: 1})


def test_the_time_tells_who_lost_it() -> None:
    """Two lives of one PID: the second began at 100 µs."""
    blocks = ledger_of({7: word(A, 99), 8: word(A, 100), 9: word(A, 5000)})
    punches = punches_of({(0, 64): 4000})
    entries = ledger.read(blocks, PageSet([]), PageSet([]), Owners({A: [100]}), 0, punches)
    assert entries.freed_pages == {(A, 0): 1, (A, 1): 1}


def test_the_time_tells_whose_pid_it_was() -> None:
    """Two neighbouring pages of one PID, and two processes: the second began at 100 µs."""
    blocks = ledger_of({7: word(A, 99), 8: word(A, 100), 9: word(A, 5000)})
    entries = ledger.read(blocks, PageSet([]), PageSet([(0, 64)]), Owners({A: [100]}))
    assert entries.extents == [Extent(7, 8, (A, 0), 99, 99), Extent(8, 10, (A, 1), 100, 5000)]


def test_more_blocks_than_are_joined() -> None:
    """Neighbours all of them: one process has the middle, and far between there is a page of another."""
    edge = ledger.JOINED_BLOCKS * BLOCK_PAGES
    words = {page: word(7, 100 + page % 13) for page in range(edge - 301, edge + 205)}
    words |= {page: word(9, 11) for page in range(3, edge - 400, 1013)}
    blocks = ledger_of(words)
    blocks |= {number: ledger.NO_BLOCK for number in range(2 * ledger.JOINED_BLOCKS + 7) if number not in blocks}
    entries = ledger.read(blocks, PageSet([(edge - 2, edge + 2)]), ledger.ALL_PAGES, by_tgid)
    alone = [Extent(page, page + 1, 9, 11, 11) for page in range(3, edge - 400, 1013)]
    assert entries == Entries([*alone, Extent(edge - 301, edge + 205, 7, 100, 112)], len(words), 0, {})
    assert ledger.owned(blocks).extents == [*((page, page + 1) for page, *_ in alone), (edge - 301, edge + 205)]


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


def test_every_page_of_an_owner_is_there_or_given_back(chance: random.Random) -> None:
    """Against the same rules, page by page; what is there has a word that no punch is younger than."""
    times = {page: chance.randrange(100) for page in range(ROOM) if chance.random() < 0.7}
    ends = [1 << 40, *range(ROOM)]
    ranges = [tuple(sorted(chance.sample(ends, 2))) for _ in range(chance.randrange(5))]
    punches = {(first, end): chance.randrange(100) for first, end in ranges}
    freed = {
        page for page, us in times.items() for (a, b), when_us in punches.items() if a <= page < b and us < when_us
    }
    baseline = random_pages(chance)
    words = {page: word(A if page % 3 else B, us) for page, us in times.items()}
    present = PageSet((page, page + 1) for page in {*times, *pages_of(baseline)} - freed)
    entries = ledger.read(ledger_of(words), PageSet(baseline), present, by_tgid, 0, punches_of(punches))
    assert entries.touched_pages == len(times) - len(freed)
    assert sum(entries.freed_pages.values()) == len(freed)
    assert entries.freed_pages.get(B, 0) == sum(page % 3 == 0 for page in freed)
    punched = pages_of([(first, min(end, ROOM)) for first, end in punches])
    assert entries.before_pages == len(pages_of(baseline) - times.keys() - punched)


# ---- against the same, page by page ----

MOMENTS = st.integers(0, 4 * ledger.EXTENT_US) | st.sampled_from([0, ledger.EXTENT_US - 1, ledger.EXTENT_US, 1 << 41])
PLACES = st.integers(0, 12 * BLOCK_PAGES)
RANGES = st.tuples(PLACES, st.integers(1, 5 * BLOCK_PAGES)).map(lambda place: (place[0], sum(place)))
STRETCHES = st.tuples(
    PLACES,
    st.integers(1, 5 * BLOCK_PAGES),
    st.sampled_from([0, A, A, B]),
    MOMENTS,
    st.sampled_from([-40_000, -7, 0, 1, 3000, 40_000, 600_000]),  # from page to page, in microseconds
    st.sampled_from([1, 1, 2, 16]),  # every how many pages
)


@st.composite
def sets_of_pages(draw: st.DrawFn) -> list[Pages]:
    """Extents that do not overlap; some touch each other."""
    cuts = sorted(draw(st.sets(PLACES, max_size=16)))
    return [extent for extent in zip(cuts, cuts[1:]) if draw(st.booleans())]


@st.composite
def ledgers(draw: st.DrawFn) -> dict[int, int]:
    """Words by page: stretches of neighbours that are alike, over each other, and some pages that are like none."""
    words: dict[int, int] = {}
    for start, length, tgid, when_us, step_us, every in draw(st.lists(STRETCHES, min_size=1, max_size=6)):
        for number, page in enumerate(range(start, start + length, every)):
            words[page] = word(tgid, max(when_us + number * step_us, 0)) if tgid else draw(st.integers(0, 3))
    words.update(draw(st.dictionaries(PLACES, st.builds(word, st.sampled_from([A, B]), MOMENTS), max_size=8)))
    return words


def page_by_page(
    words: dict[int, int],
    baseline: set[int],
    present: set[int] | None,
    torn: set[int],
    owners: Owners,
    swapped_pages: int,
    punches: dict[Pages, int],
) -> tuple[list[Extent], dict[object, int], set[int]]:
    """What is touched, how much was freed of it by owner, and the pages from before."""
    touched: list[Extent] = []
    freed: dict[object, int] = {}
    punched_us = {page: max(us for (a, b), us in punches.items() if a <= page < b) for page in pages_of([*punches])}
    for page, entry in sorted(words.items()):
        tgid, when_us = entry >> WHEN_BITS, entry & ledger.WHEN_MASK
        if not tgid:
            continue
        owner = owners(tgid, when_us, when_us)
        if when_us < punched_us.get(page, -1):
            freed[owner] = freed.get(owner, 0) + 1
        elif page in present if present is not None else page in torn or swapped_pages:
            last = touched[-1] if touched else Extent(-1, -1, None, 0, 0)
            first_us, last_us = min(last.first_us or 0, when_us), max(last.last_us or 0, when_us)
            if (last.end, last.owner) == (page, owner) and last_us - first_us < ledger.EXTENT_US:
                touched[-1] = Extent(last.start, page + 1, owner, first_us, last_us)
            else:
                touched.append(Extent(page, page + 1, owner, when_us, when_us))
    changed = {page for page, entry in words.items() if entry > WORD_EXISTED}
    return touched, freed, (baseline if present is None else baseline & present) - changed - punched_us.keys()


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    words=ledgers(),
    baseline=sets_of_pages(),
    present=sets_of_pages() | st.just([(0, 1 << 14)]) | st.none(),
    torn=sets_of_pages(),
    since_us=st.dictionaries(st.sampled_from([A, B]), st.lists(MOMENTS, max_size=4).map(sorted)),
    swapped_pages=st.sampled_from([0, 0, 3]),
    punches=st.dictionaries(RANGES, MOMENTS, max_size=3),
    as_array=st.booleans(),
)
def test_it_is_as_page_by_page(
    words: dict[int, int],
    baseline: list[Pages],
    present: list[Pages] | None,
    torn: list[Pages],
    since_us: dict[int, list[int]],
    swapped_pages: int,
    punches: dict[Pages, int],
    as_array: bool,
) -> None:
    blocks = ledger_of(words, pages_of(torn))
    if as_array:
        blocks = {number: block._replace(words=array("Q", block.words)) for number, block in blocks.items()}
    there = None if present is None else PageSet(present)
    owners = Owners(since_us)
    entries = ledger.read(blocks, PageSet(baseline), there, owners, swapped_pages, punches_of(punches))
    expected = page_by_page(
        words,
        pages_of(baseline),
        None if present is None else pages_of(present),
        pages_of(torn),
        owners,
        swapped_pages,
        punches,
    )
    touched = [extent for extent in entries.extents if extent.owner]
    from_before = pages_of([extent[:2] for extent in entries.extents if not extent.owner])
    assert (touched, entries.freed_pages, from_before) == expected
    assert entries.touched_pages == sum(extent.end - extent.start for extent in touched)
    assert entries.before_pages == len(from_before)
    assert pages_of(ledger.owned(blocks).extents) == {page for page, entry in words.items() if entry >> WHEN_BITS}


# ---- huge pages ----

HUGE = {
    # title: what the words say, in huge pages; pages there at the start and at the end; the same in pages
    "touched": ([Extent(3, 5, A, 5, 6), Extent(5, 6, B, 7, 7)], 0, 3 * 512, [(3, 5, A), (5, 6, B)], 0),
    "all of what was before is there": ([Extent(3, 5, A, 5, 6)], 2 * 512, 4 * 512, [(3, 5, A)], 2 * 512),
    "some of what was before is there": ([Extent(3, 5, A, 5, 6)], 2 * 512, 3 * 512, [(3, 5, A)], 512),
    "less is there than was touched": ([Extent(3, 5, A, 5, 6)], 512, 512, [(3, 5, A)], 0),
    "from before": ([], 2 * 512, 2 * 512, [], 2 * 512),
    "made unseen": ([], 512, 3 * 512, [], 512),
    "nothing": ([], 0, 0, [], 0),
}


@pytest.mark.parametrize(("extents", "start", "allocated", "touched", "before_pages"), HUGE.values(), ids=HUGE)
def test_huge_pages(
    extents: list[Extent], start: int, allocated: int, touched: list[tuple[int, int, int]], before_pages: int
) -> None:
    """Their words are counted by their size; what was before only by its sum."""
    nr_touched = sum(extent.end - extent.start for extent in extents)
    entries = ledger.of_huge_pages(Entries(extents, nr_touched, 0, {A: 1}), 9, start, allocated)
    assert [extent[:3] for extent in entries.extents if extent.owner] == [
        (a * 512, b * 512, who) for a, b, who in touched
    ]
    places = [page for extent in entries.extents for page in range(extent.start, extent.end)]
    assert len(places) == len(set(places)) == nr_touched * 512 + before_pages
    assert entries[1:3] == (nr_touched * 512, before_pages)
    assert [extent[3:] for extent in entries.extents if extent.owner] == [extent[3:] for extent in extents]

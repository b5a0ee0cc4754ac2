"""The account of a trace that runs, as figures for monitoring: gauges of what is there, counters that only rise. Pure.

In each unit and segment, and so in all sums over them,

    touched + before + unseen + moved (+ freed since, at a moment of the past) = allocated + freed

Touched and freed count since the trace began, or since the segment was first told apart. What a region had by then is
counted where it was before: here it is moved, there the same is less than nothing. A region that is gone has nothing
allocated, and all that was touched in it is freed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from tracer import alike, labels
from tracer.formatting import printable, shorten
from tracer.model import NAMELESS, Account, Identity, Labelled, Process, Region, Toucher

GROUPS = 20  # told apart in a segment
MOST_GROUPS = 100  # ever: one that was told apart stays so, or its counter would go back
SHARE = 100  # after the first, one is told apart once it has this part of its segment: so there are few in the end
MOST_NAMES = 10_000  # counted in a segment: of those that were never told apart, the least are forgotten
SEGMENTS = 20  # told apart; one that was stays so while it is among twice as many
NAME_COLUMNS = 120
OTHER = "other"

Segment = tuple[str, str]
"""(unit, segment): what regions are counted together as."""


class Held(NamedTuple):
    """The regions of one kind that exist."""

    size_bytes: int
    allocated_bytes: int
    swapped_bytes: int | None
    """None: unknown of all of them"""


class Series(NamedTuple):
    """One segment of one unit."""

    unit: str
    """of the process that the regions are attributed to"""
    segment: str
    held: Mapping[str, Held]
    """by the regions' kind"""
    before_bytes: int
    unseen_bytes: int
    touched_bytes: Mapping[str, int]
    """by who touched it, or what for; OTHER is the rest of them"""
    freed_bytes: int
    """of what was touched"""
    moved_bytes: int = 0
    """of what there is, what is counted as touched in another segment; below 0: of what is in others, in this one"""
    freed_since_bytes: int = 0
    """pages of the past that are there no more: whose they were is unknown"""


class Totals:
    """Adds up the accounts of one trace, each later than the one before."""

    def __init__(self) -> None:
        self._tallies: dict[Segment, _Tally] = {}
        self._placed: dict[Identity, Segment] = {}
        self._seen: dict[Identity, dict[tuple[int, int], _Seen]] = {}

    def add(self, account: Account) -> list[Series]:
        """The figures as of this account, most allocated first, the rest of the segments last."""
        of: dict[Segment, list[Region]] = {}
        for parent in account.parents:
            for region in parent.regions:
                of.setdefault(_segment_of(region, parent.process), []).append(region)
        told = self._told(of)
        regions: dict[Segment, list[Region]] = {each: [] for each in told}
        for each, some in of.items():
            regions.setdefault(each if each in regions else (OTHER, OTHER), []).extend(some)
        placed = {region.identity: each for each, some in regions.items() for region in some}
        old, tallies = self._tallies, self._renamed(placed)
        rest = tallies.get((OTHER, OTHER))
        self._tallies = {each: tallies.get(each) or _Tally() for each in regions}
        if rest:  # what it has counted stays counted
            self._tallies[OTHER, OTHER] = rest
        for identity, before in self._placed.items():
            there = placed.get(identity)
            if there is None:
                old[before].freed_bytes += _held(self._seen.pop(identity))
            elif self._tallies[there] is not old[before]:
                held_bytes = _held(self._seen[identity])
                old[before].moved_bytes -= held_bytes
                self._tallies[there].moved_bytes += held_bytes
        self._placed = placed
        namer = Namer(account)
        for each, some in regions.items():
            self._tallies[each].add(some, namer, self._seen)
        return [_series(each, regions.get(each, ()), tally) for each, tally in self._tallies.items()]

    def segment_of(self, region: Region) -> Segment:
        """Where a region of the newest account is counted."""
        return self._placed[region.identity]

    def _renamed(self, placed: Mapping[Identity, Segment]) -> dict[Segment, _Tally]:
        """The tallies; one whose regions have all got another name, as when a pod's is known later, has that, too."""
        tallies = dict(self._tallies)
        went: dict[Segment, set[Segment]] = {}
        for identity, before in self._placed.items():
            if identity in placed:
                went.setdefault(before, set()).add(placed[identity])
        still = {*placed.values(), (OTHER, OTHER)}
        for before, now in went.items():
            there = next(iter(now))
            if len(now) == 1 and before not in still and there not in tallies and there != (OTHER, OTHER):
                tallies[there] = tallies.pop(before)
        return tallies

    def _told(self, of: Mapping[Segment, Collection[Region]]) -> list[Segment]:
        """The segments to tell apart, most allocated first. A small one that comes does not take another's place."""
        sizes = {each: sum(region.allocated_bytes for region in _existing(some)) for each, some in of.items()}
        best = sorted(sizes, key=lambda each: (-sizes[each], each))
        return [
            each
            for rank, each in enumerate(best[: 2 * SEGMENTS])
            if each[1] != OTHER and (rank < SEGMENTS or each in self._tallies)
        ]


class _Tally:
    """What was touched and freed in the regions of one segment. Both only rise."""

    def __init__(self) -> None:
        self.freed_bytes = self.moved_bytes = 0
        self._forgotten_bytes = 0  # of names that are in _touched no more
        self._touched: Counter[str] = Counter()
        self._named: dict[str, int] = {}  # those told apart, and what OTHER has of each

    def add(self, regions: Iterable[Region], namer: Namer, seen: dict[Identity, dict[tuple[int, int], _Seen]]) -> None:
        """Count what is new in these regions, which are all of the segment.

        seen: by region and process, row and tgid; brought up to date.
        """
        told = dict(self._touched)
        for region in regions:
            before = seen.get(region.identity, {})
            now = {}
            texts = namer.by_process(region)
            for toucher in region.touchers:
                key = toucher.process.row, toucher.process.tgid
                now[key] = self._count(before.pop(key, NOTHING), toucher, texts, namer, region.gone_ns is not None)
            self.freed_bytes += _held(before)
            seen[region.identity] = now
        self._name(told)
        self._forget()

    def told(self) -> dict[str, int]:
        """Touched bytes by name."""
        found = {name: self._touched[name] - other_bytes for name, other_bytes in self._named.items()}
        rest_bytes = self._total_bytes - sum(found.values())
        return {**found, OTHER: rest_bytes} if rest_bytes else found

    def _count(
        self, before: _Seen, toucher: Toucher, texts: Mapping[int, Mapping[str, int]], namer: Namer, is_gone: bool
    ) -> _Seen:
        held_bytes = 0 if is_gone else toucher.touched_bytes
        total_bytes = toucher.touched_bytes + toucher.freed_bytes
        came_bytes = max(total_bytes - before.total_bytes, held_bytes - before.held_bytes, 0)
        self.freed_bytes += before.held_bytes + came_bytes - held_bytes
        by_text = texts.get(toucher.process.row)
        if by_text is None:
            self._touched[namer.of_process(toucher.process)] += came_bytes
        else:
            left_bytes = came_bytes
            for name, size_bytes in by_text.items():
                rise_bytes = min(max(size_bytes - before.texts.get(name, 0), 0), left_bytes)
                self._touched[name] += rise_bytes
                left_bytes -= rise_bytes
            self._touched["?"] += left_bytes  # freed before it was looked at: nobody knows what it was for
        return _Seen(before.total_bytes + came_bytes, held_bytes, by_text or {})

    def _name(self, told: Mapping[str, int]) -> None:
        """Tell more of the greatest apart. told: what they had before stays with OTHER, which must not go back."""
        least_bytes = self._total_bytes // SHARE
        for name, size_bytes in self._touched.most_common(GROUPS):
            nr = len(self._named)
            if nr >= MOST_GROUPS or (nr >= GROUPS and size_bytes < least_bytes):
                break
            if name not in self._named and name != OTHER and size_bytes:
                self._named[name] = told.get(name, 0)

    def _forget(self) -> None:
        """A trace of months may meet any number of scripts: of half of the names OTHER keeps the sum alone."""
        if len(self._touched) > MOST_NAMES:
            least = [name for name, _ in self._touched.most_common()[MOST_NAMES // 2 :] if name not in self._named]
            self._forgotten_bytes += sum(map(self._touched.pop, least))

    @property
    def _total_bytes(self) -> int:
        return sum(self._touched.values()) + self._forgotten_bytes


class _Seen(NamedTuple):
    """What a process had done to a region when it was last looked at."""

    total_bytes: int
    """touched, with what is freed since"""
    held_bytes: int
    """of it, what is still there"""
    texts: Mapping[str, int]
    """held bytes by what they were touched for; empty without labels"""


NOTHING = _Seen(0, 0, {})


def _held(seen: Mapping[tuple[int, int], _Seen]) -> int:
    return sum(each.held_bytes for each in seen.values())


class Namer:
    """Says who touched pages, or what for: by the most telling text of the labels, or else by command."""

    def __init__(self, account: Account) -> None:
        label = account.session.label
        self._kind = labels.meant(label, "label") if label else None

    def of_process(self, process: Process) -> str:
        """The group of processes that are alike."""
        return name(alike.of_process(process))

    def of_cell(self, labelled: Labelled) -> str:
        """What was touched with a label, or else by a process."""
        if self._kind is None:
            return self.of_process(labelled.process)
        text = labelled.text(self._kind)
        return name(NAMELESS if text == "" else text)

    def by_process(self, region: Region) -> dict[int, dict[str, int]]:
        """Touched bytes by the row of the process and the text of its label, most first; empty without labels."""
        found: dict[int, dict[str, int]] = {}
        if self._kind is not None:
            for cell in sorted(region.labelled, key=lambda cell: -cell.touched_bytes):
                texts = found.setdefault(cell.process.row, {})
                text = self.of_cell(cell)
                texts[text] = texts.get(text, 0) + cell.touched_bytes
            for toucher in region.touchers:
                found.setdefault(toucher.process.row, {})
        return found


def _segment_of(region: Region, parent: Process | None) -> Segment:
    """parent: the process that the region is attributed to."""
    return name(parent.unit if parent else None), name(alike.segment(region, parent))


def _series(each: Segment, regions: Collection[Region], tally: _Tally) -> Series:
    """The figures of a segment with these regions."""
    exist = _existing(regions)
    return Series(
        *each,
        _held_by_kind(exist),
        sum(region.before_bytes for region in exist),
        sum(region.unseen_bytes for region in exist),
        tally.told(),
        tally.freed_bytes,
        tally.moved_bytes,
    )


def _existing(regions: Iterable[Region]) -> list[Region]:
    return [region for region in regions if region.gone_ns is None]


def _held_by_kind(regions: Iterable[Region]) -> dict[str, Held]:
    found: dict[str, Held] = {}
    for region in regions:
        kind = name(region.kind)
        size_bytes, allocated_bytes, swapped_bytes = found.get(kind, Held(0, 0, None))
        if region.swapped_bytes is not None:
            swapped_bytes = (swapped_bytes or 0) + region.swapped_bytes
        size_bytes += region.size_bytes or 0
        found[kind] = Held(size_bytes, allocated_bytes + region.allocated_bytes, swapped_bytes)
    return found


def name(text: str | None) -> str:
    """A text as the value of a label; None: unknown."""
    return "?" if text is None else shorten(printable(text), NAME_COLUMNS)

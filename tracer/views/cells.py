"""What the page tells apart: its regions, and who touched their pages. Its size is bounded: the rest is added up.

An owner stands for all touches that have the same value in every dimension. A cell is what one owner touched of one
region in one interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tracer.account import read_labels, read_processes
from tracer.capture.capture import Capture
from tracer.model import Account, Process, Region
from tracer.views import colours
from tracer.views.pictures import BEFORE, Bins, Touched

MAX_REGIONS = 1000  # the biggest; a database may create a region for every parallel query
MAX_REGIONS_OF_HOSTS = 50  # of many hosts, which all have the same ones: more would leave fewer values of all else
MAX_VALUES = 500  # of a dimension, those of most bytes; the others are one
MAX_PROCESSES = 2000  # those that touched most
MAX_CELLS = 150_000  # if there are more, fewer values are told apart
UNKNOWN = -1  # instead of a value
OTHERS = -2  # instead of a value beyond MAX_VALUES


# ---- regions ----


class Entry(NamedTuple):
    """A region of the page, or several that it does not tell apart: they exist, or they went in one interval."""

    region: Region | None
    """None: several"""
    parent: Process | None
    regions: Sequence[Region]
    created_edge: int
    gone_edge: int | None
    """None: it exists"""

    def sum(self, name: str) -> int:
        """A figure of all its regions."""
        return sum(getattr(region, name) or 0 for region in self.regions)


def entries(account: Account, within: Bins) -> list[Entry]:
    """The biggest regions, by parent; then the others."""
    room = MAX_REGIONS_OF_HOSTS if account.hosts else MAX_REGIONS
    shown = {region.row for region in sorted(account.regions, key=lambda each: (-each.peak_bytes, each.row))[:room]}
    told = []
    others: dict[int | None, list[Region]] = {}
    for parent in account.parents:
        for region in parent.regions:
            gone_edge = None if region.gone_ns is None else within.edge(region.gone_ns)
            if region.row in shown:
                created_edge = within.edge(region.created_ns or 0)
                told.append(Entry(region, parent.process, [region], created_edge, gone_edge))
            else:
                others.setdefault(gone_edge, []).append(region)
    return told + [Entry(None, None, regions, 0, gone_edge) for gone_edge, regions in others.items()]


# ---- who touched their pages ----


class Owners(dict[int, int]):
    """The number of an owner by LABEL_AND_PROCESS; BEFORE without a process."""

    def __init__(self, account: Account, capture: Capture) -> None:
        self.processes = read_processes(capture)
        self._texts = colours.of_labels(account)
        self._labels = read_labels(capture) if self._texts else {}
        self.sizes = colours.sizes(account, self._texts)
        self.places = {by: _places(sizes, _room(by)) for by, sizes in self.sizes.items() if by != "region"}
        """each value's place by dimension, the biggest first"""
        self._of_processes = colours.of_processes(account)
        self._of_process: dict[int, tuple[int, ...]] = {}
        self._numbers: dict[tuple[int, ...], int] = {}

    @property
    def whos(self) -> list[tuple[int, ...]]:
        """For each owner the place of its value in each dimension, in the order of places."""
        return list(self._numbers)

    def __missing__(self, key: int) -> int:
        label, process = divmod(key, 1 << 32)
        self[key] = self._number(label, process) if process else BEFORE
        return self[key]

    def _number(self, label: int, row: int) -> int:
        if row not in self._of_process:
            process = self.processes[row]
            self._of_process[row] = (
                *(self.place_of(by, process) for by in self._of_processes),
                self._place("process", row),
            )
        command, *others = self._of_process[row]
        told = self._labels.get(label)
        kinds = [
            self.places[kind].get(texts[told], OTHERS) if told in texts else UNKNOWN
            for kind, texts in self._texts.items()
        ]
        return self._numbers.setdefault((command, *kinds, *others), len(self._numbers))

    def place_of(self, by: str, process: Process) -> int:
        """The place of a process in one of colours.of_processes()."""
        return self._place(by, colours.of_process(process, by))

    def _place(self, by: str, value: colours.Value) -> int:
        return UNKNOWN if value is None else self.places[by].get(value, OTHERS)


def _room(by: str) -> int:
    return MAX_PROCESSES if by == "process" else MAX_VALUES


def _places(sizes: Counter[colours.Value], room: int) -> dict[colours.Value, int]:
    known = (value for value, _ in sizes.most_common() if value is not None)
    return {value: place for place, value in zip(range(room), known)}


class Cells:
    """What was touched: pages by region, owner and interval."""

    def __init__(self, whos: Sequence[tuple[int, ...]], pages: dict[tuple[int, int], dict[int, int]]) -> None:
        self.whos = whos
        self.pages = pages
        """by (number of the entry, owner), then by interval"""

    def narrowed(self) -> tuple[Cells, list[int]]:
        """At most MAX_CELLS, if fewer values told apart make them so few; and the new number of each owner."""
        room, cells, moved = MAX_PROCESSES, self, list(range(len(self.whos)))
        while room and sum(map(len, cells.pages.values())) > MAX_CELLS:
            room //= 2
            numbers: dict[tuple[int, ...], int] = {}
            of = [
                numbers.setdefault(tuple(OTHERS if place >= room else place for place in who), len(numbers))
                for who in cells.whos
            ]
            pages: dict[tuple[int, int], dict[int, int]] = {}
            for (region, who), bins in cells.pages.items():
                _add(pages.setdefault((region, of[who]), {}), bins)
            cells, moved = Cells(list(numbers), pages), [of[number] for number in moved]
        return cells, moved


def _add(into: dict[int, int], bins: dict[int, int]) -> None:
    for number, pages in bins.items():
        into[number] = into.get(number, 0) + pages


def cells(touched: Iterable[Touched], owners: Owners, entries: Sequence[Entry], within: Bins) -> Cells:
    """The cells of all that was touched."""
    numbers = {region.row: number for number, entry in enumerate(entries) for region in entry.regions}
    pages: dict[tuple[int, int], dict[int, int]] = {}
    for each in touched:
        for key, count in each.cells.items():
            who, interval = divmod(key, within.number + 1)
            if who >= 0:
                bins = pages.setdefault((numbers[each.region], who), {})
                bins[interval] = bins.get(interval, 0) + count
    return Cells(owners.whos, pages)

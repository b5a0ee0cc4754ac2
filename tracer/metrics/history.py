"""The account of a capture, as figures at moments of its time. Pure.

Of pages that were given back it is not known when. They count as touched and freed at the end alone; while they were
there, they are told as freed since.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from tracer.account import read_labels, read_processes
from tracer.capture.capture import Capture
from tracer.metrics.series import OTHER, Held, Namer, Series, Totals, name
from tracer.model import Account, Labelled
from tracer.tables.by_time import TOUCHED_FOR, bounds, histories

MOMENTS = 2000  # at most, but for captures of more than a week
STEP_NS = 15 * 10**9, 300 * 10**9  # at least, at most: Prometheus takes what is older than 5 min for gone
MOST_POINTS = 500_000  # of all series: of what has lasted for longer than that leaves room for, there are fewer moments


def moments(account: Account, capture: Capture) -> list[tuple[int, list[Series]]]:
    """(CLOCK_REALTIME in ns, the figures then), in the order of time. The last is the account itself."""
    totals = Totals()
    final = totals.add(account)
    since_ns, until_ns = bounds(account)
    span_ns = until_ns - since_ns
    step_ns = min(max(span_ns // MOMENTS, STEP_NS[0]), STEP_NS[1])
    nr_series = sum(4 + 3 * len(each.held) + len(each.touched_bytes) for each in final)
    step_ns = max(step_ns, span_ns * nr_series // MOST_POINTS)
    times_ns = range(since_ns, until_ns, step_ns)
    nr = len(times_ns)
    tracks = {(each.unit, each.segment): _Track(each, nr) for each in final}
    where = {region.row: (region, tracks[totals.segment_of(region)]) for region in account.regions}

    def number(time_ns: int) -> int:
        """The first moment at which a time is over."""
        return max(0, -(-(time_ns - since_ns) // step_ns))

    for row, history in histories(account, capture).items():
        region, track = where[row]
        gone = nr if region.gone_ns is None else number(region.gone_ns)
        track.before.add(0, region.before_bytes, gone)
        track.freed.add(gone, region.touched_bytes)
        kind = name(region.kind)
        track.of("size", kind).add(number(region.created_ns or since_ns), region.size_bytes or 0, gone)
        held, held_bytes = track.of("allocated", kind), 0
        for time_ns, size_bytes in ((since_ns, history.start_bytes), *zip(history.times_ns, history.sizes_bytes)):
            held.add(number(time_ns), size_bytes - held_bytes)
            held_bytes = size_bytes
    namer, processes, texts = Namer(account), read_processes(capture), read_labels(capture)
    values = {"since": None, "until": None, "origin": since_ns, "size": step_ns, "last": nr}
    for row, label, process, part, pages, first_ns, last_ns in capture.each(TOUCHED_FOR, values):
        if row in where:
            cell = Labelled(texts.get(label), processes[process], pages * account.session.page_bytes, first_ns, last_ns)
            where[row][1].of("touched", namer.of_cell(cell)).add(part + 1, cell.touched_bytes)
    return [
        *zip(times_ns, map(list, zip(*(track.series() for track in tracks.values())))),
        (until_ns, final),
    ]


class _Curve(list[int]):
    """What a figure changes by at each moment."""

    def add(self, first: int, change: int, end: int | None = None) -> None:
        """Add a change from one moment on, up to another if there is one. Beyond the last is the final account."""
        for number, by in ((first, change), (end, -change)):
            if number is not None and number < len(self):
                self[number] += by


class _Track:
    """The figures of a segment over time."""

    def __init__(self, final: Series, nr: int) -> None:
        """nr: of moments before the final one."""
        self.before, self.freed = _Curve([0] * nr), _Curve([0] * nr)
        self._final = final
        self._nr = nr
        self._curves: dict[tuple[str, str], _Curve] = {}

    def of(self, what: str, name: str) -> _Curve:
        """The size or the allocated bytes of a kind, or what was touched by a name."""
        if what == "touched" and name not in self._final.touched_bytes:
            name = OTHER
        if (what, name) not in self._curves:
            self._curves[what, name] = _Curve([0] * self._nr)
        return self._curves[what, name]

    def series(self) -> Iterator[Series]:
        """The figures at each moment."""
        figures = [list(accumulate(curve)) for curve in (self.before, self.freed, *self._curves.values())]
        for before_bytes, freed_bytes, *rest in zip(*figures):
            now: dict[str, dict[str, int]] = {"size": {}, "allocated": {}, "touched": {}}
            for (what, each), size_bytes in zip(self._curves, rest):
                now[what][each] = size_bytes
            there_bytes = before_bytes + sum(now["touched"].values()) - freed_bytes
            excess_bytes = sum(now["allocated"].values()) - there_bytes
            if excess_bytes < 0:  # the last sample was before the last touch
                now["allocated"][max(now["allocated"], key=now["allocated"].__getitem__)] -= excess_bytes
                excess_bytes = 0
            unseen_bytes = min(excess_bytes, max(self._final.unseen_bytes, 0))
            held = {kind: Held(now["size"][kind], size_bytes, None) for kind, size_bytes in now["allocated"].items()}
            yield Series(
                *self._final[:2],
                held,
                before_bytes,
                unseen_bytes,
                now["touched"],
                freed_bytes,
                freed_since_bytes=excess_bytes - unseen_bytes,
            )

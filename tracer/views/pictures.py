"""The data of the page's pictures: what was touched in each interval, and the page maps. Its size is bounded.

Pure: a capture and its account in, lists of integers out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tracer.capture.capture import LABEL_AND_PROCESS, Capture
from tracer.model import Session
from tracer.tables.by_time import BUCKETS_S

BINS = 240  # intervals on the time axis, and one more at most
WIDTHS_NS = [number * 10**6 for number in (1, 2, 5, 10, 20, 50, 100, 200, 500)] + [size * 10**9 for size in BUCKETS_S]
MAX_SPANS = 1 << 16  # of all maps together
MIN_SPANS = 64  # of one map
MAX_INTEGER = (1 << 63) - 1  # of SQLite
BEFORE = -1  # instead of who touched pages: they are from before the trace


# ---- time ----


class Bins(NamedTuple):
    """The intervals of a capture, between round times: the first begins at origin_ns or before, the last never ends."""

    origin_ns: int
    """CLOCK_REALTIME"""
    width_ns: int
    """whole milliseconds, so that --since can name each edge"""
    number: int
    """of intervals"""

    def edge(self, time_ns: int) -> int:
        """The first edge at or after a time."""
        return min(max(-(-(time_ns - self.origin_ns) // self.width_ns), 0), self.number)

    def of(self, time_ns: int) -> int:
        """The interval of a time."""
        return min(max((time_ns - self.origin_ns) // self.width_ns, 0), self.number - 1)


def bins(session: Session) -> Bins:
    """About BINS intervals, the shortest round ones that last for the whole capture; of a part, for its time.

    What was touched before is in the first.
    """
    lasted_ns = session.ended_ns - session.since_ns
    longest_ns = WIDTHS_NS[-1] * -(-lasted_ns // (WIDTHS_NS[-1] * BINS) or 1)
    width_ns = next((width for width in WIDTHS_NS if width * BINS >= lasted_ns), longest_ns)
    origin_ns = session.since_ns // width_ns * width_ns
    return Bins(origin_ns, width_ns, (session.ended_ns - origin_ns) // width_ns + 1)


# ---- what was touched ----


class Span(NamedTuple):
    """Pages [start, end) of a region, with who touched most of them first, and when."""

    start: int
    end: int
    who: int
    """BEFORE, or as the caller numbers them"""
    bin: int
    """Bins.number: unknown"""
    pages: int
    """of the extent that stands for all"""
    present: int
    """how many pages are allocated"""


class Touched(NamedTuple):
    """What was touched of one region."""

    region: int
    """row"""
    cells: Mapping[int, int]
    """pages by `who * (Bins.number + 1) + bin`. Bins.number: it is unknown when; who < 0: before"""
    merged: int
    """how many extents a span stands for; 1: the map is exact"""
    spans: Sequence[Span]


EXTENTS = f"""
SELECT start, "end", {LABEL_AND_PROCESS}, CASE
  WHEN first_ns < :origin THEN 0 WHEN first_ns < :last THEN (first_ns - :origin) / :width
  WHEN first_ns IS NULL THEN :number ELSE :number - 1 END
FROM extent WHERE region = :region ORDER BY start"""  # noqa: S608
Extent = tuple[int, int, int, int]
COUNTS = "SELECT region, count(*) FROM extent GROUP BY region"


def touched(capture: Capture, within: Bins, who: Mapping[int, int]) -> Iterator[Touched]:
    """What was touched, region by region.

    who: the caller's number for a LABEL_AND_PROCESS, below 0 if that has no process.
    """
    counts: dict[int, int] = dict(capture.each(COUNTS))
    total = sum(counts.values())
    last_ns = min(within.origin_ns + within.number * within.width_ns, MAX_INTEGER)
    times = {"origin": within.origin_ns, "width": within.width_ns, "last": last_ns, "number": within.number}
    for region, count in counts.items():
        room = count if total <= MAX_SPANS else max(MAX_SPANS * count // total, MIN_SPANS)
        extents: Iterable[Extent] = capture.each(EXTENTS, {**times, "region": region})
        yield _touched(region, extents, -(-count // room), within.number + 1, who)


def _touched(region: int, extents: Iterable[Extent], merged: int, width: int, who: Mapping[int, int]) -> Touched:
    """In one loop, for there may be a million extents."""
    cells: dict[int, int] = defaultdict(int)
    spans = []
    begin = until = whose = when = most = present = 0
    left = merged
    for start, end, key, number in extents:
        pages, owner = end - start, who[key]
        cells[owner * width + number] += pages
        if not present:
            begin = start
        present += pages
        if pages > most:
            whose, when, most = owner, number, pages
        left -= 1
        if not left:
            spans.append(Span(begin, end, whose, when, most, present))
            left, most, present = merged, 0, 0
        until = end
    if present:
        spans.append(Span(begin, until, whose, when, most, present))
    return Touched(region, cells, merged, spans)

"""What the pictures of the page are drawn from: growth over time and the map of pages, bounded however big the capture.

Pure: a capture and its account in, lists of integers out. Times are microseconds since the capture began.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from tracer.account import Account, Region
from tracer.capture import Capture
from tracer.procfs import PAGE_BYTES

BINS = 240  # of time
MAX_POINTS = 4 * BINS  # of a line
MAX_COLOURS = 10  # touchers drawn each by itself; the others are one
MAX_SPANS = 1 << 16  # of all maps together
MIN_SPANS = 64  # of one
BEFORE = -1  # in place of a process: there when the capture began


class Rows(NamedTuple):
    """Which row of the capture is which of the account's: an account has no row numbers."""

    processes: dict[int, int]
    """position in the page's list, by row"""
    regions: dict[int, Region]


class Span(NamedTuple):
    """Pages [start, end) of a region: all of one process, or the most of them."""

    start: int
    end: int
    process: int | None
    pages: int
    """of that process"""
    present: int
    """of whomever"""
    first_ns: int | None
    last_ns: int | None


# ---- growth ----


def growth(capture: Capture, account: Account, rows: Rows) -> dict[str, Any]:
    """Bytes at each edge between the bins of time, by who touched them first, and the lines they are to meet.

    An extent says what is there now: a page that was given back is in no band, and the line is above them till then.
    """
    session = account.session
    bin_ns = max(-(-(session.ended_ns - session.started_ns) // BINS), 1)
    top = [row for row, _ in _touched(capture)[:MAX_COLOURS]]
    changes: dict[int, list[int]] = {who: [0] * (BINS + 1) for who in (*top, 0, BEFORE)}
    unseen = [0] * (BINS + 1)

    def edge(time_ns: int) -> int:
        """The first one that is not before."""
        return min(max(-(-(time_ns - session.started_ns) // bin_ns), 0), BINS)

    for row, who, first, last, pages in _touched_when(capture, top, session.started_ns, bin_ns):
        begin, end = min(first, BINS - 1), min(max(first, last), BINS - 1)
        shares = [pages * (i + 1) // (end - begin + 1) for i in range(end - begin + 1)]
        for i, (share, before) in enumerate(zip(shares, [0, *shares])):
            changes[who][begin + i + 1] += share - before
        gone_ns = rows.regions[row].gone_ns
        if gone_ns is not None:
            changes[who][edge(gone_ns)] -= pages
    for region in account.regions:
        began = edge(region.created_ns or 0)
        changes[BEFORE][began] += region.before_bytes // PAGE_BYTES
        unseen[began] += max(region.unseen_bytes, 0)
        if region.gone_ns is not None:
            changes[BEFORE][edge(region.gone_ns)] -= region.before_bytes // PAGE_BYTES
            unseen[edge(region.gone_ns)] -= max(region.unseen_bytes, 0)
    bands = {who: [pages * PAGE_BYTES for pages in accumulate(change)] for who, change in changes.items()}
    edges_us = [i * bin_ns // 1000 for i in range(BINS + 1)]
    allocated = _allocated(capture, account, rows)
    return {
        "edges": edges_us,
        "top": [rows.processes[row] for row in top],
        "bands": [bands[row] for row in top],
        "others": bands[0],
        "before": bands[BEFORE],
        "unseen": _unseen(list(accumulate(unseen)), [sum(band) for band in zip(*bands.values())], edges_us, allocated),
        "allocated": _columns(allocated),
        "host": _columns(_thin(_since(session.started_ns, capture.rows("SELECT * FROM host_sample ORDER BY 1")))),
    }


def _touched(capture: Capture) -> list[tuple[int, int]]:
    """(row of the process, pages), most first."""
    query = """SELECT process, sum("end" - start) FROM extent WHERE process IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"""
    return [(process, pages) for process, pages in capture.rows(query)]


def _touched_when(
    capture: Capture, top: Sequence[int], began_ns: int, bin_ns: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """(region, process or 0 for the others, first bin, last bin, pages)"""
    query = f"""
SELECT region, CASE WHEN process IN ({", ".join(map(str, top))}) THEN process ELSE 0 END,
       max((first_ns - :began) / :bin, 0), max((last_ns - :began) / :bin, 0), sum("end" - start)
FROM extent WHERE process IS NOT NULL GROUP BY 1, 2, 3, 4"""  # noqa: S608, numbers
    for row in capture.rows(query, {"began": began_ns, "bin": bin_ns}):
        yield tuple(row)


def _allocated(capture: Capture, account: Account, rows: Rows) -> list[tuple[int, int]]:
    """What the inodes had, all together: (time, bytes)."""
    session = account.session
    changes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for region, time_ns, allocated_bytes in capture.rows("SELECT region, time_ns, allocated_bytes FROM sample"):
        gone_ns = rows.regions[region].gone_ns
        if gone_ns is None or time_ns < gone_ns:
            changes[time_ns].append((region, allocated_bytes))
    for row, region in rows.regions.items():
        if region.gone_ns is None:
            changes[session.ended_ns].append((row, region.allocated_bytes))
        else:
            changes[region.gone_ns - 1].append((row, region.allocated_bytes))
            changes[region.gone_ns].append((row, 0))
    # a sample is written when something has changed: until the look before that, all was as it had been
    looks = [time_ns for (time_ns,) in capture.rows("SELECT time_ns FROM host_sample ORDER BY 1")]
    had: dict[int, int] = {}
    line: list[tuple[int, int]] = []
    for time_ns in sorted(changes):
        before = bisect.bisect_left(looks, time_ns) - 1
        if line and before >= 0 and looks[before] > line[-1][0]:
            line.append((looks[before], line[-1][1]))
        had.update(changes[time_ns])
        line.append((time_ns, sum(had.values())))
    return _thin(_since(session.started_ns, line))


def _since(began_ns: int, line: Sequence[Any]) -> list[tuple[int, int]]:
    return [((time_ns - began_ns) // 1000, value) for time_ns, value in line if time_ns >= began_ns]


def _thin(line: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most MAX_POINTS, the ends and what is highest and lowest between among them."""
    group = -(-len(line) // (MAX_POINTS // 2))
    if group <= 2:
        return line
    kept = {line[0], line[-1]}
    for i in range(0, len(line), group):
        kept.update((min(line[i : i + group], key=_value), max(line[i : i + group], key=_value)))
    return sorted(kept)


def _value(point: tuple[int, int]) -> int:
    return point[1]


def _columns(line: list[tuple[int, int]]) -> dict[str, list[int]]:
    return {"times": [time for time, _ in line], "bytes": [value for _, value in line]}


def _unseen(most: list[int], known: list[int], edges_us: list[int], allocated: list[tuple[int, int]]) -> list[int]:
    """Nobody saw these pages come. How many is the account's, and when: by when the inodes had more than was seen."""
    times = [time for time, _ in allocated]
    found = []
    for limit, seen, time in zip(most, known, edges_us):
        i = bisect.bisect_right(times, time) - 1
        found.append(min(max(allocated[i][1] - seen, 0), limit) if i >= 0 else 0)
    return [*found[:-1], most[-1]]


# ---- the map ----


def maps(capture: Capture) -> dict[int, tuple[int, list[Span]]]:
    """By row of the region: how many pages a span is made of at least, and the spans. 1: it is exact."""
    counts: dict[int, tuple[int, int]] = {
        region: (count, end)
        for region, count, end in capture.rows('SELECT region, count(*), max("end") FROM extent GROUP BY 1')
    }
    total = sum(count for count, _ in counts.values())
    found = {}
    for region, (count, end) in counts.items():
        room = max(MAX_SPANS * count // total, MIN_SPANS)
        cell = 1 if total <= MAX_SPANS or count <= room else 1 << (-(-end // room) - 1).bit_length()
        found[region] = cell, list(_spans(capture, region, cell))
    return found


def _spans(capture: Capture, region: int, cell: int) -> Iterator[Span]:
    query = 'SELECT start, "end", process, first_ns, last_ns FROM extent WHERE region = ? ORDER BY start'
    extents = capture.rows(query, (region,))
    if cell == 1:
        for start, end, process, first_ns, last_ns in extents:
            yield Span(start, end, process, end - start, end - start, first_ns, last_ns)
        return
    for number, pieces in _by_cell(extents, cell):
        pages: Counter[int | None] = Counter()
        for _, count, process, _, _ in pieces:
            pages[process] += count
        most, most_pages = pages.most_common(1)[0]
        times = [(first, last) for _, _, process, first, last in pieces if process == most and first is not None]
        yield Span(
            number * cell,
            (number + 1) * cell,
            most,
            most_pages,
            sum(pages.values()),
            min((first for first, _ in times), default=None),
            max((last for _, last in times), default=None),
        )


def _by_cell(extents: Sequence[Any], cell: int) -> Iterator[tuple[int, list[tuple[int, int, Any, Any, Any]]]]:
    """The parts of extents by the cell they are in."""
    number = 0
    pieces: list[tuple[int, int, Any, Any, Any]] = []
    for start, end, process, first_ns, last_ns in extents:
        while start < end:
            if start // cell != number:
                if pieces:
                    yield number, pieces
                number, pieces = start // cell, []
            stop = min(end, (number + 1) * cell)
            pieces.append((start, stop - start, process, first_ns, last_ns))
            start = stop
    if pieces:
        yield number, pieces

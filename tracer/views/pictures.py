"""The data of the page's pictures: growth over time and the page maps. Its size is bounded for any capture.

Pure: a capture and its account in, lists of integers out. Times are microseconds since the capture began.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Optional

from tracer.account import Account, Process, Region
from tracer.capture.capture import PAGE_BYTES, Capture

BINS = 240  # intervals on the time axis
SECOND_NS = 1_000_000_000
MAX_POINTS = 4 * BINS  # of one line
MAX_COLOURS = 10  # touchers with a colour of their own; all others share one
MAX_SPANS = 1 << 16  # of all maps together
MIN_SPANS = 64  # of one map
BEFORE = -1  # instead of a process: pages from before the trace
UNKNOWN = -1  # instead of a text: unknown


class Span(NamedTuple):
    """Pages [start, end) of a region, and the process that touched most of them first."""

    start: int
    end: int
    process: int | None
    """row; None: before"""
    pages: int
    """how many of them that process touched first"""
    present: int
    """how many of them are allocated"""
    first_ns: int | None
    """CLOCK_REALTIME when that process touched the first of them"""
    last_ns: int | None
    text: int = UNKNOWN
    """number of the label text that most of that process's pages have"""


# ---- who has a colour ----


def coloured(account: Account) -> list[Process]:
    """The processes with a colour of their own, most touched first.

    Half are chosen by what they touched in regions that still exist, the others by what they touched in all.
    """
    everything = touched(account.regions)
    living = touched([region for region in account.regions if region.gone_ns is None])
    half = living.most_common(MAX_COLOURS // 2)
    chosen = dict.fromkeys([*(process for process, _ in half), *(process for process, _ in everything.most_common())])
    return sorted(list(chosen)[:MAX_COLOURS], key=lambda process: -everything[process])


def touched(regions: Iterable[Region]) -> Counter[Process]:
    """Touched bytes by process."""
    found: Counter[Process] = Counter()
    for region in regions:
        for toucher in region.touchers:
            if toucher.touched_bytes:
                found[toucher.process] += toucher.touched_bytes
    return found


# ---- growth ----


def growth(capture: Capture, account: Account, regions: Mapping[int, Region], top: Sequence[int]) -> dict[str, Any]:
    """The growth chart: bytes at each edge between bins, in bands by first toucher, and the line of allocated bytes.

    regions: by row. top: rows of the processes with a band of their own. An extent records only pages that are still
    allocated. A page that was freed is in no band, so the line lies above the bands until it was freed.
    """
    session = account.session
    bin_ns = max(-(-(session.ended_ns - session.started_ns) // BINS), 1)
    changes: dict[int, list[int]] = {who: [0] * (BINS + 1) for who in (*top, 0, BEFORE)}
    unseen = [0] * (BINS + 1)

    def edge(time_ns: int) -> int:
        """Index of the first edge at or after a time."""
        return min(max(-(-(time_ns - session.started_ns) // bin_ns), 0), BINS)

    for row, who, begin, end, pages in _touched_when(capture, top, session.started_ns, bin_ns):
        shares = [pages * (i + 1) // (end - begin + 1) for i in range(end - begin + 1)]
        for i, (share, before) in enumerate(zip(shares, [0, *shares])):
            changes[who][begin + i + 1] += share - before
        gone_ns = regions[row].gone_ns
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
    allocated = _allocated(capture, account, regions)
    return {
        "edges": edges_us,
        "bands": [bands[row] for row in top],
        "others": bands[0],
        "before": bands[BEFORE],
        "unseen": _unseen(list(accumulate(unseen)), [sum(band) for band in zip(*bands.values())], edges_us, allocated),
        "allocated": _columns(allocated),
        "host": _columns(_thin(_since(session.started_ns, capture.rows("SELECT * FROM host_sample ORDER BY 1")))),
    }


def _touched_when(
    capture: Capture, top: Sequence[int], began_ns: int, bin_ns: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """Rows of (region, process or 0 for all others, first bin, last bin, pages)."""
    long = bin_ns >= SECOND_NS  # an extent spans at most a second, so it lies in one bin then
    key = f"""(region * {len(top) + 1} + CASE process {_cases(top)} ELSE {len(top)} END) * {BINS * BINS}
              + min(max((first_ns - :began) / :bin, 0), {BINS - 1}) * {BINS}
              + {0 if long else f"min(max((last_ns - :began) / :bin, 0), {BINS - 1})"}"""
    for rest, pages, _, _ in capture.sums(key, "process IS NOT NULL", {"began": began_ns, "bin": bin_ns}):
        rest, end = divmod(rest, BINS)
        rest, begin = divmod(rest, BINS)
        region, rank = divmod(rest, len(top) + 1)
        yield region, (*top, 0)[rank], begin, max(begin, end), pages


def _cases(top: Sequence[int]) -> str:
    return " ".join(f"WHEN {process} THEN {rank}" for rank, process in enumerate(top)) or "WHEN 0 THEN 0"


def _allocated(capture: Capture, account: Account, regions: Mapping[int, Region]) -> list[tuple[int, int]]:
    """Allocated bytes of all regions by their inodes: (microseconds, bytes)."""
    session = account.session
    changes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for region, time_ns, allocated_bytes in capture.rows("SELECT region, time_ns, allocated_bytes FROM sample"):
        gone_ns = regions[region].gone_ns
        if gone_ns is None or time_ns < gone_ns:
            changes[time_ns].append((region, allocated_bytes))
    for row, region in regions.items():
        if region.gone_ns is None:
            changes[session.ended_ns].append((row, region.allocated_bytes))
        else:
            changes[region.gone_ns - 1].append((row, region.allocated_bytes))
            changes[region.gone_ns].append((row, 0))
    # A sample is written only when the size has changed: the size before it was valid up to the previous host sample.
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
    """The line with at most MAX_POINTS points; keeps both ends and the highest and lowest point of each group."""
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
    """Unseen bytes at each edge, estimated: what the inodes had beyond the pages seen, up to the account's figure."""
    times = [time for time, _ in allocated]
    found = []
    for limit, seen, time in zip(most, known, edges_us):
        i = bisect.bisect_right(times, time) - 1
        found.append(min(max(allocated[i][1] - seen, 0), limit) if i >= 0 else 0)
    return [*found[:-1], most[-1]]


# ---- the map ----


def maps(
    capture: Capture, regions: Collection[int], texts: Mapping[int, int] | None = None
) -> dict[int, tuple[int, list[Span]]]:
    """The page maps of these regions, by row: (cell, spans). Spans are merged into cells of so many pages; 1: exact.

    texts: the number of a label's text, by the label's row.
    """
    counts: dict[int, tuple[int, int]] = {
        region: (count, end)
        for region, count, end in capture.rows('SELECT region, count(*), max("end") FROM extent GROUP BY 1')
        if region in regions
    }
    total = sum(count for count, _ in counts.values())
    found = {}
    for region, (count, end) in counts.items():
        room = max(MAX_SPANS * count // total, MIN_SPANS)
        cell = 1 if total <= MAX_SPANS or count <= room else 1 << (-(-end // room) - 1).bit_length()
        found[region] = cell, list(_spans(capture, region, cell, texts or {}))
    return found


EXTENTS = """
SELECT start, "end", ifnull(process, 0), first_ns, last_ns, label FROM extent WHERE region = ? ORDER BY start
"""
Extent = tuple[int, int, int, Optional[int], Optional[int], Optional[int]]


def _spans(capture: Capture, region: int, cell: int, texts: Mapping[int, int]) -> Iterator[Span]:
    extents = capture.each(EXTENTS, (region,))
    cells = ((extent[0], extent[1], [extent]) for extent in extents) if cell == 1 else _cells(extents, cell)
    return (_span(start, end, inside, texts) for start, end, inside in cells)


def _cells(extents: Iterable[Extent], cell: int) -> Iterator[tuple[int, int, list[Extent]]]:
    stop = 0
    inside: list[Extent] = []
    for start, end, process, first_ns, last_ns, label in extents:
        while end > stop:  # split an extent that reaches into the next cell
            if start < stop:
                inside.append((start, stop, process, first_ns, last_ns, label))
                start = stop
            if inside:
                yield stop - cell, stop, inside
            stop, inside = (start // cell + 1) * cell, []
        inside.append((start, end, process, first_ns, last_ns, label))
    if inside:
        yield stop - cell, stop, inside


def _span(start: int, stop: int, inside: Sequence[Extent], texts: Mapping[int, int]) -> Span:
    """The span of one cell, for the process that touched most of its pages first."""
    pages: dict[int, int] = {}
    for first, end, process, *_ in inside:
        pages[process] = pages.get(process, 0) + end - first
    most = max(pages.values())
    process = min([process for process, count in pages.items() if count == most])
    known = [time for extent in inside if extent[2] == process for time in extent[3:5] if time is not None]
    times = min(known, default=None), max(known, default=None)
    text = _text(inside, process, texts) if texts else UNKNOWN
    return Span(start, stop, process or None, most, sum(pages.values()), *times, text)


def _text(inside: Sequence[Extent], process: int, texts: Mapping[int, int]) -> int:
    """The text that most of that process's pages have."""
    pages: dict[int, int] = {}
    for first, end, whose, _, _, label in inside:
        if whose == process:
            text = texts.get(label or 0, UNKNOWN)
            pages[text] = pages.get(text, 0) + end - first
    return max(pages, key=pages.__getitem__)

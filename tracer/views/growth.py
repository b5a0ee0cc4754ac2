"""What the inodes had over time, beside what was touched by then: of all regions, and of the biggest. Pure."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Optional

from tracer.capture.capture import Capture
from tracer.model import Account
from tracer.tables.by_time import histories
from tracer.views.cells import Entry
from tracer.views.pictures import Bins, Touched

MAX_LINES = 50  # regions with a line of their own, the biggest
# A sample is half a second old at most, unless asked for otherwise, and an extent counts at the time of its first page.
LAG_NS = 2 * 10**9


Change = tuple[int, int, int]
"""(CLOCK_REALTIME, region, allocated bytes since then)"""
Line = dict[str, Sequence[Optional[int]]]
"""allocated and unseen bytes at each edge. None: no sample tells."""


def growth(
    account: Account, capture: Capture, entries: Sequence[Entry], touched: Iterable[Touched], within: Bins
) -> dict[str, Any]:
    """What the inodes had at each edge, and how much of it was unseen: of all regions and of the biggest.

    host: all shared memory of the host at each edge; None: unknown.
    """
    cells = {each.region: each.cells for each in touched}
    seen = [_seen(entry, cells, within, account.session.page_bytes) for entry in entries]
    unseen = [
        _held({entry.created_edge: max(entry.sum("unseen_bytes"), 0)}, entry.gone_edge, within) for entry in entries
    ]
    changes = _changes(account, capture)
    in_order = sorted(change for of_region in changes.values() for change in of_region)
    biggest = sorted(range(len(entries)), key=lambda number: -entries[number].sum("peak_bytes"))[:MAX_LINES]
    return {
        "all": _line(in_order, _summed(seen, within), _summed(unseen, within), within),
        "regions": {
            number: _line(changes[region.row], seen[number], unseen[number], within)
            for number in biggest
            if (region := entries[number].region)
        },
        "host": _host(capture, within),
    }


def _summed(rows: Sequence[Sequence[int]], within: Bins) -> list[int]:
    return [sum(sizes) for sizes in zip([0] * (within.number + 1), *rows)]


def _host(capture: Capture, within: Bins) -> list[int | None]:
    sizes: list[int | None] = [None] * (within.number + 1)
    for time_ns, size_bytes in capture.each("SELECT time_ns, shmem_bytes FROM host_sample ORDER BY 1"):
        sizes[within.edge(time_ns)] = size_bytes
    return sizes


def _seen(entry: Entry, cells: Mapping[int, Mapping[int, int]], within: Bins, page_bytes: int) -> list[int]:
    """Bytes at each edge that were touched, or from before."""
    came = Counter({entry.created_edge: entry.sum("before_bytes")})
    for region in entry.regions:
        for key, pages in cells.get(region.row, {}).items():
            who, interval = divmod(key, within.number + 1)
            if who >= 0:
                came[0 if interval == within.number else interval + 1] += pages * page_bytes
    return _held(came, entry.gone_edge, within)


def _held(came: Mapping[int, int], gone_edge: int | None, within: Bins) -> list[int]:
    """The bytes there are at each edge, of those that came at each; none from gone_edge on."""
    there = list(accumulate(came.get(edge, 0) for edge in range(within.number + 1)))
    return there if gone_edge is None else there[:gone_edge] + [0] * (within.number + 1 - gone_edge)


def _changes(account: Account, capture: Capture) -> dict[int, list[Change]]:
    """What each region had, from its samples and the account, in the order of time."""
    of = histories(account, capture)
    changes: dict[int, list[Change]] = {}
    for region in account.regions:
        history, row = of[region.row], region.row
        created_ns = region.created_ns or account.session.started_ns
        changes[row] = [(created_ns, row, region.start_bytes)]
        changes[row] += [(time_ns, row, size) for time_ns, size in zip(history.times_ns, history.sizes_bytes)]
        if region.gone_ns is not None:
            changes[row].insert(-1, (region.gone_ns - 1, row, region.allocated_bytes))
    return changes


# ---- the line ----


def _line(changes: Sequence[Change], seen_bytes: Sequence[int], unseen_bytes: Sequence[int], within: Bins) -> Line:
    """What the inodes had allocated at each edge by their samples, and how much of it was unseen.

    changes: in the order of time. seen_bytes: touched and before at each edge, by the ledger; unseen_bytes: at most so
    much is unseen. A sample that knows less than the ledger knew LAG_NS before is too old to tell. At the last edge
    both are as the account has them.
    """
    levels = _levels(changes, within)
    lag = -(-LAG_NS // within.width_ns)
    allocated: list[int | None] = []
    unseen: list[int] = []
    for edge, (level, seen, limit) in enumerate(zip(levels, seen_bytes, unseen_bytes)):
        known = level >= min(seen, seen_bytes[max(edge - lag, 0)])
        guess = max(level - seen, 0) if known else unseen[-1] if unseen else 0
        unseen.append(min(guess, limit))
        allocated.append(max(level, seen) if known else None)
    unseen[-1] = unseen_bytes[-1]
    allocated[-1] = seen_bytes[-1] + unseen_bytes[-1]
    return {"allocated": allocated, "unseen": unseen}


def _levels(changes: Sequence[Change], within: Bins) -> list[int]:
    """The last sum at each edge; where it has risen and come back since the edge before, its peak.

    Not where it has fallen: the bands fall at that edge, too.
    """
    had: dict[int, int] = {}
    total, times, totals = 0, [], []
    for time_ns, region, size_bytes in changes:
        total += size_bytes - had.get(region, 0)
        had[region] = size_bytes
        times.append(time_ns)
        totals.append(total)
    levels: list[int] = []
    begin = 0
    for edge in range(within.number + 1):
        end = bisect.bisect_right(times, within.origin_ns + edge * within.width_ns)
        last = totals[end - 1] if end else 0
        peak = max(totals[begin:end], default=last)
        levels.append(peak if levels and last >= levels[-1] else last)
        begin = end
    return levels

"""The table of an account by time, and the sizes of regions over time. Pure."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from tracer.account import read_labels, read_processes
from tracer.capture.capture import Capture
from tracer.formatting import shorten_command
from tracer.model import Account, Labelled, Process
from tracer.tables.table import Column, Table

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
BUCKETS_S = [
    *(1, 2, 5, 10, 30),
    *(MINUTE_S * number for number in (1, 2, 5, 10, 30)),
    *(HOUR_S * number for number in (1, 2, 6, 12)),
    *(DAY_S * number for number in (1, 7, 28)),
]
MAX_BUCKETS = 24


class History(NamedTuple):
    """Allocated bytes of one region over time. times_ns is CLOCK_REALTIME, ascending."""

    times_ns: Sequence[int]
    sizes_bytes: Sequence[int]
    start_bytes: int

    def at(self, time_ns: int) -> int:
        """Allocated bytes at a time: of the last sample up to it."""
        number = bisect.bisect_right(self.times_ns, time_ns)
        return self.sizes_bytes[number - 1] if number else self.start_bytes


class Bucket(NamedTuple):
    """What happened in [time_ns, until_ns) of CLOCK_REALTIME."""

    time_ns: int
    until_ns: int
    allocated_bytes: int
    """at until_ns"""
    grown_bytes: int
    touched_bytes: int
    grower: Process | None
    """the process that touched most"""
    grower_bytes: int
    started: int
    """processes of the tree that started"""
    exited: int


BY_TIME = [
    Column("time_ns", "from", lambda row: row.time_ns),
    Column("until_ns", "", lambda row: row.until_ns),
    Column("allocated_bytes", "allocated", lambda row: row.allocated_bytes),
    Column("grown_bytes", "grown", lambda row: row.grown_bytes, signed=True),
    Column("touched_bytes", "touched", lambda row: row.touched_bytes),
    Column("grower_bytes", "most", lambda row: row.grower_bytes),
    Column("grower", "by", lambda row: row.grower.who if row.grower else "", "<", cut=shorten_command),
    Column("started", "started", lambda row: row.started),
    Column("exited", "exited", lambda row: row.exited),
]
BUCKET = "max(0, min(:last, (first_ns - :origin) / :size))"
TOUCHED = """process IS NOT NULL AND first_ns IS NOT NULL
  AND (:since IS NULL OR first_ns >= :since) AND (:until IS NULL OR first_ns < :until)"""
TOUCHED_FOR = f"""
SELECT region, label, process, {BUCKET}, sum("end" - start), min(first_ns), max(last_ns) FROM extent WHERE {TOUCHED}
GROUP BY 1, 2, 3, 4"""  # noqa: S608


def by_time(account: Account, capture: Capture) -> Table:
    """The window in at most about 24 equal parts that begin at round local times."""
    since_ns, until_ns = bounds(account)
    origin_ns, size_ns, nr = parts = _parts(since_ns, until_ns)
    touched = [0] * nr
    growers: dict[int, tuple[int | None, int]] = {}
    nobody = None, 0
    processes = read_processes(capture)
    for key, pages, _, _ in capture.sums(f"{BUCKET} << 32 | process", TOUCHED, parts.values(account)):
        bucket, process = key >> 32, key & 0xFFFFFFFF
        touched_bytes = pages * account.session.page_bytes
        touched[bucket] += touched_bytes
        if touched_bytes > growers.get(bucket, nobody)[1]:
            growers[bucket] = process, touched_bytes
    started, exited = (
        Counter(
            min(nr - 1, (time_ns - origin_ns) // size_ns)
            for process in processes.values()
            if not process.outside_tree
            for time_ns in [getattr(process, name)]
            if time_ns is not None and since_ns <= time_ns and time_ns < (account.window.until_ns or time_ns + 1)
        )
        for name in ("started_ns", "exited_ns")
    )
    held_by = histories(account, capture).values()
    edges = [max(since_ns, origin_ns + number * size_ns) for number in range(nr)] + [until_ns]
    held = [sum(history.at(edge) for history in held_by) for edge in edges]
    rows = []
    for number in range(nr):
        process, grower_bytes = growers.get(number, nobody)
        rows.append(
            Bucket(
                edges[number],
                edges[number + 1],
                held[number + 1],
                held[number + 1] - held[number],
                touched[number],
                processes[process] if process else None,
                grower_bytes,
                started[number],
                exited[number],
            )
        )
    return Table("time", BY_TIME, rows)


def bounds(account: Account) -> tuple[int, int]:
    """(since_ns, until_ns) of the window, cut to the capture's time; of a part, to the part's."""
    window, session = account.window, account.session
    since_ns = session.since_ns if window.since_ns is None else window.since_ns
    until_ns = session.ended_ns if window.until_ns is None else window.until_ns
    return max(since_ns, session.since_ns), min(until_ns, session.ended_ns)


class Parts(NamedTuple):
    """Equal parts of the window, round in the local zone."""

    origin_ns: int
    """where the first begins"""
    size_ns: int
    number: int

    def values(self, account: Account) -> dict[str, int | None]:
        """What BUCKET and TOUCHED want."""
        window = {"since": account.window.since_ns, "until": account.window.until_ns}
        return {**window, "origin": self.origin_ns, "size": self.size_ns, "last": self.number - 1}


def _parts(since_ns: int, until_ns: int) -> Parts:
    seconds = (until_ns - since_ns) / 1e9
    size_ns = next((size for size in BUCKETS_S if seconds / size <= MAX_BUCKETS), BUCKETS_S[-1]) * 10**9
    offset = datetime.fromtimestamp(since_ns / 1e9).astimezone().utcoffset()
    offset_ns = int(offset.total_seconds()) * 10**9 if offset else 0
    origin_ns = since_ns - (since_ns + offset_ns) % size_ns
    return Parts(origin_ns, size_ns, max(1, -(-(until_ns - origin_ns) // size_ns)))


def parts_of_time(account: Account, capture: Capture) -> Iterator[tuple[int, int, Labelled]]:
    """(row of the region, when a part of the time begins, what was touched in it): the parts are those of by_time()."""
    since_ns, until_ns = bounds(account)
    parts, processes, texts = _parts(since_ns, until_ns), read_processes(capture), read_labels(capture)
    for region, label, process, number, pages, first_ns, last_ns in capture.each(TOUCHED_FOR, parts.values(account)):
        time_ns = max(since_ns, parts.origin_ns + number * parts.size_ns)
        touched_bytes = pages * account.session.page_bytes
        yield region, time_ns, Labelled(texts.get(label), processes[process], touched_bytes, first_ns, last_ns)


def histories(account: Account, capture: Capture) -> Mapping[int, History]:
    """The history of each region, by its row. It ends with the account's size, or with 0 if the region is gone."""
    samples: dict[int, list[tuple[int, int]]] = {}
    for row, time_ns, size_bytes in capture.rows("SELECT region, time_ns, allocated_bytes FROM sample ORDER BY 2"):
        samples.setdefault(row, []).append((time_ns, size_bytes))
    histories = {}
    for region in account.regions:
        known = samples.get(region.row, [])
        end_ns = account.session.ended_ns if region.gone_ns is None else region.gone_ns
        known = [sample for sample in known if sample[0] < end_ns]
        known.append((end_ns, region.allocated_bytes if region.gone_ns is None else 0))
        times_ns, sizes_bytes = zip(*known)
        histories[region.row] = History(times_ns, sizes_bytes, region.start_bytes)
    return histories

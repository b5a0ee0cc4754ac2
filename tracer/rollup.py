"""Tables of an account, by what it is looked at: its regions, its processes, its time. Pure."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from tracer import labels
from tracer.account import ALL_TIME, Account, Parent, Process, Region, Toucher, read_processes, region_id
from tracer.capture import Capture
from tracer.procfs import PAGE_BYTES
from tracer.tables import Column, Table

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
BUCKETS_S = [
    *(1, 2, 5, 10, 30),
    *(MINUTE_S * number for number in (1, 2, 5, 10, 30)),
    *(HOUR_S * number for number in (1, 2, 6, 12)),
    *(DAY_S * number for number in (1, 7, 28)),
]
MAX_BUCKETS = 24


def command(process: Process | None) -> str:
    return "" if process is None else process.command or process.comm or "?"


def _who(process: Process | None) -> str:
    return "" if process is None else f"{process.tgid} {command(process)}"


# ---- by region ----


class RegionRow(NamedTuple):
    region: Region
    what: str
    grown_bytes: int
    grower: Toucher | None


BY_REGION = [
    Column("id", "", lambda row: region_id(row.region), "<"),
    Column("ino", "region", lambda row: row.region.ino),
    Column(
        "what", "what", lambda row: row.what, "<", shown=lambda row: f"{row.what}{', gone' * bool(row.region.gone_ns)}"
    ),
    Column("name", "", lambda row: row.region.name, "<"),
    Column("kind", "kind", lambda row: row.region.kind, "<"),
    Column("size_bytes", "size", lambda row: row.region.vss_bytes),
    Column("allocated_bytes", "allocated", lambda row: row.region.allocated_bytes),
    Column("grown_bytes", "grown", lambda row: row.grown_bytes, signed=True),
    Column("peak_bytes", "peak", lambda row: row.region.peak_bytes),
    Column("swapped_bytes", "swapped", lambda row: row.region.swapped_bytes),
    Column("touched_bytes", "", lambda row: row.region.touched_bytes),
    Column("outside_bytes", "", lambda row: row.region.outside_bytes),
    Column("before_bytes", "", lambda row: row.region.before_bytes),
    Column("unseen_bytes", "", lambda row: row.region.unseen_bytes),
    Column("grower", "most by", lambda row: _who(row.grower and row.grower.process), "<"),
    Column("grower_bytes", "", lambda row: row.grower.touched_bytes if row.grower else 0),
    Column("creator", "creator", lambda row: row.region.creator and row.region.creator.process.tgid),
    Column("creator_command", "", lambda row: command(row.region.creator and row.region.creator.process), "<"),
    Column("created_ns", "", lambda row: row.region.created_ns),
    Column("gone_ns", "", lambda row: row.region.gone_ns),
]


def by_region(account: Account, capture: Capture) -> Table:
    """In a window, grown is what it grew in it, and the grower who touched most in it."""
    histories = None if account.window == ALL_TIME else _histories(account, capture)
    rows = []
    for parent in account.parents:
        for region in parent.regions:
            most = region.touchers[0] if region.touchers and region.touchers[0].touched_bytes else None
            grown_bytes = region.grown_bytes
            if histories:
                since_ns, until_ns = _bounds(account)
                history = histories[region_id(region)]
                grown_bytes = history.at(until_ns) - history.at(since_ns)
            rows.append(RegionRow(region, what(region, parent), grown_bytes, most))
    return Table("region", BY_REGION, sorted(rows, key=lambda row: row.region.gone_ns is not None))


def what(region: Region, parent: Parent) -> str:
    """The guess, or else its name."""
    return labels.guess(region, parent.process) or region.name


# ---- by process ----


class ProcessRow(NamedTuple):
    process: Process
    touched_bytes: int
    freed_bytes: int
    faults: int | None
    regions: Sequence[str]
    """by what it touched of them, most first"""


BY_PROCESS = [
    Column("tgid", "PID", lambda row: row.process.tgid),
    Column("started_ns", "", lambda row: row.process.started_ns),
    Column("command", "process", lambda row: command(row.process), "<"),
    Column("parent", "", lambda row: row.process.parent),
    Column("cgroup", "", lambda row: row.process.cgroup, "<"),
    Column("touched_bytes", "touched", lambda row: row.touched_bytes),
    Column("freed_bytes", "freed", lambda row: row.freed_bytes),
    Column("faults", "faults", lambda row: row.faults),
    Column("exited_ns", "exited", lambda row: row.process.exited_ns),
    Column("regions", "of", lambda row: ", ".join(row.regions), "<"),
]


def by_process(account: Account) -> Table:
    """Those that touched, freed or faulted on a region."""
    found: dict[Process, list[tuple[Toucher, str]]] = {}
    for parent in account.parents:
        for region in parent.regions:
            name = f"{what(region, parent)} {region.ino}"
            for toucher in region.touchers:
                found.setdefault(toucher.process, []).append((toucher, name))
    rows = []
    for process, touched in found.items():
        touched.sort(key=lambda item: -item[0].touched_bytes)
        faults = [toucher.faults for toucher, _ in touched if toucher.faults is not None]
        rows.append(
            ProcessRow(
                process,
                sum(toucher.touched_bytes for toucher, _ in touched),
                sum(toucher.freed_bytes for toucher, _ in touched),
                sum(faults) if faults else None,
                [name for toucher, name in touched if toucher.touched_bytes],
            )
        )
    rows.sort(key=lambda row: (-row.touched_bytes, -(row.faults or 0), row.process.tgid, row.process.start_time_ns))
    return Table("process", BY_PROCESS, rows)


# ---- by time ----


class History(NamedTuple):
    """What one region had allocated, by its samples."""

    times_ns: Sequence[int]
    sizes_bytes: Sequence[int]
    start_bytes: int

    def at(self, time_ns: int) -> int:
        number = bisect.bisect_right(self.times_ns, time_ns)
        return self.sizes_bytes[number - 1] if number else self.start_bytes


class Bucket(NamedTuple):
    """What happened in [time_ns, until_ns)."""

    time_ns: int
    until_ns: int
    allocated_bytes: int
    """at its end"""
    grown_bytes: int
    touched_bytes: int
    grower: Process | None
    grower_bytes: int
    started: int
    exited: int


BY_TIME = [
    Column("time_ns", "from", lambda row: row.time_ns),
    Column("until_ns", "", lambda row: row.until_ns),
    Column("allocated_bytes", "allocated", lambda row: row.allocated_bytes),
    Column("grown_bytes", "grown", lambda row: row.grown_bytes, signed=True),
    Column("touched_bytes", "touched", lambda row: row.touched_bytes),
    Column("grower_bytes", "most", lambda row: row.grower_bytes),
    Column("grower", "by", lambda row: _who(row.grower), "<"),
    Column("started", "started", lambda row: row.started),
    Column("exited", "exited", lambda row: row.exited),
]
BUCKET_AND_PROCESS = "max(0, min(:last, (first_ns - :origin) / :size)) << 32 | process"
TOUCHED = """process IS NOT NULL AND first_ns IS NOT NULL
  AND (:since IS NULL OR first_ns >= :since) AND (:until IS NULL OR first_ns < :until)"""


def by_time(account: Account, capture: Capture) -> Table:
    """About 20 equal parts of the window, that begin at round times."""
    since_ns, until_ns = _bounds(account)
    origin_ns, size_ns = _buckets(since_ns, until_ns)
    nr = max(1, -(-(until_ns - origin_ns) // size_ns))
    touched = [0] * nr
    growers: dict[int, tuple[int | None, int]] = {}
    nobody = None, 0
    processes = read_processes(capture)
    window = {"since": account.window.since_ns, "until": account.window.until_ns}
    place = {"origin": origin_ns, "size": size_ns, "last": nr - 1}
    for key, pages, _, _ in capture.sums(BUCKET_AND_PROCESS, TOUCHED, {**window, **place}):
        bucket, process = key >> 32, key & 0xFFFFFFFF
        touched[bucket] += pages * PAGE_BYTES
        if pages * PAGE_BYTES > growers.get(bucket, nobody)[1]:
            growers[bucket] = process, pages * PAGE_BYTES
    started, exited = (
        Counter(
            min(nr - 1, (time_ns - origin_ns) // size_ns)
            for process in processes.values()
            if not process.stranger
            for time_ns in [getattr(process, name)]
            if time_ns is not None and since_ns <= time_ns and time_ns < (account.window.until_ns or time_ns + 1)
        )
        for name in ("started_ns", "exited_ns")
    )
    histories = _histories(account, capture).values()
    edges = [max(since_ns, origin_ns + number * size_ns) for number in range(nr)] + [until_ns]
    held = [sum(history.at(edge) for history in histories) for edge in edges]
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


def _bounds(account: Account) -> tuple[int, int]:
    """Of the window, as far as it is in the capture."""
    window, session = account.window, account.session
    since_ns = session.started_ns if window.since_ns is None else window.since_ns
    until_ns = session.ended_ns if window.until_ns is None else window.until_ns
    return max(since_ns, session.started_ns), min(until_ns, session.ended_ns)


def _buckets(since_ns: int, until_ns: int) -> tuple[int, int]:
    """Where the first one begins, and how long each is; round by the viewer's clock."""
    seconds = (until_ns - since_ns) / 1e9
    size_ns = next((size for size in BUCKETS_S if seconds / size <= MAX_BUCKETS), BUCKETS_S[-1]) * 10**9
    offset = datetime.fromtimestamp(since_ns / 1e9).astimezone().utcoffset()
    offset_ns = int(offset.total_seconds()) * 10**9 if offset else 0
    return since_ns - (since_ns + offset_ns) % size_ns, size_ns


def _histories(account: Account, capture: Capture) -> Mapping[str, History]:
    """By region's id. At its end a region has what the account says, or nothing if it is gone."""
    samples: dict[tuple[int, int, int | None], list[tuple[int, int]]] = {}
    for dev, ino, generation, time_ns, size_bytes in capture.rows(SAMPLES):
        samples.setdefault((dev, ino, generation), []).append((time_ns, size_bytes))
    histories = {}
    for region in account.regions:
        known = samples.get((region.dev, region.ino, region.generation), [])
        end_ns = account.session.ended_ns if region.gone_ns is None else region.gone_ns
        known = [sample for sample in known if sample[0] < end_ns]
        known.append((end_ns, region.allocated_bytes if region.gone_ns is None else 0))
        times_ns, sizes_bytes = zip(*known)
        histories[region_id(region)] = History(times_ns, sizes_bytes, region.start_bytes)
    return histories


SAMPLES = """
SELECT dev, ino, generation, time_ns, sample.allocated_bytes
FROM sample JOIN region ON region.id = sample.region ORDER BY time_ns
"""


# ---- by parent ----


class Share(NamedTuple):
    """A part of what one region has allocated."""

    parent: Parent
    region: Region
    part: str
    """touched, outside the window, before the capture, or unseen"""
    toucher: Toucher | None
    size_bytes: int


BY_PARENT = [
    Column("parent", "", lambda row: row.parent.process and row.parent.process.tgid),
    Column("parent_command", "", lambda row: command(row.parent.process), "<"),
    Column("region", "", lambda row: region_id(row.region), "<"),
    Column("what", "", lambda row: what(row.region, row.parent), "<"),
    Column("name", "", lambda row: row.region.name, "<"),
    Column("kind", "", lambda row: row.region.kind, "<"),
    Column("gone_ns", "", lambda row: row.region.gone_ns),
    Column("part", "", lambda row: row.part, "<"),
    Column("allocated_bytes", "", lambda row: row.size_bytes),
    Column("tgid", "", lambda row: row.toucher and row.toucher.process.tgid),
    Column("command", "", lambda row: command(row.toucher and row.toucher.process), "<"),
    Column("exited_ns", "", lambda row: row.toucher and row.toucher.process.exited_ns),
    Column("freed_bytes", "", lambda row: row.toucher and row.toucher.freed_bytes),
    Column("faults", "", lambda row: row.toucher and row.toucher.faults),
    Column("first_ns", "", lambda row: row.toucher and row.toucher.first_ns),
    Column("last_ns", "", lambda row: row.toucher and row.toucher.last_ns),
]


def by_parent(account: Account) -> Table:
    """A row for every part of every region: they add up to what is allocated."""
    rows = []
    for parent in account.parents:
        for region in parent.regions:
            rows += [Share(parent, region, "touched", toucher, toucher.touched_bytes) for toucher in region.touchers]
            rows += [
                Share(parent, region, part, None, size_bytes)
                for part, size_bytes in (
                    ("outside", region.outside_bytes),
                    ("before", region.before_bytes),
                    ("unseen", region.unseen_bytes),
                )
            ]
    return Table("parent", BY_PARENT, rows)

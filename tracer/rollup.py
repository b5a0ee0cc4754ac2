"""Tables of an account, by what it is looked at: its regions, processes, units, containers, time. Pure."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime
from typing import Callable, NamedTuple

from tracer import labels, sources
from tracer.account import ALL_TIME, Account, Labelled, Parent, Process, Region, Toucher, read_processes, region_id
from tracer.capture import Capture
from tracer.errors import ShmtraceError
from tracer.places import Place, place, short
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
    return "" if process is None else f"{process.tgid} {_shown(process)}"


def _shown(process: Process) -> str:
    """After its PID: 4312 (7) is 7 in its own PID namespace."""
    return command(process) if process.ns_tgid is None else f"({process.ns_tgid}) {command(process)}"


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
    Column("ns_tgid", "", lambda row: row.process.ns_tgid),
    Column("command", "process", lambda row: command(row.process), "<", shown=lambda row: _shown(row.process)),
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


# ---- by stack ----


class StackRow(NamedTuple):
    region: Region
    what: str
    frames: tuple[str, ...] | None
    """callers first; None: unknown"""
    made_bytes: int
    """given back since or not"""
    processes: int
    """how many of them"""


BY_STACK = [
    Column("made_bytes", "made", lambda row: row.made_bytes),
    Column("processes", "by", lambda row: row.processes),
    Column("region", "", lambda row: region_id(row.region), "<"),
    Column("ino", "region", lambda row: row.region.ino),
    Column("what", "what", lambda row: row.what, "<"),
    Column(
        "stack",
        "stack",
        lambda row: row.frames and ";".join(frame.replace(";", "\\x3b") for frame in row.frames),
        "<",
        shown=lambda row: " < ".join(reversed(row.frames)) if row.frames else "?",
    ),
]


def by_stack(account: Account) -> Table:
    """Of each region, the code that made it. Raises ShmtraceError for a capture without stacks."""
    if not account.has_stacks:
        raise ShmtraceError("the capture has no stacks", "record with --stacks")
    rows = []
    for parent in account.parents:
        for region in parent.regions:
            sizes: Counter[tuple[str, ...] | None] = Counter()
            processes: Counter[tuple[str, ...] | None] = Counter()
            for toucher in region.touchers:
                for made in toucher.stacks:
                    sizes[made.frames] += made.size_bytes
                    processes[made.frames] += 1
            rows += [
                StackRow(region, what(region, parent), frames, made_bytes, processes[frames])
                for frames, made_bytes in sizes.items()
            ]
    return Table("stack", BY_STACK, sorted(rows, key=lambda row: (-row.made_bytes, row.frames or ())))


# ---- by unit, by container ----


class PlaceRow(NamedTuple):
    part: str
    """touched, or outside the window, before the capture, unseen: of nobody"""
    place: Place
    """by container without the unit"""
    cgroups: Sequence[str]
    """of all that is put together here"""
    size_bytes: int
    freed_bytes: int | None
    nr_processes: int | None
    nr_regions: int


PARTS = {"outside": "at other times", "before": "before the trace", "unseen": "unseen", "sum": "sum"}


def _unit(row: PlaceRow) -> str:
    """One that is in none has its cgroup."""
    return PARTS.get(row.part) or row.place.unit or ", ".join(row.cgroups) or "?"


def _container(row: PlaceRow) -> str:
    return PARTS.get(row.part) or (short(row.place.container) or "-" if row.cgroups else "?")


SUMS = [
    Column("cgroups", "", lambda row: ", ".join(row.cgroups), "<"),
    Column("allocated_bytes", "allocated", lambda row: row.size_bytes),
    Column("freed_bytes", "given back", lambda row: row.freed_bytes),
    Column("processes", "processes", lambda row: row.nr_processes, shown=lambda row: str(row.nr_processes or "")),
    Column("regions", "regions", lambda row: row.nr_regions),
]
PART = Column("part", "", lambda row: row.part, "<")
POD = Column("pod", "pod", lambda row: row.place.pod, "<", shown=lambda row: row.place.pod or "")
BY_UNIT = [
    PART,
    Column("unit", "unit", lambda row: row.place.unit, "<", shown=_unit),
    Column(
        "container",
        "container",
        lambda row: row.place.container,
        "<",
        shown=lambda row: "" if row.part in PARTS else _container(row),
    ),
    POD._replace(title=""),
    *SUMS,
]
BY_CONTAINER = [
    PART,
    Column("container", "container", lambda row: row.place.container, "<", shown=_container),
    POD,
    *SUMS,
]


def by_unit(account: Account) -> Table:
    """A row for who touched pages that are there still, or gave some back, by their systemd unit."""
    return _by_place(account, "unit", BY_UNIT, lambda found, cgroup: (found, None if found.unit else cgroup))


def by_container(account: Account) -> Table:
    """By container and pod; all that are in none are in a row together."""
    return _by_place(account, "container", BY_CONTAINER, lambda found, cgroup: (found._replace(unit=None), not cgroup))


def _by_place(
    account: Account, by: str, columns: Sequence[Column], key: Callable[[Place, str | None], tuple[Place, Hashable]]
) -> Table:
    found: dict[tuple[Place, Hashable], list[tuple[Toucher, str]]] = {}
    for region in account.regions:
        for toucher in region.touchers:
            cgroup = toucher.process.cgroup
            found.setdefault(key(place(cgroup), cgroup), []).append((toucher, region_id(region)))
    rows = [_place_row("touched", where, touched) for (where, _), touched in found.items()]
    rows.sort(key=lambda row: (-row.size_bytes, -(row.freed_bytes or 0), row.cgroups))
    total = _place_row("sum", NOWHERE, [item for touched in found.values() for item in touched])
    for part in ("outside", "before", "unseen"):
        sizes = [getattr(region, f"{part}_bytes") for region in account.regions]
        if part != "outside" or account.window != ALL_TIME:
            rows.append(PlaceRow(part, NOWHERE, [], sum(sizes), None, None, sum(map(bool, sizes))))
    size_bytes = sum(region.allocated_bytes for region in account.regions)
    return Table(by, columns, rows, total._replace(size_bytes=size_bytes, nr_regions=len(account.regions)))


NOWHERE = Place(None, None, None)


def _place_row(part: str, where: Place, touched: Sequence[tuple[Toucher, str]]) -> PlaceRow:
    return PlaceRow(
        part,
        where,
        sorted({toucher.process.cgroup for toucher, _ in touched if toucher.process.cgroup}),
        sum(toucher.touched_bytes for toucher, _ in touched),
        sum(toucher.freed_bytes for toucher, _ in touched),
        len({toucher.process for toucher, _ in touched}),
        len({region for toucher, region in touched}),
    )


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


# ---- by what it was for ----


class Deed(NamedTuple):
    """What all processes first touched while they did one thing; or a part that has no label."""

    part: str
    """touched, outside the window, before the capture, or unseen"""
    text: str | None
    """None: unknown; empty: nothing that has a name"""
    size_bytes: int
    nr_processes: int | None = None
    first_ns: int | None = None
    last_ns: int | None = None
    regions: Sequence[str] = ()
    """by what was touched of them, most first"""


NAMELESS = "(none)"


def by_label(account: Account, kind: str) -> Table:
    """By one kind of text of the labels; "label": the most telling kind. The rows add up to what is allocated.

    Raises ShmtraceError where the capture has none of that kind.
    """
    source = account.session.label
    kinds = sources.columns(source) if source else []
    if not kinds or kind not in ["label", *kinds]:
        has = f"it has {', '.join(kinds)}" if kinds else "it has no labels: record it with --label"
        raise ShmtraceError(f"the capture tells nothing by {kind}", has)
    of = kinds[0] if kind == "label" else kind
    found: dict[str | None, list[tuple[Labelled, str]]] = {}
    for parent in account.parents:
        for region in parent.regions:
            name = f"{what(region, parent)} {region.ino}"
            for labelled in region.labelled:
                found.setdefault(labelled.text(of), []).append((labelled, name))
    rows = []
    for text, touched in found.items():
        regions: Counter[str] = Counter()
        for labelled, name in touched:
            regions[name] += labelled.touched_bytes
        rows.append(
            Deed(
                "touched",
                text,
                sum(regions.values()),
                len({labelled.process for labelled, _ in touched}),
                min(labelled.first_ns for labelled, _ in touched),
                max(labelled.last_ns for labelled, _ in touched),
                [name for name, _ in regions.most_common()],
            )
        )
    rows.sort(key=lambda row: (-row.size_bytes, row.text is None, row.text))
    rows += [
        Deed(part, None, size_bytes)
        for part in ("outside", "before", "unseen")
        if (size_bytes := sum(getattr(region, f"{part}_bytes") for region in account.regions))
    ]
    columns = [Column("part", "", lambda row: row.part, "<"), Column(of, of, _text, "<", shown=_shown_text), *BY_LABEL]
    return Table(kind, columns, rows)


BY_LABEL = [
    Column("allocated_bytes", "touched", lambda row: row.size_bytes),
    Column("processes", "by", lambda row: row.nr_processes, shown=lambda row: str(row.nr_processes or "")),
    Column("first_ns", "first", lambda row: row.first_ns),
    Column("last_ns", "last", lambda row: row.last_ns),
    Column("regions", "of", lambda row: ", ".join(row.regions), "<"),
]


def _text(row: Deed) -> str | None:
    return row.text


def _shown_text(row: Deed) -> str:
    if row.part in PARTS:
        return PARTS[row.part]
    return "?" if row.text is None else row.text or NAMELESS

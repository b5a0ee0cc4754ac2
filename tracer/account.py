"""Reads the account of a capture: each page with who touched it first, each region with its parent. Pure."""

from __future__ import annotations

import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tracer import sessions, unmapped
from tracer.capture.capture import LABEL_AND_PROCESS, Capture
from tracer.cgroup import Names, place
from tracer.formatting import printable
from tracer.model import (
    ALL_TIME,
    Account,
    Creator,
    Label,
    Labelled,
    Made,
    OomKill,
    Parent,
    Process,
    Region,
    Session,
    Toucher,
    Window,
    dev_text,
)

MAX_OVERDRAWN = 3  # region ids named in one warning
ONE_KILL_NS = 10 * 10**9  # of one PID: so soon the kernel does not use it again, and traces hear of it as late as that
AS_IT_IS = (
    *("dev", "ino", "generation", "name", "created_ns", "gone_ns"),
    *("size_bytes", "resident_bytes", "swapped_bytes", "address", "hint"),
)
"""Columns of a region that its account has by the same names."""


def read(capture: Capture, window: Window = ALL_TIME) -> Account:
    """The account of a capture; of one that still runs or was cut off, as of its last commit.

    Raises ShmtraceError if the capture is empty or damaged.
    """
    of_hosts = sessions.read_each(capture)
    processes = read_processes(capture)
    labels = read_labels(capture)
    parents: dict[int | None, list[Region]] = {}
    ids: Counter[str] = Counter()
    rows = _Rows(capture, window)
    names = {}
    for row in capture.rows("SELECT * FROM region ORDER BY id"):
        session = of_hosts[row["session"] if capture.is_fleet else None]
        identity = f"{printable(session.host)}/{_identity(row)}" if capture.is_fleet else _identity(row)
        ids[identity] += 1  # the kernel may reuse an inode number and generation once the first region is gone
        name = identity if ids[identity] == 1 else f"{identity}/{ids[identity]}"
        names[row["id"]] = name
        region = _region(rows, row, name, processes, labels if session.label else None, session)
        parents.setdefault(row["parent"], []).append(region._replace(host=session.host) if capture.is_fleet else region)
    together = sessions.together(capture, of_hosts.values())
    read = Account(
        together,
        sorted(
            (Parent(processes.get(row or 0), _most_first(regions)) for row, regions in parents.items()),
            key=lambda parent: (-parent.allocated_bytes, parent.process.tgid if parent.process else 0),
        ),
        window,
        unmapped.read(capture),
        _ooms(capture, processes, names, window, together.page_bytes),
        sessions.by_host(of_hosts.values()) if capture.is_fleet else (),
        capture.count_older(),
    )
    overdrawn = [region for region in read.regions if region.unseen_bytes < 0]
    if overdrawn:
        pages = -sum(region.unseen_bytes for region in overdrawn) // together.page_bytes
        some = ", ".join(region.id for region in overdrawn[:MAX_OVERDRAWN]) + " …" * (len(overdrawn) > MAX_OVERDRAWN)
        together.warnings.append(f"{pages} more pages were counted than are allocated: the figures of {some} are wrong")
    return read


class ProcessesByRow(dict[int, Process]):
    """The processes of a capture by row. A missing row raises ShmtraceError: the capture is damaged."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture

    def __missing__(self, row: int) -> Process:
        raise self._capture.damaged(f"it refers to process {row}, which is missing")


def read_processes(capture: Capture) -> ProcessesByRow:
    """All processes of a capture, by row."""
    names = read_names(capture)
    texts: dict[Any, Any] = {}
    once = texts.setdefault  # most texts are those of another process, too: each is kept once
    found = ProcessesByRow(capture)
    rows = capture.each(PROCESSES.format(capture.host_column))
    for row, tgid, start_ns, comm, command, parent, exit_ns, outside, began_ns, cgroup, inside, how, oom, host in rows:
        found[row] = Process(
            row,
            tgid,
            start_ns,
            once(comm, comm),
            once(command, command),
            parent,
            exit_ns,
            bool(outside),
            began_ns,
            once(cgroup, cgroup),
            inside,
            how,
            bool(oom),
            names.get((host, cgroup)),
            host,
        )
    return found


def read_names(capture: Capture) -> dict[tuple[str | None, str], Names]:
    """What Kubernetes calls the pod and the container of a cgroup, by host (None: that of the capture) and path."""
    return {(host, path): Names(*names) for host, path, *names in capture.each(NAMES.format(capture.host_column))}


NAMES = "SELECT {}, path, namespace, pod, container FROM cgroup"
LABELS = f"SELECT id, {', '.join(Label._fields)} FROM label"  # noqa: S608


def read_labels(capture: Capture) -> dict[int, Label]:
    """All labels of a capture, by row."""
    return {row["id"]: Label(*row[1:]) for row in capture.rows(LABELS)}


PROCESSES = """
SELECT id, tgid, start_time_ns, comm, command, parent_tgid, exited_ns, outside_tree, started_ns, cgroup, ns_tgid,
  exit_status, oom_killed, {} FROM process"""
PROCESS = (1 << 32) - 1  # of LABEL_AND_PROCESS
# The pages of an extent were touched within one second. It counts at the time of its first page.
IN_WINDOW = """(process IS NULL OR (
  (:since IS NULL OR first_ns >= :since) AND (:until IS NULL OR first_ns < :until)))"""
SUMS = f"SELECT region, {LABEL_AND_PROCESS}, pages, first_ns, last_ns FROM touched"  # noqa: S608
FEW = 256  # regions with more extents than this are summed by Capture.sums(), one at a time
SUMS_OF_FEW = f"""
SELECT region, {LABEL_AND_PROCESS} AS key, sum("end" - start), min(first_ns), max(last_ns) FROM extent
WHERE region IN (SELECT region FROM extent GROUP BY region HAVING count(*) <= :few) AND {IN_WINDOW}
GROUP BY region, key ORDER BY region, key"""  # noqa: S608
MANY = "SELECT region, NULL FROM extent GROUP BY region HAVING count(*) > :few"
EXTENT_PAGES = 'SELECT region, sum("end" - start) FROM extent GROUP BY region'
USAGES = "SELECT region, process, faults, freed_pages FROM usage WHERE faults IS NOT NULL OR freed_pages > 0"
MAPPERS = "SELECT DISTINCT region, process FROM mapping"
MADE_FOR = "SELECT region, process, for_process, pages FROM made_for ORDER BY pages DESC"
MADE_BY = """
SELECT region, process, frames, pages, stack FROM stacked JOIN stack ON stack.id = stack
WHERE pages > 0 ORDER BY pages DESC, frames"""

OOMS = """
SELECT id, {}, time_ns, process, tgid, comm, command, cgroup, limit_cgroup, limit_bytes, anon_bytes, file_bytes,
  shmem_bytes, shmem_before_bytes, anon_before_bytes, shmem_after_bytes, anon_after_bytes
FROM oom WHERE (:since IS NULL OR time_ns >= :since) AND (:until IS NULL OR time_ns < :until) ORDER BY time_ns, id"""
OOM_TOUCHED = "SELECT oom, region, process, pages FROM oom_touched ORDER BY pages DESC, region, process"

By = dict[int, list[tuple[Any, ...]]]


class _Rows:
    """The rows of the capture's tables by region. Each table is read once, because there may be very many regions."""

    def __init__(self, capture: Capture, window: Window) -> None:
        self._capture = capture
        self._window = {"since": window.since_ns, "until": window.until_ns}
        if window == ALL_TIME and capture.is_summed():
            self._few, self._many = _packed(capture.each(SUMS)), {}
        else:
            self._few = _packed(capture.each(SUMS_OF_FEW, {**self._window, "few": FEW}))
            self._many = _by_region(capture, MANY, {"few": FEW})
        self.pages = {} if window == ALL_TIME else _by_region(capture, EXTENT_PAGES)
        """pages of all extents, inside and outside the window; empty without a window"""
        self.usages = _by_region(capture, USAGES)
        self.mappers = _by_region(capture, MAPPERS)
        self.made_for = _by_region(capture, MADE_FOR)
        self.made_by = _by_region(capture, MADE_BY)

    def sums(self, region: int) -> array[int]:
        """The region's extents in the window, summed: _packed()."""
        if region not in self._many:
            return self._few.get(region, array("q"))
        where = f"region = :region AND {IN_WINDOW}"
        sums = self._capture.sums(LABEL_AND_PROCESS, where, {**self._window, "region": region}, times=True)
        return _packed((region, *each) for each in sums).get(region, array("q"))


def _packed(rows: Iterable[tuple[int | None, ...]]) -> dict[int, array[int]]:
    """Rows of (region, LABEL_AND_PROCESS, pages, first_ns, last_ns), by region: 32 bytes each, for there may be
    millions. Before the trace there is no time: 0.
    """
    found: dict[int, array[int]] = {}
    for region, *numbers in rows:
        found.setdefault(region or 0, array("q")).extend([number or 0 for number in numbers])
    return found


def _fours(packed: array[int]) -> Iterator[tuple[int, ...]]:
    return zip(*[iter(packed)] * 4)


class _Cells(Iterable[Labelled]):
    """The sums of a region by label and process, each made when it is looked at."""

    def __init__(
        self, sums: array[int], labels: Mapping[int, Label], processes: Mapping[int, Process], page_bytes: int
    ) -> None:
        """sums: _packed()."""
        self._sums = sums
        self._labels = labels
        self._processes = processes
        self._page_bytes = page_bytes

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __iter__(self) -> Iterator[Labelled]:
        for key, pages, first_ns, last_ns in _fours(self._sums):
            if key & PROCESS:
                label, process = self._labels.get(key >> 32), self._processes[key & PROCESS]
                yield Labelled(label, process, pages * self._page_bytes, first_ns, last_ns)


def _by_region(capture: Capture, query: str, values: Mapping[str, Any] | tuple[()] = ()) -> By:
    """The rows of a query by their first column, a region or a kill."""
    found: By = {}
    for row in capture.each(query, values):
        found.setdefault(row[0], []).append(row[1:])
    return found


def _identity(row: sqlite3.Row) -> str:
    generation = "-" if row["generation"] is None else f"{row['generation']:08x}"
    return f"{dev_text(row['dev'])}/{row['ino']}/{generation}"


def _region(
    rows: _Rows,
    row: sqlite3.Row,
    name: str,
    processes: dict[int, Process],
    labels: dict[int, Label] | None,
    session: Session,
) -> Region:
    """name: the region's id. labels: by row; None: the trace had no --label."""
    touched: dict[int, tuple[int, int, int]] = {}
    page_bytes = session.page_bytes
    sums = rows.sums(row["id"])
    before_pages = other_times_pages = 0
    for key, pages, first_ns, last_ns in _fours(sums):
        process = key & PROCESS
        if process:
            if process in touched:
                so_far, earliest_ns, latest_ns = touched[process]
                touched[process] = so_far + pages, min(earliest_ns, first_ns), max(latest_ns, last_ns)
            else:
                touched[process] = pages, first_ns, last_ns
        else:
            before_pages += pages
    touched_pages = sum(pages for pages, _, _ in touched.values())
    for (pages,) in rows.pages.get(row["id"], ()):
        other_times_pages = pages - touched_pages - before_pages
    usage = {process: (faults, freed_pages) for process, faults, freed_pages in rows.usages.get(row["id"], ())}
    made_for: dict[int, list[tuple[Process, int]]] = {}
    for process, for_process, pages in rows.made_for.get(row["id"], ()):
        made_for.setdefault(process, []).append((processes[for_process], pages * page_bytes))
    made_by: dict[int, list[Made]] = {}
    for process, frames, pages, stack in rows.made_by.get(row["id"], ()):
        made = Made(frames and tuple(frames.split("\n")), pages * page_bytes, stack)
        made_by.setdefault(process, []).append(made)
    touchers = [
        Toucher(
            processes[process],
            pages * page_bytes,
            freed * page_bytes,
            faults,
            first_ns,
            last_ns,
            made_for.get(process, ()),
            made_by.get(process, ()),
        )
        for process in touched.keys() | usage.keys() | made_by.keys()
        for pages, first_ns, last_ns in [touched.get(process, (0, None, None))]
        for faults, freed in [usage.get(process, (None, 0))]
        if pages or faults or freed or process in made_by
    ]
    known_bytes = (touched_pages + other_times_pages + before_pages) * page_bytes
    allocated_bytes = row["allocated_bytes"] or 0
    if not session.complete:  # a trace that still runs may have committed pages after the last size sample
        allocated_bytes = max(allocated_bytes, known_bytes)
    return Region(
        row=row["id"],
        id=name,
        **{column: row[column] for column in AS_IT_IS},
        kind=printable(row["kind"]),
        allocated_bytes=allocated_bytes,
        start_bytes=row["start_bytes"] or 0,
        peak_bytes=max(row["peak_bytes"] or 0, allocated_bytes),
        creator=Creator(processes[row["creator"]], printable(row["creator_how"] or "?")) if row["creator"] else None,
        before_bytes=before_pages * page_bytes,
        unseen_bytes=allocated_bytes - known_bytes,
        touchers=sorted(touchers, key=_most_touched_first),
        mappers=sorted(processes[process].tgid for (process,) in rows.mappers.get(row["id"], ())),
        other_times_bytes=other_times_pages * page_bytes,
        labelled=() if labels is None else _Cells(sums, labels, processes, page_bytes),
    )


def _ooms(
    capture: Capture, processes: dict[int, Process], regions: dict[int, str], window: Window, page_bytes: int
) -> tuple[OomKill, ...]:
    """regions: their ids by row. A capture that was narrowed to some regions has none."""
    touched = _by_region(capture, OOM_TOUCHED)
    names = read_names(capture)
    found = []
    query = OOMS.format(capture.host_column)
    for row, host, time_ns, process, *rest in capture.each(query, {"since": window.since_ns, "until": window.until_ns}):
        whose = tuple(
            (regions[region], processes[who], pages * page_bytes) for region, who, pages in touched.get(row, ())
        )
        kill = OomKill(time_ns, processes[process] if process else None, *rest)
        limit = place(kill.limit_cgroup)._replace(names=names.get((host, kill.limit_cgroup or "")))
        found.append(kill._replace(host=host, touched=whose, limit_pod=limit.in_pod))
    return tuple(_once(found) if capture.is_fleet else found)


def _once(kills: Iterable[OomKill]) -> Iterator[OomKill]:
    """Each kill once, with what each trace of its host knows: those that ran at one time have all seen it."""
    seen: list[list[OomKill]] = []
    last: dict[tuple[str | None, int], list[OomKill]] = {}
    for kill in kills:
        same = last.get((kill.host, kill.tgid))
        if not same or kill.time_ns - same[0].time_ns >= ONE_KILL_NS:
            seen.append(same := [])
            last[kill.host, kill.tgid] = same
        same.append(kill)
    for first, *others in seen:
        known = next((kill for kill in (first, *others) if kill.process), first)
        touched = [each for kill in (first, *others) for each in kill.touched]
        yield known._replace(time_ns=first.time_ns, touched=sorted(touched, key=lambda each: -each[2]))


def _most_touched_first(toucher: Toucher) -> tuple[int, int, int, int]:
    return -toucher.touched_bytes, -(toucher.faults or 0), toucher.process.tgid, toucher.process.start_time_ns


def _most_first(regions: Iterable[Region]) -> list[Region]:
    """Regions that exist before those that are gone, then by what they have allocated."""
    return sorted(
        regions, key=lambda region: (region.gone_ns is not None, -region.allocated_bytes, region.dev, region.ino)
    )

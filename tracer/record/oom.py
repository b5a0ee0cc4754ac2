"""Records what the OOM killer did, to any process of the host: whose limit was reached, and who had filled it."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator
from heapq import nlargest
from operator import itemgetter
from pathlib import Path

from tracer.capture.capture import PAGE_BYTES, Capture
from tracer.clock import Clock
from tracer.kernel.events import OomKill
from tracer.proc import memory_cgroups, procfs
from tracer.proc.memory_cgroups import UNKNOWN, Charged
from tracer.proc.procfs import Proc
from tracer.record.processes import Processes

MOST = 64  # kills that are recorded one by one; of the others only their number is
MOST_OF_OTHERS = 32  # of them, of processes outside the tree: any user may have as many killed as he likes
LATE_S = 5.0  # a kill that was so long ago: what the kernel counts now is of another time
GONE_S = 30.0  # a victim that is there for longer is not waited for
MOST_TOUCHED = 1024  # (region, process) of one kill, those with most pages
TOUCHED = """
SELECT region, process, cgroup, {sums}
FROM extent JOIN process ON process.id = process JOIN region ON region.id = region
WHERE kind <> 'hugetlb' GROUP BY region, process"""
"""Pages of hugetlbfs are no matter of the memory controller. {sums}: one for each kill."""
TOUCHED_BY = 'sum(("end" - start) * (first_ns <= {time_ns} AND ifnull(gone_ns > {time_ns}, 1)))'
TOUCHED_COLUMNS = "oom, region, process, pages"


@dataclasses.dataclass
class _Kill:
    event: OomKill
    cgroup: str | None
    limit: Path | None
    """Of the cgroup whose limit was reached. None: it is gone, or there is none."""
    limit_cgroup: str | None
    command: str | None
    before: Charged
    heard_s: float
    """time.monotonic()."""
    row: int = 0
    """In the capture. 0: it is not written yet."""
    has_gone: bool = False
    is_late: bool = False

    @property
    def is_of_host(self) -> bool:
        """No cgroup's limit was reached: the host was short of memory."""
        return self.event.cgroup > 0 and not self.event.limit_cgroup

    @property
    def place(self) -> str | None:
        """The cgroup that is charged for what counts here, with those below it. None: unknown."""
        return "/" if self.is_of_host else self.limit_cgroup


class OomKills:
    """The kills of one trace, written into the capture."""

    def __init__(self, capture: Capture, proc: Proc, processes: Processes, clock: Clock) -> None:
        self.nr = 0
        """How many there were."""
        self._nr_of_earlier = 0
        self._capture = capture
        self._proc = proc
        self._lives = processes
        self._clock = clock
        self._last_number = 0
        self._victims: deque[tuple[int, int]] = deque(maxlen=MOST)
        self._nr_written = self._nr_of_others = 0
        self._kills: list[_Kill] = []  # heard of, and something of them is not written yet

    def heard(self, event: OomKill) -> None:
        """Read at once what will soon be gone. The kernel may tell of a victim once for each of its threads."""
        self.nr += event.number - self._last_number - 1  # those that the map has no more
        self._last_number = event.number
        tgid, start_time_ns = victim = event.head.tgid, event.head.start_time_ns
        if victim in self._victims:
            return
        self._victims.append(victim)
        self.nr += 1
        process = self._lives.find(tgid, start_time_ns)
        is_other = not process or process.outside_tree
        if self._nr_written == MOST or (is_other and self._nr_of_others == MOST_OF_OTHERS):
            return
        self._nr_written += 1
        self._nr_of_others += is_other
        root = self._proc.memory_cgroups()
        limit = memory_cgroups.find(root, event.limit_cgroup) if root else None
        own = memory_cgroups.find(root, event.cgroup) if root else None
        kill = _Kill(
            event,
            (root and own and memory_cgroups.name(root, own))
            or (process and process.cgroup)
            or self._proc.cgroup(tgid),
            limit,
            memory_cgroups.name(root, limit) if root and limit else None,
            None,
            UNKNOWN,
            time.monotonic(),
        )
        if time.monotonic_ns() - event.head.time_ns < LATE_S * 1e9:
            kill.before = self._charged(kill)
        else:
            kill.is_late = True
        kill.command = process.command if process else self._command(event)
        self._lives.pods.see(kill.limit_cgroup)
        self._kills.append(kill)

    @property
    def nr_of_part(self) -> int:
        """How many there were since begin_part()."""
        return self.nr - self._nr_of_earlier

    def begin_part(self) -> None:
        """The capture has no more of the kills that were before."""
        self._nr_of_earlier = self.nr
        self._nr_written = self._nr_of_others = 0

    def sample(self) -> None:
        """Write what there is to say by now. Call it when a checkpoint has been written."""
        self._write([kill for kill in self._kills if not kill.row])
        self._kills = [kill for kill in self._kills if self._wait(kill)]

    def _charged(self, kill: _Kill) -> Charged:
        if kill.is_of_host:
            return memory_cgroups.charged_host(self._proc)
        return memory_cgroups.charged(kill.limit) if kill.limit else UNKNOWN

    def _command(self, event: OomKill) -> str | None:
        stat = self._proc.process(event.head.tgid)
        if not stat or abs(stat.start_time_ns - event.head.start_time_ns) > procfs.TICK_NS:
            return None
        return stat.command or None

    def _wait(self, kill: _Kill) -> bool:
        """Whether to look at this kill again.

        The victim's memory is counted again when it has gone, and once more, since to give it back takes a moment.
        """
        if kill.is_late:
            return False
        had_gone, kill.has_gone = kill.has_gone, not self._proc.rss_bytes(kill.event.head.tgid)
        if kill.has_gone:
            after = self._charged(kill)
            self._capture.update(
                "oom", kill.row, shmem_after_bytes=after.shmem_bytes, anon_after_bytes=after.anon_bytes
            )
        return not had_gone and time.monotonic() < kill.heard_s + GONE_S

    def _write(self, kills: list[_Kill]) -> None:
        for kill in kills:
            event = kill.event
            process = self._lives.find(event.head.tgid, event.head.start_time_ns)
            kill.row = self._capture.insert(
                "oom",
                time_ns=self._clock.wall(event.head.time_ns),
                process=process.row if process else None,
                tgid=event.head.tgid,
                comm=event.comm,
                command=process.command if process else kill.command,
                cgroup=kill.cgroup,
                limit_cgroup=kill.place,
                limit_bytes=_bytes(event.limit_pages) if event.limit_cgroup else None,
                anon_bytes=_bytes(event.anon_pages),
                file_bytes=_bytes(event.file_pages),
                shmem_bytes=_bytes(event.shmem_pages),
                shmem_before_bytes=kill.before.shmem_bytes,
                anon_before_bytes=kill.before.anon_bytes,
            )
        if kills:
            self._capture.insert_all("oom_touched", TOUCHED_COLUMNS, self._touched(kills))

    def _touched(self, kills: list[_Kill]) -> Iterator[tuple[int, int, int, int]]:
        """A page is charged to the cgroup of the process that touched it first, and stays so."""
        times_ns = [self._clock.wall(kill.event.head.time_ns) for kill in kills]
        sums = ", ".join(TOUCHED_BY.format(time_ns=time_ns) for time_ns in times_ns)
        touched = list(self._capture.each(TOUCHED.format(sums=sums)))
        for place, kill in enumerate(kills, 3):
            theirs = [(row[place], row) for row in touched if row[place] and is_within(row[2], kill.place)]
            for pages, (region, process, *_) in nlargest(MOST_TOUCHED, theirs, key=itemgetter(0)):
                yield kill.row, region, process, pages


def is_within(cgroup: str | None, place: str | None) -> bool:
    """Whether a cgroup is another, or below it. None: unknown, and in none; but all is within the root."""
    if place is None or cgroup is None:
        return place == "/"
    return f"{cgroup.removesuffix(' (deleted)')}/".startswith(f"{place.rstrip('/')}/")


def _bytes(pages: int | None) -> int | None:
    return None if pages is None else pages * PAGE_BYTES

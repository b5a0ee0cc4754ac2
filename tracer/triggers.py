"""Waits until a condition of --when holds: from /proc alone, without BPF, and with little of the host's time.

A look is a stat of each region that a condition is about. A search finds these regions anew, as `shmtrace snapshot`
does. Both take a share of one CPU's time at most: the more there is to look at, the rarer they are.
"""

from __future__ import annotations

import contextlib
import os
import select
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable, NamedTuple

from tracer import account, find_region
from tracer.capture.capture import Capture
from tracer.conditions import PRESSURE, Check, Condition, Reading, stalled_percent
from tracer.errors import ShmtraceError
from tracer.formatting import format_bytes, shorten
from tracer.model import Region
from tracer.proc import bounded, shmem, tmpfs
from tracer.proc.blocking import each, stuck
from tracer.proc.procfs import Proc, ProcessStat
from tracer.proc.shmem import RegionKey, RegionStat
from tracer.record import snapshot
from tracer.record.targets import Lasting, Targets

LOOK_S = 1.0  # between two looks
SEARCH_S, SEARCH_MOST_S = 10.0, 60.0  # between two searches
LOOK_IDLE = SEARCH_IDLE = 100
"""Between two, at least so many times the CPU time that one took: each has a hundredth of one CPU."""
SEARCH_REST = 2000  # so rarely, as long as that is not beyond SEARCH_MOST_S
MAX_SHOWN = 60  # columns of a name

PRESSURE_PATH = Path("/proc/pressure/memory")
PRESSURE_BYTES = 1024
WINDOW_S = 10
"""Of avg10, and of the trigger. Without CAP_SYS_RESOURCE a trigger's must be a multiple of 2 s: Linux kernel commit
d82caa273565 ("sched/psi: Allow unprivileged polling of N*2s period"), v6.4."""


class Fired(NamedTuple):
    """The condition that holds, and what was measured. None: it is not about that."""

    condition: Condition
    said: str
    """What was measured, in words; a stranger's name may be in it."""
    targets: Targets
    """The processes to trace now."""
    allocated_bytes: int | None = None
    size_bytes: int | None = None
    region: Region | None = None
    """None also if there are several."""


class Pressure:
    """The memory pressure of the host, as a context manager. The kernel wakes who waits for `fd`, where it can."""

    def __init__(self, condition: Condition, path: Path = PRESSURE_PATH) -> None:
        """Raises ShmtraceError where this kernel does not measure it."""
        self._condition = condition
        self._path = path
        self._limit = condition.percent or 0.0
        self.fd: int | None = None
        if self.percent() is None:
            raise ShmtraceError(f"this kernel does not measure memory pressure ({path})", "boot it with psi=1")

    def __enter__(self) -> Pressure:
        """Ask the kernel to wake us. Where it refuses, percent() is read now and then."""
        stalled_us = max(int(self._limit / 100 * WINDOW_S * 1_000_000), 1)
        with contextlib.suppress(OSError):
            self.fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            # the last byte is cut off: psi_write() in kernel/sched/psi.c
            os.write(self.fd, b"some %d %d\0" % (stalled_us, WINDOW_S * 1_000_000))
            return self
        self.__exit__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def percent(self) -> float | None:
        """How much of the last ten seconds some process waited for memory; None: unknown."""
        try:
            return stalled_percent(bounded.read(self._path, PRESSURE_BYTES))
        except OSError:
            return None

    @property
    def holds(self) -> bool:
        """Whether it holds by what can be read. That average lags behind what the kernel wakes us for."""
        return (self.percent() or 0.0) > self._limit

    def fired(self, wanted: Targets) -> Fired:
        """What is said once it holds."""
        said = f"processes waited for memory during more than {self._limit:g}% of {WINDOW_S} s"
        return Fired(self._condition, said, wanted)


class Known(NamedTuple):
    """A region that is looked at."""

    region: Region
    key: RegionKey
    path: Path
    shown: str
    """As reports call it."""


class Watch:
    """Looks whether one of the conditions about shared memory holds."""

    def __init__(self, conditions: Iterable[Condition], lasting: Lasting, excluded: Iterable[int] = ()) -> None:
        """excluded: tgids never to look at."""
        self._checks = {condition: Check(condition) for condition in conditions if condition.what != PRESSURE}
        self._lasting = lasting
        self._excluded = frozenset(excluded)
        self._proc = Proc()
        self.targets = Targets(frozenset(), ())
        """As of the last search."""
        self.processes: dict[int, ProcessStat] = {}
        """All processes of the host, as of the last search."""
        self._has_sum = False  # the kernel has the sum of the targets' shared memory
        self._meant: dict[Condition, list[Known]] = {}
        self._stats: dict[RegionKey, RegionStat] = {}
        self.names: list[str | None] = []
        """What regions were called at the last search."""
        self.has_lost = False
        """A region could not be looked at where the last search had found it."""

    @property
    def has_targets(self) -> bool:
        """Whether the last search found a process to look at."""
        return self.targets.everything or bool(self.targets.roots(self.processes, self._excluded))

    def targets_now(self) -> Targets:
        """The targets at this moment: a pidfile may have changed since the last search."""
        return self._lasting.now(self._proc.processes())

    @property
    def absent(self) -> list[str]:
        """What conditions call a region, and none was called at the last search."""
        return [condition.what for condition in self._checks if condition.of_region and not self._meant.get(condition)]

    def _needs_regions(self, condition: Condition) -> bool:
        return condition.of_region or not self._has_sum

    def search(self) -> None:
        """Find the processes and regions anew."""
        self.has_lost = False
        self.processes = self._proc.processes()
        self.targets = self._lasting.now(self.processes)
        place = self.targets.tmpfs
        self._has_sum = self.targets.everything and (not place or tmpfs.used_bytes(place) is not None)
        if any(map(self._needs_regions, self._checks)):
            with contextlib.suppress(sqlite3.OperationalError):  # no room for a temporary file: keep what was found
                self._search_regions()

    def _search_regions(self) -> None:
        with Capture() as capture:
            taken = snapshot.take(capture, self.targets, self._excluded, regions_alone=True)
            places = {each.row: (each.key, each.path) for each in taken if each.path}
            regions = [each for each in find_region.known(account.read(capture)) if each.region.row in places]
            self.names = find_region.names(regions)
            there = {key for key, _ in places.values()}
            for condition in filter(self._needs_regions, self._checks):
                found = find_region.find(regions, capture, condition.what) if condition.of_region else regions
                # where a process does not answer, none of its regions was found: what it had still counts
                silent = (each for each in self._meant.get(condition, ()) if each.key not in there and _is_silent(each))
                new = (Known(each.region, *places[each.region.row], each.shown) for each in found)
                self._meant[condition] = [*new, *silent]

    def look(self) -> Fired | None:
        """Measure what the conditions are about. The first condition that holds, or None."""
        self._measure()
        now_s = time.monotonic()
        for condition, check in self._checks.items():
            for reading, known in self._readings(condition, now_s):
                if check.holds(reading):
                    return self._fired(condition, reading, known)
        return None

    def _measure(self) -> None:
        wanted = list({each.key: each for meant in self._meant.values() for each in meant}.values())
        stats: dict[RegionKey, RegionStat] = {}
        for known, stat in each(lambda known: shmem.whom(known.path), _stat, wanted):
            self.has_lost |= stat is None and not _is_silent(known)
            last = stat or self._stats.get(known.key)  # what cannot be read now has not shrunk
            if last:
                stats[known.key] = last
        self._stats = stats

    def _readings(self, condition: Condition, now_s: float) -> Iterator[tuple[Reading, list[Known]]]:
        """What a condition is about now, and the regions that it was measured of."""
        if not self._needs_regions(condition):
            place = self.targets.tmpfs
            used_bytes = tmpfs.used_bytes(place) if place else self._proc.memory().shmem_bytes
            if used_bytes is not None:
                yield Reading(now_s, used_bytes), []
            return
        measured = [
            (known, self._stats[known.key]) for known in self._meant.get(condition, ()) if known.key in self._stats
        ]
        if condition.of_region and condition.over_s is None:
            for known, stat in measured:
                yield Reading(now_s, stat.allocated_bytes, stat.size_bytes), [known]
        else:
            yield Reading(now_s, sum(stat.allocated_bytes for _, stat in measured)), [known for known, _ in measured]

    def _fired(self, condition: Condition, now: Reading, known: list[Known]) -> Fired:
        region = known[0].region if len(known) == 1 and condition.of_region else None
        if condition.of_region:
            who = f"{known[0].shown} {region.ino}" if region else f"{condition.what}, {len(known)} regions,"
        elif self.targets.tmpfs:
            who = self.targets.tmpfs.name()
        else:
            who = "the host" if self.targets.everything else f"{len(known)} region{'s' * (len(known) != 1)} together"
        of = f" of {format_bytes(now.size_bytes)}" if now.size_bytes is not None else ""
        said = f"{shorten(who, MAX_SHOWN)} had {format_bytes(now.allocated_bytes)}{of}"
        return Fired(condition, said, self.targets_now(), now.allocated_bytes, now.size_bytes, region)


def _stat(known: Known) -> RegionStat | None:
    return shmem.region_stat_of(known.path, known.key)


def _is_silent(known: Known) -> bool:
    return stuck(shmem.whom(known.path))


def wait_for(
    conditions: Sequence[Condition],
    lasting: Lasting,
    excluded: Iterable[int],
    searched: Callable[[Watch], None],
    stopping: Callable[[], bool],
) -> Fired | None:
    """Wait until one of the conditions holds.

    excluded: tgids never to look at. searched: called after every search; what it raises ends the waiting. stopping:
    whether to give up, with None; asked between two looks. Raises ShmtraceError for what this kernel does not measure.
    """
    watch = Watch(conditions, lasting, excluded)
    with contextlib.ExitStack() as stack:
        pressures = [stack.enter_context(Pressure(each)) for each in conditions if each.what == PRESSURE]
        search_at_s = rested_at_s = 0.0  # time.monotonic()
        while not stopping():
            now_s = time.monotonic()
            if now_s >= search_at_s or (watch.has_lost and now_s >= rested_at_s):
                used_s = time.process_time()
                watch.search()
                searched(watch)
                used_s = time.process_time() - used_s
                rested_at_s = time.monotonic() + used_s * SEARCH_IDLE
                rest_s = min(max(used_s * SEARCH_REST, SEARCH_S), SEARCH_MOST_S)
                search_at_s = max(time.monotonic() + rest_s, rested_at_s)
            used_s = time.process_time()
            fired = watch.look()
            holding = next((each for each in pressures if each.holds), None)
            used_s = time.process_time() - used_s
            if not (fired or holding):
                holding = _woken(pressures, max(LOOK_S, used_s * LOOK_IDLE))
            if fired:
                return fired
            if holding:
                return holding.fired(watch.targets_now())
    return None


def _woken(pressures: Sequence[Pressure], rest_s: float) -> Pressure | None:
    """Rest, unless the kernel says that a pressure holds. It is returned then."""
    of_fd = {each.fd: each for each in pressures if each.fd is not None}
    poll = select.poll()
    for fd in of_fd:
        poll.register(fd, select.POLLPRI)
    for fd, what in poll.poll(rest_s * 1000):
        if what & select.POLLPRI:
            return of_fd[fd]
        of_fd[fd].__exit__()  # POLLERR: the kernel has given it up, so from now on it is read
    return None

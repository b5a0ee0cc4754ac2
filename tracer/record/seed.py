"""What exists when it is taken into a trace: a process, and the regions it maps."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Callable, Optional

from tracer.kernel import tiers
from tracer.kernel.probes import Probes
from tracer.proc import bounded, procfs, shmem
from tracer.proc.procfs import Proc, ProcessStat
from tracer.proc.shmem import RegionKey
from tracer.record.processes import Processes, TracedProcess
from tracer.record.regions import Finder, TracedRegion

Enter = Callable[[int, RegionKey, str, str, Optional[int]], TracedRegion]
"""Of a region that is new: its number, its key, kind and name, and when it was created (ns since 1970)."""


MOST_LOOKS = 5
"""at what a process maps, until two in a row are alike: what it maps from now on the kernel side sees"""


class Seeder:
    """Tells the kernel side of what it could not see begin."""

    def __init__(
        self,
        probes: Probes,
        proc: Proc,
        finder: Finder,
        processes: Processes,
        regions: Mapping[int, TracedRegion],
        enter: Enter,
        warn: Callable[[str], None],
    ) -> None:
        """regions: by their number there. warn: told what could not be taken in."""
        self._probes = probes
        self._proc = proc
        self._finder = finder
        self._lives = processes
        self._regions = regions
        self._enter = enter
        self._warn = warn
        self._unheard: set[TracedProcess] = set()

    def adopt(self, stat: ProcessStat) -> None:
        """A process that exists: the kernel is told of it first, and then of what it maps."""
        now = self._proc.process(stat.tgid)  # all of its command line
        if now and now.start_time_ns == stat.start_time_ns:
            stat = now
        entered = self._probes.enter(stat.tgid, stat.start_time_ns)
        if not entered:
            self._warn(tiers.LOSSES["processes"])
        cgroup = self._proc.cgroup(stat.tgid)
        self.seed(
            self._lives.begin(
                stat.tgid,
                entered.start_time_ns if entered else stat.start_time_ns,  # which may be known to the nanosecond
                stat.parent,
                stat.comm,
                stat.command,
                began_us=-1,
                cgroup=cgroup,
                ns_tgid=self._proc.ns_tgid(stat.tgid),
            )
        )

    def seed(self, process: TracedProcess) -> None:
        """Tell the kernel of the regions that a process maps."""
        mappings: list[procfs.Mapping] | None = None
        for _ in range(MOST_LOOKS):
            known, mappings = mappings, self._finder.mappings(process.tgid)
            if mappings == known:
                break
            self._seed_regions(process, mappings)
        if not self._proc.answers(process.tgid):
            self._unheard.add(process)
        if not self._proc.process(process.tgid):  # it has exited, perhaps before the kernel side knew of it
            self._probes.leave(*process.key)
            self._lives.end(process, time.time_ns())

    def ask_again(self) -> None:
        """Those that did not answer."""
        for process in [process for process in self._unheard if self._proc.answers(process.tgid)]:
            self._unheard.discard(process)
            if not process.exited:
                self.seed(process)

    def _seed_regions(self, process: TracedProcess, mappings: list[procfs.Mapping]) -> None:
        mappings = [mapping for mapping in mappings if mapping.shared]  # a private one makes no region
        seeded: set[RegionKey] = set()
        for mapping, key in zip(mappings, self._proc.identify(process.tgid, mappings)):
            if key and key not in seeded:
                seeded.add(key)
                self._seed_region(process.tgid, mapping)

    def _seed_region(self, tgid: int, mapping: procfs.Mapping) -> None:
        path = self._proc.map_file(tgid, mapping)
        try:
            fd = shmem.open_place(path)
        except OSError as error:  # unmapped meanwhile
            if not bounded.unreadable(error):
                raise
            return
        try:
            number = self._probes.adopt(fd)
        finally:
            os.close(fd)  # at once: it keeps the memory alive
        found = self._probes.region(number) if number else None
        if not found:
            self._warn(tiers.LOSSES["regions"])
            return
        region = self._regions.get(number) or self._enter(
            number, found.key, *self._finder.describe(tgid, mapping), shmem.birth_time_ns(path)
        )
        region.path, region.address = path, mapping.start

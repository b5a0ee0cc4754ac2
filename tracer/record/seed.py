"""Seeding: tells the BPF maps about processes and mappings that existed before the probes."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Callable, Optional

from tracer.kernel import tiers
from tracer.kernel.probes import Probes
from tracer.proc import bounded, procfs, shmem, tmpfs
from tracer.proc.procfs import Proc, ProcessStat
from tracer.proc.shmem import RegionKey
from tracer.proc.tmpfs import Place
from tracer.record.processes import Processes, TracedProcess
from tracer.record.regions import Finder, TracedRegion

Enter = Callable[[int, RegionKey, str, str, Optional[int]], TracedRegion]
"""Adds a new region: (id, key, kind, name, created_ns as CLOCK_REALTIME or None)."""


MOST_LOOKS = 5
"""Read a process's mappings until two readings agree, at most so often. Later mappings are seen by the probes."""


class Seeder:
    """Tells the probes about what began before they were attached."""

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
        """regions: by region id. warn: called with a warning about what did not fit into the maps."""
        self._probes = probes
        self._proc = proc
        self._finder = finder
        self._lives = processes
        self._regions = regions
        self._enter = enter
        self._warn = warn
        self._unheard: set[TracedProcess] = set()

    def adopt(self, stat: ProcessStat) -> None:
        """Add an existing process to the tree.

        It is added to the BPF maps first, so that its forks are tracked, and then its mappings are.
        """
        now = self._proc.process(stat.tgid)  # read again, for the whole command line
        if now and now.start_time_ns == stat.start_time_ns:
            stat = now
        entered = self._probes.enter(stat.tgid, stat.start_time_ns)
        if entered:  # the kernel's value is exact, /proc rounds it to a clock tick
            stat = stat._replace(start_time_ns=entered.start_time_ns)
        else:
            self._warn(tiers.LOSSES["processes"])
        self.seed(self._finder.enter(stat, self._lives))

    def adopt_files(self, place: Place) -> None:
        """Add the largest files of a tmpfs to the BPF maps."""
        files, warnings = tmpfs.files(place)
        for name, path in files:
            self._seed_file(path, functools.partial(_describe_file, name))
        for text in warnings:
            self._warn(text)

    def seed(self, process: TracedProcess) -> None:
        """Add the regions that a process maps to the BPF maps."""
        mappings: list[procfs.Mapping] | None = None
        for _ in range(MOST_LOOKS):
            known, mappings = mappings, self._finder.mappings(process.tgid)
            if mappings == known:
                break
            self._seed_regions(process, mappings)
        if not self._proc.answers(process.tgid):
            self._unheard.add(process)
        if not self._proc.process(process.tgid):  # it may have exited before the probes tracked it
            self._probes.leave(*process.key)
            self._lives.end(process, time.time_ns())

    def ask_again(self) -> None:
        """Seed the processes that did not answer before, if they do now."""
        for process in [process for process in self._unheard if self._proc.answers(process.tgid)]:
            self._unheard.discard(process)
            if not process.exited:
                self.seed(process)

    def _seed_regions(self, process: TracedProcess, mappings: list[procfs.Mapping]) -> None:
        mappings = [mapping for mapping in mappings if mapping.shared]  # private mappings are ignored
        seeded: set[RegionKey] = set()
        for mapping, key in zip(mappings, self._proc.identify(process.tgid, mappings)):
            if key and key not in seeded:
                seeded.add(key)
                self._seed_region(process.tgid, mapping)

    def _seed_region(self, tgid: int, mapping: procfs.Mapping) -> None:
        region = self._seed_file(self._proc.map_file(tgid, mapping), lambda _: self._finder.describe(tgid, mapping))
        if region:
            region.address = mapping.start

    def _seed_file(self, path: Path, describe: Callable[[RegionKey], tuple[str, str]]) -> TracedRegion | None:
        """Add the region that a path leads to. describe: its kind and name. None: it is gone, or there is no room."""
        try:
            fd = shmem.open_place(path)
        except OSError as error:  # unmapped in the meantime
            if not bounded.unreadable(error):
                raise
            return None
        try:
            number = self._probes.adopt(fd)
        finally:
            os.close(fd)  # close it at once: an open file keeps the memory allocated
        found = self._probes.region(number) if number else None
        if not found:
            self._warn(tiers.LOSSES["regions"])
            return None
        region = self._regions.get(number) or self._enter(
            number, found.key, *describe(found.key), shmem.birth_time_ns(path)
        )
        region.path = path
        return region


def _describe_file(name: str, key: RegionKey) -> tuple[str, str]:
    return shmem.kind_of(key.dev, shmem.TMPFS_MAGIC, name), name

"""Looks in /proc at the processes and regions of a trace, and writes into the capture what it finds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.kernel.probes import Probes
from tracer.proc import procfs, shmem
from tracer.proc.blocking import each
from tracer.proc.procfs import Proc, ProcessStat
from tracer.record import ledger
from tracer.record.ledger import PageSet
from tracer.record.processes import Processes, TracedProcess
from tracer.record.regions import FILES, Finder, Mapped, TracedRegion


class Looker:
    """Brings titles, names, paths, hints and baselines up to date."""

    def __init__(
        self, capture: Capture, probes: Probes, proc: Proc, finder: Finder, processes: Processes, clock: Clock
    ) -> None:
        self._capture = capture
        self._probes = probes
        self._proc = proc
        self._finder = finder
        self._lives = processes
        self._clock = clock
        # processes to look up in /proc, each with the regions it may map
        self._to_look: dict[TracedProcess, list[TracedRegion]] = {}
        self._to_locate: set[int] = set()  # ids of those regions
        self._to_survey: set[int] = set()  # ids of regions not found yet, which may hold pages from before
        self.unread: dict[int, str] = {}
        """Region row to name, for regions whose baseline could not be read."""

    def note(self, process: TracedProcess, region: TracedRegion | None = None) -> None:
        """Note that look() is to read this process, and where it maps the region."""
        regions = self._to_look.setdefault(process, [])
        if region and region.id not in self._to_locate:
            self._to_locate.add(region.id)
            regions.append(region)

    def survey(self, region: TracedRegion) -> None:
        """Note that a region may hold pages from before the trace: once it is found, its baseline is taken."""
        self._to_survey.add(region.id)

    def leave(self, region: TracedRegion) -> None:
        """Forget a region whose account is closed."""
        self._to_survey.discard(region.id)

    def prune(self, rows: Collection[int]) -> None:
        """Forget regions that the capture does not have any more. rows: those that it has."""
        self.unread = {row: name for row, name in self.unread.items() if row in rows}

    def look(self) -> None:
        """Look up in /proc the processes that were noted: each once, however often it was."""
        looked, self._to_look = self._to_look, {}
        for process, stat in self.read_again(looked):
            self.refresh_title(process, stat)
        regions = [region for theirs in looked.values() for region in theirs]
        processes = [process for process, theirs in looked.items() if theirs]
        mapped = self._finder.mapped(processes, regions)
        written = [region for region in regions if region.kind in FILES and region.id not in mapped]
        opened = self._finder.open_files(processes, written)
        for region in regions:
            self._finder.locate(region, mapped, opened)
            if region.path and region.id in self._to_survey:
                self.first_look(region, shmem.link_name(region.path), shmem.birth_time_ns(region.path))
            self.read_hint(region, mapped)
        self._to_locate.clear()

    def read_again(self, processes: Iterable[TracedProcess]) -> Iterator[tuple[TracedProcess, ProcessStat | None]]:
        """Each process with what /proc says of it now."""
        return each(
            lambda process: self._proc.folder(process.tgid),
            lambda process: self._proc.process(process.tgid),
            list(processes),
        )

    def refresh_title(self, process: TracedProcess, stat: ProcessStat | None) -> None:
        """Read comm, command line and cgroup again.

        Programs set their title after the fork. Later changes are read at the exit or at the end of the trace.
        """
        if stat and abs(stat.start_time_ns - process.start_time_ns) <= procfs.TICK_NS:
            self._lives.rename(process, stat.comm, stat.command)
            self._lives.move(process, self._proc.cgroup(process.tgid))
            if process.ns_tgid is None:
                self._lives.number(process, self._proc.ns_tgid(process.tgid))

    def read_hint(self, region: TracedRegion, mapped: Mapped) -> None:
        """Read what the content of a region says of its use, unless it has said that before."""
        mapper = self._lives.alive(next(iter(mapped.get(region.id, ())), 0))
        if not region.hint and mapper:
            region.hint = self._finder.hint(region, mapper.comm or "")
            if region.hint:
                self._capture.update("region", region.row, hint=region.hint)

    def first_look(self, region: TracedRegion, name: str, born_ns: int | None) -> None:
        """Write a region's name and, if the region may be older than the trace and this is the first, its baseline."""
        if name:
            self._capture.update("region", region.row, name=name)
        if region.id not in self._to_survey:
            return
        self._to_survey.discard(region.id)
        region.is_older = born_ns is not None and born_ns < self._clock.wall_ns
        if self.had_pages(region) and not region.made and (born_ns is None or region.is_older):
            self.take_baseline(region)

    def had_pages(self, region: TracedRegion) -> bool:
        """Whether a region had pages when the probes met it."""
        last = self._probes.region(region.id)
        return last is None or last.start_pages > 0

    def take_baseline(self, region: TracedRegion) -> None:
        """Take the pages that exist and have no owner for those from before the trace."""

        def owned() -> PageSet:
            return ledger.owned(self._probes.blocks(region.id))

        last = self._probes.region(region.id)
        region.take_baseline(owned, last.start_pages if last else 0)
        if region.unread:
            self.unread[region.row] = shmem.link_name(region.path) if region.path else "?"
        else:
            self.unread.pop(region.row, None)

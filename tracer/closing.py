"""The last account of a region, written into the capture: when it goes away, or when the trace ends."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional

from tracer import ledger, lives, procfs
from tracer.capture import Capture, ExtentRow
from tracer.clock import Clock
from tracer.labelling import Labelling
from tracer.ledger import ALL_PAGES, Block, PageSet
from tracer.lives import Lives, Process
from tracer.news import KernelRegion
from tracer.probes import Behalf, Probes
from tracer.procfs import PAGE_BYTES
from tracer.regions import Finder, Region, enter_mappings

REGION_COLUMNS = (
    "gone_ns, top, vss_bytes, allocated_bytes, peak_bytes, resident_bytes, swapped_bytes, start_bytes, address"
)
SAMPLE = "sample", "region, time_ns, allocated_bytes, resident_bytes, swapped_bytes"
EXTENT = "extent", 'region, start, "end", process, first_ns, last_ns, label'
USAGE = "usage", "region, process, faults, freed_pages"
BEHALF = "behalf", "region, process, for_process, pages"

Owner = tuple[int, Optional[int]]
"""Rows of a process and of the label it had; None: that is unknown."""


class Closing:
    """Closes accounts."""

    def __init__(
        self,
        capture: Capture,
        probes: Probes,
        processes: Lives,
        labelling: Labelling | None,
        finder: Finder,
        clock: Clock,
    ) -> None:
        self._capture = capture
        self._labelling = labelling
        self._probes = probes
        self._lives = processes
        self._finder = finder
        self._clock = clock
        self._behalf_of: dict[int, list[Behalf]] = {}
        self._closed: list[tuple[Any, ...]] = []  # of REGION_COLUMNS, and the region's row
        self._rows: dict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)  # by table and columns

    @contextlib.contextmanager
    def several(self) -> Iterator[None]:
        """Accounts are closed in here: what is read or written once for all of them is done so."""
        self._behalf_of = self._probes.behalves()
        self._probes.hear()
        self._finder.segments.cache_clear()
        try:
            yield
        finally:
            self._write_down()

    def _write_down(self) -> None:
        self._capture.update_all("region", REGION_COLUMNS, self._closed)
        for columns, rows in self._rows.items():
            self._capture.insert_all(*columns, rows)
        self._closed.clear()
        self._rows.clear()

    def is_over(self, last: KernelRegion) -> bool:
        """Whether the teardown of a region that goes is over; its pages go one by one."""
        return last.torn_pages + last.swapped_pages >= last.pages

    def gone(self, region: Region, last: KernelRegion | None) -> None:
        """Close a region that is no more by the kernel side's last account of it, and clear the kernel's maps of it."""
        gone_ns, swapped_pages = time.time_ns(), last.swapped_pages if last else 0
        region.allocated_bytes = swapped_pages * PAGE_BYTES  # where no teardown was seen, there was nothing in memory
        left_pages = swapped_pages
        if last and last.gone_us:
            region.allocated_bytes, gone_ns = last.pages * PAGE_BYTES, self._clock.wall_of_us(last.gone_us)
            left_pages = max(last.pages - last.torn_pages, 0)  # swapped, or not torn down yet: that takes its time
        if last:
            region.vss_bytes = max(region.vss_bytes, last.size_bytes)
            region.peak_bytes = max(region.peak_bytes, last.peak_pages * PAGE_BYTES)
        blocks = self._probes.heard_blocks(region.id)  # none has come to it since
        entries = self.read(region, blocks, None, left_pages)
        if left_pages and (entries.touched_pages + entries.before_pages) * PAGE_BYTES > region.allocated_bytes:
            # some pages were given back while they were swapped out, and this tier does not see which
            entries = self.read(region, blocks, None, 0)
        self._write(region, entries, {}, procfs.Residency(None, swapped_pages * PAGE_BYTES), gone_ns)
        self._probes.forget(region.id)

    def alive(
        self,
        region: Region,
        mappings: Mapping[Process, list[procfs.Mapping]],
    ) -> None:
        """Close a region at the end of the trace, by its path. mappings: of those who map it."""
        # first which pages there are and then whose: a page that comes between the two is no page without an owner
        found = procfs.survey(region.path, region.key) if region.path else None
        blocks = self._probes.blocks(region.id)
        present = ALL_PAGES  # alive, and out of reach: the ledger is taken at its word
        if found:
            region.vss_bytes, region.allocated_bytes = found.vss_bytes, found.allocated_bytes
            present = PageSet(found.pages)
        elif not self._probes.measure(region.id):
            return self.gone(region, self._probes.region(region.id))
        if region.kind == "hugetlb":  # whose SEEK_DATA shows all of the file
            present = ALL_PAGES
        residency = procfs.residency(region.path, region.key) if region.path else procfs.Residency(None, None)
        return self._write(region, self.read(region, blocks, present), mappings, residency, None)

    def unread(self, regions: Iterable[tuple[Region, KernelRegion | None]]) -> None:
        """Close regions without another look at their pages: of one that is gone all are unseen, of others what was
        last written stays."""
        for region, last in regions:
            allocated_bytes = last.pages * PAGE_BYTES if last else region.allocated_bytes
            gone_ns = self._clock.wall_of_us(last.gone_us) if last and last.gone_us else None
            if region.kept and gone_ns:
                self._capture.replace_extents(region.row, 0, ledger.MAX_PAGES, ())
            elif region.kept:
                allocated_bytes = max(allocated_bytes, self._capture.pages(region.row) * PAGE_BYTES)
            self._closed.append(self._sizes(region, allocated_bytes, procfs.Residency(None, None), gone_ns))
        self._write_down()

    def read(
        self, region: Region, blocks: dict[int, Block], present: PageSet | None, left_pages: int = 0
    ) -> ledger.Entries:
        """What the ledger says of a region, of all of its blocks."""
        entries = ledger.read(blocks, region.baseline, present, self.owner, left_pages, region.punches)
        kernel_side = self._probes.region(region.id) if region.kind == "hugetlb" else None
        if not kernel_side:
            return entries
        start_pages, allocated_pages = region.start_bytes // PAGE_BYTES, region.allocated_bytes // PAGE_BYTES
        return ledger.of_huge_pages(entries, kernel_side.order, start_pages, allocated_pages)

    def owner(self, tgid: int, first_us: int, last_us: int) -> Owner | None:
        """Whose ledger words from one moment to another are: the row of the process, and of the label it had; None: not
        all of one process with one label."""
        process = self._lives.during(tgid, first_us, last_us)
        if not process or (self._labelling and not self._labelling.is_one(tgid, first_us, last_us)):
            return None
        return process.row, self._labelling.at(tgid, first_us) if self._labelling else None

    def _write(
        self,
        region: Region,
        entries: ledger.Entries,
        mappings: Mapping[Process, list[procfs.Mapping]],
        residency: procfs.Residency,
        gone_ns: int | None,
    ) -> None:
        of_tree = [process for process in mappings if not process.stranger]
        self.infer_creator(region, of_tree)
        # pages may have been given back, or torn down, between the look at how many there are and that at whose
        known_bytes = (entries.touched_pages + entries.before_pages) * PAGE_BYTES
        region.allocated_bytes = max(region.allocated_bytes, known_bytes)
        self._closed.append(self._sizes(region, region.allocated_bytes, residency, gone_ns, of_tree))
        self._rows[SAMPLE].append((region.row, gone_ns or time.time_ns(), region.allocated_bytes, *residency))
        if region.kept:
            self._capture.replace_extents(region.row, 0, ledger.MAX_PAGES, ())
        self._rows[EXTENT] += self.rows(region, entries)
        usage = self._usage(region, entries.freed_pages)
        self._rows[USAGE] += [(region.row, row, *values) for row, values in usage.items()]
        self._rows[BEHALF] += [(region.row, *values) for values in self._behalves(region)]
        enter_mappings(self._capture, region, mappings)

    def _sizes(
        self,
        region: Region,
        allocated_bytes: int,
        residency: procfs.Residency,
        gone_ns: int | None,
        mappers: Iterable[Process] = (),
    ) -> tuple[Any, ...]:
        """Of REGION_COLUMNS, and the region's row."""
        parent = lives.stands_for(region.creator, mappers)
        return (
            gone_ns,
            parent.row if parent else None,
            region.vss_bytes,
            allocated_bytes,
            max(region.peak_bytes, allocated_bytes),
            *residency,
            region.start_bytes,
            region.address,
            region.row,
        )

    def rows(self, region: Region, entries: ledger.Entries) -> list[ExtentRow]:
        return [
            (region.row, start, end, process, self._wall(first_us), self._wall(last_us), label)
            for start, end, owner, first_us, last_us in entries.extents
            for process, label in [owner or (None, None)]
        ]

    def _wall(self, since_us: int | None) -> int | None:
        return None if since_us is None else self._clock.wall_of_us(since_us)

    def _usage(self, region: Region, freed_unseen: Mapping[Owner, int]) -> dict[int, tuple[int | None, int]]:
        """By process row: faults, freed pages."""
        found: dict[int, tuple[int | None, int]] = {}
        usages = self._probes.usages(region.id)
        for (tgid, start_time_ns), usage in usages.items():
            process = self._lives.find(tgid, start_time_ns)
            if process and start_time_ns:
                found[process.row] = usage.faults if self._probes.counts_faults else None, usage.freed_pages
        for (tgid, start_time_ns), usage in usages.items():
            if not start_time_ns:
                # freed after their toucher had died and its PID had another: the kernel side could tell no more
                row = self._lives.last_dead(tgid).row
                faults_known, freed_pages = found.get(row, (None, 0))
                found[row] = faults_known, freed_pages + usage.freed_pages
        for (row, _), pages in freed_unseen.items():
            faults_known, freed_pages = found.get(row, (None, 0))
            found[row] = faults_known, freed_pages + pages
        return found

    def _behalves(self, region: Region) -> list[tuple[int, int, int]]:
        """(process row, row of the process in whose memory it made pages, pages)."""
        behalves = self._behalf_of.get(region.id, ())
        found = [(self._process(*each.acting).row, self._process(*each.whose).row, each.pages) for each in behalves]
        self._probes.forget_behalves(region.id)
        return found

    def _process(self, tgid: int, start_time_ns: int) -> Process:
        return self._lives.find(tgid, start_time_ns) or self._lives.at(tgid, -1)

    def infer_creator(self, region: Region, mappers: list[Process]) -> None:
        """Where nobody was seen to make it."""
        if not region.creator:
            region.creator, how = self._finder.creator(region, mappers, self._lives, self._clock)
            if region.creator:
                self._capture.update("region", region.row, creator=region.creator.row, creator_how=how)

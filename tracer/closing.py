"""The last account of a region, written into the capture: when it goes away, or when the trace ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Optional

from tracer import ledger, lives, procfs, wire
from tracer.capture import Capture, ExtentRow
from tracer.clock import Clock
from tracer.labelling import Labelling
from tracer.ledger import Block, PageSet
from tracer.lives import Lives, Process
from tracer.probes import Probes
from tracer.procfs import PAGE_BYTES, Survey
from tracer.regions import Finder, Mapped, Region, enter_mappings

BLOCK_BYTES = wire.BLOCK_PAGES * PAGE_BYTES
ALL_PAGES = PageSet([(0, ledger.MAX_PAGES)])


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

    def bury(self, region: Region, give_up: bool) -> bool:
        """Close a region whose teardown has begun, if it is over; its pages go one by one. Whether it was closed."""
        last = self._probes.region(region.id)
        if last is None or (last.torn_pages + last.swapped_pages < last.pages and not give_up):
            return False
        region.vss_bytes = max(region.vss_bytes, last.size_bytes)
        region.allocated_bytes = last.pages * PAGE_BYTES
        self.gone(region, self._clock.wall_of_us(last.gone_us), last.swapped_pages)
        return True

    def gone(self, region: Region, gone_ns: int, swapped_pages: int = 0) -> None:
        """Close a region that is no more, and clear the kernel's maps of it. allocated_bytes is what it last had."""
        blocks = self.blocks(region)
        entries = self.read(region, blocks, None, swapped_pages)
        if (entries.touched_pages + entries.before_pages) * PAGE_BYTES < region.allocated_bytes:
            blocks = self._probes.blocks().get(region.id, {})  # it may have grown since it was last measured
            entries = self.read(region, blocks, None, swapped_pages)
        if (entries.touched_pages + entries.before_pages) * PAGE_BYTES > region.allocated_bytes:
            # some pages were given back while they were swapped out, and this tier does not see which
            entries = self.read(region, blocks, None, 0)
        self._write(region, entries, {}, procfs.Residency(None, swapped_pages * PAGE_BYTES), gone_ns)
        self._probes.forget(region.id, blocks)

    def blocks(self, region: Region) -> dict[int, Block]:
        """The ledger of one region, as far as it reached when it was last measured."""
        numbers = range(-(-region.vss_bytes // BLOCK_BYTES))
        return {number: block for number in numbers if (block := self._probes.block(region.id, number))}

    def survey(self, region: Region, mapped: Mapped) -> Survey | None:
        """What a region has now; None where there is no way to it."""
        path = self._finder.find_path(region, mapped, (process for process in self._lives if not process.exited))
        return procfs.survey(path, region.key) if path else None

    def alive(
        self,
        region: Region,
        found: Survey | None,
        blocks: dict[int, Block],
        mappings: Mapping[Process, list[procfs.Mapping]],
    ) -> None:
        """Close a region at the end of the trace. mappings: of those who map it."""
        present = ALL_PAGES  # alive, and out of reach: the ledger is taken at its word
        if found:
            region.vss_bytes, region.allocated_bytes = found.vss_bytes, found.allocated_bytes
            present = PageSet(found.pages)
        elif not self._probes.measure(region.id):
            return self.gone(region, time.time_ns())
        if region.kind == "hugetlb":  # whose SEEK_DATA shows all of the file
            present = ALL_PAGES
        residency = procfs.residency(region.path, region.key) if region.path else procfs.Residency(None, None)
        return self._write(region, self.read(region, blocks, present), mappings, residency, None)

    def read(
        self, region: Region, blocks: dict[int, Block], present: PageSet | None, swapped_pages: int = 0
    ) -> ledger.Entries:
        """What the ledger says of a region, of all of its blocks."""
        entries = ledger.read(blocks, region.baseline, present, self.owner, swapped_pages, region.punches)
        kernel_side = self._probes.region(region.id) if region.kind == "hugetlb" else None
        if not kernel_side:
            return entries
        start_pages, allocated_pages = region.start_bytes // PAGE_BYTES, region.allocated_bytes // PAGE_BYTES
        return ledger.of_huge_pages(entries, kernel_side.order, start_pages, allocated_pages)

    def owner(self, tgid: int, when_us: int) -> Owner:
        """Whose a ledger word is: the row of the process, and of the label it had."""
        label = self._labelling.at(tgid, when_us) if self._labelling else None
        return self._lives.at(tgid, when_us).row, label

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
        parent = lives.stands_for(region.creator, of_tree)
        self._capture.update(
            "region",
            region.row,
            gone_ns=gone_ns,
            top=parent.row if parent else None,
            vss_bytes=region.vss_bytes,
            allocated_bytes=region.allocated_bytes,
            peak_bytes=max(region.peak_bytes, region.allocated_bytes),
            resident_bytes=residency.resident_bytes,
            swapped_bytes=residency.swapped_bytes,
            start_bytes=region.start_bytes,
            address=region.address,
        )
        self._capture.insert_all(
            "sample",
            "region, time_ns, allocated_bytes, resident_bytes, swapped_bytes",
            [(region.row, gone_ns or time.time_ns(), region.allocated_bytes, *residency)],
        )
        self._capture.replace_extents(region.row, 0, ledger.MAX_PAGES, self.rows(region, entries))
        self._capture.insert_all(
            "usage",
            "region, process, faults, freed_pages",
            ((region.row, row, *values) for row, values in self._usage(region, entries.freed_pages).items()),
        )
        self._capture.insert_all(
            "behalf",
            "region, process, for_process, pages",
            ((region.row, *values) for values in self._behalves(region)),
        )
        enter_mappings(self._capture, region, mappings)

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
        for tgid, start_time_ns in region.touchers:
            process = self._lives.find(tgid, start_time_ns)
            usage = self._probes.take_usage(region.id, tgid, start_time_ns)
            if process and usage:
                faults = usage.faults if self._probes.ranges is not None else None
                found[process.row] = faults, usage.freed_pages
        for tgid in {tgid for tgid, _ in region.touchers}:
            # freed after their toucher had died and its PID had another: the kernel side could tell no more
            usage = self._probes.take_usage(region.id, tgid, 0)
            if usage:
                row = self._lives.last_dead(tgid).row
                faults_known, freed_pages = found.get(row, (None, 0))
                found[row] = faults_known, freed_pages + usage.freed_pages
        for (row, _), pages in freed_unseen.items():
            faults_known, freed_pages = found.get(row, (None, 0))
            found[row] = faults_known, freed_pages + pages
        return found

    def _behalves(self, region: Region) -> list[tuple[int, int, int]]:
        """(process row, row of the process in whose memory it made pages, pages)."""
        return [
            (self._process(*behalf.acting).row, self._process(*behalf.whose).row, behalf.pages)
            for behalf in self._probes.take_behalves(region.id)
        ]

    def _process(self, tgid: int, start_time_ns: int) -> Process:
        return self._lives.find(tgid, start_time_ns) or self._lives.at(tgid, -1)

    def infer_creator(self, region: Region, mappers: list[Process]) -> None:
        """Where nobody was seen to make it."""
        if not region.creator:
            region.creator, how = self._finder.creator(region, mappers, self._lives, self._clock)
            if region.creator:
                self._capture.update("region", region.row, creator=region.creator.row, creator_how=how)

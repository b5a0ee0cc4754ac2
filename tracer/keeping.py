"""The accounts of regions that are there, kept in the capture as they stand: what is left if the trace is cut off.

Each time, what the kernel side says has changed is read, and then what is allocated is measured: again and again, until
there was so little to read that both are of nearly the same moment, as a virtual machine is moved while it runs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping

from tracer import ledger, lives, wire
from tracer.capture import Capture
from tracer.clock import Clock
from tracer.closing import Closing
from tracer.ledger import ALL_PAGES, Block, PageSet
from tracer.lives import Lives
from tracer.news import KernelRegion
from tracer.probes import Probes, Usage
from tracer.procfs import Pages
from tracer.regions import Region

AT_ONCE_S = 0.002
PATIENCE_S = 0.1
RARELY = 20  # times as long as it takes to read what all processes did to all regions, before it is read again

Changed = dict[int, dict[int, Block]]
"""Blocks of the ledger, by region and number."""


class Keeping:
    """Keeps accounts. First collect(), then have all events told, then write(): who touched is known by then."""

    def __init__(self, capture: Capture, probes: Probes, processes: Lives, closing: Closing, clock: Clock) -> None:
        self._capture = capture
        self._probes = probes
        self._lives = processes
        self._closing = closing
        self._clock = clock
        self.usages: dict[tuple[int, int, int], Usage] = {}
        """as they were last written, by (region, tgid, start_time_ns)"""
        self._usages_at_s = 0.0

    def collect(self, regions: Collection[int]) -> tuple[Changed, dict[int, KernelRegion | None]]:
        """What has changed in the ledger, and then what the regions have; None: it is there no more."""
        end_s = time.monotonic() + PATIENCE_S
        changed = self._probes.changed(regions)
        measured = {number: self._probes.measure(number) for number in regions}
        began_s = 0.0
        while time.monotonic() - began_s > AT_ONCE_S and began_s < end_s:
            began_s = time.monotonic()
            more = self._probes.changed(regions)
            for number, blocks in more.items():
                changed.setdefault(number, {}).update(blocks)
            measured |= {number: self._probes.measure(number) for number in more}
        return changed, measured

    def write(self, changed: Changed, regions: Mapping[int, Region]) -> None:
        for number, region in regions.items():
            if region.dying_since_s:  # what it had when it was last measured and who had touched that go together
                continue
            blocks = changed.get(number, {})
            if not region.kept:
                self._enter(region)
                if region.kind in ("posix", "other"):  # pages may have been written to it before it was mapped
                    blocks = self._probes.blocks(number)
            if region.kind == "hugetlb" and blocks:
                self._write_huge(region)
            elif blocks or region.punched:
                self._write_blocks(region, blocks)
            self._write_sizes(region)

    def _enter(self, region: Region) -> None:
        rows = ((region.row, start, end) for start, end in region.baseline.extents)
        self._capture.insert_all("extent", 'region, start, "end"', rows)
        self._capture.update("region", region.row, start_bytes=region.start_bytes)
        region.kept = True

    def _write_blocks(self, region: Region, blocks: dict[int, Block]) -> None:
        punched, region.punched = PageSet.of_any(region.punched), []
        of_baseline = (
            _blocks_of(extent) for first, end in punched.extents for extent in region.baseline.within(first, end)
        )
        if punched:
            there = self._probes.blocks(region.id)
            numbers = [number for number in there if punched.mask(number)]
            for number in itertools.chain(numbers, *of_baseline):
                blocks.setdefault(number, there.get(number, ledger.NO_BLOCK))
        for first, end in ledger.runs(blocks):
            start_page, end_page = first * wire.BLOCK_PAGES, end * wire.BLOCK_PAGES
            entries = ledger.read(
                {number: blocks[number] for number in range(first, end)},
                PageSet(region.baseline.within(start_page, end_page)),
                ALL_PAGES,
                self._closing.owner,
                punches=region.punches,
            )
            self._capture.replace_extents(region.row, start_page, end_page, self._closing.rows(region, entries))

    def _write_huge(self, region: Region) -> None:
        entries = self._closing.read(region, self._probes.blocks(region.id), ALL_PAGES)
        self._capture.replace_extents(region.row, 0, ledger.MAX_PAGES, self._closing.rows(region, entries))

    def _write_sizes(self, region: Region) -> None:
        parent = lives.stands_for(region.creator, [])
        sizes = {
            "top": parent.row if parent else None,
            "vss_bytes": region.vss_bytes,
            "allocated_bytes": region.allocated_bytes,
            "peak_bytes": region.peak_bytes,
            "resident_bytes": region.sample[1] if region.sample else None,
            "swapped_bytes": region.sample[2] if region.sample else None,
            "address": region.address,
        }
        if sizes != region.written:
            self._capture.update("region", region.row, **sizes)
            region.written = sizes

    def write_usages(self, regions: Mapping[int, Region]) -> None:
        """How often each process faulted on each region, and what it gave back of it; of very many, now and then."""
        began_s = time.monotonic()
        if began_s < self._usages_at_s:
            return
        rows = []
        before, self.usages = self.usages, {}
        for key, usage in self._probes.read_usages().items():
            number, tgid, start_time_ns = key
            process = self._lives.find(tgid, start_time_ns)
            if not process or number not in regions:
                continue
            self.usages[key] = usage
            if before.get(key) != usage:
                counted = usage.faults if self._probes.counts_faults else None
                rows.append((regions[number].row, process.row, counted, usage.freed_pages))
        self._capture.insert_all("usage", "region, process, faults, freed_pages", rows)
        ended_s = time.monotonic()
        self._usages_at_s = ended_s + RARELY * (ended_s - began_s)


def _blocks_of(extent: Pages) -> range:
    return range(extent[0] // wire.BLOCK_PAGES, -(-extent[1] // wire.BLOCK_PAGES))

"""The last account of a region, written into the capture: when it goes away, or when the trace ends."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tracer import events, ledger, lives, procfs, wire
from tracer.capture import Capture
from tracer.clock import Clock
from tracer.ledger import Block, PageSet
from tracer.lives import Lives, Process
from tracer.probes import Probes
from tracer.procfs import PAGE_BYTES, RegionKey, Survey
from tracer.regions import Finder, Mapped, Region

BLOCK_BYTES = wire.BLOCK_PAGES * PAGE_BYTES
ALL_PAGES = PageSet([(0, 1 << 40)])


class Closing:
    """Closes accounts."""

    def __init__(self, capture: Capture, probes: Probes, processes: Lives, finder: Finder, clock: Clock) -> None:
        self._capture = capture
        self._probes = probes
        self._lives = processes
        self._finder = finder
        self._clock = clock

    def bury(self, region: Region, give_up: bool) -> bool:
        """Close a region whose teardown has begun, if it is over; its pages go one by one. Whether it was closed."""
        raw = self._probes.regions[events.pack_key(region.key)]
        if raw is None:
            return False
        size_bytes, gone_us, final_pages, swapped_pages, torn_pages, _, _ = wire.REGION.unpack(raw)
        if torn_pages + swapped_pages < final_pages and not give_up:
            return False
        region.vss_bytes = max(region.vss_bytes, size_bytes)
        region.allocated_bytes = final_pages * PAGE_BYTES
        self.gone(region, self._clock.wall_of_us(gone_us), swapped_pages)
        return True

    def gone(self, region: Region, gone_ns: int, swapped_pages: int = 0) -> None:
        """Close a region that is no more, and clear the kernel's maps of it. allocated_bytes is what it last had."""
        blocks = self.blocks(region)
        entries = ledger.read(blocks, region.baseline, None, self._owner, swapped_pages)
        if (entries.touched_pages + entries.before_pages) * PAGE_BYTES < region.allocated_bytes:
            blocks = self._probes.blocks().get(region.id, {})  # it may have grown since it was last mapped
            entries = ledger.read(blocks, region.baseline, None, self._owner, swapped_pages)
        self._write(region, entries, [], procfs.Residency(None, swapped_pages * PAGE_BYTES), gone_ns)
        self.forget(region.id, region.key, blocks)

    def forget(self, number: int, key: RegionKey, blocks: Iterable[int]) -> None:
        """Clear the kernel's maps of a region, and of these blocks of it."""
        del self._probes.regions[events.pack_key(key)]
        del self._probes.mappings[wire.REGION_ID.pack(number)]
        for block in blocks:
            del self._probes.ledger[wire.BLOCK_KEY.pack(number, block)]

    def blocks(self, region: Region) -> dict[int, Block]:
        """The ledger of one region, as far as it was mapped."""
        numbers = range(-(-region.vss_bytes // BLOCK_BYTES))
        return {number: block for number in numbers if (block := self._probes.block(region.id, number))}

    def torn_down(self, region: Region) -> bool:
        """Whether its teardown has begun, by the kernel's map."""
        raw = self._probes.regions[events.pack_key(region.key)]
        return raw is not None and wire.REGION.unpack(raw)[1] > 0

    def survey(self, region: Region, mapped: Mapped) -> Survey | None:
        """What a region has now; None where there is no way to it."""
        path = self._finder.find_path(region, mapped, (process for process in self._lives if not process.exited))
        return procfs.survey(path) if path else None

    def alive(
        self,
        region: Region,
        found: Survey | None,
        blocks: dict[int, Block],
        mapped: Mapped,
        mappers: list[Process],
    ) -> None:
        """Close a region at the end of the trace."""
        present = ALL_PAGES  # alive, and out of reach: the ledger is taken at its word
        if found:
            region.vss_bytes, region.allocated_bytes = found.vss_bytes, found.allocated_bytes
            present = PageSet(found.pages)
        elif region.id not in mapped and not region.allocated_bytes:
            return self.gone(region, time.time_ns())
        if region.kind == "hugetlb":  # listed, not paged: what was there at the start is taken to be there still
            pages = min(region.start_bytes, region.allocated_bytes) // PAGE_BYTES
            region.baseline = present = PageSet([(0, pages)] if pages else [])
        entries = ledger.read(blocks, region.baseline, present, self._owner)
        residency = procfs.residency(region.path) if region.path else procfs.Residency(None, None)
        return self._write(region, entries, mappers, residency, None)

    def _owner(self, tgid: int, when_us: int) -> int:
        return self._lives.at(tgid, when_us).row

    def _write(
        self,
        region: Region,
        entries: ledger.Entries,
        mappers: list[Process],
        residency: procfs.Residency,
        gone_ns: int | None,
    ) -> None:
        self.infer_creator(region, mappers)
        parent = lives.stands_for(region.creator, mappers)
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
            "extent",
            'region, start, "end", process, first_ns, last_ns',
            (
                (region.row, start, end, owner, self._wall(first_us), self._wall(last_us))
                for start, end, owner, first_us, last_us in entries.extents
            ),
        )
        self._capture.insert_all(
            "usage",
            "region, process, faults, freed_pages, mapped",
            ((region.row, row, *values) for row, values in self._usage(region, mappers).items()),
        )

    def _wall(self, since_us: int | None) -> int | None:
        return None if since_us is None else self._clock.wall_of_us(since_us)

    def _usage(self, region: Region, mappers: list[Process]) -> dict[int, tuple[int | None, int, int]]:
        """By process row: faults, freed pages, whether it maps the region."""
        found: dict[int, tuple[int | None, int, int]] = {process.row: (None, 0, 1) for process in mappers}
        for tgid, start_time_ns in region.touchers:
            process = self._lives.find(tgid, start_time_ns)
            raw = self._take_usage(region.id, tgid, start_time_ns)
            if process and raw:
                faults, _, freed_pages = wire.USAGE.unpack(raw)
                found[process.row] = faults, freed_pages, int(process in mappers)
        for tgid in {tgid for tgid, _ in region.touchers}:
            # freed after their toucher had died and its PID had another: the kernel side could tell no more
            raw = self._take_usage(region.id, tgid, 0)
            if raw:
                row = self._lives.last_dead(tgid).row
                faults_known, freed_pages, is_mapped = found.get(row, (None, 0, 0))
                found[row] = faults_known, freed_pages + wire.USAGE.unpack(raw)[2], is_mapped
        return found

    def _take_usage(self, region_id: int, tgid: int, start_time_ns: int) -> bytes | None:
        key = wire.USAGE_KEY.pack(region_id, tgid, start_time_ns)
        raw = self._probes.usages[key]
        del self._probes.usages[key]
        return raw

    def infer_creator(self, region: Region, mappers: list[Process]) -> None:
        """Where nobody was seen to make it."""
        if not region.creator:
            region.creator, how = self._finder.creator(region, mappers, self._lives, self._clock)
            if region.creator:
                self._capture.update("region", region.row, creator=region.creator.row, creator_how=how)

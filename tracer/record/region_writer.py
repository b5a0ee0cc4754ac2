"""Writes regions into the capture: a checkpoint at every sample, and a last account when a region ends.

If the trace is cut off, the capture holds the last checkpoint. A checkpoint needs the page count and the owners of
nearly the same moment, but they cannot be read at once. So it reads the ledger blocks that changed, then measures the
allocation, and repeats until there was little left to read. Live migration of a virtual machine converges the same way.

The last account is written when a region goes away or when the trace ends.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Optional

from tracer import wire
from tracer.capture.capture import Capture, ExtentRow
from tracer.clock import Clock
from tracer.kernel.maps import Block, MadeFor
from tracer.kernel.probes import Probes
from tracer.kernel.updates import KernelRegion
from tracer.proc import procfs, shmem
from tracer.proc.shmem import PAGE_BYTES, Pages
from tracer.record import ledger
from tracer.record.label_history import LabelHistory
from tracer.record.ledger import ALL_PAGES, PageSet
from tracer.record.processes import Processes, TracedProcess, stands_for
from tracer.record.regions import Finder, TracedRegion, enter_mappings

REGION_COLUMNS = (
    "gone_ns, parent, size_bytes, allocated_bytes, peak_bytes, resident_bytes, swapped_bytes, start_bytes, address"
)
SAMPLE = "sample", "region, time_ns, allocated_bytes, resident_bytes, swapped_bytes"
EXTENT = "extent", 'region, start, "end", process, first_ns, last_ns, label'
USAGE = "usage", "region, process, faults, freed_pages"
MADE_FOR = "made_for", "region, process, for_process, pages"

# A round of collect() that was as short as this ends it. PATIENCE_S bounds all rounds.
AT_ONCE_S = 0.002
PATIENCE_S = 0.1
RARELY = 20  # usages are read again after this many times the time that the last read took

Changed = dict[int, dict[int, Block]]
"""Changed ledger blocks, by region id and block number."""
Owner = tuple[int, Optional[int]]
"""(process row, label row). The label row is None if it is not known."""


class Looked(NamedTuple):
    """What a look at a region's file shows. None: unknown."""

    survey: shmem.Survey | None
    residency: shmem.Residency
    born_ns: int | None
    """CLOCK_REALTIME."""

    @classmethod
    def at(cls, region: TracedRegion) -> Looked:
        """Look at a region before its ledger is read: a page added in between would otherwise have no owner."""
        if not region.path:
            return NOTHING
        survey, residency = shmem.survey(region.path, region.key), shmem.residency(region.path, region.key)
        return cls(survey, residency, region.created_ns or shmem.birth_time_ns(region.path))


NOTHING = Looked(None, shmem.Residency(None, None), None)


class RegionWriter:
    """Writes checkpoints of the regions that exist, and the last account of each region."""

    def __init__(
        self,
        capture: Capture,
        probes: Probes,
        processes: Processes,
        labelling: LabelHistory | None,
        finder: Finder,
        clock: Clock,
    ) -> None:
        self._capture = capture
        self._labelling = labelling
        self._probes = probes
        self._lives = processes
        self._finder = finder
        self._clock = clock
        self._usages: dict[tuple[int, int], tuple[int | None, int]] = {}  # as last written, by rows
        self._usages_at_s = 0.0
        self._made_for_of: dict[int, list[MadeFor]] = {}
        self._changed: list[tuple[Any, ...]] = []  # REGION_COLUMNS, and the region's row
        self._rows: dict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)  # by table and columns
        self._closed: list[int] = []  # rows of regions whose last extents are among them
        self.asked: set[tuple[TracedProcess, int]] = set()
        """Who has pages, and with labels since when: those that the words of the ledger have asked for."""

    # ---- checkpoints ----

    def collect(self, regions: Collection[int]) -> tuple[Changed, dict[int, KernelRegion | None]]:
        """Read the changed ledger blocks, then measure the regions. None: the region no longer exists."""
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

    def checkpoint(self, changed: Changed, regions: Mapping[int, TracedRegion]) -> None:
        """Write the state of these regions, from what collect() returned.

        Call it once all events up to then have been applied: by then every toucher is known.
        """
        for number, region in regions.items():
            if region.dying_since_s:  # its last measurement and its ledger belong together; close_gone() writes both
                continue
            blocks = changed.get(number, {})
            if not region.kept:
                self._enter_baseline(region)
                if region.kind in ("posix", "other"):  # write() may have added pages before the first mmap
                    blocks = self._probes.blocks(number)
            if region.kind == "hugetlb" and blocks:
                self._write_huge(region)
            elif blocks or region.punched:
                self._write_blocks(region, blocks)
            columns = self._columns(
                region, region.allocated_bytes, shmem.Residency(*region.sample[1:] if region.sample else (None, None))
            )
            if columns != region.written:
                region.written = columns
                self._changed.append((*columns, region.row))
        self._write_down()

    def _enter_baseline(self, region: TracedRegion) -> None:
        rows = ((region.row, start, end) for start, end in region.baseline.extents)
        self._capture.insert_all("extent", 'region, start, "end"', rows)
        region.kept = True

    def _write_blocks(self, region: TracedRegion, blocks: dict[int, Block]) -> None:
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
                self.owner,
                punches=region.punches,
            )
            self._capture.replace_extents(region.row, start_page, end_page, self.rows(region, entries))

    def _write_huge(self, region: TracedRegion) -> None:
        entries = self.read(region, self._probes.blocks(region.id), ALL_PAGES)
        self._capture.replace_extents(region.row, 0, ledger.MAX_PAGES, self.rows(region, entries))

    def checkpoint_usages(self, regions: Mapping[int, TracedRegion]) -> None:
        """How often each process faulted on each region, and what it gave back of it; of very many, now and then."""
        began_s = time.monotonic()
        if began_s < self._usages_at_s:
            return
        before, self._usages = self._usages, {}
        for region in list(regions.values()):  # there may be others once a PID is asked for that is not known
            for row, usage in self._usage(region, {}).items():
                self._usages[region.row, row] = usage
        rows = [(*key, *usage) for key, usage in self._usages.items() if before.get(key) != usage]
        self._capture.insert_all(*USAGE, rows)
        ended_s = time.monotonic()
        self._usages_at_s = ended_s + RARELY * (ended_s - began_s)

    # ---- the last account ----

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Accounts are closed in here: what is read or written once for all of them is done so."""
        self._made_for_of = self._probes.made_for()
        self._probes.hear()
        self._finder.segments.cache_clear()
        try:
            yield
        finally:
            self._write_down()

    def _write_down(self) -> None:
        self._capture.update_all("region", REGION_COLUMNS, self._changed)
        for columns, rows in self._rows.items():
            self._capture.insert_all(*columns, rows)
        self._capture.sum_up(self._closed)
        self._changed.clear()
        self._rows.clear()
        self._closed.clear()

    def is_over(self, last: KernelRegion) -> bool:
        """Whether every page of a dying region has been torn down or was swapped out. Pages go one by one."""
        return last.torn_pages + last.swapped_pages >= last.pages

    def close_gone(self, region: TracedRegion, last: KernelRegion | None) -> None:
        """Close a region that is gone, from the probes' last record of it, and forget it there."""
        gone_ns, swapped_pages = time.time_ns(), last.swapped_pages if last else 0
        region.allocated_bytes = swapped_pages * PAGE_BYTES  # if no teardown was seen, there was nothing in memory
        left_pages = swapped_pages
        if last and last.gone_us:
            region.allocated_bytes, gone_ns = last.pages * PAGE_BYTES, self._clock.wall_of_us(last.gone_us)
            left_pages = max(last.pages - last.torn_pages, 0)  # swapped out, or not torn down yet
        if last:
            region.size_bytes = max(region.size_bytes, last.size_bytes)
            region.peak_bytes = max(region.peak_bytes, last.peak_pages * PAGE_BYTES)
        blocks = self._probes.heard_blocks(region.id)  # no block can have changed since hear()
        entries = self.read(region, blocks, None, left_pages)
        if left_pages and (entries.touched_pages + entries.before_pages) * PAGE_BYTES > region.allocated_bytes:
            # Some pages were given back while they were swapped out. This tier does not see which.
            entries = self.read(region, blocks, None, 0)
        self._write(region, entries, {}, shmem.Residency(None, swapped_pages * PAGE_BYTES), gone_ns)
        self._probes.forget_made_for(region.id)
        self._probes.forget(region.id)

    def close_alive(
        self, region: TracedRegion, mappings: Mapping[TracedProcess, list[procfs.Mapping]], looked: Looked
    ) -> None:
        """Write the last account of a region that still exists. mappings: of the processes that map it."""
        found = looked.survey
        region.created_ns = region.created_ns or looked.born_ns
        blocks = self._probes.blocks(region.id)
        present = ALL_PAGES  # it exists but has no path to survey by: trust the ledger
        if found:
            region.size_bytes, region.allocated_bytes = found.size_bytes, found.allocated_bytes
            present = PageSet(found.pages)
        elif not self._probes.measure(region.id):
            return self.close_gone(region, self._probes.region(region.id))
        if region.kind == "hugetlb":  # SEEK_DATA on hugetlbfs reports the whole file
            present = ALL_PAGES
        return self._write(region, self.read(region, blocks, present), mappings, looked.residency, None)

    def close_unread(self, regions: Iterable[tuple[TracedRegion, KernelRegion | None]]) -> None:
        """Close regions without looking at their pages again.

        All pages of a region that is gone are unseen. For the others, what was last written stays.
        """
        for region, last in regions:
            allocated_bytes = last.pages * PAGE_BYTES if last else region.allocated_bytes
            gone_ns = self._clock.wall_of_us(last.gone_us) if last and last.gone_us else None
            if region.kept and gone_ns:
                self._capture.replace_extents(region.row, 0, ledger.MAX_PAGES, ())
            elif region.kept:
                allocated_bytes = max(allocated_bytes, self._capture.pages(region.row) * PAGE_BYTES)
            self._changed.append(
                (*self._columns(region, allocated_bytes, shmem.Residency(None, None), gone_ns), region.row)
            )
        self._write_down()

    def read(
        self, region: TracedRegion, blocks: dict[int, Block], present: PageSet | None, left_pages: int = 0
    ) -> ledger.Entries:
        """Read the whole ledger of a region."""
        entries = ledger.read(blocks, region.baseline, present, self.owner, left_pages, region.punches)
        kernel_side = self._probes.region(region.id) if region.kind == "hugetlb" else None
        if not kernel_side:
            return entries
        start_pages, allocated_pages = region.start_bytes // PAGE_BYTES, region.allocated_bytes // PAGE_BYTES
        return ledger.of_huge_pages(entries, kernel_side.order, start_pages, allocated_pages)

    def owner(self, tgid: int, first_us: int, last_us: int) -> Owner | None:
        """(process row, label row) of a tgid between two moments, in microseconds since the capture began.

        None: in that time the tgid was reused, or the label changed.
        """
        process = self._lives.during(tgid, first_us, last_us)
        if not process or (self._labelling and not self._labelling.is_one(tgid, first_us, last_us)):
            return None
        self.asked.add((process, first_us if self._labelling else 0))
        return process.row, self._labelling.at(tgid, first_us) if self._labelling else None

    def _write(
        self,
        region: TracedRegion,
        entries: ledger.Entries,
        mappings: Mapping[TracedProcess, list[procfs.Mapping]],
        residency: shmem.Residency,
        gone_ns: int | None,
    ) -> None:
        of_tree = [process for process in mappings if not process.outside_tree]
        if not region.is_older:
            self.infer_creator(region, of_tree)
        # Pages may have been given back between counting them and reading their owners.
        known_bytes = (entries.touched_pages + entries.before_pages) * PAGE_BYTES
        region.allocated_bytes = max(region.allocated_bytes, known_bytes)
        columns = self._columns(region, region.allocated_bytes, residency, gone_ns, of_tree)
        self._changed.append((*columns, region.row))
        self._rows[SAMPLE].append((region.row, gone_ns or time.time_ns(), region.allocated_bytes, *residency))
        if region.kept:
            self._capture.replace_extents(region.row, 0, ledger.MAX_PAGES, ())
        self._rows[EXTENT] += self.rows(region, entries)
        self._closed.append(region.row)
        usage = self._usage(region, entries.freed_pages)
        self._rows[USAGE] += [(region.row, row, *values) for row, values in usage.items()]
        self._rows[MADE_FOR] += [(region.row, *values) for values in self._made_for(region)]
        enter_mappings(self._capture, region, mappings)

    def _columns(
        self,
        region: TracedRegion,
        allocated_bytes: int,
        residency: shmem.Residency,
        gone_ns: int | None = None,
        mappers: Iterable[TracedProcess] = (),
    ) -> tuple[Any, ...]:
        """The values of REGION_COLUMNS, as the region stands now."""
        parent = stands_for(region.creator, mappers)
        return (
            gone_ns,
            parent.row if parent else None,
            region.size_bytes,
            allocated_bytes,
            max(region.peak_bytes, allocated_bytes),
            *residency,
            region.start_bytes,
            region.address,
        )

    def rows(self, region: TracedRegion, entries: ledger.Entries) -> list[ExtentRow]:
        """Rows of the table extent."""
        return [
            (region.row, start, end, process, self._wall(first_us), self._wall(last_us), label)
            for start, end, owner, first_us, last_us in entries.extents
            for process, label in [owner or (None, None)]
        ]

    def _wall(self, since_us: int | None) -> int | None:
        return None if since_us is None else self._clock.wall_of_us(since_us)

    def _usage(self, region: TracedRegion, freed_unseen: Mapping[Owner, int]) -> dict[int, tuple[int | None, int]]:
        """(faults, freed pages) by process row. Faults are None if this tier does not count them."""
        found: dict[int, tuple[int | None, int]] = {}
        dead: dict[int, int] = {}  # by tgid the row of the first that used the region: later ones do not change that
        usages = self._probes.usages(region.id)
        for (tgid, start_time_ns), usage in sorted(usages.items()):
            process = self._lives.find(tgid, start_time_ns)
            if process and start_time_ns:
                found[process.row] = usage.faults if self._probes.counts_faults else None, usage.freed_pages
                if process.exited:
                    dead.setdefault(tgid, process.row)
        for (tgid, start_time_ns), usage in usages.items():
            if not start_time_ns:
                # Freed after their toucher had exited and its PID was reused. The probes know no more than the PID.
                row = dead[tgid] if tgid in dead else self._lives.last_dead(tgid).row
                faults_known, freed_pages = found.get(row, (None, 0))
                found[row] = faults_known, freed_pages + usage.freed_pages
        for (row, _), pages in freed_unseen.items():
            faults_known, freed_pages = found.get(row, (None, 0))
            found[row] = faults_known, freed_pages + pages
        return found

    def _made_for(self, region: TracedRegion) -> list[tuple[int, int, int]]:
        """(acting process row, row of the process whose address space it was, pages)."""
        made_for = self._made_for_of.get(region.id, ())
        return [(self._process(*each.acting).row, self._process(*each.whose).row, each.pages) for each in made_for]

    def _process(self, tgid: int, start_time_ns: int) -> TracedProcess:
        process = self._lives.find(tgid, start_time_ns) or self._lives.at(tgid, -1)
        self.asked.add((process, 0))
        return process

    def go_on(self, regions: Iterable[TracedRegion]) -> None:
        """Regions whose last account was written, and that exist, get checkpoints again. The capture has reopened."""
        for region in regions:
            region.kept, region.written = True, ()

    def infer_creator(self, region: TracedRegion, mappers: list[TracedProcess]) -> None:
        """Infer the creator of a region unless it is known, and write it into the capture."""
        if not region.creator:
            region.creator, how = self._finder.creator(region, mappers, self._lives, self._clock)
            if region.creator:
                self._capture.update("region", region.row, creator=region.creator.row, creator_how=how)


def _blocks_of(extent: Pages) -> range:
    return range(extent[0] // wire.BLOCK_PAGES, -(-extent[1] // wire.BLOCK_PAGES))

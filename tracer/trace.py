"""A trace: the probes' events and the ledger, joined with /proc, written into a capture."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from tracer import events, kernel, ledger, procfs, targets, wire
from tracer.capture import Capture
from tracer.events import Event
from tracer.ledger import Block, PageSet
from tracer.lives import Lives, Process, top
from tracer.probes import Probes, Sizes
from tracer.procfs import PAGE_BYTES, Mapping, Proc, ProcessStat, RegionKey
from tracer.targets import Targets

ROOM_BYTES = 4 << 30  # of regions that are made during the trace
BLOCK_BYTES = wire.BLOCK_PAGES * PAGE_BYTES
TEARDOWN_S = 1.0  # a teardown that was not seen to end by then has ended unseen


@dataclasses.dataclass
class Region:
    """A region that the tree maps, or mapped."""

    row: int
    id: int
    key: RegionKey
    kind: str
    path: Path | None
    """where it was last found"""
    creator: Process | None = None
    vss_bytes: int = 0
    start_bytes: int = 0
    allocated_bytes: int = 0
    peak_bytes: int = 0
    baseline: PageSet = dataclasses.field(default_factory=lambda: PageSet([]))
    touchers: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    """(tgid, start_time_ns) of the processes that faulted on it"""
    dying_since_s: float | None = None
    """monotonic; the beginning of its teardown was seen"""
    samples_unmapped: int = 0
    """in a row"""


class Trace:
    """A context manager: on entry the probes are attached and what exists is surveyed; on exit they are gone.

    Raises ShmtraceError.
    """

    def __init__(
        self,
        capture: Capture,
        wanted: Targets,
        excluded: Iterable[int] = (),
        interval_s: float = 1.0,
        room_bytes: int = ROOM_BYTES,
    ) -> None:
        self.stopping = False
        self.regions: dict[int, Region] = {}
        self.lives = Lives(capture)
        self._capture = capture
        self._wanted = wanted
        self._excluded = {os.getpid(), *excluded}
        self._room_bytes = room_bytes
        self._proc = Proc()
        self._file_systems: dict[int, int] = {}
        self._warnings: list[str] = []
        self._next_region = 0
        self._interval_s = interval_s
        self._sample_at = 0.0
        self._began_ns = time.monotonic_ns()
        self._began_boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._wall_ns = time.time_ns() - self._began_ns

    # ---- start ----

    def __enter__(self) -> Trace:
        processes = self._proc.processes()
        tree = self._tree(processes)
        flags = ["WATCH_EXEC"] if self._wanted.everything or self._wanted.patterns else []
        flags += ["TRACE_ALL"] if self._wanted.everything else []
        self._sizes_given = self._sizes(tree)
        probes = Probes(kernel.FAULTS, self._sizes_given, self._began_ns, self._began_boot_ns, *flags)
        self._probes = probes.__enter__()
        try:
            probes.attach()
            self._attached_ns = time.monotonic_ns()
            # who is born meanwhile is tracked by the kernel from its fork, unless its parent was not yet
            while tree:
                for tgid in tree:
                    self._adopt(processes[tgid])
                processes = self._proc.processes()
                tree = [tgid for tgid in self._tree(processes) if not self.lives.alive(tgid)]
            for region in self.regions.values():
                self._take_baseline(region)
        except BaseException:
            probes.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._probes.__exit__(kind, error, trace)

    def _tree(self, processes: dict[int, ProcessStat]) -> list[int]:
        found = targets.tree(processes, self._wanted.roots(processes, self._excluded))
        return [tgid for tgid in found if tgid not in self._excluded]

    def _sizes(self, tree: list[int]) -> Sizes:
        """Room for what the targets map now and some more, never above what memory and swap can hold."""
        seen: dict[tuple[int, int, str], int] = {}
        for tgid in tree:
            for mapping in self._shmem(tgid):
                identity = mapping.dev, mapping.ino, mapping.path
                if identity not in seen:
                    stat = procfs.region_stat(self._proc.map_file(tgid, mapping))
                    seen[identity] = stat.vss_bytes if stat else 0
        memory = self._proc.memory()
        most = memory.total_bytes + memory.swap_bytes
        blocks = min(sum(seen.values()) + self._room_bytes, most) // BLOCK_BYTES
        return Sizes(blocks=blocks, spaces=max(2048, 4 * len(tree)), regions=8192, usages=65536)

    def _shmem(self, tgid: int) -> list[Mapping]:
        """The mappings of a process that are of regions: on a tmpfs or hugetlbfs."""
        found = []
        for mapping in self._proc.mappings(tgid):
            if mapping.dev not in self._file_systems:
                self._file_systems[mapping.dev] = procfs.magic(self._proc.map_file(tgid, mapping)) or 0
            if self._file_systems[mapping.dev] in (procfs.TMPFS_MAGIC, procfs.HUGETLBFS_MAGIC):
                found.append(mapping)
        return found

    def _adopt(self, stat: ProcessStat) -> None:
        """A process that exists: the kernel is told of it first, and then of what it maps."""
        key = wire.TGID.pack(stat.tgid)
        start_time_ns = stat.start_time_ns
        blank = wire.SPACE_HEAD.pack(start_time_ns, 0, 0).ljust(wire.SPACE_BYTES, b"\0")
        if not self._probes.spaces.insert(key, blank):
            known = self._probes.spaces[key]  # its parent was tracked when it was born: its start to the nanosecond
            start_time_ns = wire.SPACE_HEAD.unpack_from(known)[0] if known else start_time_ns
        self.lives.begin(stat.tgid, start_time_ns, stat.parent, stat.comm, stat.command, began_us=-1)
        mappings: list[Mapping] = []
        while mappings != (now := self._shmem(stat.tgid)):  # until what was written is what is there
            mappings = now
            ranges = self._ranges(stat.tgid, mappings)
            head = wire.SPACE_HEAD.pack(start_time_ns, 0, len(ranges))
            try:
                self._probes.spaces[key] = (head + b"".join(ranges)).ljust(wire.SPACE_BYTES, b"\0")
            except OSError:
                self._warn("more processes than there is room for: the rest is unseen")

    def _ranges(self, tgid: int, mappings: list[Mapping]) -> list[bytes]:
        ranges = []
        # a private mapping makes pages of a region too, where it reads a hole; it makes no region
        for mapping in sorted(mappings, key=lambda mapping: not mapping.shared):
            region = self._region_at(tgid, mapping)
            if region and region.kind != "hugetlb":
                ranges.append(wire.RANGE.pack(mapping.start, mapping.end, region.id, mapping.first_index))
        if len(ranges) > wire.MAX_RANGES:
            self._warn(f"a process maps more than {wire.MAX_RANGES} ranges: the rest is unseen")
        return ranges[: wire.MAX_RANGES]

    def _region_at(self, tgid: int, mapping: Mapping) -> Region | None:
        """The region behind a mapping of a process that exists, entered if it is new and shared."""
        path = self._proc.map_file(tgid, mapping)
        key = procfs.identify(path)
        if key is None:
            return None
        known = next((region for region in self.regions.values() if region.key == key), None)
        if known or not mapping.shared:
            return known
        self._next_region += 1
        number = self._next_region * (self._probes.nr_cpus + 1) + self._probes.nr_cpus
        if not self._probes.regions.insert(events.pack_key(key), wire.REGION.pack(0, 0, 0, 0, 0, number, 0)):
            existing = self._probes.regions[events.pack_key(key)]
            if existing is None:
                self._warn("more regions than there is room for: the rest is unseen")
                return None
            *_, number, _ = wire.REGION.unpack(existing)  # the kernel met it first
        name = procfs.link_name(path)
        kind = procfs.kind_of(key.dev, self._file_systems[mapping.dev], name)
        if mapping.path.startswith("[anon_shmem:"):
            name = mapping.path
        region = self._enter(number, key, kind, name, procfs.birth_time_ns(path))
        region.path = path
        return region

    def _enter(self, number: int, key: RegionKey, kind: str, name: str, created_ns: int | None) -> Region:
        row = self._capture.insert(
            "region", dev=key.dev, ino=key.ino, generation=key.generation, kind=kind, name=name, created_ns=created_ns
        )
        region = self.regions[number] = Region(row, number, key, kind, path=None)
        return region

    def _take_baseline(self, region: Region) -> None:
        """The pages that are there and have no owner are from before; the kernel has been writing for a while."""
        found = procfs.survey(region.path) if region.path else None
        if found is None:
            return
        region.vss_bytes, region.start_bytes = found.vss_bytes, found.allocated_bytes
        region.allocated_bytes = region.peak_bytes = found.allocated_bytes
        if region.kind != "hugetlb":  # whose SEEK_DATA says all
            region.baseline = PageSet(found.pages)

    # ---- on the way ----

    def run(self, seconds: float) -> None:
        """Keep up with the kernel for so long, or until stopping."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            self._keep_up(min(left, 0.2))

    def _keep_up(self, timeout_s: float) -> None:
        for event in self._probes.poll(timeout_s):
            self._apply(event)
        now = time.monotonic()
        for region in [region for region in self.regions.values() if region.dying_since_s]:
            self._bury(region, give_up=now - (region.dying_since_s or now) > TEARDOWN_S)
        if now >= self._sample_at or len(self.regions) > self._sizes_given.regions // 2:
            self._sample()
            self._sample_at = now + self._interval_s

    def _apply(self, event: Event) -> None:
        head = event.head
        process = self.lives.alive(head.tgid)
        if isinstance(event, events.Fork):
            self._forked(event)
        elif isinstance(event, events.Exec):
            self._executed(event, process)
        elif isinstance(event, events.Exit):
            if process:
                self.lives.rename(process, event.comm, event.command)
                self.lives.end(process, head.time_ns + self._wall_ns)
        elif isinstance(event, events.Region):
            self._met(event, process)
        elif isinstance(event, events.Touch):
            region = self.regions.get(event.id)
            if region and process:
                region.touchers.add(process.key)
                self._refresh_title(process)
        elif event.id in self.regions:
            self.regions[event.id].dying_since_s = time.monotonic()

    def _forked(self, event: events.Fork) -> None:
        parent = self.lives.alive(event.parent_tgid)
        if not parent and not self._wanted.everything:
            # the child of a process that was watched since its exec, and is none of ours
            del self._probes.spaces[wire.TGID.pack(event.head.tgid)]
            return
        if self.lives.find(event.head.tgid, event.head.start_time_ns):
            return  # /proc showed it first
        command = parent.command if parent else ""
        self.lives.begin(
            event.head.tgid,
            event.head.start_time_ns,
            event.parent_tgid,
            event.comm,
            command,
            (event.head.time_ns - self._began_ns) // 1000,
        )

    def _executed(self, event: events.Exec, process: Process | None) -> None:
        head = event.head
        if process:
            self.lives.rename(process, event.comm, event.command)
        elif self._wanted.match(event.comm, event.title) and head.tgid not in self._excluded:
            began_us = (head.time_ns - self._began_ns) // 1000
            stat = self._proc.process(head.tgid)
            parent = stat.parent if stat else None
            self.lives.begin(head.tgid, head.start_time_ns, parent, event.comm, event.command, began_us)
        elif not event.tracked:
            del self._probes.spaces[wire.TGID.pack(head.tgid)]

    def _met(self, event: events.Region, process: Process | None) -> None:
        """A region that the kernel side met first: made, or mapped by the tree for the first time."""
        if event.id in self.regions:
            return
        if not process:  # of a process that was watched, and is none of ours
            del self._probes.regions[events.pack_key(event.key)]
            return
        kind = procfs.kind_of(event.key.dev, event.file_system, event.name)
        name = f"/{event.name}" if kind != "posix" else f"/dev/shm/{event.name}"
        region = self._enter(event.id, event.key, kind, name, None)
        region.vss_bytes = event.vss_bytes
        if event.made:
            self._created(region, process, "traced", event.head.time_ns + self._wall_ns)
        else:
            self._find_path(region, self._mapped())
            self._take_baseline(region)

    def _created(self, region: Region, creator: Process, how: str, created_ns: int | None) -> None:
        region.creator = creator
        self._capture.update("region", region.row, creator=creator.row, creator_how=how, created_ns=created_ns)

    def _refresh_title(self, process: Process) -> None:
        """Titles are written after the fork; this one may be late, and is then put right at the exit or the end."""
        stat = self._proc.process(process.tgid)
        if stat and abs(stat.start_time_ns - process.start_time_ns) <= procfs.TICK_NS:
            self.lives.rename(process, stat.comm, stat.command)

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    # ---- where a region is, and how big ----

    def _mapped(self) -> dict[int, dict[int, int]]:
        """Who maps what now: region, tgid, an address."""
        found: dict[int, dict[int, int]] = {}
        for key, value in self._probes.spaces.items():
            _, _, nr_ranges = wire.SPACE_HEAD.unpack_from(value)
            for i in range(nr_ranges):
                start, end, number, _ = wire.RANGE.unpack_from(value, wire.SPACE_HEAD.size + i * wire.RANGE.size)
                if end:
                    found.setdefault(number, {})[wire.TGID.unpack(key)[0]] = start
        return found

    def _find_path(self, region: Region, mapped: dict[int, dict[int, int]], open_files: bool = False) -> Path | None:
        """By which path the region can be looked at now; None if there is no way."""
        if region.path and procfs.identify(region.path) == region.key:
            return region.path
        region.path = next((path for path in self._paths(region, mapped, open_files)), None)
        return region.path

    def _paths(self, region: Region, mapped: dict[int, dict[int, int]], open_files: bool) -> Iterator[Path]:
        for tgid, address in mapped.get(region.id, {}).items():
            for mapping in self._proc.mappings(tgid):
                path = self._proc.map_file(tgid, mapping)
                if mapping.start <= address < mapping.end and procfs.identify(path) == region.key:
                    yield path
        if open_files:
            for process in self.lives:
                for path in [] if process.exited else self._proc.open_files(process.tgid):
                    if procfs.identify(path) == region.key:
                        yield path

    def _sample(self) -> None:
        """How much each region has now: one stat each."""
        now_ns = time.time_ns()
        mapped = self._mapped()
        rows = []
        for region in list(self.regions.values()):
            path = self._find_path(region, mapped)
            stat = procfs.region_stat(path) if path else None
            if stat:
                region.vss_bytes, region.allocated_bytes = stat
                region.peak_bytes = max(region.peak_bytes, stat.allocated_bytes)
                rows.append((now_ns, region.row, stat.allocated_bytes))
            region.samples_unmapped = 0 if region.id in mapped else region.samples_unmapped + 1
            if region.kind == "anon" and region.samples_unmapped > 1 and not (path or region.allocated_bytes):
                self._settle_gone(region, now_ns)  # no page, so no teardown that could be seen
        self._capture.insert_all("sample", "time_ns, region, allocated_bytes", rows)
        self._capture.commit()

    # ---- the account of a region ----

    def _bury(self, region: Region, give_up: bool) -> None:
        """A region whose teardown began: its last account, as soon as the teardown is over."""
        raw = self._probes.regions[events.pack_key(region.key)]
        if raw is None:
            return
        size_bytes, gone_us, final_pages, swapped_pages, torn_pages, _, _ = wire.REGION.unpack(raw)
        if torn_pages + swapped_pages < final_pages and not give_up:
            return
        region.vss_bytes = max(region.vss_bytes, size_bytes)
        region.allocated_bytes = final_pages * PAGE_BYTES
        self._settle_gone(region, gone_us * 1000 + self._began_ns + self._wall_ns, swapped_pages)

    def _settle_gone(self, region: Region, gone_ns: int, swapped_pages: int = 0) -> None:
        numbers = range(-(-region.vss_bytes // BLOCK_BYTES))
        blocks = {number: block for number in numbers if (block := self._probes.block(region.id, number))}
        entries = ledger.read(blocks, region.baseline, None, self._owner, swapped_pages)
        if (entries.touched_pages + entries.before_pages) * PAGE_BYTES < region.allocated_bytes:
            blocks = self._probes.blocks().get(region.id, {})  # it may have grown since it was mapped
            entries = ledger.read(blocks, region.baseline, None, self._owner, swapped_pages)
        self._write(region, entries, {}, procfs.Residency(None, swapped_pages * PAGE_BYTES), gone_ns)
        for number in blocks:
            del self._probes.ledger[wire.BLOCK_KEY.pack(region.id, number)]
        del self._probes.regions[events.pack_key(region.key)]
        del self._probes.mappings[wire.TGID.pack(region.id)]
        del self.regions[region.id]

    def _settle_live(self, region: Region, blocks: dict[int, Block], mapped: dict[int, dict[int, int]]) -> None:
        path = self._find_path(region, mapped, open_files=True)
        found = procfs.survey(path) if path else None
        if found:
            region.vss_bytes, region.allocated_bytes = found.vss_bytes, found.allocated_bytes
            present = PageSet(found.pages)
        elif region.allocated_bytes == 0 and region.id not in mapped:
            return self._settle_gone(region, time.time_ns())
        else:  # alive, and out of reach: the ledger's word is taken for it
            present = PageSet([(0, 1 << 40)])
        if region.kind == "hugetlb":
            start_pages = min(region.start_bytes, region.allocated_bytes) // PAGE_BYTES
            region.baseline = present = PageSet([(0, start_pages)])
        entries = ledger.read(blocks, region.baseline, present, self._owner)
        residency = procfs.residency(path) if path else procfs.Residency(None, None)
        self._write(region, entries, mapped.get(region.id, {}), residency, None)
        return None

    def _owner(self, tgid: int, when_us: int) -> int:
        return self.lives.at(tgid, when_us).row

    def _write(
        self,
        region: Region,
        entries: ledger.Entries,
        mapped: Iterable[int],
        residency: procfs.Residency,
        gone_ns: int | None,
    ) -> None:
        mappers = [process for tgid in mapped if (process := self.lives.alive(tgid))]
        if not region.creator:
            self._infer_creator(region, mappers)
        roll_up = self._roll_up(region, mappers)
        self._capture.update(
            "region",
            region.row,
            gone_ns=gone_ns,
            top=roll_up.row if roll_up else None,
            vss_bytes=region.vss_bytes,
            allocated_bytes=region.allocated_bytes,
            peak_bytes=max(region.peak_bytes, region.allocated_bytes),
            resident_bytes=residency.resident_bytes,
            swapped_bytes=residency.swapped_bytes,
            start_bytes=region.start_bytes,
        )
        began_wall_ns = self._began_ns + self._wall_ns
        self._capture.insert_all(
            "extent",
            'region, start, "end", process, first_ns, last_ns',
            (
                (
                    region.row,
                    extent.start,
                    extent.end,
                    extent.owner,
                    None if extent.first_us is None else began_wall_ns + extent.first_us * 1000,
                    None if extent.last_us is None else began_wall_ns + extent.last_us * 1000,
                )
                for extent in entries.extents
            ),
        )
        self._write_usage(region, mappers)

    def _write_usage(self, region: Region, mappers: list[Process]) -> None:
        usage: dict[int, list[int | None]] = {process.row: [None, 0, 1] for process in mappers}
        for tgid, start_time_ns in region.touchers:
            process = self.lives.find(tgid, start_time_ns)
            raw = self._take_usage(region.id, tgid, start_time_ns)
            if process and raw:
                faults, _, freed = wire.USAGE.unpack(raw)
                usage[process.row] = [faults, freed, int(process in mappers)]
        for tgid in {tgid for tgid, _ in region.touchers}:
            # pages freed after their toucher had died and its PID had another: all the kernel could tell is that
            raw = self._take_usage(region.id, tgid, 0)
            if raw:
                row = self.lives.at(tgid, -1).row
                usage.setdefault(row, [None, 0, 0])[1] = wire.USAGE.unpack(raw)[2] + (usage[row][1] or 0)
        self._capture.insert_all(
            "usage", "region, process, faults, freed_pages, mapped", ((region.row, row, *rest) for row, rest in usage.items())
        )

    def _take_usage(self, region_id: int, tgid: int, start_time_ns: int) -> bytes | None:
        key = wire.USAGE_KEY.pack(region_id, tgid, start_time_ns)
        raw = self._probes.usages[key]
        del self._probes.usages[key]
        return raw

    def _infer_creator(self, region: Region, mappers: list[Process]) -> None:
        if region.kind == "sysv":
            segment = self._proc.sysv_segments().get(region.key.ino)
            if segment:
                self._created(region, self.lives.at(segment.creator, -1), "shmget", None)
            return
        oldest = top(mappers)
        if not oldest:
            return
        born_ns = oldest.start_time_ns + self._began_ns + self._wall_ns - self._began_boot_ns
        created_ns = procfs.birth_time_ns(region.path) if region.path else None
        if created_ns is None or born_ns <= created_ns + procfs.TICK_NS:
            self._created(region, oldest, "inferred", created_ns)

    def _roll_up(self, region: Region, mappers: list[Process]) -> Process | None:
        """The region's creator, or whoever stands in for it now: the top of those who map it, an ancestor of it."""
        creator = region.creator
        if creator and not creator.exited:
            return creator
        above = (process for process in (creator.ancestors() if creator else ()) if not process.exited)
        return top(mappers) or next(above, creator)

    # ---- the end ----

    def finish(self) -> None:
        """The final account of all that is still there."""
        self._keep_up(0)
        end = time.monotonic() + TEARDOWN_S
        while any(region.dying_since_s for region in self.regions.values()) and time.monotonic() < end:
            self._keep_up(0.01)
        alive = [process for process in self.lives if not process.exited]
        rss_bytes = 0
        for process in alive:
            self._refresh_title(process)
            rss_bytes += self._proc.rss_bytes(process.tgid) or 0
        self._sample()
        blocks = self._probes.blocks()
        mapped = self._mapped()
        for region in list(self.regions.values()):
            self._settle_live(region, blocks.get(region.id, {}), mapped)
        losses = self._probes.losses()
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._capture.insert(
            "session",
            host=procfs.host(),
            kernel=kernel.release(),
            tier=kernel.FAULTS.name,
            blind_to="\n".join(kernel.FAULTS.blind_to + self._probes.missing),
            started_ns=self._attached_ns + self._wall_ns,
            ended_ns=time.time_ns(),
            sum_of_rss_bytes=rss_bytes,
            shmem_total_bytes=self._proc.memory().shmem_bytes,
            lost_events=losses["events"],
            lost_pages=losses["pages"],
            warnings="\n".join(self._warnings + kernel.explain(losses)),
            self_cpu_seconds=used.ru_utime + used.ru_stime,
            self_rss_bytes=used.ru_maxrss * 1024,
            attach_seconds=(self._attached_ns - self._began_ns) / 1e9,
        )
        self._capture.commit()

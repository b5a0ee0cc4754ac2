"""A trace: the probes' events and the ledger, joined with /proc, written into a capture."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

from tracer import events, kernel, ledger, procfs, targets, wire
from tracer.capture import Capture
from tracer.clock import Clock
from tracer.closing import ALL_PAGES, BLOCK_BYTES, Closing
from tracer.events import Event
from tracer.lives import Lives, Process
from tracer.probes import Probes, Sizes
from tracer.procfs import PAGE_BYTES, Proc, ProcessStat, RegionKey
from tracer.regions import Finder, Mapped, Region
from tracer.targets import Targets

ROOM_BYTES = 4 << 30  # of regions that are made during the trace
TEARDOWN_S = 1.0  # a teardown that was not seen to end by then has ended unseen
POLL_S = 0.2


class Summary(NamedTuple):
    """Where a trace stands."""

    elapsed_s: float
    nr_processes: int
    nr_regions: int
    allocated_bytes: int
    grown_bytes: int
    grower: str | None
    """PID and command of who touched most so far"""
    grower_bytes: int


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
        self.lives = Lives(capture)
        self.regions: dict[int, Region] = {}
        self._capture = capture
        self._wanted = wanted
        self._excluded = {os.getpid(), *excluded}
        self._interval_s = interval_s
        self._room_bytes = room_bytes
        self._proc = Proc()
        self._finder = Finder(self._proc)
        self._segments: dict[int, int] = {}  # by shmid: the tgid of who asked for it first
        self._warnings: list[str] = []
        self._next_region = 0
        self._sample_at_s = 0.0
        self._clock = Clock.start()

    # ---- start ----

    def __enter__(self) -> Trace:
        kernel.need_host_pids()
        processes = self._proc.processes()
        self._sizes = self._room(self._tree(processes))
        flags = ["WATCH_EXEC"] if self._wanted.everything or self._wanted.patterns else []
        flags += ["TRACE_ALL"] if self._wanted.everything else []
        self._probes = Probes(kernel.FAULTS, self._sizes, self._clock.monotonic_ns, self._clock.boot_ns, *flags)
        self._probes.__enter__()
        try:
            self._probes.attach()
            self._attached_ns = time.monotonic_ns()
            self._closing = Closing(self._capture, self._probes, self.lives, self._finder, self._clock)
            self._segments = {segment.shmid: segment.creator for segment in self._proc.sysv_segments().values()}
            self._adopt_tree(processes)
        except BaseException:
            self._probes.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._probes.__exit__(kind, error, trace)

    def _tree(self, processes: dict[int, ProcessStat]) -> list[int]:
        found = targets.tree(processes, self._wanted.roots(processes, self._excluded))
        return [tgid for tgid in found if tgid not in self._excluded]

    def _room(self, tree: list[int]) -> Sizes:
        """Room for what the targets map now and some more, never above what memory and swap can hold."""
        seen: dict[tuple[int, int, str], int] = {}
        for tgid in tree:
            for mapping in self._finder.mappings(tgid):
                identity = mapping.dev, mapping.ino, mapping.path
                if identity not in seen:
                    stat = procfs.region_stat(self._proc.map_file(tgid, mapping))
                    seen[identity] = stat.vss_bytes if stat else 0
        memory = self._proc.memory()
        size_bytes = min(sum(seen.values()) + self._room_bytes, memory.total_bytes + memory.swap_bytes)
        return Sizes(blocks=-(-size_bytes // BLOCK_BYTES), spaces=max(2048, 4 * len(tree)), regions=8192, usages=65536)

    def _adopt_tree(self, processes: dict[int, ProcessStat]) -> None:
        """All of the tree that exists and is not tracked yet, and the regions it has."""
        known = set(self.regions)
        # who is born meanwhile is tracked by the kernel from its fork, unless its parent was not yet
        while tree := [tgid for tgid in self._tree(processes) if not self.lives.alive(tgid)]:
            for tgid in tree:
                self._adopt(processes[tgid])
            processes = self._proc.processes(processes)
        mapped = self._mapped()
        for region in [self.regions[number] for number in self.regions.keys() - known]:
            region.take_baseline()
            self._closing.infer_creator(region, self._mappers(region, mapped))

    def _adopt(self, stat: ProcessStat) -> None:
        """A process that exists: the kernel is told of it first, and then of what it maps."""
        key = wire.TGID.pack(stat.tgid)
        start_time_ns = stat.start_time_ns
        blank = wire.SPACE_HEAD.pack(start_time_ns, 0, 0).ljust(wire.SPACE_BYTES, b"\0")
        if not self._probes.spaces.insert(key, blank):
            known = self._probes.spaces[key]  # its parent was tracked when it was born: its start to the nanosecond
            start_time_ns = wire.SPACE_HEAD.unpack_from(known)[0] if known else start_time_ns
        self._seed(self.lives.begin(stat.tgid, start_time_ns, stat.parent, stat.comm, stat.command, began_us=-1))

    def _seed(self, process: Process) -> None:
        """Tell the kernel what a process maps."""
        key = wire.TGID.pack(process.tgid)
        mappings: list[procfs.Mapping] | None = None
        while mappings != (now := self._finder.mappings(process.tgid)):  # until what was written is what is there
            mappings = now
            ranges = self._ranges(process.tgid, mappings)
            head = wire.SPACE_HEAD.pack(process.start_time_ns, 0, len(ranges))
            try:
                self._probes.spaces[key] = (head + b"".join(ranges)).ljust(wire.SPACE_BYTES, b"\0")
            except OSError:
                self._warn(kernel.LOSSES["spaces"])
        if not self._proc.process(process.tgid):  # it has exited, perhaps before the kernel side knew of it
            del self._probes.spaces[key]
            self.lives.end(process, time.time_ns())

    def _ranges(self, tgid: int, mappings: list[procfs.Mapping]) -> list[bytes]:
        ranges = []
        # a private mapping makes pages of a region too, where it reads a hole; it makes no region
        for mapping in sorted(mappings, key=lambda mapping: not mapping.shared):
            region = self._region_at(tgid, mapping)
            if region and region.kind != "hugetlb":
                ranges.append(wire.RANGE.pack(mapping.start, mapping.end, region.id, mapping.first_index))
        if len(ranges) > wire.MAX_RANGES:
            self._warn(kernel.LOSSES["ranges"])
        return ranges[: wire.MAX_RANGES]

    def _region_at(self, tgid: int, mapping: procfs.Mapping) -> Region | None:
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
                self._warn(kernel.LOSSES["regions"])
                return None
            *_, number, _ = wire.REGION.unpack(existing)  # the kernel met it first
        region = self._enter(number, key, *self._finder.describe(tgid, mapping), procfs.birth_time_ns(path))
        region.path, region.address = path, mapping.start
        return region

    def _enter(self, number: int, key: RegionKey, kind: str, name: str, created_ns: int | None) -> Region:
        row = self._capture.insert(
            "region", dev=key.dev, ino=key.ino, generation=key.generation, kind=kind, name=name, created_ns=created_ns
        )
        region = self.regions[number] = Region(row, number, key, kind, path=None)
        return region

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    # ---- on the way ----

    def run(self, seconds: float) -> None:
        """Keep up with the kernel for so long, or until stopping."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            self._keep_up(min(left, POLL_S))

    def _keep_up(self, timeout_s: float) -> None:
        for event in self._probes.poll(timeout_s):
            self._apply(event)
        now = time.monotonic()
        for region in [region for region in self.regions.values() if region.dying_since_s]:
            if self._closing.bury(region, give_up=now - (region.dying_since_s or now) > TEARDOWN_S):
                del self.regions[region.id]
        if now >= self._sample_at_s or len(self.regions) > self._sizes.regions // 2:
            self._sample()
            self._sample_at_s = now + self._interval_s

    def _apply(self, event: Event) -> None:
        process = self.lives.alive(event.head.tgid)
        if isinstance(event, events.Fork):
            self._forked(event)
        elif isinstance(event, events.Exec):
            self._executed(event, process)
        elif isinstance(event, events.Exit):
            if process:
                self.lives.rename(process, event.comm, event.command)
                self.lives.end(process, self._clock.wall(event.head.time_ns))
        elif isinstance(event, events.Region):
            self._met(event, process)
        elif isinstance(event, events.Touch):
            region = self.regions.get(event.id)
            if region and process:
                region.touchers.add(process.key)
                self._refresh_title(process)
        elif isinstance(event, events.Segment):
            self._segments.setdefault(event.shmid, event.head.tgid)
        elif event.id in self.regions:
            self.regions[event.id].dying_since_s = time.monotonic()

    def _forked(self, event: events.Fork) -> None:
        head = event.head
        parent = self.lives.alive(event.parent_tgid)
        if not parent and not self._wanted.everything:
            # the child of a process that was watched since its exec, and is none of ours
            del self._probes.spaces[wire.TGID.pack(head.tgid)]
        elif not self.lives.find(head.tgid, head.start_time_ns):  # else /proc showed it first
            command = parent.command if parent else ""
            began_us = self._clock.since_us(head.time_ns)
            self.lives.begin(head.tgid, head.start_time_ns, event.parent_tgid, event.comm, command, began_us)

    def _executed(self, event: events.Exec, process: Process | None) -> None:
        head = event.head
        if process:
            self.lives.rename(process, event.comm, event.command)
        elif self._wanted.match(event.comm, event.title) and head.tgid not in self._excluded:
            stat = self._proc.process(head.tgid)
            parent_tgid = stat.parent if stat else None
            began_us = self._clock.since_us(head.time_ns)
            found = self.lives.begin(head.tgid, head.start_time_ns, parent_tgid, event.comm, event.command, began_us)
            if stat and event.tracked and not self._probes.spaces[wire.TGID.pack(head.tgid)]:
                # the kernel side had been told to drop it, for its parent was watched and is none of ours
                self._seed(found)
                self._adopt_tree(self._proc.processes())
        else:
            del self._probes.spaces[wire.TGID.pack(head.tgid)]

    def _met(self, event: events.Region, process: Process | None) -> None:
        """A region that the kernel side met first: made, or mapped by the tree for the first time."""
        if event.id in self.regions:
            return
        if not process:  # of a process that was watched, and is none of ours
            self._closing.forget(event.id, event.key, range(-(-event.vss_bytes // BLOCK_BYTES)))
            return
        kind = procfs.kind_of(event.key.dev, event.file_system, event.name)
        name = f"/dev/shm/{event.name}" if kind == "posix" else f"/{event.name}"
        region = self._enter(event.id, event.key, kind, name, None)
        region.vss_bytes = event.vss_bytes
        region.first_mapper = process
        if event.made:
            self._made_by(region, process, "traced", self._clock.wall(event.head.time_ns))
        elif kind == "sysv" and event.key.ino in self._segments:
            creator = self.lives.at(self._segments[event.key.ino], self._clock.since_us(event.head.time_ns))
            self._made_by(region, creator, "traced", None)
        path = None if event.made else self._finder.find_path(region, self._mapped())
        if path:
            self._capture.update("region", region.row, name=procfs.link_name(path))
            born_ns = procfs.birth_time_ns(path)
            if born_ns is None or born_ns < self._clock.wall_ns:  # else nothing in it is from before
                region.take_baseline()

    def _recover(self) -> None:
        """Regions whose event was lost are in the kernel's map all the same, by number; not their makers."""
        mapped = self._mapped()
        for raw_key, value in self._probes.regions.items():
            size_bytes, *_, number, huge = wire.REGION.unpack(value)
            # one that nobody maps now may be of a process that was watched, and is none of ours
            ours = not self._wanted.patterns or any(self.lives.alive(tgid) for tgid in mapped.get(number, {}))
            if number in self.regions or not ours:
                continue
            key = events.unpack_key(raw_key)
            region = Region(0, number, key, "", path=None)
            path = self._finder.find_path(region, mapped)
            name = procfs.link_name(path) if path else "?"
            kind = procfs.kind_of(key.dev, procfs.HUGETLBFS_MAGIC if huge else procfs.TMPFS_MAGIC, name)
            self._enter(number, key, kind, name, None).vss_bytes = size_bytes

    def _made_by(self, region: Region, creator: Process, how: str, created_ns: int | None) -> None:
        region.creator = creator
        self._capture.update("region", region.row, creator=creator.row, creator_how=how, created_ns=created_ns)

    def _refresh_title(self, process: Process) -> None:
        """Titles are written after the fork; one that comes later still is read at the exit, or at the end."""
        stat = self._proc.process(process.tgid)
        if stat and abs(stat.start_time_ns - process.start_time_ns) <= procfs.TICK_NS:
            self.lives.rename(process, stat.comm, stat.command)

    def _mapped(self) -> Mapped:
        """Who maps what now: region, tgid, an address."""
        found: dict[int, dict[int, int]] = {}
        for key, value in self._probes.spaces.items():
            _, _, nr_ranges = wire.SPACE_HEAD.unpack_from(value)
            for i in range(nr_ranges):
                start, end, number, _ = wire.RANGE.unpack_from(value, wire.SPACE_HEAD.size + i * wire.RANGE.size)
                if end:
                    addresses = found.setdefault(number, {})
                    tgid = wire.TGID.unpack(key)[0]
                    addresses[tgid] = min(start, addresses.get(tgid, start))
        return found

    def _mappers(self, region: Region, mapped: Mapped) -> list[Process]:
        return [process for tgid in mapped.get(region.id, {}) if (process := self.lives.alive(tgid))]

    def _sample(self) -> None:
        """How much each region has now: one stat each."""
        now_ns = time.time_ns()
        mapped = self._mapped()
        rows = []
        for region in list(self.regions.values()):
            path = self._finder.find_path(region, mapped)
            stat = procfs.region_stat(path) if path else None
            if stat:
                if stat.allocated_bytes != region.sampled_bytes:
                    rows.append((now_ns, region.row, stat.allocated_bytes))
                region.vss_bytes, region.allocated_bytes = stat
                region.sampled_bytes = stat.allocated_bytes
                region.peak_bytes = max(region.peak_bytes, stat.allocated_bytes)
            region.address = next(iter(mapped.get(region.id, {}).values()), region.address)
            region.samples_unmapped = 0 if region.id in mapped else region.samples_unmapped + 1
            if path or region.dying_since_s or region.id in mapped:
                continue
            if self._closing.torn_down(region):
                region.dying_since_s = time.monotonic()  # the event of it is still to come, or was lost
            elif region.kind == "anon" and region.samples_unmapped > 1 and not region.allocated_bytes:
                self._closing.gone(region, now_ns)  # it had no page, so there was no teardown to see
                del self.regions[region.id]
        self._capture.insert_all("sample", "time_ns, region, allocated_bytes", rows)
        self._capture.commit()

    # ---- where it stands ----

    def over(self) -> bool:
        """Whether all of the tree has ended: by the kernel's map, for the event of it may be lost."""
        return next(self._probes.spaces.items(), None) is None

    def size(self) -> str:
        """What is traced, in a few words."""
        alive = sum(not process.exited for process in self.lives)
        return f"{alive} {'process' if alive == 1 else 'processes'}, {len(self.regions)} region(s)"

    def summary(self) -> Summary:
        touched: dict[int, int] = {}
        for key, value in self._probes.usages.items():
            _, tgid, _ = wire.USAGE_KEY.unpack(key)
            touched[tgid] = touched.get(tgid, 0) + wire.USAGE.unpack(value)[1] * PAGE_BYTES
        most = max(touched, key=lambda tgid: touched[tgid], default=None)
        process = self.lives.last(most) if most else None
        regions = self.regions.values()
        return Summary(
            elapsed_s=(time.monotonic_ns() - self._attached_ns) / 1e9,
            nr_processes=sum(not process.exited for process in self.lives),
            nr_regions=len(self.regions),
            allocated_bytes=sum(region.allocated_bytes for region in regions),
            grown_bytes=sum(region.allocated_bytes - region.start_bytes for region in regions),
            grower=f"{process.tgid} {process.command}" if process else None,
            grower_bytes=touched[most] if most else 0,
        )

    def touched_pages(self, region: Region) -> dict[int, int]:
        """Who touched how many of a region's pages first, up to now: by tgid."""
        touched: dict[int, int] = {}
        entries = ledger.read(self._closing.blocks(region), region.baseline, ALL_PAGES, lambda tgid, _: tgid)
        for extent in entries.extents:
            if extent.owner is not None:
                touched[extent.owner] = touched.get(extent.owner, 0) + extent.end - extent.start
        return touched

    # ---- the end ----

    def finish(self) -> None:
        """Close the accounts of all that is still there."""
        end = time.monotonic() + TEARDOWN_S
        self._keep_up(0)
        if self._probes.losses()["events"]:
            self._recover()
        self._sample()
        while any(region.dying_since_s for region in self.regions.values()) and time.monotonic() < end:
            self._keep_up(0.01)
        rss_bytes = 0
        for process in self.lives:
            if not process.exited:
                self._refresh_title(process)
                rss_bytes += self._proc.rss_bytes(process.tgid) or 0
        mapped = self._mapped()
        # first which pages there are and then whose: a page that comes between the two is no page without an owner
        surveys = {region.id: self._closing.survey(region, mapped) for region in self.regions.values()}
        blocks = self._probes.blocks()
        for region in self.regions.values():
            self._closing.alive(
                region, surveys[region.id], blocks.get(region.id, {}), mapped, self._mappers(region, mapped)
            )
        losses = self._probes.losses()
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._capture.insert(
            "session",
            host=procfs.host(),
            kernel=kernel.release(),
            tier=kernel.FAULTS.name,
            blind_to="\n".join(kernel.FAULTS.blind_to + self._probes.missing),
            started_ns=self._clock.wall(self._attached_ns),
            ended_ns=time.time_ns(),
            sum_of_rss_bytes=rss_bytes,
            shmem_total_bytes=self._proc.memory().shmem_bytes,
            lost_events=losses["events"],
            lost_pages=losses["pages"],
            warnings="\n".join(self._warnings + kernel.explain(losses)),
            self_cpu_seconds=used.ru_utime + used.ru_stime,
            self_rss_bytes=used.ru_maxrss * 1024,
            attach_seconds=(self._attached_ns - self._clock.monotonic_ns) / 1e9,
        )
        self._capture.commit()

"""A trace: the probes' events and the ledger, joined with /proc, written into a capture."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from tracer import __version__, events, kernel, ledger, private, probes, procfs, targets, wire
from tracer.adopting import Adopting
from tracer.capture import PAGE_BYTES, Capture
from tracer.clock import Clock
from tracer.closing import ALL_PAGES, BLOCK_BYTES, Closing
from tracer.errors import ShmtraceError
from tracer.events import Event
from tracer.keeping import Keeping
from tracer.labelling import Labelling
from tracer.lives import Lives, Process
from tracer.private import Private
from tracer.probes import Sizes
from tracer.procfs import Proc, ProcessStat, RegionKey
from tracer.regions import Finder, Region, on_lease
from tracer.sources import Source
from tracer.targets import Targets

if TYPE_CHECKING:
    from tracer.stacks import Stacks

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
        interval_s: float = 0.5,
        room_bytes: int = ROOM_BYTES,
        source: Source | None = None,
        stacks: bool = False,
    ) -> None:
        """stacks: pages are counted by user stack, too."""
        self.stopping = False
        self.regions: dict[int, Region] = {}
        self._capture = capture
        self._wanted = wanted
        self._excluded = {os.getpid(), *excluded}
        self._interval_s = interval_s
        self._room_bytes = room_bytes
        self._source = source
        self._labelling: Labelling | None = None
        self._wants_stacks = stacks
        self._stacks: Stacks | None = None
        self._proc = Proc()
        self._finder = Finder(self._proc)
        self._unmet: dict[int, list[events.Touch | events.Punch]] = {}  # of regions that were not heard of yet
        self._segments: dict[int, int] = {}  # by shmid: the tgid of who asked for it first
        self._warnings: list[str] = []
        self._unread: dict[int, str] = {}  # names of regions by row, of which it is not known which pages they had
        self._shmem_bytes: int | None = None
        self._sample_at_s = 0.0
        self._clock = Clock.start()
        self.lives = Lives(capture, self._clock)

    # ---- start ----

    def __enter__(self) -> Trace:
        kernel.need_host_pids()
        if procfs.PAGE_BYTES != PAGE_BYTES:
            raise ShmtraceError(
                f"this host's pages have {procfs.PAGE_BYTES} bytes, and a trace counts pages of {PAGE_BYTES}",
                "`shmtrace snapshot` works here",
            )
        processes = self._proc.processes()
        self._sizes = self._room(self._tree(processes))
        flags = ["WATCH_EXEC"] if self._wanted.everything or self._wanted.patterns else []
        flags += ["TRACE_ALL"] if self._wanted.everything else []
        tiers = kernel.TIERS
        if self._source:
            tiers = [kernel.labelled(tier) for tier in tiers]
            flags += [f"NR_TEXTS={len(self._source.texts)}"] + ["LABEL_FILES"] * bool(self._source.functions)
        flags += [probes.STACKS] if self._wants_stacks else []
        clock = self._clock
        self._probes = probes.attached(tiers, self._sizes, clock.monotonic_ns, clock.boot_ns, *flags)
        self._probes.__enter__()
        try:
            self._attached_ns = time.monotonic_ns()
            self._session = self._capture.insert(
                "session",
                version=__version__,
                host=procfs.host(),
                kernel=kernel.release(),
                tier=self._probes.tier.name,
                mechanism=self._probes.tier.by,
                label=self._source.name if self._source else None,
                blind_to="\n".join(dict.fromkeys(self._probes.tier.blind_to + self._probes.missing)),
                started_ns=clock.wall(self._attached_ns),
                ended_ns=clock.wall(self._attached_ns),
                attach_seconds=(self._attached_ns - clock.monotonic_ns) / 1e9,
            )
            if self._source:
                self._labelling = Labelling(self._capture, self._probes, self._proc, self._source)
            self._adopting = Adopting(
                self._probes, self._proc, self._finder, self.lives, self.regions, self._enter, self._warn
            )
            self._closing = Closing(self._capture, self._probes, self.lives, self._labelling, self._finder, self._clock)
            self._keeping = Keeping(self._capture, self._probes, self.lives, self._closing, self._clock)
            if self._wants_stacks:
                from tracer.stacks import Stacks

                self._stacks = Stacks(self._capture, self._probes, self.lives, self.regions, self._warn)
            self._segments = {segment.shmid: segment.creator for segment in self._proc.sysv_segments().values()}
            self._adopt_tree(processes)
            self._private = self._measure_private()
        except BaseException:
            self._probes.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._probes.__exit__(kind, error, trace)

    def _measure_private(self) -> Private:
        tree = self.lives.tree()
        return private.measure(self._proc, (process.tgid for process in tree), (process.cgroup for process in tree))

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
        return Sizes(
            blocks=-(-size_bytes // BLOCK_BYTES), processes=max(2048, 4 * len(tree)), regions=8192, usages=65536
        )

    def _adopt_tree(self, processes: dict[int, ProcessStat]) -> None:
        """All of the tree that exists and is not tracked yet, and the regions it has."""
        known = set(self.regions)
        # who is born meanwhile is tracked by the kernel from its fork, unless its parent was not yet
        while tree := [tgid for tgid in self._tree(processes) if not self.lives.alive(tgid)]:
            for tgid in tree:
                if self._labelling:
                    self._labelling.adopt(tgid)
                self._adopting.adopt(processes[tgid])
            processes = self._proc.processes(processes)
        self._begin_accounts(known)

    def _begin_accounts(self, known: set[int]) -> None:
        """Of the regions that are not known: they were there before."""
        fresh = [self.regions[number] for number in self.regions.keys() - known]
        mapped = self._finder.mapped(self.lives.tree(), fresh) if fresh else {}
        for region in fresh:
            self._take_baseline(region)
            self._closing.infer_creator(
                region, [process for tgid in mapped.get(region.id, ()) if (process := self.lives.alive(tgid))]
            )

    def _take_baseline(self, region: Region) -> None:
        region.take_baseline()
        if region.unread:
            self._unread[region.row] = procfs.link_name(region.path) if region.path else "?"
        else:
            self._unread.pop(region.row, None)

    def _ask_again(self) -> None:
        """Whoever did not answer, and for what could not be read without waiting."""
        known = set(self.regions)
        self._adopting.ask_again()
        self._begin_accounts(known)
        for region in self.regions.values():
            if region.unread:
                self._take_baseline(region)

    def _enter(self, number: int, key: RegionKey, kind: str, name: str, created_ns: int | None) -> Region:
        row = self._capture.insert(
            "region", dev=key.dev, ino=key.ino, generation=key.generation, kind=kind, name=name, created_ns=created_ns
        )
        region = self.regions[number] = Region(row, number, key, kind, path=None)
        if self._stacks:
            self._stacks.enter(region)
        return region

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    # ---- on the way ----

    def run(self, seconds: float) -> None:
        """Keep up with the kernel for so long, or until stopping."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            self._keep_up(min(left, POLL_S, max(self._sample_at_s - time.monotonic(), 0)))

    def _keep_up(self, timeout_s: float) -> None:
        for event in self._probes.poll(timeout_s):
            self._apply(event)
        now = time.monotonic()
        for region in [region for region in self.regions.values() if region.dying_since_s]:
            if self._closing.bury(region, give_up=now - (region.dying_since_s or now) > TEARDOWN_S):
                del self.regions[region.id]
        if now >= self._sample_at_s or len(self.regions) > self._sizes.regions // 2:
            self._sample_at_s = now + self._interval_s
            self._sample()

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
            if self._labelling:
                self._labelling.ended(event.head.tgid)
        elif isinstance(event, events.Region):
            self._met(event, process)
        elif isinstance(event, (events.Touch, events.Punch)) and event.id not in self.regions:
            self._unmet.setdefault(event.id, []).append(event)
        elif isinstance(event, events.Touch):
            self._touched(event, process)
        elif isinstance(event, events.Punch):
            since_us = self._clock.since_us(event.head.time_ns)
            self.regions[event.id].punches[event.first, event.end] = since_us
            self.regions[event.id].punched.append((event.first, event.end))
        elif isinstance(event, events.Label):
            if self._labelling:
                self._labelling.heard(event)
        elif isinstance(event, events.Segment):
            self._segments.setdefault(event.shmid, event.head.tgid)
        elif event.id in self.regions:
            self.regions[event.id].dying_since_s = time.monotonic()
        else:  # a file of a tmpfs that was never mapped, or of a process that was watched and is none of ours
            self._forget(event.id)
        if self._stacks:
            self._stacks.apply(event)

    def _touched(self, event: events.Touch, process: Process | None) -> None:
        head = event.head
        if not process and event.stranger:
            process = self._enter_stranger(head, event.comm)
        if process:  # else it was watched, and is none of ours
            region = self.regions[event.id]
            region.touchers.add(process.key)
            if region.address is None:
                self._finder.locate(region, process)
            self._refresh_title(process)

    def _enter_stranger(self, head: events.Head, comm: str) -> Process:
        stat = self._proc.process(head.tgid)
        command, parent_tgid = (stat.command, stat.parent) if stat else ("", None)
        # its PID may have been one of the tree's before
        began_us = max((head.start_time_ns - self._clock.boot_ns) // 1000, -1)
        return self.lives.begin(
            head.tgid,
            head.start_time_ns,
            parent_tgid,
            comm,
            command,
            began_us,
            cgroup=self._proc.cgroup(head.tgid),
            stranger=True,
            ns_tgid=self._proc.ns_tgid(head.tgid),
        )

    def _forked(self, event: events.Fork) -> None:
        head = event.head
        parent = self.lives.alive(event.parent_tgid)
        if not parent and not self._wanted.everything:
            # the child of a process that was watched since its exec, and is none of ours
            self._adopting.drop(head.tgid)
        elif not self.lives.find(head.tgid, head.start_time_ns):  # else /proc showed it first
            command = parent.command if parent else ""
            began_us = self._clock.since_us(head.time_ns)
            child = self.lives.begin(head.tgid, head.start_time_ns, event.parent_tgid, event.comm, command, began_us)
            if parent and parent.ns_tgid is not None:
                self._refresh_title(child)  # its number in there is known to /proc alone, and only while it lives
            if self._labelling:
                self._labelling.begin(head.tgid, began_us, event.parent_tgid)

    def _executed(self, event: events.Exec, process: Process | None) -> None:
        head = event.head
        if process and not process.stranger:
            self.lives.executed(process, event.comm, event.command, self._clock.wall(head.time_ns))
            self._label(head)
        elif self._wanted.match(event.comm, event.title) and head.tgid not in self._excluded:
            stat = self._proc.process(head.tgid)
            parent_tgid = stat.parent if stat else None
            began_us = self._clock.since_us(head.time_ns)
            found = self.lives.begin(
                head.tgid,
                head.start_time_ns,
                parent_tgid,
                event.comm,
                event.command,
                began_us,
                cgroup=self._proc.cgroup(head.tgid),
                ns_tgid=self._proc.ns_tgid(head.tgid),
            )
            self._label(head)
            if stat and event.tracked and not self._probes.processes[wire.TGID.pack(head.tgid)]:
                # the kernel side had been told to drop it, for its parent was watched and is none of ours
                self._adopting.seed(found)
                self._adopt_tree(self._proc.processes())
        else:
            self._adopting.drop(head.tgid)

    def _label(self, head: events.Head) -> None:
        """Another program has other labels, or none."""
        if self._labelling:
            self._labelling.begin(head.tgid, self._clock.since_us(head.time_ns))
            self._labelling.adopt(head.tgid)

    def _met(self, event: events.Region, process: Process | None) -> None:
        """A region that the kernel side met first: made, or mapped by the tree for the first time."""
        if event.id in self.regions:
            return
        if not process:  # of a process that was watched, and is none of ours
            self._forget(event.id)
            return
        kind = procfs.kind_of(event.key.dev, event.file_system, event.name)
        name = f"/dev/shm/{event.name}" if kind == "posix" else f"/{event.name}"
        region = self._enter(event.id, event.key, kind, name, None)
        region.vss_bytes = event.vss_bytes
        region.first_mapper = process
        for earlier in self._unmet.pop(event.id, ()):
            self._apply(earlier)
        maker = event.made and self.lives.find(event.made.tgid, event.made.start_time_ns)
        if event.made and maker:
            self._made_by(region, maker, "traced", self._clock.wall(event.made.time_ns))
        elif kind == "sysv" and event.key.ino in self._segments:
            creator = self.lives.at(self._segments[event.key.ino], self._clock.since_us(event.head.time_ns))
            self._made_by(region, creator, "traced", None)
        if event.made and kind not in ("posix", "other"):  # a new one without a path, and nothing in it is from before
            return
        self._finder.locate(region, process)
        if region.path:
            self._capture.update("region", region.row, name=procfs.link_name(region.path))
            born_ns = procfs.birth_time_ns(region.path)
            if not event.made and (born_ns is None or born_ns < self._clock.wall_ns):
                self._take_baseline(region)

    def _forget(self, number: int) -> None:
        region = self._probes.region(number)
        self._probes.forget(number, range(-(-region.size_bytes // BLOCK_BYTES)) if region else ())
        for event in self._unmet.pop(number, ()):
            if isinstance(event, events.Touch):
                self._probes.take_usage(number, event.head.tgid, event.head.start_time_ns)

    def _recover(self) -> None:
        """Regions whose event was lost are in the kernel's map all the same, by number; not their makers."""
        for raw_number, raw in self._probes.regions.items():
            (number,), found = wire.REGION_ID.unpack(raw_number), probes.KernelRegion.unpack(raw)
            if number in self.regions or not found.told:
                continue
            region = Region(0, number, found.key, "", path=None)
            self._finder.find_path(region, self._finder.mapped(self.lives.tree(), [region]))
            # one that nobody maps now may be of a process that was watched, and is none of ours
            if self._wanted.patterns and not region.path:
                continue
            name = procfs.link_name(region.path) if region.path else "?"
            kind = procfs.kind_of(found.key.dev, procfs.HUGETLBFS_MAGIC if found.huge else procfs.TMPFS_MAGIC, name)
            self._enter(number, found.key, kind, name, None).vss_bytes = found.size_bytes

    def _made_by(self, region: Region, creator: Process, how: str, created_ns: int | None) -> None:
        region.creator = creator
        self._capture.update("region", region.row, creator=creator.row, creator_how=how, created_ns=created_ns)

    def _refresh_title(self, process: Process) -> None:
        """Titles are written after the fork; one that comes later still is read at the exit, or at the end."""
        stat = self._proc.process(process.tgid)
        if stat and abs(stat.start_time_ns - process.start_time_ns) <= procfs.TICK_NS:
            self.lives.rename(process, stat.comm, stat.command)
            self.lives.move(process, self._proc.cgroup(process.tgid))
            if process.ns_tgid is None:
                self.lives.number(process, self._proc.ns_tgid(process.tgid))

    def _sample(self) -> None:
        """How each region stands now, written down: how much it has by its inode's own count, and who touched it."""
        self._ask_again()
        changed, measured = self._keeping.collect(self.regions)
        now_ns = time.time_ns()
        for event in self._probes.poll(0):
            self._apply(event)
        rows = []
        for number, now in measured.items():
            region = self.regions.get(number)
            if now and region:
                allocated_bytes, swapped_bytes = now.pages * PAGE_BYTES, now.swapped_pages * PAGE_BYTES
                sample = allocated_bytes, allocated_bytes - swapped_bytes, swapped_bytes
                if sample != region.sample:
                    rows.append((region.row, now_ns, *sample))
                region.vss_bytes, region.allocated_bytes, region.sample = now.size_bytes, allocated_bytes, sample
                region.peak_bytes = max(region.peak_bytes, allocated_bytes)
                region.samples_missed = 0
                continue
            if not region or region.dying_since_s:
                continue
            last = self._probes.region(number)
            region.samples_missed += 1
            if last and last.gone_us:
                region.dying_since_s = time.monotonic()  # the event of it is still to come, or was lost
            elif region.samples_missed > 1:
                self._closing.gone(region, now_ns)  # it had no page, so there was no teardown to see
                del self.regions[number]
        self._keeping.write(changed, self.regions)
        if self._stacks:
            self._stacks.write()
        self._capture.insert_all("sample", "region, time_ns, allocated_bytes, resident_bytes, swapped_bytes", rows)
        shmem_bytes = self._proc.memory().shmem_bytes
        if shmem_bytes != self._shmem_bytes:
            self._capture.insert_all("host_sample", "time_ns, shmem_bytes", [(now_ns, shmem_bytes)])
            self._shmem_bytes = shmem_bytes
        if not self._capture.keep_small():
            self._warn("the capture is larger than --max-size: what it has of pages and processes takes as much")
        self._keep_session(now_ns)
        self._capture.commit()

    def _keep_session(self, now_ns: int, **more: Any) -> None:
        losses = self._probes.losses()
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._capture.update(
            "session",
            self._session,
            ended_ns=now_ns,
            shmem_total_bytes=self._shmem_bytes,
            lost_events=losses["events"],
            lost_pages=losses["pages"],
            lost_probes=losses["probes"],
            warnings="\n".join(
                self._warnings
                + on_lease("what {} had before the trace is unseen", self._unread.values())
                + self._proc.warnings()
                + (self._labelling.warnings if self._labelling else [])
                + kernel.explain(losses)
            ),
            self_cpu_seconds=used.ru_utime + used.ru_stime,
            self_rss_bytes=used.ru_maxrss * 1024,
            **more,
        )

    # ---- where it stands ----

    def over(self) -> bool:
        """Whether all of the tree has ended: by the kernel's map, for the event of it may be lost."""
        return all(wire.PROCESS.unpack(value)[2] for _, value in self._probes.processes.items())

    def size(self) -> str:
        """What is traced, in a few words."""
        alive = len(self.lives.tree())
        return f"{alive} {'process' if alive == 1 else 'processes'}, {len(self.regions)} region(s)"

    def doubt(self) -> str | None:
        """Why what is traced has no labels, as it looks by now."""
        return self._labelling.doubt if self._labelling else None

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
            nr_processes=len(self.lives.tree()),
            nr_regions=len(self.regions),
            allocated_bytes=sum(region.allocated_bytes for region in regions),
            grown_bytes=sum(region.allocated_bytes - region.start_bytes for region in regions),
            grower=f"{process.tgid} {process.command}" if process else None,
            grower_bytes=touched[most] if most else 0,
        )

    def touched_pages(self, region: Region) -> dict[int, int]:
        """Who touched how many of a region's pages first, up to now: by tgid."""
        touched: dict[int, int] = {}
        entries = ledger.read(
            self._closing.blocks(region), region.baseline, ALL_PAGES, lambda tgid, _: tgid, punches=region.punches
        )
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
                rss_bytes += 0 if process.stranger else self._proc.rss_bytes(process.tgid) or 0
        alive = [process for process in self.lives if not process.exited]
        mapped = self._finder.mapped(alive, self.regions.values())
        if self._labelling:
            self._labelling.finish()
        # first which pages there are and then whose: a page that comes between the two is no page without an owner
        surveys = {region.id: self._closing.survey(region, mapped) for region in self.regions.values()}
        blocks = self._probes.blocks()
        for region in self.regions.values():
            theirs = mapped.get(region.id, {})
            mappings = {process: theirs[process.tgid] for process in alive if process.tgid in theirs}
            self._closing.alive(region, surveys[region.id], blocks.get(region.id, {}), mappings)
        if self._stacks:
            self._stacks.write(patience_s=math.inf)
        self._shmem_bytes = self._proc.memory().shmem_bytes
        start_bytes, end_bytes, how = private.change(self._private, self._measure_private())
        self._keep_session(
            time.time_ns(),
            complete=1,
            sum_of_rss_bytes=rss_bytes,
            private_start_bytes=start_bytes,
            private_end_bytes=end_bytes,
            private_how=how,
        )
        self._capture.commit()

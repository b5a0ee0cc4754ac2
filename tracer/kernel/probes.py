"""Loads and attaches the BPF programs in bpf/, and reads their maps and events."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from tracer.errors import ShmtraceError
from tracer.kernel import bpf_syscall, events, host, maps, perf, tiers
from tracer.kernel.bpf_syscall import Map
from tracer.kernel.bytecode import MapLayout, Wanted, compiled
from tracer.kernel.cache import Cache
from tracer.kernel.events import Event, Exec, Fork, OomKill, Touch
from tracer.kernel.fields import Function, KernelLayout
from tracer.kernel.loader import Beginning, Loaded, Sizes
from tracer.kernel.maps import Block, Blocks, Changes, Counts, MadeFor, ProcessSlots, Slots, Stacked, Usage
from tracer.kernel.ring import Ring
from tracer.kernel.tiers import Kind
from tracer.kernel.updates import KernelProcess, KernelRegion, News, met, oom_kill, text
from tracer.wire import (
    ASKER,
    COUNT,
    FREE_BLOCK,
    FREE_PROCESS,
    FREE_REGION,
    FREE_USAGE,
    LOSSES,
    MADE_FOR_KEY,
    NR_OOMS,
    NR_ROOM,
    OF_TREE,
    OUTSIDE_TREE,
    RECYCLED,
    REGION_ID,
    SLOT_BITS,
    STACK,
    STACKED_KEY,
    USAGE,
)

EVENT_BYTES = 1 << 20  # about 20,000 punches
LABEL_BYTES = 4 << 20  # about 9,000 labels
EMPTIED_AT_ONCE = 10  # limit of one run of the program empty, in bpf/maps.c
GRACE_S = 0.05  # after this time no running program still uses something that was removed before
STACKS = "STACKS"  # the flag that makes the programs count pages by user stack


class Probes:
    """The loaded programs of one tier, as a context manager. On exit only what is pinned remains in the kernel."""

    def __init__(
        self,
        tier: tiers.Tier,
        sizes: Sizes,
        loaded: Loaded,
        points: Mapping[str, Function],
        fexit: bool = False,
        is_armed: bool = False,
        warnings: Sequence[str] = (),
        missing: Sequence[str] = (),
    ) -> None:
        """sizes: as the maps were made. loaded: closed on exit. points, fexit: as tiers has them, for attach().

        is_armed: the trace belongs to no process, so that this one gives nothing back: recycle() does. warnings: what
        of the cache was not used, and why. missing: what is not seen, for lack of a function to attach to.
        """
        self.tier = tier
        self.warnings = warnings
        self.missing = list(missing)
        self.sizes, self._loaded, self._points, self._fexit, self._is_armed = sizes, loaded, points, fexit, is_armed
        self._links: list[int] = []
        self._open_maps()
        self.counts_faults = not tier.functions and not is_armed
        self._news = News()
        self._heard_late = False
        self._ooms_read = 0
        self._known_made_for: dict[int, list[MadeFor]] = {}
        self._made_for_known = [0]
        # by region id: (tgid, start_time_ns) to the number of its usage
        self._usages_of: dict[int, dict[tuple[int, int], int]] = {}
        self._leaving: set[int] = set()  # ids of forgotten regions that are not emptied yet
        # Ledger blocks by region id and part: those changed since changed() was called, and all.
        self._told: dict[int, dict[int, int]] = {}
        self._known: dict[int, dict[int, int]] = {}
        self._forgotten: deque[tuple[float, int, int]] = deque()
        """(time.monotonic(), kind, number) of what to empty once GRACE_S has passed."""

    def _open_maps(self) -> None:
        """Map or open the BPF maps that user space reads."""
        loaded, sizes = self._loaded, self.sizes

        def optional(name: str) -> Map | None:
            return loaded.map(name) if name in loaded.layouts else None

        self._askers, self._made_for = optional("askers"), optional("made_for")
        self._stacked, self._stacks = optional("stacked"), optional("stacks")
        self._blocks = Blocks(loaded.fd("ledger"), sizes.blocks)
        self._processes = ProcessSlots(loaded.fd("processes"), sizes.processes)
        self._regions = maps.regions(loaded.fd("regions"), sizes.regions)
        self._usages = maps.usages(loaded.fd("usages"), sizes.usages)
        self._ooms = maps.ooms(loaded.fd("ooms"))
        self._block_changes = Changes(loaded.fd("block_changes"), sizes.blocks)
        self._process_changes = Changes(loaded.fd("process_changes"), sizes.processes)
        self._region_changes = Changes(loaded.fd("region_changes"), sizes.regions)
        self._usage_changes = Changes(loaded.fd("usage_changes"), sizes.usages)
        self._mapped: list[Blocks | Changes | Counts | Slots] = [
            *(self._blocks, self._processes, self._regions, self._usages, self._ooms),
            *(self._block_changes, self._process_changes, self._region_changes, self._usage_changes),
        ]
        self._is_told = self._counts("told", 1)
        self._losses = self._counts("losses", len(LOSSES))
        self._room = self._counts("room", NR_ROOM)
        self._nr_ooms = self._counts("nr_ooms", 1)
        self._nr_made_for = self._counts("nr_made_for", 1) if self._made_for else None
        self._rings = [Ring(loaded.fd("events"), EVENT_BYTES, keeps=self._is_armed)]
        if tiers.LABELS[0] in self.tier.probes:
            self.labels = loaded.map("labels")
            self._rings.append(Ring(loaded.fd("label_events"), LABEL_BYTES))
        self._readable = select.poll()
        for ring in self._rings:
            self._readable.register(ring.fd, select.POLLIN)
        if self._is_armed:
            self.tell_all()

    def tell_all(self) -> None:
        """Set the change flags of all places in use: this process has read nothing yet."""
        arrays: list[tuple[Slots, Changes]] = [
            (self._blocks, self._block_changes),
            (self._processes, self._process_changes),
            (self._regions, self._region_changes),
            (self._usages, self._usage_changes),
        ]
        for array, changes in arrays:
            for place in array.taken():
                changes.add(place)

    def pin(self, directory: Path) -> None:
        """Keep all under a directory of a bpffs, so that it stays when this process ends. Raises OSError."""
        self._loaded.pin(directory)
        (directory / "links").mkdir(0o700)
        for number, link in enumerate(self._links):
            bpf_syscall.pin(link, directory / "links" / str(number))

    @property
    def nr_links(self) -> int:
        """How many programs are attached."""
        return len(self._links)

    def layouts(self) -> list[MapLayout]:
        """The attributes of all maps."""
        return list(self._loaded.layouts.values())

    def memory_bytes(self) -> int:
        """The kernel memory that the maps take."""
        return self._loaded.memory_bytes()

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # closing a link waits until no CPU runs its program, so close them in parallel
        with ThreadPoolExecutor(len(self._links) or 1) as pool:
            list(pool.map(os.close, self._links))
        for mapped in self._mapped:
            mapped.close()
        self._loaded.close()

    # ---- load and attach ----

    @property
    def attached(self) -> list[str]:
        """The kernel functions and tracepoints that the programs attach to."""
        there = [self._points[probe.program].name for probe in self.tier.functions if probe.program in self._points]
        others = [probe.points[0] for probe in self.tier.probes if probe not in self.tier.functions]
        return list(dict.fromkeys([*there, *others]))

    def _run(self, name: str, *arguments: int) -> int:
        return bpf_syscall.run(self._loaded.programs[name], *arguments)

    def attach(self) -> None:
        """Attach all probes of the tier, in order. From here on the programs write to the maps.

        Raises ShmtraceError where a required probe cannot be attached; what an optional one would see is added to
        `missing`.
        """
        with contextlib.ExitStack() as stack:
            by_id = any(probe.kind == Kind.TRACEPOINT for probe in self.tier.probes)
            tracefs = stack.enter_context(host.tracefs()) if by_id else -1
            for probe in [probe for probe in self.tier.probes if tiers.is_there(probe, self._points)]:
                self._attach(probe, tracefs)
        if self.tier.functions and not self._fexit:
            self.missing.append("returns from a kernel function while more threads are in it than CPUs")

    def _attach(self, probe: tiers.Probe, tracefs: int) -> None:
        try:
            self._links.append(self._hang(probe, tracefs))
        except OSError as error:
            if not probe.costs:
                raise ShmtraceError(
                    f"{probe.kind.value} {probe.points[0]} cannot be used ({error.strerror})",
                    "`shmtrace doctor` says more, `shmtrace snapshot` works without",
                ) from None
            self.missing.append(probe.costs)

    def _hang(self, probe: tiers.Probe, tracefs: int) -> int:
        """Attach a program; it stays attached until the returned descriptor is closed. Raises OSError."""
        program, point = self._loaded.programs[probe.program], probe.points[0]
        if probe.kind == Kind.RAW:
            return bpf_syscall.attach(program, point.partition(":")[2])
        if probe.kind == Kind.TRACEPOINT:
            return perf.tracepoint(program, host.tracepoint_id(tracefs, point))
        if tiers.is_tracing(self.tier, probe, self._fexit):
            return bpf_syscall.attach(program)
        return perf.kprobe(program, self._points[probe.program].name, probe.kind == Kind.RETURN)

    def attach_uprobe(self, program: str, path: Path, offset: int) -> int:
        """Attach a program to an offset in an executable file, for all processes that run it.

        Returns what detach_uprobe() takes. Raises ShmtraceError where the kernel refuses the uprobe.
        """
        function = self._loaded.load(program, bpf_syscall.KPROBE)
        try:
            uprobe = perf.uprobe(function, path, offset)
        except OSError as error:
            raise ShmtraceError(
                f"a uprobe on {path.resolve()} is refused ({error.strerror})", "take a label that needs none"
            ) from None
        self._links.append(uprobe)
        return uprobe

    def detach_uprobe(self, uprobe: int) -> None:
        """Detach what attach_uprobe() attached."""
        self._links.remove(uprobe)
        os.close(uprobe)

    # ---- processes ----

    def enter(self, tgid: int, start_time_ns: int) -> KernelProcess | None:
        """Track an existing process as one of the tree. None: the map has no room for it."""
        number = self._run("enter", tgid, start_time_ns)
        if not number:
            return None
        process = KernelProcess.unpack(self._processes[number])
        self._news.know(process)
        return process

    def know(self, keys: Collection[tuple[int, int]]) -> None:
        """Note that these processes, by (tgid, start_time_ns), are known, but not what they have executed since."""
        for number in self._processes.taken():
            process = KernelProcess.unpack(self._processes[number])
            if process.key in keys:
                self._news.know(process._replace(executed_ns=0, title=b""))

    def leave(self, tgid: int, start_time_ns: int) -> None:
        """Tell the probes that a process has exited, in case they did not see it."""
        self._run("leave", tgid, start_time_ns)

    def keep(self, told: Fork | Exec) -> bool:
        """Make a candidate a process of the tree. Returns whether it was tracked so far."""
        return self._put(told, OF_TREE) != OUTSIDE_TREE

    def drop(self, told: Fork | Exec) -> None:
        """Stop tracking a candidate: it is not of the tree."""
        self._put(told, OUTSIDE_TREE)

    def _put(self, told: Fork | Exec, kind: int) -> int | None:
        """Set the kind of a process and return the old one. None: it no longer exists."""
        process = KernelProcess.unpack(self._processes[told.number])
        if process.key != (told.head.tgid, told.head.start_time_ns):
            return None
        return self._processes.put(told.number, kind)

    def asker(self, shmid: int) -> tuple[int, int] | None:
        """The first process of the tree that called shmget() for a segment, as (tgid, start_time_ns).

        None: not seen.
        """
        raw = self._askers[REGION_ID.pack(shmid)] if self._askers else None
        return None if raw is None else ASKER.unpack(raw)[::-1]

    # ---- regions ----

    def adopt(self, fd: int) -> int:
        """Add the region that a descriptor refers to, unless it is known, and return its id. 0: the map has no room."""
        return self._run("adopt", fd)

    def region(self, number: int) -> KernelRegion | None:
        """Read a region by its id. None: it has been forgotten."""
        return KernelRegion.unpack(self._regions[_place(number)]) if self.has(number) else None

    def has(self, number: int) -> bool:
        """Whether the maps have this region and it was not forgotten."""
        return self._regions.who(_place(number)) == number and number not in self._leaving

    def read_regions(self) -> dict[int, KernelRegion]:
        """All regions, by id."""
        found = (KernelRegion.unpack(self._regions[place]) for place in self._regions.taken())
        return {region.id: region for region in found}

    def measure(self, number: int) -> KernelRegion | None:
        """Update a region's page counts from its inode and read it. None: the region no longer exists."""
        return self.region(number) if self._run("measure", number) else None

    def forget(self, number: int) -> None:
        """Free what the maps hold of a region.

        The entries are reused after GRACE_S, since a program may still use them.
        """
        if not self.has(number):
            return
        self._leaving.add(number)
        if self._is_armed:
            return
        self._run("forget", number)
        self._forgotten.append((time.monotonic(), FREE_REGION, number))

    def _give_back(self) -> None:
        """Empty what was forgotten at least GRACE_S ago, and put it on the free lists."""
        now = time.monotonic()
        if self._forgotten and self._forgotten[0][0] < now - GRACE_S:
            self.hear()
        empty: dict[int, list[int]] = {}
        while self._forgotten and self._forgotten[0][0] < now - GRACE_S:
            _, kind, number = self._forgotten.popleft()
            empty.setdefault(kind, []).append(number)
            if kind == FREE_REGION:
                self._leaving.discard(number)
                self._told.pop(number, None)
                empty.setdefault(FREE_BLOCK, []).extend(self._known.pop(number, {}).values())
                empty.setdefault(FREE_USAGE, []).extend(self._usages_of.pop(number, {}).values())
        for kind, numbers in empty.items():
            for first in range(0, len(numbers), EMPTIED_AT_ONCE):
                some = numbers[first : first + EMPTIED_AT_ONCE]
                self._run("empty", kind, *some, *[0] * (EMPTIED_AT_ONCE - len(some)))

    def usages(self, number: int) -> dict[tuple[int, int], Usage]:
        """The usages of one region, by (tgid, start_time_ns)."""
        return {key: self._usage(place) for key, place in self._usages_of.get(number, {}).items()}

    def forget_usages(self, number: int, keys: Iterable[tuple[int, int]]) -> None:
        """Free what the maps hold of a region's use by these processes, (tgid, start_time_ns), if they have ended."""
        theirs = self._usages_of.get(number, {})
        for key in keys:
            if self._news.number(*key) is None:
                self._forgotten.append((time.monotonic(), FREE_USAGE, theirs.pop(key)))

    def _usage(self, place: int) -> Usage:
        return Usage(*USAGE.unpack(self._usages[place])[:2])

    def made_for(self) -> dict[int, list[MadeFor]]:
        """Pages that a process made in another's address space, by region id."""
        now = self._nr_made_for.read() if self._nr_made_for else self._made_for_known
        if now != self._made_for_known:
            self._made_for_known, self._known_made_for = now, {}
            for key, value in self._made_for.items() if self._made_for else ():
                start_time_ns, for_start_time_ns, tgid, for_tgid, region, _ = MADE_FOR_KEY.unpack(key)
                made_for = MadeFor((tgid, start_time_ns), (for_tgid, for_start_time_ns), COUNT.unpack(value)[0])
                self._known_made_for.setdefault(region, []).append(made_for)
        return self._known_made_for

    def forget_made_for(self, number: int) -> None:
        """Delete these counts of one region."""
        if self._is_armed:
            return
        for made_for in self._known_made_for.pop(number, ()):
            (tgid, start_time_ns), (for_tgid, for_start_time_ns) = made_for.acting, made_for.whose
            if self._made_for:
                del self._made_for[MADE_FOR_KEY.pack(start_time_ns, for_start_time_ns, tgid, for_tgid, number, 0)]

    # ---- stacks ----

    def stacked(self) -> dict[Stacked, int]:
        """Pages by the stack that made them, including pages that were given back since."""
        found = {}
        for key, pages in self._stacked.items() if self._stacked else ():
            start_time_ns, stack, region, tgid = STACKED_KEY.unpack(key)
            found[Stacked(region, tgid, start_time_ns, stack)] = COUNT.unpack(pages)[0]
        return found

    def forget_stacked(self, stacked: Stacked) -> None:
        """Delete one of these counts."""
        if self._stacked:
            del self._stacked[STACKED_KEY.pack(stacked.start_time_ns, stacked.stack, stacked.region, stacked.tgid)]

    def stack(self, number: int) -> tuple[int, ...]:
        """The return addresses of a stack, innermost first. Empty: it was not stored."""
        raw = self._stacks[COUNT.pack(number)] if self._stacks else None
        if not raw:
            return ()
        *addresses, count = STACK.unpack(raw)
        return tuple(addresses[:count])

    def forget_stack(self, number: int) -> None:
        """Delete a stack, so that its number can be reused."""
        if self._stacks:
            del self._stacks[COUNT.pack(number)]

    # ---- what they say ----

    def poll(self, timeout_s: float) -> list[Event]:
        """Wait at most timeout_s for something to happen, and return the events in order."""
        if self._is_armed:  # the rings keep what was read, and are always readable
            time.sleep(0 if self._heard_late else timeout_s)
        else:
            self._readable.poll(0 if self._heard_late else timeout_s * 1000)
        raw = [raw for ring in self._rings for raw in ring.read()]
        if not self._is_armed:  # nobody waits for the ring then, and it must not fill up
            self._is_told.clear()  # clear before reading, so that what is written meanwhile is reported next time
        news = [*self._read_ooms(), *self._read_news()]  # kills first: what is to be read of a victim goes soon
        self._give_back()
        return news + [event for each in raw if (event := events.decode(each))]

    def _read_news(self) -> list[Event]:
        """Turn the changes in the maps into events, ordered so that every process named is already known."""
        first = self._changed_processes()
        touched = self._usage_changes.take()
        changed = self._region_changes.take()
        processes = first | self._changed_processes()
        while self._news.lacks_a_parent(processes.values()) and (more := self._changed_processes()):
            processes |= more
        news: list[Event] = [*self._news.begun(processes.values())]
        for number, process in processes.items() if not self._is_armed else ():
            self._processes.has_read(number, process.executed_ns)
        for place in touched:
            _, _, number, tgid, start_time_ns, kind, _, comm = USAGE.unpack(self._usages[place])
            self._usages_of.setdefault(number, {})[tgid, start_time_ns] = place
            if start_time_ns:
                news.append(Touch((tgid, start_time_ns), number, text(comm), kind != OUTSIDE_TREE))
        for place in changed:
            region = KernelRegion.unpack(self._regions[place])
            news += met(region) if region.id and region.id not in self._leaving else []
        # If a process had ended before the other maps were read, they can hold nothing more of it. Otherwise tell its
        # end next time.
        self._heard_late = False
        for number, process in processes.items():
            if process.ended_ns and number in first and first[number].ended_ns:
                news.append(self._news.ended(process))
                if not self._is_armed:
                    self._forgotten.append((time.monotonic(), FREE_PROCESS, number))
            elif process.ended_ns:
                self._process_changes.add(number)
                self._heard_late = True
        return news

    def _read_ooms(self) -> list[OomKill]:
        """The kills since the last call, of those that the map still has."""
        (count,) = self._nr_ooms.read()
        first, self._ooms_read = max(self._ooms_read, count - NR_OOMS), count
        found = (oom_kill(self._ooms[number % NR_OOMS]) for number in range(first, count))
        return [kill for number, kill in enumerate(found, first + 1) if kill.number == number]

    def _changed_processes(self) -> dict[int, KernelProcess]:
        """By process number."""
        found = (KernelProcess.unpack(self._processes[number]) for number in self._process_changes.take())
        return {process.number: process for process in found if process.number}

    def losses(self) -> dict[str, int]:
        """What could not be recorded so far: counts by wire.LOSSES."""
        return {**dict(zip(LOSSES, self._losses.read())), "probes": self._skipped()}

    def recycled(self) -> dict[str, int]:
        """What the programs of an armed trace have forgotten to make room: counts by wire.RECYCLED."""
        return dict(zip(RECYCLED, self._room.read()[-len(RECYCLED) :]))

    def skipped_lives(self) -> int:
        """How often the kernel skipped a program that reports forks or exits."""
        return sum(
            bpf_syscall.recursion_misses(self._loaded.programs[name]) for name in ("task_newtask", "sched_process_exit")
        )

    def _skipped(self) -> int:
        """How often the kernel skipped one of the other programs, from the kernel's own counters."""
        programs = self._loaded.programs
        names = {probe.program for probe in self.tier.probes if probe.program in programs}
        # The process tree follows from the parents of touchers; exits are also found in /proc. What was not recycled
        # at one exit is at another.
        names -= {"task_newtask", "sched_process_exit", tiers.RECYCLE.program}
        # A fault inside the fault program comes from reading a stack or a label. It makes no page of a region.
        if self._stacked or tiers.LABELS[0] in self.tier.probes:
            names.discard("page_fault")
        return sum(bpf_syscall.recursion_misses(programs[name]) for name in names)

    def changed(self, regions: Iterable[int]) -> dict[int, dict[int, Block]]:
        """The ledger blocks of these regions that changed since the last call, by region id and part."""
        self.hear()
        told = {region: told for region in regions if (told := self._told.pop(region, None))}
        return {region: self._read(places) for region, places in told.items()}

    def blocks(self, region: int) -> dict[int, Block]:
        """All ledger blocks of one region, by part."""
        self.hear()
        return self.heard_blocks(region)

    def heard_blocks(self, region: int) -> dict[int, Block]:
        """Like blocks(), without looking for changes since hear()."""
        return self._read(self._known.get(region, {}))

    def _read(self, places: dict[int, int]) -> dict[int, Block]:
        return {part: self._blocks.block(number) for part, number in places.items()}

    def hear(self) -> None:
        """Collect which ledger blocks have changed so far."""
        for number in self._block_changes.take():
            region, part = self._blocks.part(number)
            self._told.setdefault(region, {})[part] = number
            self._known.setdefault(region, {})[part] = number

    def _counts(self, name: str, nr_counts: int) -> Counts:
        counts = Counts(self._loaded.fd(name), nr_counts)
        self._mapped.append(counts)
        return counts


def _place(number: int) -> int:
    """The place of a region in its array, from its id."""
    return number & ((1 << SLOT_BITS) - 1)


def wanted(tier: tiers.Tier, layout: KernelLayout, fexit: bool, flags: Sequence[str]) -> Wanted:
    """What to compile for a tier on a kernel. fexit: whether return probes use fexit."""
    defines = {**layout.defines, **tiers.arguments(tiers.points(tier, layout))}
    defines |= {"EVENT_BYTES": EVENT_BYTES, "LABEL_BYTES": LABEL_BYTES, f"BY_{tier.by.upper()}": 1}
    if fexit:
        defines["BY_FEXIT"] = 1
    return Wanted(("maps.c", *tier.sources), defines, flags)


def load(tier: tiers.Tier, sizes: Sizes, beginning: Beginning, *flags: str) -> Probes:
    """Load the programs of a tier, to be attached.

    Raises ShmtraceError where bcc or BTF is missing, BPF is refused, or the kernel lacks what the tier requires.
    """
    sizes = Sizes(*(count + 1 for count in sizes))  # number 0 means none
    cache = Cache()
    layout = tiers.layout(cache)
    points = tiers.points(tier, layout)
    reason = tiers.why_not(tier, layout)
    if reason:
        raise ShmtraceError(reason, "`shmtrace doctor` says more")
    fexit = tiers.has_fexit(tier, points)
    bytecode = compiled(wanted(tier, layout, fexit, flags), cache)
    loaded = Loaded.create(bytecode, {**sizes._asdict(), "cpus": host.possible_cpus()})
    try:
        loaded.begin(beginning, sizes)
        loaded.load_tier(tier, points, fexit, sizes)
        missing = [probe.costs for probe in tiers.absent(tier, layout)]
        return Probes(tier, sizes, loaded, points, fexit, beginning.armed, cache.warnings, missing)
    except BaseException:
        loaded.close()
        raise


def attached(
    best_first: Sequence[tiers.Tier],
    sizes: Sizes,
    beginning: Beginning,
    *flags: str,
    keep: Callable[[Probes], None] = lambda _: None,
) -> Probes:
    """Attach the probes of the first of these tiers that works here.

    keep: called with the attached probes. Where it raises ShmtraceError, the tier does not work either. Raises
    ShmtraceError with the reason why the last one does not work.
    """
    *better, last = best_first
    for tier in better:
        with contextlib.suppress(ShmtraceError):
            return _attached(tier, sizes, beginning, flags, keep)
    return _attached(last, sizes, beginning, flags, keep)


def _attached(
    tier: tiers.Tier, sizes: Sizes, beginning: Beginning, flags: Sequence[str], keep: Callable[[Probes], None]
) -> Probes:
    probes = load(tier, sizes, beginning, *flags)
    try:
        probes.attach()
        keep(probes)
    except BaseException:
        probes.__exit__(None, None, None)
        raise
    return probes

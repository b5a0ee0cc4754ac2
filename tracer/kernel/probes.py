"""The kernel side: loads and attaches the programs in bpf/, reads their maps and events."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tracer.errors import ShmtraceError
from tracer.kernel import bpf_syscall, events, host, maps, perf, tiers
from tracer.kernel.bytecode import Wanted, compiled
from tracer.kernel.cache import Cache
from tracer.kernel.events import Event, Exec, Fork, Touch
from tracer.kernel.fields import KernelLayout
from tracer.kernel.loader import Loaded
from tracer.kernel.maps import Block, Blocks, Changes, Counts, MadeFor, ProcessSlots, Slots, Stacked, Usage
from tracer.kernel.ring import Ring
from tracer.kernel.tiers import Kind
from tracer.kernel.updates import KernelProcess, KernelRegion, News, met, text
from tracer.wire import (
    ASKER,
    COUNT,
    FREE_BLOCK,
    FREE_PROCESS,
    FREE_REGION,
    FREE_USAGE,
    LOSSES,
    MADE_FOR_KEY,
    OF_TREE,
    OUTSIDE_TREE,
    REGION_ID,
    SLOT_BITS,
    STACK,
    STACKED_KEY,
    STATE,
    TGID,
    USAGE,
)

EVENT_PAGES = 256  # a power of two; 1 MiB, some 20,000 punches
LABEL_PAGES = 1024  # 4 MiB, some 9,000 labels
FILLED_AT_ONCE, EMPTIED_AT_ONCE = 128, 10  # bpf/maps.c
GRACE_S = 0.05  # after which no program is still at what it could find before
CALL_THEMSELVES = "sys_enter_fallocate", "sys_exit_fallocate"  # by their places in again of bpf/fallocate.c
STACKS = "STACKS"  # the flag that has pages counted by user stack


class Sizes(NamedTuple):
    """How many entries the maps have room for; they are allocated at once, so that no fault waits for memory."""

    blocks: int
    processes: int
    regions: int
    usages: int
    alive: int
    """processes that are known to say what they do"""


class Beginning(NamedTuple):
    """Of a trace: the same moment by two clocks, and what it is to see."""

    monotonic_ns: int
    boot_ns: int
    everything: bool = False
    """all processes are tracked"""
    watches_execs: bool = False
    """so is each that executes something, until drop()"""


class Probes:
    """The programs of one tier, loaded; a context manager that leaves nothing behind in the kernel.

    Raises ShmtraceError: bcc or BTF missing, BPF refused, something absent that the tier needs.
    """

    def __init__(self, tier: tiers.Tier, sizes: Sizes, beginning: Beginning, *flags: str) -> None:
        self.tier = tier
        self.missing: list[str] = []
        self._sizes = sizes = Sizes(*(count + 1 for count in sizes))  # number 0 is none
        cache = Cache()
        layout = tiers.layout(cache)
        self._points = tiers.points(tier, layout)
        refusal = tiers.why_not(tier, self._points)
        if refusal:
            raise ShmtraceError(refusal, "`shmtrace doctor` says more")
        self._fexit = tiers.has_fexit(tier, self._points)
        rooms = {**sizes._asdict(), "cpus": host.possible_cpus()}
        self._links: list[int] = []
        self.warnings = cache.warnings
        """what of the cache was not used, and why"""
        self._loaded = Loaded(compiled(wanted(tier, layout, self._fexit, flags), cache), rooms)
        try:
            self._load_all(beginning)
            self._open_maps("HAVE_MM_OWNER" in layout.defines, STACKS in flags)
        except BaseException:
            self._loaded.close()
            raise
        self.counts_faults = not tier.functions
        self._news = News()
        self._heard_late = False
        self._known_made_for: dict[int, list[MadeFor]] = {}
        self._made_for_known = [0]
        self._usages_of: dict[int, dict[tuple[int, int], int]] = {}  # by region and process: the number
        self._leaving: set[int] = set()  # ids of regions that have been forgotten
        # blocks by region and part of it: that have changed, and all of them
        self._told: dict[int, dict[int, int]] = {}
        self._known: dict[int, dict[int, int]] = {}
        self._forgotten: deque[tuple[float, int, int]] = deque()
        """(when, kind, number) of what is to be given back"""

    def _load_all(self, beginning: Beginning) -> None:
        """All programs, and what they find in the maps."""
        self._loaded.map("states")[TGID.pack(0)] = STATE.pack(*beginning, 0, 0, 0)
        probes = {probe.program: probe for probe in self.tier.probes if self._is_there(probe)}
        own = ("adopt", "measure", "forget", "enter", "leave", "empty")
        with ThreadPoolExecutor() as pool:  # the verifier takes most of the time to attach, a CPU each
            filling = pool.submit(self._fill)
            self._programs = dict(zip(probes, pool.map(self._load, probes.values())))
            self._adopt, self._measure, self._forget, self._enter, self._leave, self._empty = pool.map(
                self._load_own, own
            )
            filling.result()
        if self.tier.by == "fentry":
            bpf_syscall.run(self._load_own("anchor"), 0)
        if not self.tier.functions:
            again = self._loaded.map("again")
            for place, name in enumerate(CALL_THEMSELVES):
                again[TGID.pack(place)] = TGID.pack(self._programs[name])

    def _open_maps(self, knows_owners: bool, counts_stacks: bool) -> None:
        """What this side reads of them."""
        loaded, sizes = self._loaded, self._sizes
        self._askers = None if self.tier.functions else loaded.map("askers")
        self._made_for = loaded.map("made_for") if self.tier.functions and knows_owners else None
        self._stacked = loaded.map("stacked") if counts_stacks else None
        self._stacks = loaded.map("stacks") if counts_stacks else None
        self._blocks = Blocks(loaded.fd("ledger"), sizes.blocks)
        self._processes = ProcessSlots(loaded.fd("processes"), sizes.processes)
        self._regions = maps.regions(loaded.fd("regions"), sizes.regions)
        self._usages = maps.usages(loaded.fd("usages"), sizes.usages)
        self._block_changes = Changes(loaded.fd("block_changes"), sizes.blocks)
        self._process_changes = Changes(loaded.fd("process_changes"), sizes.processes)
        self._region_changes = Changes(loaded.fd("region_changes"), sizes.regions)
        self._usage_changes = Changes(loaded.fd("usage_changes"), sizes.usages)
        self._mapped: list[Blocks | Changes | Counts | Slots] = [
            *(self._blocks, self._processes, self._regions, self._usages),
            *(self._block_changes, self._process_changes, self._region_changes, self._usage_changes),
        ]
        self._is_told = self._counts("told", 1)
        self._losses = self._counts("losses", len(LOSSES))
        self._nr_made_for = self._counts("nr_made_for", 1) if self._made_for else None
        self._rings = [Ring(loaded.fd("events"), EVENT_PAGES)]
        if tiers.LABELS[0] in self.tier.probes:
            self.labels = loaded.map("labels")
            self._rings.append(Ring(loaded.fd("label_events"), LABEL_PAGES))
        self._readable = select.poll()
        for ring in self._rings:
            self._readable.register(ring.fd, select.POLLIN)

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ThreadPoolExecutor(len(self._links) or 1) as pool:  # each waits until no CPU is at its program any more
            list(pool.map(os.close, self._links))
        for mapped in self._mapped:
            mapped.close()
        self._loaded.close()

    # ---- load and attach ----

    @property
    def attached(self) -> list[str]:
        """The kernel functions and tracepoints that the programs hang on."""
        there = [self._points[probe.program].name for probe in self.tier.functions if probe.program in self._points]
        others = [probe.points[0] for probe in self.tier.probes if probe not in self.tier.functions]
        return list(dict.fromkeys([*there, *others]))

    def _is_there(self, probe: tiers.Probe) -> bool:
        return probe.kind not in (Kind.ENTRY, Kind.RETURN) or probe.program in self._points

    def _is_tracing(self, probe: tiers.Probe) -> bool:
        """Whether it hangs on by fentry or fexit."""
        return (probe.kind == Kind.ENTRY and self.tier.by == "fentry") or (probe.kind == Kind.RETURN and self._fexit)

    def _load(self, probe: tiers.Probe) -> int:
        """Its descriptor."""
        if self._is_tracing(probe):
            function = self._points[probe.program].id
            return self._loaded.load(probe.program, bpf_syscall.TRACING, function, probe.kind == Kind.RETURN)
        kinds = {Kind.RAW: bpf_syscall.RAW_TRACEPOINT, Kind.TRACEPOINT: bpf_syscall.TRACEPOINT}
        return self._loaded.load(probe.program, kinds.get(probe.kind, bpf_syscall.KPROBE))

    def _load_own(self, name: str) -> int:
        """Of a program that user space runs."""
        return self._loaded.load(name, bpf_syscall.RAW_TRACEPOINT)

    def _fill(self) -> None:
        """Give the kernel side all that is free."""
        fill = self._load_own("fill")
        for kind, count in zip((FREE_BLOCK, FREE_PROCESS, FREE_REGION, FREE_USAGE), self._sizes):
            for first in range(1, count, FILLED_AT_ONCE):
                bpf_syscall.run(fill, kind, first, count)

    def attach(self) -> None:
        """All probes of the tier, in its order. From here on the kernel writes."""
        with contextlib.ExitStack() as stack:
            by_id = any(probe.kind == Kind.TRACEPOINT for probe in self.tier.probes)
            tracefs = stack.enter_context(host.tracefs()) if by_id else -1
            for probe in filter(self._is_there, self.tier.probes):
                self._attach(probe, tracefs)
        self.missing += [probe.costs for probe in tiers.absent(self.tier, self._points)]
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
        """A descriptor: the program hangs there until it is closed. Raises OSError."""
        program, point = self._programs[probe.program], probe.points[0]
        if probe.kind == Kind.RAW:
            return bpf_syscall.attach(program, point.partition(":")[2])
        if probe.kind == Kind.TRACEPOINT:
            return perf.tracepoint(program, host.tracepoint_id(tracefs, point))
        if self._is_tracing(probe):
            return bpf_syscall.attach(program)
        return perf.kprobe(program, self._points[probe.program].name, probe.kind == Kind.RETURN)

    def attach_uprobe(self, program: str, path: Path, offset: int) -> int:
        """To a function of a program, by its offset in the file; in all processes that run it. For detach_uprobe.

        Raises ShmtraceError.
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
        self._links.remove(uprobe)
        os.close(uprobe)

    # ---- processes ----

    def enter(self, tgid: int, start_time_ns: int) -> KernelProcess | None:
        """A process that exists is of the tree from now on; None: there is no room for it."""
        number = bpf_syscall.run(self._enter, tgid, start_time_ns)
        if not number:
            return None
        process = KernelProcess.unpack(self._processes[number])
        self._news.know(process)
        return process

    def leave(self, tgid: int, start_time_ns: int) -> None:
        """It has ended, and the kernel side may not have seen it."""
        bpf_syscall.run(self._leave, tgid, start_time_ns)

    def keep(self, told: Fork | Exec) -> bool:
        """A process that is watched is of the tree. Whether it has been tracked so far."""
        return self._put(told, OF_TREE) != OUTSIDE_TREE

    def drop(self, told: Fork | Exec) -> None:
        """It is not."""
        self._put(told, OUTSIDE_TREE)

    def _put(self, told: Fork | Exec, kind: int) -> int | None:
        """What it was; None: it is there no more."""
        process = KernelProcess.unpack(self._processes[told.number])
        if process.key != (told.head.tgid, told.head.start_time_ns):
            return None
        return self._processes.put(told.number, kind)

    def asker(self, shmid: int) -> tuple[int, int] | None:
        """Who of the tree was the first to ask for a SysV segment: (tgid, start_time_ns)."""
        raw = self._askers[REGION_ID.pack(shmid)] if self._askers else None
        return None if raw is None else ASKER.unpack(raw)[::-1]

    # ---- regions ----

    def adopt(self, fd: int) -> int:
        """The id of the region that this descriptor is of, entered if it is new; 0: there is no room for it."""
        return bpf_syscall.run(self._adopt, fd)

    def region(self, number: int) -> KernelRegion | None:
        """By its id; None: it has been forgotten."""
        return KernelRegion.unpack(self._regions[_place(number)]) if self.has(number) else None

    def has(self, number: int) -> bool:
        """Whether the kernel side has this region, and it has not been forgotten."""
        return self._regions.who(_place(number)) == number and number not in self._leaving

    def read_regions(self) -> dict[int, KernelRegion]:
        """All of them, by their id."""
        found = (KernelRegion.unpack(self._regions[place]) for place in self._regions.taken())
        return {region.id: region for region in found}

    def measure(self, number: int) -> KernelRegion | None:
        """As it is now; None: it is there no more."""
        return self.region(number) if bpf_syscall.run(self._measure, number) else None

    def forget(self, number: int) -> None:
        """What the kernel side has of a region is for another: in a moment, for a program may be at it."""
        if not self.has(number):
            return
        bpf_syscall.run(self._forget, number)
        self._leaving.add(number)
        self._forgotten.append((time.monotonic(), FREE_REGION, number))

    def _give_back(self) -> None:
        """What has been forgotten for long enough."""
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
                bpf_syscall.run(self._empty, kind, *some, *[0] * (EMPTIED_AT_ONCE - len(some)))

    def read_usages(self) -> dict[tuple[int, int, int], Usage]:
        """What processes did to regions, by (region, tgid, start_time_ns)."""
        return {
            (number, *key): self._usage(place)
            for number, theirs in self._usages_of.items()
            for key, place in theirs.items()
        }

    def usages(self, number: int) -> dict[tuple[int, int], Usage]:
        """What processes did to one region, by (tgid, start_time_ns)."""
        return {key: self._usage(place) for key, place in self._usages_of.get(number, {}).items()}

    def _usage(self, place: int) -> Usage:
        return Usage(*USAGE.unpack(self._usages[place])[:2])

    def made_for(self) -> dict[int, list[MadeFor]]:
        """Who made pages in whose address space, by region."""
        now = self._nr_made_for.read() if self._nr_made_for else self._made_for_known
        if now != self._made_for_known:
            self._made_for_known, self._known_made_for = now, {}
            for key, value in self._made_for.items() if self._made_for else ():
                start_time_ns, for_start_time_ns, tgid, for_tgid, region, _ = MADE_FOR_KEY.unpack(key)
                made_for = MadeFor((tgid, start_time_ns), (for_tgid, for_start_time_ns), COUNT.unpack(value)[0])
                self._known_made_for.setdefault(region, []).append(made_for)
        return self._known_made_for

    def forget_made_for(self, number: int) -> None:
        for made_for in self._known_made_for.pop(number, ()):
            (tgid, start_time_ns), (for_tgid, for_start_time_ns) = made_for.acting, made_for.whose
            if self._made_for:
                del self._made_for[MADE_FOR_KEY.pack(start_time_ns, for_start_time_ns, tgid, for_tgid, number, 0)]

    # ---- stacks ----

    def stacked(self) -> dict[Stacked, int]:
        """How many pages were made by which stack: all that was made, given back since or not."""
        found = {}
        for key, pages in self._stacked.items() if self._stacked else ():
            start_time_ns, stack, region, tgid = STACKED_KEY.unpack(key)
            found[Stacked(region, tgid, start_time_ns, stack)] = COUNT.unpack(pages)[0]
        return found

    def forget_stacked(self, stacked: Stacked) -> None:
        if self._stacked:
            del self._stacked[STACKED_KEY.pack(stacked.start_time_ns, stacked.stack, stacked.region, stacked.tgid)]

    def stack(self, number: int) -> tuple[int, ...]:
        """Its addresses, the innermost first."""
        raw = self._stacks[COUNT.pack(number)] if self._stacks else None
        if not raw:
            return ()
        *addresses, count = STACK.unpack(raw)
        return tuple(addresses[:count])

    def forget_stack(self, number: int) -> None:
        """Its place is for another."""
        if self._stacks:
            del self._stacks[COUNT.pack(number)]

    # ---- what they say ----

    def poll(self, timeout_s: float) -> list[Event]:
        """What has happened, waiting for the first of it at most so long."""
        self._readable.poll(0 if self._heard_late else timeout_s * 1000)
        raw = [raw for ring in self._rings for raw in ring.read()]
        self._is_told.clear()  # before it is looked at
        news = self._read_news()
        self._give_back()
        return news + [event for each in raw if (event := events.decode(each))]

    def _read_news(self) -> list[Event]:
        """What has changed in the maps, in an order in which whoever is spoken of is known."""
        first = self._changed_processes()
        touched = self._usage_changes.take()
        changed = self._region_changes.take()
        processes = first | self._changed_processes()
        while self._news.lacks_a_parent(processes.values()) and (more := self._changed_processes()):
            processes |= more
        news: list[Event] = [*self._news.begun(processes.values())]
        for number, process in processes.items():
            self._processes.has_read(number, process.executed_ns)
        for place in touched:
            *_, number, tgid, start_time_ns = USAGE.unpack(self._usages[place])
            self._usages_of.setdefault(number, {})[tgid, start_time_ns] = place
            if start_time_ns:
                news.append(self._touch(number, tgid, start_time_ns))
        for place in changed:
            region = KernelRegion.unpack(self._regions[place])
            news += met(region) if region.id and region.id not in self._leaving else []
        # only of those that had ended before all else was looked at is it known that there is no more to come
        self._heard_late = False
        for number, process in processes.items():
            if process.ended_ns and number in first and first[number].ended_ns:
                news.append(self._news.ended(process))
                self._forgotten.append((time.monotonic(), FREE_PROCESS, number))
            elif process.ended_ns:
                self._process_changes.add(number)
                self._heard_late = True
        return news

    def _changed_processes(self) -> dict[int, KernelProcess]:
        """By number."""
        found = (KernelProcess.unpack(self._processes[number]) for number in self._process_changes.take())
        return {process.number: process for process in found if process.number}

    def _touch(self, region: int, tgid: int, start_time_ns: int) -> Touch:
        number = self._news.number(tgid, start_time_ns)
        process = KernelProcess.unpack(self._processes[number]) if number else None
        return Touch((tgid, start_time_ns), region, text(process.comm) if process else "")

    def losses(self) -> dict[str, int]:
        """What could not be written down so far, by wire.LOSSES."""
        return {**dict(zip(LOSSES, self._losses.read())), "probes": self._skipped()}

    def skipped_lives(self) -> int:
        """How often the kernel skipped a program that tells of a fork or an exit."""
        return sum(
            bpf_syscall.recursion_misses(self._programs[name]) for name in ("task_newtask", "sched_process_exit")
        )

    def _skipped(self) -> int:
        """How often the kernel skipped a program: its own counters."""
        misses = {name: bpf_syscall.recursion_misses(program) for name, program in self._programs.items()}
        misses.pop("task_newtask")  # a toucher's parents say whose it is
        misses.pop("sched_process_exit")  # /proc says who has ended
        # a fault within the program of a fault is of what it reads there, a stack or a label, and makes no page
        if self._stacked or tiers.LABELS[0] in self.tier.probes:
            misses.pop("page_fault", None)
        return sum(misses.values())

    def changed(self, regions: Iterable[int]) -> dict[int, dict[int, Block]]:
        """Of these regions what has changed since this was last asked: region, which part of it, block."""
        self.hear()
        told = {region: told for region in regions if (told := self._told.pop(region, None))}
        return {region: self._read(places) for region, places in told.items()}

    def blocks(self, region: int) -> dict[int, Block]:
        """The ledger of one region, by part."""
        self.hear()
        return self.heard_blocks(region)

    def heard_blocks(self, region: int) -> dict[int, Block]:
        """The same, as far as it had been heard of already."""
        return self._read(self._known.get(region, {}))

    def _read(self, places: dict[int, int]) -> dict[int, Block]:
        return {part: self._blocks.block(number) for part, number in places.items()}

    def hear(self) -> None:
        """Which blocks have changed, so far."""
        for number in self._block_changes.take():
            region, part = self._blocks.part(number)
            self._told.setdefault(region, {})[part] = number
            self._known.setdefault(region, {})[part] = number

    def _counts(self, name: str, nr_counts: int) -> Counts:
        counts = Counts(self._loaded.fd(name), nr_counts)
        self._mapped.append(counts)
        return counts


def _place(number: int) -> int:
    """Of a region, by its id."""
    return number & ((1 << SLOT_BITS) - 1)


def wanted(tier: tiers.Tier, layout: KernelLayout, fexit: bool, flags: Sequence[str]) -> Wanted:
    """The bytecode of a tier on a kernel. fexit: that one lets programs hang on returns so."""
    defines = {**layout.defines, **tiers.arguments(tiers.points(tier, layout))}
    defines |= {"EVENT_PAGES": EVENT_PAGES, "LABEL_PAGES": LABEL_PAGES, f"BY_{tier.by.upper()}": 1}
    if fexit:
        defines["BY_FEXIT"] = 1
    return Wanted(("maps.c", *tier.sources), defines, flags)


def attached(best_first: Sequence[tiers.Tier], sizes: Sizes, beginning: Beginning, *flags: str) -> Probes:
    """The probes of the first of these tiers that the kernel lets us have, attached.

    Raises ShmtraceError: why it was not the last one either.
    """
    *better, last = best_first
    for tier in better:
        with contextlib.suppress(ShmtraceError):
            return _attached(tier, sizes, beginning, *flags)
    return _attached(last, sizes, beginning, *flags)


def _attached(tier: tiers.Tier, sizes: Sizes, beginning: Beginning, *flags: str) -> Probes:
    probes = Probes(tier, sizes, beginning, *flags)
    try:
        probes.attach()
    except BaseException:
        probes.__exit__(None, None, None)
        raise
    return probes

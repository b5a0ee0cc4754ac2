"""The kernel side: compiles, loads and attaches the programs in bpf/, reads their maps and events.

The one module that imports bcc. bcc is the distribution's (python3-bpfcc); PyPI's ``bcc`` is another project.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tracer import blocks, bpf, events, kernel, perf
from tracer.blocks import Blocks, Changes, Counts, Places, Processes
from tracer.btf import Btf, BtfError
from tracer.errors import ShmtraceError
from tracer.events import Event, Exec, Fork, Touch
from tracer.kernel import Kind
from tracer.ledger import Block
from tracer.news import KernelProcess, KernelRegion, News, met, text
from tracer.ring import Ring
from tracer.wire import (
    ASKER,
    BEHALF_KEY,
    COUNT,
    FREE_BLOCK,
    FREE_PROCESS,
    FREE_REGION,
    FREE_USAGE,
    LABEL,
    LOSSES,
    MAX_RANGES,
    OF_TREE,
    RANGE,
    RANGES_BYTES,
    RANGES_HEAD,
    REGION_ID,
    SLOT_BITS,
    STACK,
    STACKED_KEY,
    STRANGER,
    TGID,
    USAGE,
)

_package = Path(__file__).parent / "bpf"  # in a wheel; in a checkout bpf/ is beside the package
SOURCES = _package if _package.is_dir() else Path(__file__).parent.parent / "bpf"
STUBS = SOURCES / "stubs"
EVENT_PAGES = 256  # a power of two; 1 MiB, some 20,000 punches
LABEL_PAGES = 1024  # 4 MiB, some 9,000 labels
BATCH = 4096
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
    """processes of which more is known while they live: what they map, and what they say they do"""


class Usage(NamedTuple):
    """struct usage of bpf/wire.h."""

    faults: int
    freed_pages: int


class Behalf(NamedTuple):
    """Pages that one process, as (tgid, start_time_ns), made in the address space of another."""

    acting: tuple[int, int]
    whose: tuple[int, int]
    pages: int


class Stacked(NamedTuple):
    """struct stacked_key of bpf/wire.h: what pages are counted by."""

    region: int
    tgid: int
    start_time_ns: int
    stack: int
    """its number, or wire.NO_STACK"""


class Map:
    """A BPF map by its descriptor: bytes in, bytes out."""

    def __init__(self, lib: ctypes.CDLL, fd: int, key_bytes: int, value_bytes: int) -> None:
        self._lib, self._fd = lib, fd
        self._key_bytes, self._value_bytes = key_bytes, value_bytes
        self._value = ctypes.create_string_buffer(value_bytes)

    def __getitem__(self, key: bytes) -> bytes | None:
        return None if self._lib.bpf_lookup_elem(self._fd, key, self._value) else self._value.raw

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if self._lib.bpf_update_elem(self._fd, key, value, 0):
            raise OSError(ctypes.get_errno(), "BPF map is full")

    def insert(self, key: bytes, value: bytes) -> bool:
        """Whether it was not there, and there was room."""
        return not self._lib.bpf_update_elem(self._fd, key, value, 1)

    def __delitem__(self, key: bytes) -> None:
        self._lib.bpf_delete_elem(self._fd, key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries."""
        for keys, values in self.batches():
            for i in range(len(keys) // self._key_bytes):
                key = keys[i * self._key_bytes : (i + 1) * self._key_bytes]
                yield key, values[i * self._value_bytes : (i + 1) * self._value_bytes]

    def batches(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys and all values, as many at once as the kernel gives (v5.6)."""
        token = (ctypes.c_uint32 * max(self._key_bytes // 4, 2))()
        keys = ctypes.create_string_buffer(self._key_bytes * BATCH)
        values = ctypes.create_string_buffer(self._value_bytes * BATCH)
        after, more = None, True
        while more:
            count, more = bpf.lookup_batch(self._fd, after, token, keys, values, BATCH)
            after = token
            yield keys.raw[: count * self._key_bytes], values.raw[: count * self._value_bytes]


class Ranges(Map):
    """A map of which the kernel side remembers what it has found, until this program says that it has changed."""

    def __init__(self, lib: ctypes.CDLL, fd: int, key_bytes: int, value_bytes: int, written: int) -> None:
        super().__init__(lib, fd, key_bytes, value_bytes)
        self._written = written

    def __setitem__(self, key: bytes, value: bytes) -> None:
        super().__setitem__(key, value)
        bpf.run(self._written, 0)

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(key)
        bpf.run(self._written, 0)


class Probes:
    """The programs of one tier, loaded; a context manager that leaves nothing behind in the kernel.

    Raises ShmtraceError: bcc or BTF missing, BPF refused, something absent that the tier needs.
    """

    def __init__(self, tier: kernel.Tier, sizes: Sizes, began_ns: int, began_boot_ns: int, *flags: str) -> None:
        self.tier = tier
        self.missing: list[str] = []
        self._sizes = sizes = Sizes(*(count + 1 for count in sizes))  # number 0 is none
        try:
            import bcc
            from bcc.libbcc import lib
        except (ImportError, OSError) as error:  # OSError: libbcc itself
            raise ShmtraceError(
                f"bcc cannot be imported by {sys.executable} ({error})",
                "apt install python3-bpfcc, and a virtualenv needs --system-site-packages; "
                "`shmtrace snapshot` works without",
            ) from None
        try:
            with Btf() as btf:
                self._points = kernel.points(tier, btf)
                refusal = kernel.why_not(tier, self._points)
                if refusal:
                    raise ShmtraceError(refusal, "`shmtrace doctor` says more")
                defines = kernel.defines(btf)
        except BtfError as error:
            raise ShmtraceError(str(error), "`shmtrace snapshot` works without") from None
        # a kretprobe is not told the arguments; the fentry tier has been tried just now
        self._fexit = tier.by == "fentry" or (tier.by == "kprobe" and not kernel.try_fentry(self._points["adding"]))
        if self._fexit:
            defines["BY_FEXIT"] = 1
        defines |= kernel.arguments(self._points)
        defines |= {f"NR_{name.upper()}": value for name, value in sizes._asdict().items()}
        defines |= {"NR_CPUS": kernel.possible_cpus(), "EVENT_PAGES": EVENT_PAGES, "LABEL_PAGES": LABEL_PAGES}
        defines |= {"T0_NS": began_ns, "T0_BOOT_NS": began_boot_ns, f"BY_{tier.by.upper()}": 1}
        cflags = [f"-D{name}={value}" for name, value in defines.items()] + [f"-D{flag}" for flag in flags]
        cflags += [f"-I{SOURCES}", "-Wno-unused-function"]
        os.environ["BCC_KERNEL_SOURCE"] = str(STUBS)
        self._lib, self._types = lib, bcc.BPF
        self._links: list[int] = []
        with _quiet():
            sources = ("maps.c", *tier.sources)
            text = "\n".join(f'#line 1 "{name}"\n{(SOURCES / name).read_text()}' for name in sources)
            self._bpf = bcc.BPF(text=text.encode(), cflags=cflags)
            probes = {probe.program: probe for probe in tier.probes if self._is_there(probe)}
            with ThreadPoolExecutor() as pool:  # the verifier takes most of the time to attach, a CPU each
                self._programs = dict(zip(probes, pool.map(self._load, probes.values())))
        own = ("adopt", "measure", "forget", "enter", "leave", "empty", "fill")
        self._adopt, self._measure, self._forget, self._enter, self._leave, self._empty, fill = map(self._load_own, own)
        if tier.by == "fentry":
            bpf.run(self._load_own("anchor"), 0)
        for kind, count in zip((FREE_BLOCK, FREE_PROCESS, FREE_REGION, FREE_USAGE), sizes):
            for first in range(1, count, FILLED_AT_ONCE):
                bpf.run(fill, kind, first, count)
        self.ranges = self._ranges(lib) if not tier.functions else None
        self._askers = self._map(lib, "askers", REGION_ID.size, ASKER.size) if not tier.functions else None
        if not tier.functions:
            never = RANGE.pack(2**64 - 1, 2**64 - 1, 0, 0)
            full = RANGES_HEAD.pack(MAX_RANGES, True) + never * MAX_RANGES
            self._map(lib, "full_ranges", TGID.size, RANGES_BYTES)[TGID.pack(0)] = full
            again = self._map(lib, "again")
            for place, name in enumerate(CALL_THEMSELVES):
                again[TGID.pack(place)] = TGID.pack(self._programs[name])
        self._behalves = self._map(lib, "behalves") if tier.functions and "HAVE_MM_OWNER" in defines else None
        labelled = kernel.LABELS[0] in tier.probes
        if labelled:
            self.labels = self._map(lib, "labels", TGID.size, LABEL.size)
        self._blocks = Blocks(self._bpf[b"ledger"].map_fd, sizes.blocks)
        self._processes = Processes(self._bpf[b"processes"].map_fd, sizes.processes)
        self._regions = blocks.regions(self._bpf[b"regions"].map_fd, sizes.regions)
        self._usages = blocks.usages(self._bpf[b"usages"].map_fd, sizes.usages)
        self._changes = Changes(self._bpf[b"changes"].map_fd, sum(sizes[:-1]))
        self._mapped: list[Blocks | Changes | Counts | Places] = [
            self._blocks,
            self._processes,
            self._regions,
            self._usages,
            self._changes,
        ]
        self._is_told = self._counts("told", 1)
        self._news = News()
        self._heard_late = False
        self._stacked = self._map(lib, "stacked", STACKED_KEY.size, COUNT.size) if STACKS in flags else None
        self._stacks = self._map(lib, "stacks", COUNT.size, STACK.size) if STACKS in flags else None
        self._losses = self._counts("losses", len(LOSSES))
        self._nr_behalves = self._counts("nr_behalves", 1) if self._behalves else None
        self._known_behalves: dict[int, list[Behalf]] = {}
        self._behalves_known = [0]
        self._usages_of: dict[int, dict[tuple[int, int], int]] = {}  # by region and process: the number
        self._leaving: set[int] = set()  # ids of regions that have been forgotten
        # blocks by region and part of it: that have changed, and all of them
        self._told: dict[int, dict[int, int]] = {}
        self._known: dict[int, dict[int, int]] = {}
        self._forgotten: deque[tuple[float, int, int]] = deque()
        """(when, kind, number) of what is to be given back"""
        self._rings = [Ring(self._bpf[b"events"].map_fd, EVENT_PAGES)]
        if labelled:
            self._rings.append(Ring(self._bpf[b"label_events"].map_fd, LABEL_PAGES))
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
        self._bpf.cleanup()

    # ---- load and attach ----

    @property
    def attached(self) -> list[str]:
        """The kernel functions and tracepoints that the programs hang on."""
        there = [self._points[probe.program].name for probe in self.tier.functions if probe.program in self._points]
        others = [probe.points[0] for probe in self.tier.probes if probe not in self.tier.functions]
        return list(dict.fromkeys([*there, *others]))

    def _is_there(self, probe: kernel.Probe) -> bool:
        return probe.kind not in (Kind.ENTRY, Kind.RETURN) or probe.program in self._points

    def _is_tracing(self, probe: kernel.Probe) -> bool:
        """Whether it hangs on by fentry or fexit."""
        return (probe.kind == Kind.ENTRY and self.tier.by == "fentry") or (probe.kind == Kind.RETURN and self._fexit)

    def _load(self, probe: kernel.Probe) -> int:
        """Its descriptor."""
        name = probe.program.encode()
        if self._is_tracing(probe):
            # bcc finds the function by the program's name, and how that must be spelt changed between its releases
            start = self._lib.bpf_function_start(self._bpf.module, name)
            code = ctypes.string_at(start, self._lib.bpf_function_size(self._bpf.module, name))
            program = bpf.load_tracing(code, self._points[probe.program].id, probe.kind == Kind.RETURN)
            self._links.append(program)
            return program
        kinds = {Kind.RAW: self._types.RAW_TRACEPOINT, Kind.TRACEPOINT: self._types.TRACEPOINT}
        return int(self._bpf.load_func(name, kinds.get(probe.kind, self._types.KPROBE)).fd)

    def _load_own(self, name: str) -> int:
        """Of a program that user space runs."""
        return int(self._bpf.load_func(name.encode(), self._types.RAW_TRACEPOINT).fd)

    def attach(self) -> None:
        """All probes of the tier, in its order. From here on the kernel writes."""
        with contextlib.ExitStack() as stack:
            by_id = any(probe.kind == Kind.TRACEPOINT for probe in self.tier.probes)
            tracefs = stack.enter_context(kernel.tracefs()) if by_id else -1
            for probe in filter(self._is_there, self.tier.probes):
                self._attach(probe, tracefs)
        self.missing += [probe.costs for probe in kernel.absent(self.tier, self._points)]
        if self.tier.functions and not self._fexit:
            self.missing.append("returns from a kernel function while more threads are in it than CPUs")

    def _attach(self, probe: kernel.Probe, tracefs: int) -> None:
        try:
            self._links.append(self._hang(probe, tracefs))
        except OSError as error:
            if not probe.costs:
                raise ShmtraceError(
                    f"{probe.kind.value} {probe.points[0]} cannot be used ({error.strerror})",
                    "`shmtrace doctor` says more, `shmtrace snapshot` works without",
                ) from None
            self.missing.append(probe.costs)

    def _hang(self, probe: kernel.Probe, tracefs: int) -> int:
        """A descriptor: the program hangs there until it is closed. Raises OSError."""
        program, point = self._programs[probe.program], probe.points[0]
        if probe.kind == Kind.RAW:
            return bpf.attach(program, point.partition(":")[2])
        if probe.kind == Kind.TRACEPOINT:
            return perf.tracepoint(program, kernel.tracepoint_id(tracefs, point))
        if self._is_tracing(probe):
            return bpf.attach(program)
        return perf.kprobe(program, self._points[probe.program].name, probe.kind == Kind.RETURN)

    def attach_uprobe(self, program: str, path: Path, offset: int) -> int:
        """To a function of a program, by its offset in the file; in all processes that run it. For detach_uprobe.

        Raises ShmtraceError.
        """
        with _quiet():
            function = self._bpf.load_func(program.encode(), self._types.KPROBE).fd
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
        number = bpf.run(self._enter, tgid, start_time_ns)
        if not number:
            return None
        process = KernelProcess.unpack(self._processes[number])
        self._news.know(process)
        return process

    def leave(self, tgid: int, start_time_ns: int) -> None:
        """It has ended, and the kernel side may not have seen it."""
        bpf.run(self._leave, tgid, start_time_ns)

    def keep(self, told: Fork | Exec) -> bool:
        """A process that is watched is of the tree. Whether it has been tracked so far."""
        return self._put(told, OF_TREE) != STRANGER

    def drop(self, told: Fork | Exec) -> None:
        """It is not."""
        self._put(told, STRANGER)

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
        return bpf.run(self._adopt, fd)

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
        return self.region(number) if bpf.run(self._measure, number) else None

    def forget(self, number: int) -> None:
        """What the kernel side has of a region is for another: in a moment, for a program may be at it."""
        if not self.has(number):
            return
        bpf.run(self._forget, number)
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
                bpf.run(self._empty, kind, *some, *[0] * (EMPTIED_AT_ONCE - len(some)))

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

    def behalves(self) -> dict[int, list[Behalf]]:
        """Who made pages in whose address space, by region."""
        now = self._nr_behalves.read() if self._nr_behalves else self._behalves_known
        if now != self._behalves_known:
            self._behalves_known, self._known_behalves = now, {}
            for key, value in self._behalves.items() if self._behalves else ():
                start_time_ns, for_start_time_ns, tgid, for_tgid, region, _ = BEHALF_KEY.unpack(key)
                behalf = Behalf((tgid, start_time_ns), (for_tgid, for_start_time_ns), COUNT.unpack(value)[0])
                self._known_behalves.setdefault(region, []).append(behalf)
        return self._known_behalves

    def forget_behalves(self, number: int) -> None:
        for behalf in self._known_behalves.pop(number, ()):
            (tgid, start_time_ns), (for_tgid, for_start_time_ns) = behalf.acting, behalf.whose
            if self._behalves:
                del self._behalves[BEHALF_KEY.pack(start_time_ns, for_start_time_ns, tgid, for_tgid, number, 0)]

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
        sizes = self._sizes
        regions_at = sizes.blocks + sizes.processes
        usages_at = regions_at + sizes.regions
        first = self._changed_processes()
        touched = self._changes.take(usages_at, usages_at + sizes.usages)
        changed = self._changes.take(regions_at, usages_at)
        processes = first | self._changed_processes()
        while self._news.lacks_a_parent(processes.values()) and (more := self._changed_processes()):
            processes |= more
        news: list[Event] = [*self._news.begun(processes.values())]
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
                self._changes.add(sizes.blocks + number)
                self._heard_late = True
        return news

    def _changed_processes(self) -> dict[int, KernelProcess]:
        """By number."""
        first = self._sizes.blocks
        changed = self._changes.take(first, first + self._sizes.processes)
        found = (KernelProcess.unpack(self._processes[number]) for number in changed)
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
        return sum(bpf.recursion_misses(self._programs[name]) for name in ("task_newtask", "sched_process_exit"))

    def _skipped(self) -> int:
        """How often the kernel skipped a program: its own counters."""
        misses = {name: bpf.recursion_misses(program) for name, program in self._programs.items()}
        if self.ranges is None:  # a toucher's parents say whose it is
            misses.pop("task_newtask")
        misses.pop("sched_process_exit")  # /proc says who has ended
        # a fault within the program of a fault is of what it reads there, a stack or a label, and makes no page
        if self._stacked or kernel.LABELS[0] in self.tier.probes:
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
        for number in self._changes.take(0, self._sizes.blocks):
            region, part = self._blocks.part(number)
            self._told.setdefault(region, {})[part] = number
            self._known.setdefault(region, {})[part] = number

    def _counts(self, name: str, nr_counts: int) -> Counts:
        counts = Counts(self._bpf[name.encode()].map_fd, nr_counts)
        self._mapped.append(counts)
        return counts

    def _map(self, lib: ctypes.CDLL, name: str, *sizes: int) -> Map:
        table = self._bpf[name.encode()]
        key_bytes, value_bytes = ctypes.sizeof(table.Key), ctypes.sizeof(table.Leaf)
        if sizes and sizes != (key_bytes, value_bytes):
            raise AssertionError(f"{name} is {key_bytes} to {value_bytes} bytes, not {sizes}")
        return Map(lib, table.map_fd, key_bytes, value_bytes)

    def _ranges(self, lib: ctypes.CDLL) -> Ranges:
        return Ranges(lib, self._bpf[b"ranges"].map_fd, TGID.size, RANGES_BYTES, self._load_own("ranges_written"))


def _place(number: int) -> int:
    """Of a region, by its id."""
    return number & ((1 << SLOT_BITS) - 1)


def attached(tiers: Sequence[kernel.Tier], sizes: Sizes, began_ns: int, began_boot_ns: int, *flags: str) -> Probes:
    """The probes of the first of these tiers that the kernel lets us have, attached.

    Raises ShmtraceError: why it was not the last one either.
    """
    *better, last = tiers
    for tier in better:
        with contextlib.suppress(ShmtraceError):
            return _attached(tier, sizes, began_ns, began_boot_ns, *flags)
    return _attached(last, sizes, began_ns, began_boot_ns, *flags)


def _attached(tier: kernel.Tier, sizes: Sizes, began_ns: int, began_boot_ns: int, *flags: str) -> Probes:
    probes = Probes(tier, sizes, began_ns, began_boot_ns, *flags)
    try:
        probes.attach()
    except BaseException:
        probes.__exit__(None, None, None)
        raise
    return probes


def _refusal(error: Exception, output: str) -> ShmtraceError:
    """bcc says on stderr, in many lines, why it failed; the first that matters, and what to do."""
    lines = [line for line in output.splitlines() if line.strip()]
    told = (line for line in lines if "error:" in line or "bpf:" in line)
    reason = next(told, lines[0] if lines else str(error)).strip()
    mode = kernel.lockdown()
    if mode == "confidentiality":
        return ShmtraceError(
            "the kernel is locked down (confidentiality) and refuses BPF",
            "boot with lockdown=integrity; `shmtrace snapshot` works without",
        )
    return ShmtraceError(f"BPF refused: {reason}", "`shmtrace doctor` says more, `shmtrace snapshot` works without")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """bcc and LLVM write to descriptor 2: kept back, and made one line of if it comes to an error."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.memfd_create("shmtrace"), "w+b") as kept:  # the disk may be full
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - bcc raises nothing finer
            kept.seek(0)
            raise _refusal(error, kept.read().decode(errors="replace")) from None
        finally:
            os.dup2(saved, 2)
            os.close(saved)

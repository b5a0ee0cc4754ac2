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
from tracer.blocks import Blocks, Counts, Places
from tracer.btf import Btf, BtfError
from tracer.errors import ShmtraceError
from tracer.events import Event, region_key
from tracer.kernel import Kind
from tracer.ledger import Block
from tracer.procfs import RegionKey
from tracer.ring import Ring
from tracer.wire import (
    BEHALF_KEY,
    COUNT,
    FREE_BLOCK,
    FREE_REGION,
    FREE_USAGE,
    LABEL,
    LOSSES,
    RANGES_BYTES,
    REGION,
    SLOT_BITS,
    STACK,
    STACKED_KEY,
    TGID,
    USAGE,
)

_package = Path(__file__).parent / "bpf"  # in a wheel; in a checkout bpf/ is beside the package
SOURCES = _package if _package.is_dir() else Path(__file__).parent.parent / "bpf"
STUBS = SOURCES / "stubs"
EVENT_PAGES = 1024  # a power of two; 4 MiB, some 10,000 forks or execs
LABEL_PAGES = 1024  # 4 MiB, some 9,000 labels
BATCH = 4096
MAX_EVENTS = 1024  # at once: who waits for them has other things to look at
FILLED_AT_ONCE = 1024  # bpf/maps.c
GRACE_S = 0.05  # after which no program is still at what it could find before
CALL_THEMSELVES = "sys_enter_fallocate", "sys_exit_fallocate"  # by their places in again of bpf/fallocate.c
STACKS = "STACKS"  # the flag that has pages counted by user stack


class Sizes(NamedTuple):
    """How many entries the maps have room for; they are allocated at once, so that no fault waits for memory."""

    blocks: int
    processes: int
    regions: int
    usages: int


class KernelRegion(NamedTuple):
    """struct region of bpf/wire.h. Pages are of 4 KiB; times are microseconds since the capture began."""

    key: RegionKey
    id: int
    size_bytes: int
    pages: int
    swapped_pages: int
    peak_pages: int
    start_pages: int
    gone_us: int
    torn_pages: int
    made_ns: int
    """CLOCK_MONOTONIC; 0: nobody saw it made"""
    maker: tuple[int, int]
    """tgid, start_time_ns"""
    order: int
    """of the pages of a hugetlbfs, by which its ledger counts"""
    huge: bool
    told: bool

    @classmethod
    def unpack(cls, raw: bytes) -> KernelRegion:
        ino, generation, dev, *numbers = REGION.unpack(raw)
        (
            _mapping,
            size_bytes,
            pages,
            swapped,
            peak,
            start,
            gone_us,
            torn,
            _,
            made_ns,
            start_time_ns,
            tgid,
            number,
            huge,
            told,
            order,
            _,
        ) = numbers
        return cls(
            key=region_key(ino, generation, dev),
            id=number,
            size_bytes=size_bytes,
            pages=pages,
            swapped_pages=swapped,
            peak_pages=peak,
            start_pages=start,
            gone_us=gone_us,
            torn_pages=torn,
            made_ns=made_ns,
            maker=(tgid, start_time_ns),
            huge=bool(huge),
            order=order,
            told=bool(told),
        )


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
        # number 0 is none
        sizes = sizes._replace(blocks=sizes.blocks + 1, regions=sizes.regions + 1, usages=sizes.usages + 1)
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
        own = ("adopt", "measure", "forget", "empty", "fill")
        self._adopt, self._measure, self._forget, self._empty, fill = map(self._load_own, own)
        if tier.by == "fentry":
            bpf.run(self._load_own("anchor"), 0)
        rooms = {FREE_BLOCK: sizes.blocks, FREE_REGION: sizes.regions, FREE_USAGE: sizes.usages}
        for kind, count in rooms.items():
            for first in range(1, count, FILLED_AT_ONCE):
                bpf.run(fill, kind, first, count)
        self.processes = self._map(lib, "processes")
        self.ranges = self._ranges(lib) if not tier.functions else None
        if not tier.functions:
            again = self._map(lib, "again")
            for place, name in enumerate(CALL_THEMSELVES):
                again[TGID.pack(place)] = TGID.pack(self._programs[name])
        self._behalves = self._map(lib, "behalves") if tier.functions and "HAVE_MM_OWNER" in defines else None
        labelled = kernel.LABELS[0] in tier.probes
        if labelled:
            self.labels = self._map(lib, "labels", TGID.size, LABEL.size)
        self._blocks = Blocks(self._bpf[b"ledger"].map_fd, self._bpf[b"changes"].map_fd, sizes.blocks)
        self._regions = blocks.regions(self._bpf[b"regions"].map_fd, sizes.regions)
        self._usages = blocks.usages(self._bpf[b"usages"].map_fd, sizes.usages)
        self._mapped: list[Blocks | Places | Counts] = [self._blocks, self._regions, self._usages]
        self._stacked = self._map(lib, "stacked", STACKED_KEY.size, COUNT.size) if STACKS in flags else None
        self._stacks = self._map(lib, "stacks", COUNT.size, STACK.size) if STACKS in flags else None
        self._losses = self._counts("losses", len(LOSSES))
        self._nr_behalves = self._counts("nr_behalves", 1) if self._behalves else None
        self._known_behalves: dict[int, list[Behalf]] = {}
        self._behalves_known = [0]
        self._usage_numbers: dict[tuple[int, int, int], int] = {}
        # blocks by region and part of it: that have changed, and all of them
        self._told: dict[int, dict[int, int]] = {}
        self._known: dict[int, dict[int, int]] = {}
        self._forgotten: deque[tuple[float, int, list[int]]] = deque()
        """(when, id of the region, its blocks), to be given back"""
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
        for link in self._links:
            os.close(link)
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

    # ---- regions ----

    def adopt(self, fd: int) -> int:
        """The id of the region that this descriptor is of, entered if it is new; 0: there is no room for it."""
        return bpf.run(self._adopt, fd)

    def region(self, number: int) -> KernelRegion | None:
        found = KernelRegion.unpack(self._regions[_place(number)])
        return found if found.id == number else None

    def read_regions(self) -> dict[int, KernelRegion]:
        """All of them, by their id."""
        found = (KernelRegion.unpack(self._regions[place]) for place in self._regions.taken())
        return {region.id: region for region in found}

    def measure(self, number: int) -> KernelRegion | None:
        """As it is now; None: it is there no more."""
        return self.region(number) if bpf.run(self._measure, number) else None

    def forget(self, number: int) -> None:
        """What the kernel side has of a region is for another: in a moment, for a program may be at it."""
        bpf.run(self._forget, number)
        self.hear()
        theirs = self._known.pop(number, {})
        self._forgotten.append((time.monotonic(), number, list(theirs.values())))
        self._told.pop(number, None)

    def _give_back(self) -> None:
        """What has been forgotten for long enough."""
        now = time.monotonic()
        while self._forgotten and self._forgotten[0][0] < now - GRACE_S:
            _, number, theirs = self._forgotten.popleft()
            bpf.run(self._empty, FREE_REGION, number)
            for block in theirs:
                bpf.run(self._empty, FREE_BLOCK, block)

    def read_usages(self) -> dict[tuple[int, int, int], Usage]:
        """What processes did to regions, by (region, tgid, start_time_ns)."""
        found: dict[tuple[int, int, int], Usage] = {}
        self._usage_numbers = {}
        for number in self._usages.taken():
            faults, freed_pages, *key = USAGE.unpack(self._usages[number])
            found[tuple(key)] = Usage(faults, freed_pages)
            self._usage_numbers[tuple(key)] = number
        return found

    def take_usage(self, number: int, tgid: int, start_time_ns: int) -> Usage | None:
        """What a process did to a region, if that was there when they were last read; it is there no more."""
        place = self._usage_numbers.pop((number, tgid, start_time_ns), None)
        if place is None:
            return None
        faults, freed_pages, *_ = USAGE.unpack(self._usages[place])
        bpf.run(self._empty, FREE_USAGE, place)
        return Usage(faults, freed_pages)

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
        """Events, MAX_EVENTS of a kind at most, waiting for the first at most so long."""
        self._readable.poll(timeout_s * 1000)
        self._give_back()
        return [events.decode(raw) for ring in self._rings for raw in ring.read(MAX_EVENTS)]

    def losses(self) -> dict[str, int]:
        """What could not be written down so far, by wire.LOSSES."""
        return {**dict(zip(LOSSES, self._losses.read())), "probes": self._skipped()}

    def skipped_forks(self) -> int:
        """How often the kernel skipped the program that tells of a fork."""
        return bpf.recursion_misses(self._programs["task_newtask"])

    def _skipped(self) -> int:
        """How often the kernel skipped a program: its own counters."""
        misses = {name: bpf.recursion_misses(program) for name, program in self._programs.items()}
        if self.ranges is None:  # a toucher's parents say whose it is
            misses.pop("task_newtask")
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
        return self._read(self._known.get(region, {}))

    def _read(self, places: dict[int, int]) -> dict[int, Block]:
        return {part: self._blocks.block(number) for part, number in places.items()}

    def hear(self) -> None:
        """Which blocks have changed, so far."""
        for region, part, number in self._blocks.changed():
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

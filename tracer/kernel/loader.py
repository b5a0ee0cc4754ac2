"""Loads bytecode into the kernel: all of its maps, and the programs of a tier. Or finds them where they are pinned."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tracer import wire
from tracer.errors import ShmtraceError
from tracer.kernel import bpf_syscall, host, tiers
from tracer.kernel.bpf_syscall import Map
from tracer.kernel.bytecode import Bytecode, MapLayout
from tracer.kernel.fields import Function
from tracer.kernel.tiers import Kind, Probe

FILLED_AT_ONCE = 128  # limit of one run of the program fill, in bpf/maps.c
OWN = "adopt", "measure", "forget", "enter", "leave", "empty"
"""Programs that user space runs, by BPF_PROG_TEST_RUN."""
PARTS_OF_CALLS = "note_absent", "take_made"  # in the order of enum part_of_call in bpf/calls.c
ARM_AGAIN = "`shmtrace disarm`, then arm it again"
FEW = 8  # an armed trace recycles what is over where less than this part of an array is free


class Sizes(NamedTuple):
    """The number of entries of the BPF maps, which are preallocated so that no page fault waits for memory.

    The first four are in the order of enum free of bpf/wire.h.
    """

    blocks: int
    processes: int
    regions: int
    usages: int
    alive: int
    """Processes whose labels can be followed at a time."""


class Beginning(NamedTuple):
    """The start of a trace, as the same moment by two clocks, and which processes to track."""

    monotonic_ns: int
    boot_ns: int
    everything: bool = False
    """Track all processes."""
    watches_execs: bool = False
    """Also track every process that executes a program, as a candidate, until keep() or drop()."""
    only_dev: int = 0
    """Only the regions of this device, as the kernel numbers it; 0: of all."""
    armed: bool = False
    """No user space gives back what is over."""
    letters: tuple[bytes, ...] = ()
    """Of programs whose name and first argument have none of these no exec is reported. Empty: every one is."""

    def state(self, sizes: Sizes) -> bytes:
        """As struct state of bpf/wire.h."""
        return wire.STATE.pack(*self[:6], *(count // FEW for count in sizes[:4]), 0, 0, 0)

    def wanted(self) -> bytes:
        """As struct wanted of bpf/wire.h."""
        letters = [int.from_bytes(each[: wire.LETTERS], sys.byteorder) for each in self.letters]
        masks = [int.from_bytes(b"\xff" * len(each[: wire.LETTERS]), sys.byteorder) for each in self.letters]
        count = len(letters) if len(letters) <= wire.MAX_WANTED else 0
        unused = [0] * (wire.MAX_WANTED - count)
        return wire.WANTED.pack(*letters[:count], *unused, *masks[:count], *unused, count)


class Loaded:
    """Maps and programs in the kernel. close() closes them; what is pinned or attached elsewhere stays.

    All raise ShmtraceError where the kernel refuses.
    """

    def __init__(self, layouts: Sequence[MapLayout], programs: Mapping[str, bytes]) -> None:
        """Nothing is in the kernel yet. programs: their instructions, by name."""
        self.layouts = {layout.name: layout for layout in layouts}
        self.programs: dict[str, int] = {}
        """Descriptors by name; of a program that was loaded more than once, the last."""
        self._code = programs
        self._maps: dict[str, int] = {}  # descriptors by name
        self._opened: list[int] = []

    @classmethod
    def create(cls, bytecode: Bytecode, rooms: Mapping[str, int]) -> Loaded:
        """Make the maps. rooms: the number of entries of sized maps, by bytecode.ROOMS."""
        loaded = cls(bytecode.maps, bytecode.programs)
        try:
            for layout in bytecode.maps:
                loaded._maps[layout.name] = layout.make(rooms)
        except OSError as error:
            loaded.close()
            raise refusal(error) from None
        return loaded

    @classmethod
    def pinned(cls, layouts: Sequence[MapLayout], directory: Path) -> Loaded:
        """Open what pin() has kept in a directory."""
        loaded = cls(layouts, {})
        try:
            for name in loaded.layouts:
                loaded._maps[name] = bpf_syscall.pinned(directory / "maps" / name)
            for path in (directory / "programs").iterdir():
                loaded.programs[path.name] = bpf_syscall.pinned(path)
        except OSError as error:
            loaded.close()
            raise ShmtraceError(f"{directory} lacks some of what was armed ({error.strerror})", ARM_AGAIN) from None
        loaded._opened = list(loaded.programs.values())
        return loaded

    def pin(self, directory: Path) -> None:
        """Keep all maps and programs under a directory of a bpffs. Raises OSError."""
        for kind, descriptors in (("maps", self._maps), ("programs", self.programs)):
            (directory / kind).mkdir(0o700)
            for name, descriptor in descriptors.items():
                bpf_syscall.pin(descriptor, directory / kind / name)

    def memory_bytes(self) -> int:
        """The kernel memory of all maps, as /proc tells it."""
        told = (Path(f"/proc/self/fdinfo/{descriptor}").read_text() for descriptor in self._maps.values())
        lines = (line.split() for text in told for line in text.splitlines())
        return sum(int(words[1]) for words in lines if words[0] == "memlock:")

    def close(self) -> None:
        for descriptor in [*self._maps.values(), *self._opened]:
            os.close(descriptor)

    def fd(self, name: str) -> int:
        """The descriptor of a map."""
        return self._maps[name]

    def map(self, name: str) -> Map:
        """A map, to read and write entries of."""
        layout = self.layouts[name]
        return Map(self._maps[name], layout.key_bytes, layout.value_bytes)

    def load(self, name: str, kind: int, function: int = 0, at_exit: bool = False) -> int:
        """Load a program and return its descriptor. kind, function, at_exit: as in bpf_syscall.load()."""
        code = bpf_syscall.renumber_maps(self._code[name], list(self._maps.values()))
        try:
            program = bpf_syscall.load(code, kind, function, at_exit)
        except OSError as error:
            raise refusal(error) from None
        self._opened.append(program)
        self.programs[name] = program
        return program

    def load_tier(self, tier: tiers.Tier, points: Mapping[str, Function], fexit: bool, sizes: Sizes) -> None:
        """Load all programs of a tier, and fill the free lists of the maps. points, fexit: as tiers has them."""

        def load(probe: Probe) -> None:
            if tiers.is_tracing(tier, probe, fexit):
                function = points[probe.program].id
                self.load(probe.program, bpf_syscall.TRACING, function, probe.kind == Kind.RETURN)
            else:
                kinds = {Kind.RAW: bpf_syscall.RAW_TRACEPOINT, Kind.TRACEPOINT: bpf_syscall.TRACEPOINT}
                self.load(probe.program, kinds.get(probe.kind, bpf_syscall.KPROBE))

        probes = {probe.program: probe for probe in tier.probes if tiers.is_there(probe, points)}
        # most of the time to attach is the verifier's, which uses one CPU per program
        with ThreadPoolExecutor() as pool:
            filling = pool.submit(self._fill, sizes)
            list(pool.map(load, probes.values()))
            list(pool.map(lambda name: self.load(name, bpf_syscall.RAW_TRACEPOINT), OWN))
            if not tier.functions:
                parts = self.map("parts_of_calls")
                calls = pool.map(lambda name: self.load(name, bpf_syscall.TRACEPOINT), PARTS_OF_CALLS)
                for place, program in enumerate(calls):
                    parts[wire.TGID.pack(place)] = wire.TGID.pack(program)
            filling.result()
        if tier.by == "fentry":
            bpf_syscall.run(self.load("anchor", bpf_syscall.RAW_TRACEPOINT), 0)

    def _fill(self, sizes: Sizes) -> None:
        fill = self.load("fill", bpf_syscall.RAW_TRACEPOINT)
        for kind, count in zip((wire.FREE_BLOCK, wire.FREE_PROCESS, wire.FREE_REGION, wire.FREE_USAGE), sizes):
            for first in range(1, count, FILLED_AT_ONCE):
                bpf_syscall.run(fill, kind, first, count)

    def begin(self, beginning: Beginning, sizes: Sizes) -> None:
        """Write what the programs need to know of a trace. Call it before any is attached."""
        self.map("states")[wire.TGID.pack(0)] = beginning.state(sizes)
        self.map("wanted")[wire.TGID.pack(0)] = beginning.wanted()
        counts = self.map("room")
        for kind, count in enumerate(sizes[:4]):
            counts[wire.TGID.pack(kind)] = wire.COUNT.pack(count - 1)


def refusal(error: OSError) -> ShmtraceError:
    """The error to report when bpf(2) has failed."""
    if host.lockdown() == "confidentiality":
        return ShmtraceError(
            "the kernel is locked down (confidentiality) and refuses BPF",
            "boot with lockdown=integrity; `shmtrace snapshot` works without",
        )
    return ShmtraceError(
        f"BPF refused: {error.strerror}", "`shmtrace doctor` says more, `shmtrace snapshot` works without"
    )

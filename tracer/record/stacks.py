"""Which code made the pages: reads the stacks counted by the probes, names their functions, and says where those are.

Addresses of a stack can only be resolved while its process lives. So the mapped code of a process is read when it first
touches a region, with symbols. Files are not kept open, since that would prevent unmounting their file system. A forked
child that exits too soon uses its parent's code. Stacks that are not resolved yet count as unknown.
"""

from __future__ import annotations

import bisect
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from tracer import binaries, wire
from tracer.binaries import Binary
from tracer.capture.capture import Capture
from tracer.kernel import events
from tracer.kernel.events import Event
from tracer.kernel.maps import Stacked
from tracer.kernel.probes import Probes
from tracer.proc.procfs import TICK_NS, Executable, Proc
from tracer.proc.shmem import PAGE_BYTES, FileKey
from tracer.record import elf
from tracer.record.budget import Budget
from tracer.record.elf import Elf
from tracer.record.processes import Processes, TracedProcess
from tracer.record.regions import TracedRegion
from tracer.record.symbols import Function, Symbols

PATIENCE_S = 0.05  # for one write(); the rest is left for the next
MAX_KEPT_BYTES = 128 << 20  # limit for symbols in memory


class Frame(NamedTuple):
    """A frame of a stack."""

    text: str
    """The function, or else file name+address."""
    binary: Binary | None = None
    """None: its code is of no file, or unknown."""
    address: int = 0
    """In the binary: of a function that has a name, where it begins."""


UNKNOWN = Frame("?")


class Module:
    """A file that code is mapped from, as read. It is not kept open."""

    def __init__(self, program: Elf | None, budget: Budget) -> None:
        """program: None if the file is no ELF file."""
        self._program = program
        self._budget = budget
        self._symbols: Symbols | None = None

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        of_tables, of_symbols = (part.size_bytes if part else 0 for part in (self._program, self._symbols))
        return 1024 + of_tables + of_symbols

    def function(self, address: int) -> Function | None:
        """The function at an address of the file's own; None: no name is known. Reads the symbols at first use."""
        if self._program and not self._symbols and not self._budget.used_up:
            with self._budget:
                self._symbols = Symbols(self._program)
            self._program = self._program.without_tables()
        return self._symbols.function(address) if self._symbols else None

    def address(self, offset_bytes: int) -> int:
        """The address of an offset in the file, as addr2line shows it."""
        return self._program.address(offset_bytes) if self._program else offset_bytes

    def binary(self, path: str, offset_bytes: int) -> Binary | None:
        """The segment that has an offset in the file; None: its layout is unknown. path: how the file is called."""
        load = self._program.load(offset_bytes) if self._program else None
        if not (self._program and load):
            return None
        before = load.offset_bytes % PAGE_BYTES
        size_bytes = -(-(before + load.size_bytes) // PAGE_BYTES) * PAGE_BYTES
        build_id = self._program.build_id or None
        return Binary(path, build_id, load.address - before, size_bytes, load.offset_bytes - before)


class Program:
    """The code that a process has mapped, shared with forked children."""

    def __init__(self, executables: Sequence[Executable]) -> None:
        self.executables = executables
        self.modules: list[Module | None] = [None] * len(executables)
        """None: not read."""
        self.is_read = False
        self._frames: dict[int, Frame] = {}
        self._starts = [executable.start for executable in executables]

    def covers(self, address: int) -> bool:
        """Whether code is mapped at an address."""
        return self._at(address) is not None

    def frame(self, address: int) -> Frame | None:
        """The frame of an address; None: no code is mapped there."""
        number = self._at(address)
        if number is None:
            return None
        if address not in self._frames:
            self._frames[address] = self._frame(address, self.executables[number], self.modules[number])
        return self._frames[address]

    def _frame(self, address: int, executable: Executable, module: Module | None) -> Frame:
        if not executable.ino:
            return Frame(executable.path or "[anon]")
        path = executable.path.removesuffix(" (deleted)")
        place = address - executable.start + executable.offset_bytes
        binary = module.binary(path, place) if module else None
        if not binary:
            size_bytes = executable.end - executable.start
            binary = Binary(path, None, executable.offset_bytes, size_bytes, executable.offset_bytes)
        function = None
        if module:
            place = module.address(place)
            function = module.function(place)
        text = function.name.replace("\n", "\\x0a") if function else f"{path.rpartition('/')[2]}+{place:#x}"
        if not binary.has(place):
            return Frame(text)
        return Frame(text, binary, function.address if function and binary.has(function.address) else place)

    def _at(self, address: int) -> int | None:
        number = bisect.bisect_right(self._starts, address) - 1
        return number if number >= 0 and address < self.executables[number].end else None


class Stacks:
    """Resolves stacks and writes them into the capture."""

    def __init__(
        self,
        capture: Capture,
        probes: Probes,
        processes: Processes,
        regions: Mapping[int, TracedRegion],
        warn: Callable[[str], None],
    ) -> None:
        """regions: the live mapping of existing regions by id."""
        self._capture = capture
        self._probes = probes
        self._lives = processes
        self._alive = regions
        self._proc = Proc()
        self._regions: dict[int, int] = {}  # region id to row
        self._programs: dict[TracedProcess, list[Program]] = {}  # newest first
        self._touchers: set[TracedProcess] = set()
        self._execs: Counter[TracedProcess] = Counter()
        self._born_after: dict[TracedProcess, int] = {}  # how many execs its parent had made before it was forked
        self._modules: dict[FileKey, Module] = {}
        self._budget = Budget()
        self._lacking = False
        self._warn = warn
        self._rows: dict[tuple[Frame, ...], int] = {}
        self._binaries: dict[Binary, int] = {}  # their rows
        # pages written, and the stack row they count for; None: as unknown
        self._told: dict[Stacked, tuple[int, int | None]] = {}

    # ---- on the way ----

    def enter(self, region: TracedRegion) -> None:
        """Remember the row of a region."""
        self._regions[region.id] = region.row

    def apply(self, event: Event) -> None:
        """Follow an event. Call it after the trace has applied it."""
        if isinstance(event, events.Touch):
            process = self._lives.find(*event.process)
        elif isinstance(event, (events.Fork, events.Exec)):
            process = self._lives.find(event.head.tgid, event.head.start_time_ns)
        else:
            return
        if not process:
            return
        if isinstance(event, events.Touch):
            self._touchers.add(process)
            self._read(process)
        elif isinstance(event, events.Exec):
            if process in self._touchers:
                self.write()  # its pages so far were made by the previous program
            self._look(process)  # the process may exit before its first touch is known
            self._execs[process] += 1
        elif process.parent:
            if self._execs[process.parent]:
                self._born_after[process] = self._execs[process.parent]
            if process.parent in self._programs:
                self._programs[process] = list(self._programs[process.parent])

    def _look(self, process: TracedProcess) -> Program | None:
        """Read which code a process has mapped; None: the process is gone."""
        executables = self._proc.executables(process.tgid)
        now = self._proc.process(process.tgid)
        if not executables or not now or abs(now.start_time_ns - process.start_time_ns) > TICK_NS:
            return None
        known = self._programs.setdefault(process, [])
        if not known or known[0].executables != executables:
            known.insert(0, Program(executables))
        return known[0]

    def _read(self, process: TracedProcess) -> bool:
        """Read the symbols of a process's code, once: its files are accessible only while it lives. False: it is gone
        or does not answer."""
        program = self._look(process)
        if not program or program.is_read:
            return program is not None
        program.is_read = True
        for number, executable in enumerate(program.executables):
            if self._budget.used_up:
                self._lack("reading other files took too long")
                break
            if executable.ino and not executable.shared:  # shared mappings are of regions
                with self._budget:
                    program.modules[number] = self._module(process.tgid, executable)
        return True

    def _module(self, tgid: int, executable: Executable) -> Module | None:
        try:
            fd = self._proc.open_mapped(tgid, executable)
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError as error:
            self._lack(f"{executable.path} cannot be opened ({error.strerror})")
            return None
        try:
            key = FileKey.of(fd)
            if key not in self._modules:
                if not self._has_room():
                    self._lack(f"the symbols of other files take {MAX_KEPT_BYTES >> 20} MiB")
                    return None
                self._modules[key] = Module(elf.read(fd), self._budget)
            return self._modules[key]
        except OSError as error:
            self._lack(f"{executable.path} cannot be read ({error.strerror})")
            return None
        finally:
            os.close(fd)

    def _has_room(self) -> bool:
        """Whether there is room for the symbols of another file. If not, forget those that no process has mapped."""
        if sum(module.size_bytes for module in self._modules.values()) < MAX_KEPT_BYTES:
            return True
        used = {module for programs in self._programs.values() for program in programs for module in program.modules}
        self._modules = {key: module for key, module in self._modules.items() if module in used}
        return sum(module.size_bytes for module in self._modules.values()) < MAX_KEPT_BYTES

    def _lack(self, why: str) -> None:
        """Warn that names are missing: once, with the first reason."""
        if not self._lacking:
            self._lacking = True
            self._warn(f"functions of some programs are shown by file offset: {why}")

    # ---- into the capture ----

    def write(self, patience_s: float = PATIENCE_S) -> None:
        """Write the pages that each stack has made since the last write. patience_s: limit for resolving stacks.

        Stacks that are complete are deleted from the BPF maps to make room. Where frame pointers mislead, nearly every
        page has a stack of its own.
        """
        until_s = time.monotonic() + patience_s
        pages: Counter[tuple[int, int, int]] = Counter()
        looked: dict[TracedProcess, bool] = {}
        waiting: set[TracedProcess] = set()
        used: set[int] = {wire.NO_STACK}
        unused: set[int] = set()
        for stacked, made in self._probes.stacked().items():
            region, process = self._regions.get(stacked.region), self._lives.find(stacked.tgid, stacked.start_time_ns)
            if region is None or not process:
                # only a candidate used the region, and -p did not match that process
                if not self._probes.region(stacked.region):
                    self._probes.forget_stacked(stacked)
                continue
            told, row = self._told.get(stacked, (0, None))
            if row is None and time.monotonic() < until_s:
                row = self._find(process, stacked.stack, looked)
                if told:
                    pages[region, process.row, self._row()] -= told
                told = 0
            pages[region, process.row, self._row() if row is None else row] += made - told
            self._told[stacked] = made, row
            if row is None:
                waiting.add(process)
            if row is not None and (made == told or process.exited or stacked.region not in self._alive):
                self._probes.forget_stacked(stacked)
                del self._told[stacked]
                unused.add(stacked.stack)
            else:
                used.add(stacked.stack)
        for stack in unused - used:
            self._probes.forget_stack(stack)
        self._capture.add_stacked((*key, made) for key, made in pages.items() if made)
        left = {stacked.region for stacked in self._told}
        for number in self._regions.keys() - self._alive.keys() - left:
            del self._regions[number]
        known = {*self._programs, *self._born_after, *self._touchers}
        for process in [process for process in known if process.exited and process not in waiting]:
            self._programs.pop(process, None)
            self._born_after.pop(process, None)
            self._touchers.discard(process)

    def needed(self) -> set[int]:
        """The stack rows that a later write() may still name."""
        return {row for _, row in self._told.values() if row is not None}

    def prune(self, rows: Collection[int], processes: Collection[int]) -> None:
        """Forget what the capture does not have any more. rows, processes: the stacks and processes that it has."""
        self._rows = {frames: row for frames, row in self._rows.items() if row in rows}
        self._binaries = {Binary(*fields): row for row, *fields in self._capture.each(binaries.BINARIES)}
        for process in [process for process in self._execs if process.row not in processes]:
            del self._execs[process]

    def _find(self, process: TracedProcess, stack: int, looked: dict[TracedProcess, bool]) -> int | None:
        """The row of a stack; None: ask again later.

        looked: processes whose code was read again during this write, and whether that could be.
        """
        if stack == wire.NO_STACK:
            return self._row()
        innermost, *callers = self._probes.stack(stack) or (0,)
        # A return address may be in the next function already. Look up the call, one byte before.
        addresses = [innermost, *(address - 1 for address in callers)]
        program = self._program(process, innermost)
        if not (program and program.is_read and all(map(program.covers, addresses))):
            if not self._learn(process, looked):
                return None
            program = self._program(process, innermost)
        return self._row(known([program.frame(address) for address in addresses]) if program else ())

    def _learn(self, process: TracedProcess, looked: dict[TracedProcess, bool]) -> bool:
        """Read again which code a process has mapped, or if it is gone, which its parent of the same program has.

        False: who lives has not answered, as where its file system or the whole host stands still.
        """
        while process.exited and process.parent and self._is_as_its_parent(process, process.parent):
            process = process.parent
        if not process.exited and process not in looked:
            looked[process] = self._read(process)
        return process.exited or looked[process]

    def _program(self, process: TracedProcess, innermost: int) -> Program | None:
        """The newest program with code at the innermost address: the process may have executed another one since."""
        known = self._programs.get(process, [])
        while not known and process.parent and self._is_as_its_parent(process, process.parent):
            process = process.parent
            known = self._programs.get(process, [])
        return next((program for program in known if program.covers(innermost)), known[0] if known else None)

    def _is_as_its_parent(self, process: TracedProcess, parent: TracedProcess) -> bool:
        """Whether neither has executed another program since the fork."""
        return not self._execs[process] and self._execs[parent] == self._born_after.get(process, 0)

    def _row(self, frames: tuple[Frame, ...] = ()) -> int:
        """frames: callers first; none: the stack is unknown."""
        if frames not in self._rows:
            row = self._capture.insert("stack", frames="\n".join(frame.text for frame in frames) or None)
            places = (
                (row, line, self._binary(frame.binary), frame.address)
                for line, frame in enumerate(frames)
                if frame.binary
            )
            self._capture.insert_all("frame", "stack, line, binary, address", places)
            self._rows[frames] = row
        return self._rows[frames]

    def _binary(self, binary: Binary) -> int:
        if binary not in self._binaries:
            self._binaries[binary] = self._capture.insert("binary", **binary._asdict())
        return self._binaries[binary]


def known(frames: Sequence[Frame | None]) -> tuple[Frame, ...]:
    """The frames of a stack, callers first, given innermost first. Empty: none is known.

    Adjacent unknown frames are merged into one: after a function without frame pointers, the rest is unknown.
    """
    found: list[Frame] = []
    for frame in reversed(frames):
        if frame or found[-1:] != [UNKNOWN]:
            found.append(frame or UNKNOWN)
    return tuple(found) if any(frames) else ()

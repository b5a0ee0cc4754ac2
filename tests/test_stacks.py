"""Which stack a page is counted by, in the capture, while processes come, change and go."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proc_texts import put, stat_of
from tests.test_elf import made_up, with_functions
from tests.test_processes import CLOCK
from tracer import binaries, wire
from tracer.binaries import Binary
from tracer.capture.capture import Capture
from tracer.kernel import events
from tracer.kernel.events import Head
from tracer.kernel.maps import Stacked
from tracer.proc.procfs import Executable, Proc
from tracer.proc.shmem import RegionKey, open_promptly
from tracer.record import elf
from tracer.record.budget import Budget
from tracer.record.elf import read as elf_read
from tracer.record.processes import Processes, TracedProcess
from tracer.record.regions import TracedRegion
from tracer.record.stacks import UNKNOWN, Frame, Module, Program, Stacks, known

CODE = 0x10000
STACKS = {1: (CODE + 0x10, CODE + 0x21), 2: (CODE + 0x30,), 4: (7, 9)}
"""A function and who called it, one that nobody called, and garbage; the innermost first."""


class Kernel:
    """What the kernel side would say."""

    def __init__(self) -> None:
        self.counts: dict[Stacked, int] = {}
        self.addresses: dict[int, tuple[int, ...]] = {}
        self.known = {3}

    def stacked(self) -> dict[Stacked, int]:
        return dict(self.counts)

    def stack(self, number: int) -> tuple[int, ...]:
        return self.addresses.get(number, ())

    def region(self, number: int) -> int | None:
        return number if number in self.known else None

    def forget_stacked(self, stacked: Stacked) -> None:
        del self.counts[stacked]

    def forget_stack(self, number: int) -> None:
        del self.addresses[number]


class World:
    """A region, 3, and whoever touches it."""

    def __init__(self, capture: Capture, root: Path) -> None:
        self.capture = capture
        self.kernel: Any = Kernel()
        self.lives = Processes(capture, CLOCK)
        self.regions = {3: TracedRegion(31, 3, RegionKey(1, 7, 9), "anon", path=None)}
        self.warnings: list[str] = []
        self.stacks = Stacks(capture, self.kernel, self.lives, self.regions, self.warnings.append)
        self.stacks._proc = self.proc = Proc(str(root))
        self.stacks.enter(self.regions[3])

    def begin(self, tgid: int, program: str, parent: int | None = None) -> TracedProcess:
        process = self.lives.begin(tgid, tgid * 10**7, parent, "x", "x", began_us=-1)
        self.put(tgid, program)
        return process

    def put(self, tgid: int, program: str, file: Path | None = None) -> None:
        """It runs this, whose one page of code is where all programs have it; none: it is gone."""
        place = f"{CODE:x}-{CODE + 4096:x}"
        maps = f"{place} r-xp 00002000 fe:01 {len(program)} /bin/{program}\n" if program else ""
        put(self.proc, tgid, stat=stat_of(tgid, b"x", start_ticks=tgid), cmdline=b"x\0", maps=maps)
        link = self.proc.root / str(tgid) / "map_files" / place
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        if file:
            link.symlink_to(file)

    def event(self, kind: type[Any], process: TracedProcess, *fields: Any) -> None:
        self.stacks.apply(kind(Head(0, process.start_time_ns, process.tgid), *fields))

    def touch(self, process: TracedProcess, stack: int, pages: int, told: bool = True) -> None:
        if stack in STACKS:
            self.kernel.addresses.setdefault(stack, STACKS[stack])
        key = Stacked(3, process.tgid, process.start_time_ns, stack)
        self.kernel.counts[key] = self.kernel.counts.get(key, 0) + pages
        if told:
            self.stacks.apply(events.Touch(process.key, 3, "x", of_tree=True))

    def made(self) -> dict[tuple[int, str | None], int]:
        """Pages by tgid and frames."""
        rows = self.capture.rows(
            "SELECT tgid, frames, pages FROM stacked JOIN stack ON stack.id = stack "
            "JOIN process ON process.id = process WHERE pages <> 0 AND region = 31"
        )
        return {(tgid, frames): pages for tgid, frames, pages in rows}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Capture() as capture:
        yield World(capture, tmp_path)


def test_frames() -> None:
    inner, outer = Frame("inner"), Frame("outer")
    assert known([inner, outer]) == (outer, inner)
    assert known([inner, None, None, outer, None]) == (UNKNOWN, outer, UNKNOWN, inner)
    assert known([None, None]) == known([]) == ()


def test_names(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(with_functions(0x2000, 0x402000, **{"two\nlines;": (0x402000, 0x100)}))
    with (tmp_path / "x.so").open("rb") as file:
        module = Module(elf.read(file.fileno()), Budget())
    program = Program(
        [
            Executable(0x1000, 0x2000, False, 0x2000, 1, 7, "/lib/x.so (deleted)"),
            Executable(0x2000, 0x3000, False, 0, 0, 0, ""),
            Executable(0x4000, 0x5000, False, 0, 0, 0, "[vdso]"),
            Executable(0x6000, 0x7000, False, 0x2000, 1, 8, "/lib/not-read.so"),
        ]
    )
    program.modules[0] = module
    library = Binary("/lib/x.so", None, 0x402000, 0x1000, 0x2000)
    function = Frame("two\\x0alines;", library, 0x402000)
    wanted = {
        0x1000: function,
        0x10FF: function,
        0x1100: Frame("x.so+0x402100", library, 0x402100),
        0x2FFF: Frame("[anon]"),
        0x4000: Frame("[vdso]"),
        0x6123: Frame("not-read.so+0x2123", Binary("/lib/not-read.so", None, 0x2000, 0x1000, 0x2000), 0x2123),
    }
    assert {address: program.frame(address) for address in wanted} == wanted
    assert not any(program.covers(address) for address in (0, 0xFFF, 0x3000, 0x5000, 2**64 - 1))
    assert program.frame(0x3000) is None


@pytest.mark.parametrize(
    ("load", "text", "binary"),
    [
        ((0x2340, 0x500, 0x3340), "x.so+0x3450", Binary("/lib/x.so", None, 0x3000, 0x1000, 0x2000)),
        ((0x2340, 0x1500, 0x3340), "x.so+0x3450", Binary("/lib/x.so", None, 0x3000, 0x2000, 0x2000)),
        ((0x2340, 0x500, 0x12), "x.so+0x122", None),  # would begin before zero
        ((0x2340, 0x500, 1 << 61), "x.so+0x2000000000000110", None),
        ((0x2340, 0x500, (1 << 64) - 0x1000), "x.so+0xfffffffffffff110", None),
    ],
)
def test_where_a_frame_is(load: tuple[int, int, int], text: str, binary: Binary | None, tmp_path: Path) -> None:
    """A segment has whole pages. What no loader would take is of no binary."""
    (tmp_path / "x.so").write_bytes(made_up(load))
    with (tmp_path / "x.so").open("rb") as file:
        program = Program([Executable(0x1000, 0x2000, False, 0x2000, 1, 7, "/lib/x.so")])
        program.modules[0] = Module(elf.read(file.fileno()), Budget())
    frame = program.frame(0x1450)
    assert frame
    assert (frame.text, frame.binary) == (text, binary)
    assert frame.address == (0x3450 if binary else 0)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library"
    path.write_bytes(with_functions(0x2000, 0x2000, alpha=(0x2010, 0x10), beta=(0x2020, 0x20)))
    return path


def test_a_file_is_read_when_somebody_touches(
    world: World, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and not before; then it is open no more, and may go."""
    opened = []
    monkeypatch.setattr("tracer.proc.procfs.open_promptly", lambda path: opened.append(path) or open_promptly(path))
    first = world.begin(811, "one")
    world.put(811, "one", library)
    world.event(events.Exec, first, "one", "one", "one", 9)
    world.stacks.write()
    assert not opened
    world.touch(first, 1, 5)
    assert len(opened) == 1
    held = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert library not in held
    library.unlink()
    world.put(811, "")
    world.lives.end(first, 1)
    world.touch(first, 2, 7)
    world.stacks.write()
    assert world.made() == {(811, "beta\nalpha"): 5, (811, "beta"): 7}
    assert len(opened) == 1


def test_the_file_of_a_child_that_was_too_short(world: World, library: Path) -> None:
    """By its parent, which has not touched anything."""
    parent = world.begin(811, "one")
    world.put(811, "one", library)
    world.event(events.Exec, parent, "one", "one", "one", 9)
    child = world.begin(812, "", parent=811)
    world.event(events.Fork, child, 811, parent.start_time_ns, "x", 9, False)
    world.touch(child, 1, 5)
    world.lives.end(child, 1)
    world.stacks.write()
    assert world.made() == {(812, "beta\nalpha"): 5}


def test_two_that_run_the_same_file_read_it_once(world: World, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr("tracer.record.elf.read", lambda fd: reads.append(fd) or elf_read(fd))
    for tgid in (811, 812):
        process = world.begin(tgid, "one")
        world.put(tgid, "one", library)
        world.touch(process, 1, 5)
    world.stacks.write()
    assert world.made() == {(811, "beta\nalpha"): 5, (812, "beta\nalpha"): 5}
    assert len(reads) == 1


def test_another_file_in_the_place_of_one_that_is_known(world: World, library: Path, tmp_path: Path) -> None:
    """Whatever maps says of it: no other process's functions have its names."""
    liar, honest = world.begin(811, "one"), world.begin(812, "one")
    other = tmp_path / "other"
    other.write_bytes(with_functions(0x2000, 0x2000, gamma=(0x2000, 0x100)))
    for process, file in ((liar, other), (honest, library)):
        world.put(process.tgid, "one", file)
        world.touch(process, 1, 5)
    world.stacks.write()
    assert world.made() == {(811, "gamma\ngamma"): 5, (812, "beta\nalpha"): 5}


def test_what_cannot_be_read_is_told_by_its_place(world: World, tmp_path: Path) -> None:
    """And that is said, once."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for tgid in (811, 812):
        process = world.begin(tgid, "one")
        world.put(tgid, "one", fifo)
        world.touch(process, 1, 5)
    world.stacks.write()
    assert world.made() == {(tgid, "one+0x2020\none+0x2010"): 5 for tgid in (811, 812)}
    assert world.warnings == [
        "functions of some programs are shown by file offset: /bin/one cannot be opened (not a regular file)"
    ]


def test_there_is_an_end_to_what_is_read(world: World, library: Path) -> None:
    world.stacks._budget._used_s = 1000
    first = world.begin(811, "one")
    world.put(811, "one", library)
    world.touch(first, 1, 5)
    world.stacks.write()
    assert world.made() == {(811, "one+0x2020\none+0x2010"): 5}
    assert [warning.partition(": ")[2] for warning in world.warnings] == ["reading other files took too long"]


def test_there_is_an_end_to_what_is_kept(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has mapped any more makes room for others."""
    monkeypatch.setattr("tracer.record.stacks.MAX_KEPT_BYTES", 3000)
    processes = []
    for tgid in range(811, 815):
        path = tmp_path / f"library{tgid}"
        path.write_bytes(with_functions(0x2000, 0x2000, **{f"f{tgid}": (0x2000, 0x100)}))
        processes.append(world.begin(tgid, f"p{tgid}"))
        world.put(tgid, f"p{tgid}", path)
        world.touch(processes[-1], 2, 5)
        world.stacks.write()
    assert [frames for _, frames in world.made()] == ["f811", "f812", "f813", "p814+0x2030"]
    assert [warning.partition(": ")[2] for warning in world.warnings] == ["the symbols of other files take 0 MiB"]
    world.lives.end(processes[0], 1)
    world.stacks.write()
    last = world.begin(815, "p815")
    world.put(815, "p815", tmp_path / "library814")
    world.touch(last, 2, 5)
    world.stacks.write()
    assert world.made()[815, "f814"] == 5
    assert len(world.stacks._modules) == 3


def test_counted_by_stack(world: World) -> None:
    first = world.begin(811, "one")
    world.touch(first, 1, 23)
    world.touch(first, 2, 101)
    world.touch(first, wire.NO_STACK, 7)
    world.stacks.write()
    wanted = {(811, "one+0x2020\none+0x2010"): 23, (811, "one+0x2030"): 101, (811, None): 7}
    assert world.made() == wanted
    world.touch(first, 1, 2)
    world.stacks.write()
    assert world.made() == {**wanted, (811, "one+0x2020\none+0x2010"): 25}


def test_where_the_code_is_comes_with_it(world: World, library: Path) -> None:
    """Once for each stack and binary, whoever has it mapped; and what nobody needs any more is forgotten."""
    for tgid in (811, 812):
        process = world.begin(tgid, "one")
        world.put(tgid, "one", library)
        world.touch(process, 1, 5)
        world.touch(process, wire.NO_STACK, 1)
    other = world.begin(813, "other")
    world.touch(other, 2, 5)
    world.stacks.write()
    one, unread = Binary("/bin/one", None, 0x2000, 0x1000, 0x2000), Binary("/bin/other", None, 0x2000, 0x1000, 0x2000)
    [first] = world.capture.rows("SELECT id FROM stack WHERE frames = 'beta\nalpha'")
    [second] = world.capture.rows("SELECT id FROM stack WHERE frames = 'other+0x2030'")
    assert binaries.read(world.capture) == {
        first["id"]: {0: (one, 0x2020), 1: (one, 0x2010)},
        second["id"]: {0: (unread, 0x2030)},
    }
    for table in ("frame", "binary"):
        world.capture.empty(table)
    world.stacks.prune({second["id"]}, set())
    world.touch(other, 5, 2)
    world.kernel.addresses[5] = STACKS[2][0] + 1, STACKS[2][0] + 2
    world.stacks.write()
    assert [tuple(found.values()) for found in binaries.read(world.capture).values()] == [
        ((unread, 0x2031), (unread, 0x2031))
    ]


def test_what_is_made_no_more_leaves_its_place(world: World) -> None:
    """And may come to another, and come again."""
    first, second = world.begin(811, "one"), world.begin(812, "one")
    for process, stack in ((first, 1), (first, 2), (second, 2)):
        world.touch(process, stack, 5)
    world.stacks.write()
    world.touch(second, 2, 1)
    world.stacks.write()
    assert list(world.kernel.addresses) == [2]
    world.kernel.addresses[1] = (CODE + 0x40,)
    world.touch(first, 1, 3)
    world.touch(first, 2, 2)
    world.stacks.write()
    world.stacks.write()
    world.stacks.write()
    assert not world.kernel.counts
    assert not world.kernel.addresses
    assert world.made() == {
        (811, "one+0x2020\none+0x2010"): 5,
        (811, "one+0x2040"): 3,
        (811, "one+0x2030"): 7,
        (812, "one+0x2030"): 6,
    }


def test_what_waits_is_unknown_so_long(world: World) -> None:
    first = world.begin(811, "one")
    world.touch(first, 2, 5)
    world.stacks.write(patience_s=-math.inf)
    assert world.made() == {(811, None): 5}
    world.touch(first, 2, 6)
    world.lives.end(first, 1)
    world.stacks.write(patience_s=-math.inf)
    assert world.made() == {(811, None): 11}
    world.put(811, "")
    world.stacks.write()
    assert world.made() == {(811, "one+0x2030"): 11}
    assert not world.kernel.counts


def test_who_does_not_answer_is_asked_again(world: World) -> None:
    """A program, another one that it has executed, and the parent of a child that is gone."""
    first, parent = world.begin(811, ""), world.begin(813, "")
    child = world.begin(814, "", parent=813)
    world.touch(first, 2, 5)
    world.touch(child, 2, 7)
    world.lives.end(child, 1)
    world.stacks.write()
    assert world.made() == {(811, None): 5, (814, None): 7}
    world.put(811, "one")
    world.put(813, "three")
    world.stacks.write()
    assert world.made() == {(811, "one+0x2030"): 5, (814, "three+0x2030"): 7}
    world.put(811, "")
    world.event(events.Exec, first, "other", "other", "other", 9)
    world.kernel.addresses[5] = (CODE + 4096 + 0x30,)
    world.touch(first, 5, 3)
    world.touch(parent, 4, 2)
    world.put(813, "")
    world.stacks.write()
    assert world.made() == {(811, "one+0x2030"): 5, (811, None): 3, (814, "three+0x2030"): 7, (813, None): 2}
    for process in (first, parent):
        world.lives.end(process, 1)
    world.stacks.write()
    assert world.made() == {(811, "one+0x2030"): 5, (811, None): 3, (814, "three+0x2030"): 7, (813, None): 2}
    assert not world.kernel.counts


def test_the_dead_and_the_gone_leave_room(world: World) -> None:
    first, second = world.begin(811, "one"), world.begin(812, "one", parent=811)
    for process in (first, second):
        world.touch(process, 2, 5)
    world.lives.end(second, 1)
    world.stacks.write()
    assert [stacked.tgid for stacked in world.kernel.counts] == [811]
    world.touch(second, 2, 3, told=False)  # more of it, after all
    del world.regions[3]
    world.stacks.write()
    assert not world.kernel.counts
    assert world.made() == {(811, "one+0x2030"): 5, (812, "one+0x2030"): 8}


def test_a_thousand_generations(world: World) -> None:
    """All of them gone but the first."""
    world.begin(1000, "one")
    for tgid in range(1001, 2100):
        process = world.begin(tgid, "", parent=tgid - 1)
    world.touch(process, 2, 7)
    for tgid in range(1001, 2100):
        world.lives.end(world.lives.at(tgid, 0), 1)
    world.stacks.write()
    assert world.made() == {(2099, "one+0x2030"): 7}


def test_a_child_that_was_too_short_has_its_parents_code(world: World) -> None:
    parent = world.begin(811, "one")
    child = world.begin(812, "", parent=811)
    world.touch(child, 2, 5)
    world.lives.end(child, 1)
    world.stacks.write()
    assert world.made() == {(812, "one+0x2030"): 5}
    early, late = world.begin(813, "", parent=811), world.begin(814, "", parent=811)
    world.event(events.Fork, early, 811, parent.start_time_ns, "x", 9, False)
    world.put(811, "other")
    world.event(events.Exec, parent, "other", "other", "other", 9)
    world.event(events.Fork, late, 811, parent.start_time_ns, "x", 9, False)
    for child in (early, late):
        world.touch(child, 2, 7)
        world.lives.end(child, 1)
    world.lives.end(parent, 1)
    world.stacks.write()
    assert world.made() == dict.fromkeys([(813, "one+0x2030"), (814, "other+0x2030")], 7) | {(812, "one+0x2030"): 5}


def test_a_child_has_not_what_its_parent_became(world: World) -> None:
    """Of what it was, nothing is known."""
    parent, child = world.begin(811, ""), world.begin(812, "", parent=811)
    world.put(811, "other")
    world.event(events.Exec, parent, "other", "other", "other", 9)
    world.touch(child, 2, 7)
    world.stacks.write()
    assert world.made() == {(812, None): 7}


def test_who_executes_another_program_is_another_program(world: World) -> None:
    """Be its code where that of the first one was."""
    first = world.begin(811, "one")
    world.touch(first, 2, 5)
    world.put(811, "other")
    world.event(events.Exec, first, "other", "other", "other", 9)
    world.touch(first, 1, 7)
    world.stacks.write()
    assert world.made() == {(811, "one+0x2030"): 5, (811, "other+0x2020\nother+0x2010"): 7}
    child = world.begin(812, "", parent=811)
    world.event(events.Exec, child, "brief", "brief", "brief", 9)
    world.touch(child, 2, 3)
    world.stacks.write()
    assert world.made()[812, None] == 3  # and not its parent's


def test_code_that_was_mapped_later(world: World) -> None:
    first = world.begin(811, "one")
    world.touch(first, 2, 5)
    world.stacks.write()
    put(world.proc, 811, maps="4000-5000 r-xp 00000000 fe:01 99 /lib/later.so (deleted)\n")
    world.kernel.addresses[5] = (0x4010,)
    world.touch(first, 5, 2, told=False)
    world.stacks.write()
    assert world.made()[811, "later.so+0x10"] == 2


def test_where_no_code_is(world: World) -> None:
    """Garbage for a stack, and one that the kernel has not."""
    first = world.begin(811, "one")
    world.touch(first, 4, 5)
    world.touch(first, 6, 2)
    world.stacks.write()
    assert world.made() == {(811, None): 7}


def test_what_is_of_none_of_ours_is_dropped(world: World) -> None:
    stranger = Stacked(17, 4711, 5, 1)
    soon = Stacked(3, 4712, 5, 1)
    world.kernel.counts = {stranger: 3, soon: 4}
    world.stacks.write()
    assert list(world.kernel.counts) == [soon]
    assert world.made() == {}

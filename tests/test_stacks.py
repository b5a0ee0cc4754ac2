"""Which stack a page is counted by, in the capture, while processes come, change and go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_lives import CLOCK
from tests.test_procfs import put, stat_of
from tracer import events, wire
from tracer.capture import Capture
from tracer.events import Head
from tracer.lives import Lives, Process
from tracer.probes import Stacked
from tracer.procfs import Executable, Proc, RegionKey
from tracer.regions import Region
from tracer.stacks import Module, Program, Stacks, frames_text
from tracer.symbols import Symbols

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
        self.lives = Lives(capture, CLOCK)
        self.regions = {3: Region(31, 3, RegionKey(1, 7, 9), "anon", path=None)}
        self.stacks = Stacks(capture, self.kernel, self.lives, self.regions)
        self.stacks._proc = self.proc = Proc(str(root))
        self.stacks.enter(self.regions[3])

    def begin(self, tgid: int, program: str, parent: int | None = None) -> Process:
        process = self.lives.begin(tgid, tgid * 10**7, parent, "x", "x", began_us=-1)
        self.put(tgid, program)
        return process

    def put(self, tgid: int, program: str) -> None:
        """It runs this, whose one page of code is where all programs have it; none: it is gone."""
        maps = f"{CODE:x}-{CODE + 4096:x} r-xp 00002000 fe:01 {len(program)} /bin/{program}\n" if program else ""
        put(self.proc, tgid, stat=stat_of(tgid, b"x", start_ticks=tgid), cmdline=b"x\0", maps=maps)

    def event(self, kind: type[Any], process: Process, *fields: Any) -> None:
        self.stacks.apply(kind(Head(0, process.start_time_ns, process.tgid), *fields))

    def touch(self, process: Process, stack: int, pages: int, told: bool = True) -> None:
        if stack in STACKS:
            self.kernel.addresses.setdefault(stack, STACKS[stack])
        key = Stacked(3, process.tgid, process.start_time_ns, stack)
        self.kernel.counts[key] = self.kernel.counts.get(key, 0) + pages
        if told:
            self.event(events.Touch, process, 3, "x", False)

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
    assert frames_text(["inner", "outer"]) == "outer\ninner"
    assert frames_text(["inner", None, None, "outer", None]) == "?\nouter\n?\ninner"
    assert frames_text([None, None]) is frames_text([]) is None


def test_names() -> None:
    class Named(Symbols):
        def __init__(self) -> None:
            pass

        def address(self, offset_bytes: int) -> int:
            return offset_bytes + 0x400000

        def name(self, address: int) -> str | None:
            return "two\nlines;" if address < 0x402100 else None

    module = Module("x.so", None)
    assert module.frame(0x123) == "x.so+0x123"
    module.__dict__["_symbols"] = Named()
    program = Program(
        [
            Executable(0x1000, 0x2000, False, 0x2000, 1, 7, "/lib/x.so"),
            Executable(0x2000, 0x3000, False, 0, 0, 0, ""),
            Executable(0x4000, 0x5000, False, 0, 0, 0, "[vdso]"),
        ],
        [module, None, None],
    )
    wanted = {0x1000: "two\\x0alines;", 0x1100: "x.so+0x402100", 0x2fff: "[anon]", 0x4000: "[vdso]"}  # fmt: skip
    assert {address: program.frame(address) for address in wanted} == wanted
    assert not any(program.covers(address) for address in (0, 0xFFF, 0x3000, 0x5000, 2**64 - 1))
    assert program.frame(0x3000) is None


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
    world.event(events.Fork, early, 811, parent.start_time_ns, "x")
    world.put(811, "other")
    world.event(events.Exec, parent, "other", "other", "other", True)
    world.event(events.Fork, late, 811, parent.start_time_ns, "x")
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
    world.event(events.Exec, parent, "other", "other", "other", True)
    world.touch(child, 2, 7)
    world.stacks.write()
    assert world.made() == {(812, None): 7}


def test_who_executes_another_program_is_another_program(world: World) -> None:
    """Be its code where that of the first one was."""
    first = world.begin(811, "one")
    world.touch(first, 2, 5)
    world.put(811, "other")
    world.event(events.Exec, first, "other", "other", "other", True)
    world.touch(first, 1, 7)
    world.stacks.write()
    assert world.made() == {(811, "one+0x2030"): 5, (811, "other+0x2020\nother+0x2010"): 7}
    child = world.begin(812, "", parent=811)
    world.event(events.Exec, child, "brief", "brief", "brief", True)
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

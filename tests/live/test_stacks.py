"""Stacks: functions with known pages, in programs that are stripped, fork, execute others, or have misleading
frames."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live.parent import recording
from tests.live.reports import PATIENCE_SECONDS
from tests.live.shmem import PAGE_BYTES
from tests.live.tiers import shmtrace
from tracer import account
from tracer.capture.capture import Capture
from tracer.model import Account

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc", "nm", "strip")]

FLAGS = [f"-DPAGE={PAGE_BYTES}UL", "-O1", "-Wall", "-Wextra", "-Werror", "-rdynamic"]
FLAGS += ["-fno-optimize-sibling-calls", "-fno-omit-frame-pointer"]
CALLS = {"alpha": 23, "beta": 101, "gamma_": 7}
ALL = sum(CALLS.values())
SETTLED_SECONDS = 10.0
GARBAGE = 10 * 3
PROGRAMS = {
    "calls": ["named", "calls"],
    "stripped": ["stripped", "calls"],
    "deleted": ["deleted", "calls"],
    "fork": ["named", "fork"],
    "exec": ["named", "exec", "stripped"],
    "garbage": ["named", "garbage"],
}
MADE = {**dict.fromkeys(PROGRAMS, ALL), "exec": CALLS["alpha"] + ALL, "garbage": GARBAGE}

Made = Counter[tuple[str, ...]]
"""Pages by frames, callers first, from main on. None: not known."""


class Recorded(NamedTuple):
    found: Account
    tgids: dict[str, int]
    """By program."""
    sizes: dict[str, tuple[int, int]]
    """Of each function, [start, end)."""

    def made(self, name: str, dead: bool = False) -> Made:
        """Stacks of a process, or of its child that has exited."""
        made: Made = Counter()
        for region in self.found.regions:
            for toucher in region.touchers:
                of_child = toucher.process.parent == self.tgids[name] and toucher.process.exited_ns is not None
                if of_child if dead else toucher.process.tgid == self.tgids[name]:
                    for stack in toucher.stacks:
                        made[self.of_program(stack.frames or ())] += stack.size_bytes // PAGE_BYTES
        return made

    def check(self, name: str, wanted: Made, dead: bool = False) -> None:
        """The process made these pages by these stacks. If stacks were lost, missing pages count for an unknown one."""
        made = self.made(name, dead)
        missing = wanted - made
        if lost(self.found) and missing:
            assert made.pop(()) == sum(missing.values())
            made += missing
        assert made == wanted

    def of_program(self, frames: tuple[str, ...]) -> tuple[str, ...]:
        """Frames of the program only, without the C library's calls of main.

        Addresses are replaced by the function they are in.
        """
        return tuple(frame for frame in map(self.function, frames) if frame in self.sizes)

    def function(self, frame: str) -> str:
        place = re.fullmatch(r"(?:stripped|deleted)\+0x([0-9a-f]+)", frame)
        inside = (name for name, (start, end) in self.sizes.items() if place and start <= int(place[1], 16) < end)
        return next(inside, frame)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with all symbols, and stripped to the exported ones: all, beta, main."""
    folder = tmp_path_factory.mktemp("stacks")
    source = Path(__file__).with_name("stacks.c")
    subprocess.run(["cc", *FLAGS, "-o", folder / "named", source], check=True)
    subprocess.run(["strip", "-o", folder / "stripped", folder / "named"], check=True)
    return folder


def sizes(program: Path) -> dict[str, tuple[int, int]]:
    listing = subprocess.run(["nm", "-S", "--defined-only", program], check=True, stdout=subprocess.PIPE, text=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    known = [*CALLS, "all", "main", "touch", "touch_by", "garbage"]
    return {row[3]: (int(row[0], 16), int(row[0], 16) + int(row[1], 16)) for row in rows if row[-1] in known}


def counted(path: Path) -> Counter[int]:
    """By tgid, a child's by its parent's: pages whose stack is known, or of garbage any stack."""
    with Capture.open(path) as capture:
        rows = capture.rows(
            "SELECT iif(parent IS NULL, tgid, parent_tgid), pages FROM stacked JOIN process ON process.id = process "
            "JOIN stack ON stack.id = stack WHERE frames IS NOT NULL OR command LIKE '%garbage'"
        )
    found: Counter[int] = Counter()
    for tgid, pages in rows:
        found[tgid] += pages
    return found


def adds_up(found: Account) -> bool:
    """Whether all stacks add up to the touched pages. A stack is written a moment after its page."""
    touchers = [toucher for region in found.regions for toucher in region.touchers]
    return all(sum(made.size_bytes for made in toucher.made_by) == toucher.touched_bytes for toucher in touchers)


def lost(found: Account) -> bool:
    """Whether stacks were lost and reported so, as happens to fentry programs of a preemptible kernel."""
    return any(warning.startswith("stacks were lost") for warning in found.session.warnings)


def read(path: Path) -> Account:
    with Capture.open(path) as capture:
        return account.read(capture)


@pytest.fixture(scope="module")
def recorded(tier: str, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """All programs in one capture. Anew where the host stood still: a trace does not read for seconds, and says so."""
    found = record(tier, programs, tmp_path_factory)
    for _ in range(2):
        if not any("took too long" in warning for warning in found.found.session.warnings):
            break
        found = record(tier, programs, tmp_path_factory)
    return found


def record(tier: str, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """As a killed recorder leaves it."""
    path = tmp_path_factory.mktemp(tier) / "stacks.capture"
    deleted = programs / "deleted"
    deleted.write_bytes((programs / "stripped").read_bytes())
    deleted.chmod(0o755)
    with ExitStack() as stack:
        running = {}
        for name, (program, *arguments) in PROGRAMS.items():
            line = [programs / program, *arguments[:1], *(programs / argument for argument in arguments[1:])]
            running[name] = stack.enter_context(subprocess.Popen(line, stdin=subprocess.PIPE))
            stack.callback(running[name].kill)
        deleted.unlink()
        tgids = {name: process.pid for name, process in running.items()}
        first, *others = tgids.values()
        options = ["--stacks", *(word for tgid in others for word in ("-p", str(tgid)))]
        recorder = stack.enter_context(recording(path, first, *options, shmtrace=shmtrace(tier)))

        def go_until(names: list[str], made: dict[str, int]) -> None:
            for name in names:
                stdin = running[name].stdin
                assert stdin
                stdin.write(b"\n")
                stdin.flush()
            end, before, since = time.monotonic() + PATIENCE_SECONDS, counted(path), time.monotonic()
            while any((now := counted(path))[tgids[name]] < pages for name, pages in made.items()):
                since = since if now == before else time.monotonic()
                if now and time.monotonic() - since > SETTLED_SECONDS and lost(read(path)):
                    break
                assert time.monotonic() < end, now
                before = now
                time.sleep(0.1)

        go_until(list(PROGRAMS), {**MADE, "exec": CALLS["alpha"]})
        go_until(["exec"], {})
        time.sleep(0.5)  # until it has executed the other program
        go_until(["exec"], MADE)
        end = time.monotonic() + PATIENCE_SECONDS
        while not adds_up(found := read(path)) and not lost(found) and time.monotonic() < end:
            time.sleep(0.1)
        recorder.kill()
        recorder.wait()
    return Recorded(read(path), tgids, sizes(programs / "named"))


def called(*callers: str) -> Made:
    return Counter({(*callers, name, "touch"): pages for name, pages in CALLS.items()})


def test_what_was_lost(tier: str, recorded: Recorded) -> None:
    """Nothing is lost, except what fentry reports as lost. Pages counted by stack add up to the touched pages."""
    session = recorded.found.session
    assert not session.complete
    assert (session.lost_events, session.lost_pages) == (0, 0)
    assert (session.lost_probes > 0) <= (tier == "fentry")
    assert lost(recorded.found) <= (tier != "faults")
    assert len(session.warnings) == (session.lost_probes > 0) + lost(recorded.found)
    assert adds_up(recorded.found) or lost(recorded.found)


@pytest.mark.parametrize("name", ["calls", "stripped", "deleted"])
def test_known_functions(tier: str, recorded: Recorded, name: str) -> None:
    """By name, or else by an offset inside the function."""
    recorded.check(name, called("main", "all"))


def test_what_names_are_left(tier: str, recorded: Recorded) -> None:
    frames = {
        frame
        for region in recorded.found.regions
        for toucher in region.touchers
        if toucher.process.tgid == recorded.tgids["deleted"]
        for made in toucher.made_by
        for frame in made.frames or ()
    }
    assert {"main", "all", "beta"} < frames
    assert not frames & {"alpha", "gamma_", "touch"}
    assert any(frame.startswith("deleted+0x") for frame in frames)


def test_a_child_that_is_dead(tier: str, recorded: Recorded) -> None:
    recorded.check("fork", called("main", "all"), dead=True)
    assert not recorded.made("fork")


def test_another_program_by_exec(tier: str, recorded: Recorded) -> None:
    """Pages made before the exec count for the old program."""
    before = Counter({("main", "alpha", "touch"): CALLS["alpha"]})
    recorded.check("exec", before + called("main", "all"))


def test_a_stack_of_garbage(tier: str, recorded: Recorded) -> None:
    """Frames that lead nowhere, or into the region itself: this makes no pages, and none are lost."""
    made = recorded.made("garbage")
    assert sum(made.values()) == GARBAGE
    assert {frames[-1] for frames in made if frames or not lost(recorded.found)} == {"touch_by"}

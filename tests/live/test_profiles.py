"""Profiles of a trace: what grew between two of its parts, by functions that are named or are at a known address."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import exported
from tests.live import tiers
from tests.live.parent import recording, stop
from tests.live.reports import PATIENCE_SECONDS, ROOT, SHMTRACE
from tests.live.running import running
from tests.live.test_rotate import rotate
from tests.live.test_stacks import CALLS, lost, programs, read, sizes
from tracer import account, binaries
from tracer.capture.capture import Capture
from tracer.growth import Growth
from tracer.proc.shmem import PAGE_BYTES
from tracer.views import pprof

__all__ = ["programs"]

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc", "nm", "strip", "readelf", "protoc")]

ALPHA, GAMMA = CALLS["alpha"], CALLS["gamma_"]

Grown = Counter[tuple[str, ...]]
"""Pages by functions of the program, from main on."""


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.write(b"\n")
    process.stdin.flush()


def wait_for(pages: int, path: Path) -> None:
    """Until so many have a stack in the capture."""
    end_s = time.monotonic() + PATIENCE_SECONDS
    while True:
        with Capture.open(path) as capture:
            [[told]] = capture.rows("SELECT ifnull(sum(pages), 0) FROM stacked")
        if told >= pages or lost(read(path)):
            return
        assert time.monotonic() < end_s, told
        time.sleep(0.1)


def export(path: Path, *options: str | Path) -> Any:
    command = [*SHMTRACE, "export", path, "--format", "pprof", *options]
    return exported.pprof(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


def scrape(growth: Growth, path: Path) -> Any:
    """What a trace that runs says to who asks it now and then."""
    with Capture.open(path) as capture:
        growth.add(account.read(capture), binaries.read(capture))
    return exported.pprof(b"".join(pprof.render(growth)))


def grown(profile: Any, function: Callable[[str], str]) -> Grown:
    found: Grown = Counter()
    for sample in exported.samples(profile):
        frames = tuple(frame for frame in map(function, sample.frames) if frame in {*CALLS, "main", "touch"})
        found[frames] += sample.values["alloc_objects"]
    return +found


def held(profile: Any) -> int:
    return sum(sample.values["inuse_space"] for sample in exported.samples(profile)) // PAGE_BYTES


def segment(program: Path) -> tuple[int, int]:
    """Offset and address of the code, as readelf has it."""
    lines = subprocess.run(["readelf", "-lW", program], check=True, capture_output=True, text=True).stdout.splitlines()
    [words] = [line.split() for line in lines if line.split()[:1] == ["LOAD"] and " E " in line]
    return int(words[1], 16), int(words[2], 16)


def build_id(program: Path) -> str:
    notes = subprocess.run(["readelf", "-n", program], check=True, capture_output=True, text=True).stdout
    return notes.partition("Build ID: ")[2].split()[0]


@pytest.mark.parametrize("name", ["named", "stripped"])
def test_growth_between_two_parts(tier: str, name: str, programs: Path, tmp_path: Path) -> None:
    """23 pages by alpha in the first. In the second 7 by gamma_ and 23 by alpha, whose first ones were freed."""
    path, program = tmp_path / "x.capture", programs / name
    growth, scraped = Growth(), []
    with running([program, "steps"], stdin=subprocess.PIPE) as process:
        options = ["--stacks", "--rotate", "1h"]
        with recording(path, process.pid, *options, shmtrace=tiers.shmtrace(tier)) as recorder:
            go(process)
            wait_for(ALPHA, path)
            scraped.append(scrape(growth, path))
            [first] = rotate(recorder, path, 1)
            scraped.append(scrape(growth, path))
            go(process)
            wait_for(ALPHA + GAMMA + ALPHA, path)
            stop(recorder)
            scraped.append(scrape(growth, path))
    if lost(read(path)):
        pytest.skip("the kernel lost stacks, and the trace said so")
    functions = sizes(programs / "named")

    def function(frame: str) -> str:
        place, _, offset = frame.partition("+0x")
        address = int(offset, 16) + segment(program)[1] // 4096 * 4096 if place == name else -1
        return next((each for each, (start, end) in functions.items() if start <= address < end), frame)

    by_alpha, by_gamma = ("main", "alpha", "touch"), ("main", "gamma_", "touch")
    before, after, between = export(first), export(path), export(path, "--base", first)
    assert grown(before, function) == {by_alpha: ALPHA}
    assert grown(after, function) == {by_alpha: 2 * ALPHA, by_gamma: GAMMA}
    assert [grown(profile, function) for profile in scraped] == [
        grown(each, function) for each in (before, before, after)
    ]
    assert grown(between, function) == {by_alpha: ALPHA, by_gamma: GAMMA}
    assert [held(profile) for profile in (before, after, between)] == [ALPHA, ALPHA + GAMMA, ALPHA + GAMMA]
    assert (before.duration_nanos, after.duration_nanos) == (0, 0)
    assert between.time_nanos == before.time_nanos
    assert between.time_nanos + between.duration_nanos == after.time_nanos
    texts = between.string_table
    [mapping] = [mapping for mapping in between.mapping if texts[mapping.filename] == str(program)]
    assert texts[mapping.build_id] == build_id(program)
    assert mapping.has_functions == (name == "named")
    offset, address = segment(program)
    assert mapping.file_offset == offset // 4096 * 4096
    assert mapping.memory_start % 4096 == address % 4096 == 0
    assert {each.address for each in before.location} <= {each.address for each in after.location}

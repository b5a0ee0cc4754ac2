"""Workloads that run before shmtrace attaches: earlier pages have no owner, later pages have one."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live.reports import (
    ROOT,
    SHMTRACE,
    Report,
    Trace,
    assert_touched,
    find_region,
    pages_by_part,
    part_of,
    read_report,
    trace,
)
from tests.live.shmem import PAGE_BYTES, read_regions
from tests.live.tiers import shmtrace
from tests.live.workload import Notes, Stepped, stepped

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]


class Answer(NamedTuple):
    """What the region "pool" must come to, in pages."""

    touched: dict[str, int]
    before: int


EXIT = 93 if platform.machine() == "aarch64" else 60  # the number of exit(2), which ends one thread
ANSWERS = {
    "grown": Answer({"A": 17, "B": 8, "main": 3}, before=13),
    "given_back": Answer({"A": 7}, before=21),
    "viewed": Answer({"A": 11, "B": 38}, before=9),
    "idle": Answer({"A": 23}, before=0),
}


def assert_answer(report: Report, notes: Notes, answer: Answer, tier: str = "") -> None:
    held = notes.regions["pool"]
    region = find_region(report, held.id)
    skipped = assert_touched(report, region, notes.parts, answer.touched, tier)
    assert region["before_bytes"] == answer.before * PAGE_BYTES
    assert region["unseen_bytes"] == skipped * PAGE_BYTES
    assert region["allocated_bytes"] == held.pages * PAGE_BYTES
    assert part_of(region["creator"], notes.parts) == "main"


@contextmanager
def all_traced(tier: str, program: Path, directory: Path) -> Iterator[tuple[dict[str, Stepped], Trace]]:
    """Every workload, advanced to "running", and one trace of them all."""
    with ExitStack() as stack:
        workloads = {name: stack.enter_context(stepped(program, name, directory / name)) for name in ANSWERS}
        for workload in workloads.values():
            workload.wait_for("running")
        targets = [option for workload in workloads.values() for option in ("-p", workload.tgid)]
        yield workloads, stack.enter_context(trace(*targets, shmtrace=shmtrace(tier)))


def test_known_answers(tier: str, program: Path, tmp_path: Path) -> None:
    """All at once, read while they run."""
    with all_traced(tier, program, tmp_path) as (workloads, tracing):
        for workload in workloads.values():
            workload.go()
        notes = {name: workload.wait_for("grown") for name, workload in workloads.items()}
        regions = {name: read_regions(workload.tgid) for name, workload in workloads.items()}
        report = tracing.stop()
        for workload in workloads.values():
            workload.go()
            workload.finish()
    assert len(report["regions"]) == len(ANSWERS)
    for name, answer in ANSWERS.items():
        assert_answer(report, notes[name], answer, tier)
        held = notes[name].regions["pool"]
        region = find_region(report, held.id)
        assert region["gone"] is None
        assert region["mappers"] == [workloads[name].tgid]
        assert region["size_bytes"] == regions[name][held.id].size_bytes
        assert region["creator"]["how"] == ("traced" if name == "idle" else "inferred")


LEADER_GONE = f"""
import ctypes, mmap, os, sys, threading
early = mmap.mmap(-1, 733 * {PAGE_BYTES})

def work():
    while open("/proc/self/stat").read().split()[2] != "Z":
        pass
    print("ready", flush=True)
    sys.stdin.readline()
    late = mmap.mmap(-1, 23 * {PAGE_BYTES})
    for region, pages in (early, 733), (late, 23):
        for page in range(pages):
            region[page * {PAGE_BYTES}] = 1
    print("done", flush=True)
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({EXIT}, 0)
"""


def test_a_process_whose_first_thread_has_ended(tier: str) -> None:
    """What it maps, its command line and its memory are shown by another thread, whose PID it does not take."""
    program = [sys.executable, "-c", LEADER_GONE]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        with trace("-p", process.pid, shmtrace=shmtrace(tier)) as tracing:
            process.stdin.write(b"go\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"
            report = tracing.stop()
        process.stdin.close()
    touchers = [toucher for region in report["regions"] for toucher in region["touchers"]]
    assert sorted(toucher["touched_bytes"] // PAGE_BYTES for toucher in touchers) == [23, 733]
    for toucher in touchers:
        assert (toucher["process"]["tgid"], toucher["process"]["ns_tgid"]) == (process.pid, None)
        assert "early" in toucher["process"]["command"]
    assert {region["before_bytes"] + region["unseen_bytes"] for region in report["regions"]} == {0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(program: Path, tmp_path: Path, number: signal.Signals) -> None:
    with stepped(program, "grown", tmp_path / "notes") as workload:
        workload.wait_for("running")
        with trace("-p", workload.tgid) as tracing:
            workload.go()
            notes = workload.wait_for("grown")
            report = tracing.stop(number)
    assert_answer(report, notes, ANSWERS["grown"])


def test_the_target_ends(tier: str, program: Path, tmp_path: Path) -> None:
    """The trace ends with its targets, and the account is the same as a moment before."""
    with all_traced(tier, program, tmp_path) as (workloads, tracing):
        notes = {}
        for name, workload in workloads.items():
            workload.go()
            notes[name] = workload.wait_for("grown")
            workload.go()
            workload.finish()
        report = tracing.finish()
    for name, answer in ANSWERS.items():
        assert_answer(report, notes[name], answer, tier)
        assert find_region(report, notes[name].regions["pool"].id)["gone"] is not None


def test_a_stranger_is_in_the_account(tier: str, program: Path, tmp_path: Path) -> None:
    """A process outside the tree gets a memfd of the tree over a socket, maps it and writes to it."""
    with stepped(program, "host_of_stranger", tmp_path / "notes") as host:
        host.wait_for("listening")
        with trace("-p", host.tgid, shmtrace=shmtrace(tier)) as tracing:
            host.go()
            subprocess.run([program, "stranger", tmp_path / "notes"], stdin=subprocess.DEVNULL, check=True)
            host.finish()
            report = tracing.finish()
    notes = Notes.read(tmp_path / "notes")
    held = notes.regions["pool"]
    region = find_region(report, held.id)
    assert region["before_bytes"] == 7 * PAGE_BYTES
    seen = {"main": 20} if tier == "faults" else {"main": 20, "S": 13}
    skipped = assert_touched(report, region, notes.parts, seen, tier)
    assert region["unseen_bytes"] == (33 - sum(seen.values()) + skipped) * PAGE_BYTES
    if tier == "faults":
        return
    in_tree = {part_of(row["process"], notes.parts): row["process"]["in_tree"] for row in region["touchers"]}
    assert in_tree == {"main": True, "S": False}
    assert all(row["process"]["exited"] for row in region["touchers"])


def test_a_region_that_goes_keeps_its_last_account(program: Path, tmp_path: Path) -> None:
    with stepped(program, "let_go", tmp_path / "notes") as workload:
        workload.wait_for("running")
        with trace("-p", workload.tgid) as tracing:
            workload.go()
            notes = workload.wait_for("gone")
            report = tracing.stop()
    assert_answer(report, notes, Answer({"A": 17}, before=13))
    [region] = report["regions"]
    assert region["gone"] is not None
    assert region["mappers"] == []


def test_pages_of_a_region_nobody_had_mapped_are_not_given_to_anybody(program: Path, tmp_path: Path) -> None:
    with stepped(program, "unmapped", tmp_path / "notes") as workload:
        workload.wait_for("running")
        with trace("-p", workload.tgid) as tracing:
            workload.go()
            notes = workload.wait_for("grown")
            report = tracing.stop()
    region = find_region(report, notes.regions["pool"].id)
    assert pages_by_part(region, notes.parts, "touched_bytes") == {"A": 7}
    assert region["before_bytes"] + region["unseen_bytes"] == 9 * PAGE_BYTES


def test_two_roots_at_once(program: Path, tmp_path: Path) -> None:
    with stepped(program, "grown", tmp_path / "one") as one, stepped(program, "viewed", tmp_path / "two") as two:
        one.wait_for("running")
        two.wait_for("running")
        with trace("-p", one.tgid, "-p", two.tgid) as tracing:
            one.go()
            two.go()
            notes_of_one = one.wait_for("grown")
            notes_of_two = two.wait_for("grown")
            report = tracing.stop()
    assert_answer(report, notes_of_one, ANSWERS["grown"])
    assert_answer(report, notes_of_two, ANSWERS["viewed"])
    assert {parent["process"]["tgid"] for parent in report["parents"]} == {one.tgid, two.tgid}


def test_a_neighbour_is_not_in_the_report(program: Path, tmp_path: Path) -> None:
    with stepped(program, "grown", tmp_path / "one") as one, stepped(program, "viewed", tmp_path / "two") as two:
        one.wait_for("running")
        two.wait_for("running")
        with trace("-p", one.tgid) as tracing:
            one.go()
            two.go()
            notes = one.wait_for("grown")
            two.wait_for("grown")
            report = tracing.stop()
    assert_answer(report, notes, ANSWERS["grown"])
    assert len(report["regions"]) == 1


@pytest.mark.parametrize("delay", range(3))
def test_pages_made_while_it_attaches(program: Path, tmp_path: Path, delay: int) -> None:
    """The workload starts before shmtrace has attached: what was missed counts as before or unseen, and the sum is
    right."""
    with stepped(program, "rounds", tmp_path / "notes") as workload:
        workload.wait_for("running")
        line = [*SHMTRACE, "--json", "-p", str(workload.tgid)]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            time.sleep(0.2 * delay)
            workload.go()
            notes = workload.wait_for("grown")
            assert process.stderr
            assert b"tracing" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            report = read_report(process.communicate()[0])
    held = notes.regions["pool"]
    region = find_region(report, held.id)
    touched = pages_by_part(region, notes.parts, "touched_bytes")
    assert set(touched) <= {"A", "B"}
    assert region["before_bytes"] >= 101 * PAGE_BYTES
    assert region["unseen_bytes"] == 0
    assert region["allocated_bytes"] == held.pages * PAGE_BYTES


def test_several_at_once() -> None:
    """Concurrent traces do not disturb each other, also where tracefs is not mounted."""
    for _ in range(5):
        line = [*SHMTRACE, "--json", "--", "true"]
        tracers = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
        for process in tracers:
            read_report(process.communicate()[0])
            assert process.returncode == 0

"""Nothing grows with what has gone: neither the kernel's maps nor shmtrace. And the line that shows it at work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.reports import SHMTRACE, assert_balanced, find_region, pages_by_part, patched, trace
from tests.live.terminal import COLUMNS, on_terminal
from tests.live.workload import Notes, stepped
from tracer import account
from tracer.capture.capture import Capture
from tracer.formatting import width
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES
from tracer.record.targets import Targets
from tracer.record.trace import Trace
from tracer.views import json as document

ROUNDS = 9
REGIONS = 1499
MAX_GROWTH_BYTES = 16 << 20
PATIENCE_S = 60.0

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]


class Shell:
    """A process to trace that runs programs as it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.tgid = process.pid

    def start(self, *command: object) -> None:
        assert self.process.stdin
        print(" ".join(map(str, command)), "; echo done", file=self.process.stdin, flush=True)

    def wait(self) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == "done\n"

    def run(self, *command: object) -> None:
        self.start(*command)
        self.wait()


@pytest.fixture
def shell() -> Iterator[Shell]:
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Shell(process)
        process.kill()


@contextmanager
def tracing(tgid: int) -> Iterator[tuple[Trace, Capture]]:
    """In this process, whose PID may not be of the tree."""
    with Capture() as capture, Trace(capture, Targets(frozenset([tgid]), ()), interval_s=0.1) as running:
        yield running, capture


def entries(running: Trace) -> dict[str, int]:
    """What the kernel's maps hold."""
    probes = running._probes
    names = ["parts", "ids", "usage_numbers", "process_numbers"]
    names += ["made_for"] if probes._made_for is not None else []
    held = {name: len(list(probes._loaded.map(name).items())) for name in names}
    arrays = {"processes": probes._processes, "regions": probes._regions, "usages": probes._usages}
    return {**held, **{name: len(places.taken()) for name, places in arrays.items()}}


NOTHING_BUT_THE_SHELL = {
    **dict.fromkeys(["parts", "regions", "ids", "usages", "usage_numbers", "made_for"], 0),
    **dict.fromkeys(["processes", "process_numbers"], 1),
}


@pytest.mark.parametrize("workload", ["churned", "hundred", "brief", "many_regions", "twins", "removed", "sysv"])
def test_the_maps_hold_nothing_of_what_is_gone(program: Path, tmp_path: Path, shell: Shell, workload: str) -> None:
    with tracing(shell.tgid) as (running, _):
        assert entries(running).items() <= NOTHING_BUT_THE_SHELL.items()
        for number in range(2):
            shell.start(program, workload, tmp_path / f"notes-{number}", "</dev/null")
            deadline = time.monotonic() + PATIENCE_S
            while len(Notes.read(tmp_path / f"notes-{number}").regions) == 0 and time.monotonic() < deadline:
                running.run(0.2)
            shell.wait()
            deadline = time.monotonic() + PATIENCE_S
            while not entries(running).items() <= NOTHING_BUT_THE_SHELL.items() and time.monotonic() < deadline:
                running.run(0.5)
            assert entries(running).items() <= NOTHING_BUT_THE_SHELL.items()


def test_regions_that_come_and_go_cost_no_memory(program: Path, tmp_path: Path, shell: Shell) -> None:
    patient = patched(
        "from tracer.record import trace", "trace.PATIENCE_S = 60"
    )  # on a busy host there is much left to close
    with trace("-p", shell.tgid, shmtrace=patient) as running:
        rss_bytes = []
        for number in range(ROUNDS):
            shell.run(program, "churned", tmp_path / f"notes-{number}", "</dev/null")
            time.sleep(2)
            rss_bytes.append(Proc().rss_bytes(running.process.pid) or 0)
        report = running.stop()
    assert len(report["regions"]) == ROUNDS * (REGIONS + 1)
    assert not any(report["lost"].values())
    assert all(region["unseen_bytes"] == 0 for region in report["regions"])
    assert max(rss_bytes) - rss_bytes[0] < MAX_GROWTH_BYTES, rss_bytes
    notes = Notes.read(tmp_path / "notes-2")
    assert pages_by_part(find_region(report, notes.regions["pool"].id), notes.parts, "touched_bytes") == {"A": 23}


# ---- a region that never holds still ----


def test_it_balances_at_any_moment(program: Path, tmp_path: Path) -> None:
    """Twenty reports of a region that two processes fill and empty as fast as they can."""
    grown = 0
    with stepped(program, "restless", tmp_path / "notes") as workload:
        workload.wait_for("running")
        for _ in range(20):
            with tracing(workload.tgid) as (running, capture):
                running.run(0.1)
                running.finish()
                report = json.loads("".join(document.render(account.read(capture))))
            assert_balanced(report)
            [region] = report["regions"]
            assert all(min(row["touched_bytes"], row["freed_bytes"]) >= 0 for row in region["touchers"])
            assert (
                region["unseen_bytes"] <= region["allocated_bytes"] // 4
            )  # what is emptied and filled again while it looks
            grown += sum(row["touched_bytes"] for row in region["touchers"]) // PAGE_BYTES
    assert grown


# ---- the line that shows it at work ----


def test_the_live_line(program: Path, tmp_path: Path) -> None:
    with stepped(program, "grown", tmp_path / "notes") as workload:
        workload.wait_for("running")
        with on_terminal([*SHMTRACE, "-p", str(workload.tgid), "-i", "0.2"]) as terminal:
            terminal.wait_for("tracing")
            workload.go()
            workload.wait_for("grown")
            terminal.wait_for("\r1 s ")
            terminal.type("\x03")
            assert terminal.finish() == 0
    _, _, shown = terminal.seen.replace("^C", "").partition("\n")
    *lines, report = re.split(r"\r(?!\n)", shown)
    assert len(lines) > 3
    assert all(width(line) < COLUMNS for line in lines)
    assert "processes 1 · regions 1" in lines[2]
    assert not lines[-1].strip()  # wiped before the report
    assert "balance" in report
    plain = re.sub(r"\x1b\[\d+m", "", report)
    assert all(width(line) <= COLUMNS for line in plain.splitlines())


def test_no_live_line_off_a_terminal(program: Path, tmp_path: Path) -> None:
    with stepped(program, "grown", tmp_path / "notes") as workload:
        workload.wait_for("running")
        line = [*SHMTRACE, "-p", str(workload.tgid), "-d", "1"]
        done = subprocess.run(line, cwd=Path(__file__).parents[2], check=True, capture_output=True, env=os.environ)
    assert re.fullmatch(rb"shmtrace: tracing [^\n]*2 processes[^\n]*\n", done.stderr)
    assert b"\r" not in done.stdout


# ---- smaps ----


def test_smaps_is_not_read() -> None:
    """It stalls big processes for seconds; ours is small. The demo has pmap, which reads it, and says so."""
    package = Path(__file__).parents[2] / "tracer"
    reading = re.compile(r"(?<!/proc/self)[\"'/]smaps")
    found = {path.name for path in package.rglob("*.py") if reading.search(path.read_text())}
    assert found <= {"demo.py", "experiment.py", "ps_pmap_free.py"}

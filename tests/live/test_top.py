"""`shmtrace top` on a terminal and through a pipe, of growth that is known to the page."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.remains import nothing_remains
from tests.live.reports import ATTACH_SECONDS, PATIENCE_SECONDS, ROOT, SHMTRACE, patched
from tests.live.running import running
from tests.live.shmem import PAGE_BYTES
from tests.live.terminal import Terminal, on_terminal
from tests.live.workload import Stepped, stepped
from tracer.formatting import format_bytes

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]

LEAVING = "\x1b[?1049l"  # the alternate screen
BEFORE = "balance 13 pages = 0 touched + 13 before + 0 unseen"
GROWN = "balance 41 pages = 28 touched + 13 before + 0 unseen"
TOUCHED = {"A": "68.0 KiB", "B": "32.0 KiB", "main": "12.0 KiB"}
COLOURED = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[\d;]*)?m")


@pytest.fixture(autouse=True)
def leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program, map or mount; and no temporary file."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("TERM", "xterm-256color")
    with nothing_remains():
        yield
    assert not list(temporary.iterdir())


@pytest.fixture
def workload(program: Path, tmp_path: Path) -> Iterator[Stepped]:
    with stepped(program, "grown", tmp_path / "notes") as started:
        started.wait_for("running")
        yield started


@contextmanager
def watched(workload: Stepped) -> Iterator[Terminal]:
    """On a terminal, once the tables are there."""
    with on_terminal([*SHMTRACE, "top", "-i", "0.3", "-p", str(workload.tgid)]) as terminal:
        terminal.wait_for(BEFORE)
        yield terminal


def test_without_textual_there_are_lines(workload: Stepped) -> None:
    command = patched("import sys; sys.modules['textual'] = None")
    with on_terminal([*command, "top", "-i", "0.3", "-p", str(workload.tgid)]) as terminal:
        terminal.wait_for("`pip install textual`")
        terminal.wait_for("region +0 B")
        workload.go()
        workload.wait_for("grown")
        terminal.wait_for("grower +68.0 KiB")
        terminal.type("\x03")
        assert terminal.finish() == 0
    assert LEAVING not in terminal.seen


def test_on_a_terminal(workload: Stepped) -> None:
    with watched(workload) as terminal:
        workload.go()
        notes = workload.wait_for("grown")
        terminal.wait_for(GROWN)
        for tgid, part in notes.parts.items():
            if part in TOUCHED:
                terminal.wait_for(f"{tgid:>7} {TOUCHED[part]:>8} ")
        terminal.type("\r")
        terminal.wait_for("before the trace 52.0 KiB, unseen 0 B")
        terminal.type("q")
        assert terminal.finish() == 0
    report = terminal.seen.rpartition(LEAVING)[2]
    assert GROWN in report
    for tgid, part in notes.parts.items():
        assert part not in TOUCHED or re.search(rf"^ +{tgid} +{TOUCHED[part]} ", report, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_as_q_does(workload: Stepped, number: signal.Signals) -> None:
    with watched(workload) as terminal:
        os.kill(terminal.tgid, number)
        assert terminal.finish() == 0
    assert BEFORE in terminal.seen.rpartition(LEAVING)[2]


def test_two_signals_leave_the_terminal_as_it_was(workload: Stepped) -> None:
    with watched(workload) as terminal:
        os.kill(terminal.tgid, signal.SIGTERM)
        os.kill(terminal.tgid, signal.SIGTERM)
        assert terminal.finish() in (0, 128 + signal.SIGTERM)
    assert LEAVING in terminal.seen


@pytest.mark.parametrize("nr_signals", [1, 2])
@pytest.mark.parametrize("shown", ["attaching to ", "\x1b[?1049h"])
def test_a_signal_while_it_attaches(workload: Stepped, shown: str, nr_signals: int) -> None:
    """One lets it attach and report; with two, whatever it does, the terminal is as it was."""
    with on_terminal([*SHMTRACE, "top", "-p", str(workload.tgid)]) as terminal:
        terminal.wait_for(shown)
        for _ in range(nr_signals):
            os.kill(terminal.tgid, signal.SIGTERM)
        status = terminal.finish()
    assert status in ((0,) if nr_signals == 1 else (0, 128 + signal.SIGTERM))
    assert terminal.seen.count("\x1b[?1049h") == terminal.seen.count(LEAVING)
    if status == 0:
        assert BEFORE in terminal.seen.rpartition(LEAVING)[2]


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_no_colour(workload: Stepped, monkeypatch: pytest.MonkeyPatch, no_colour: str) -> None:
    """The screen has the terminal's own colours."""
    monkeypatch.setenv("NO_COLOR", no_colour)
    with watched(workload) as terminal:
        terminal.type("q")
        terminal.finish()
    assert not COLOURED.search(terminal.seen.partition(LEAVING)[0])


def test_what_it_attaches_to_is_said_first(workload: Stepped) -> None:
    with watched(workload) as terminal:
        terminal.type("q")
        assert terminal.finish() == 0
    said = re.search(r"attaching to [1-9]\d* process", terminal.seen)
    assert said
    assert said.start() < terminal.seen.index("balance ")


@contextmanager
def piped(workload: Stepped, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Through a pipe, once what was there has been told."""
    command = [*SHMTRACE, "top", "-i", "0.3", "-p", str(workload.tgid), *more]
    with running(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert " answer " in process.stdout.readline()
        assert " region +0 B  " in process.stdout.readline()
        yield process


def unexpected(errors: str) -> list[str]:
    """What was said besides what it attaches to, which is said if that takes more than a second."""
    return [line for line in errors.splitlines() if not line.startswith("shmtrace: attaching to ")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_through_a_pipe(workload: Stepped, number: signal.Signals) -> None:
    """The changes add up to what has grown, and the report says the same."""
    with piped(workload) as process:
        workload.go()
        notes = workload.wait_for("grown")
        time.sleep(0.7)
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, unexpected(errors)) == (0, [])
    assert GROWN in output
    changed = [float(change) for change in re.findall(r"^\S+ region ([+-][\d.]+) KiB ", output, re.MULTILINE)]
    assert sum(changed) == 28 * 4
    for tgid, part in notes.parts.items():
        if part in TOUCHED:
            told = re.findall(rf"^\S+ grower \S+ \w+  {tgid} .* touched (\S+ \w+) in 1 region", output, re.MULTILINE)
            assert told[-1] == TOUCHED[part]


def test_what_was_watched_is_kept(workload: Stepped, tmp_path: Path) -> None:
    """As a capture of its owner's alone; what is there is not written over."""
    kept = tmp_path / "kept.capture"
    with piped(workload, "-o", str(kept)) as process:
        workload.go()
        workload.wait_for("grown")
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in kept.parent.glob("kept*")] == [kept.name]
    report = subprocess.check_output([*SHMTRACE, "report", str(kept)], cwd=ROOT, text=True)
    assert GROWN in output
    assert GROWN in report
    again = subprocess.run(
        [*SHMTRACE, "top", "-p", str(workload.tgid), "-o", str(kept)], cwd=ROOT, capture_output=True, text=True
    )
    assert again.returncode == 1
    assert unexpected(again.stderr) == [f"shmtrace: {kept} is there already: name another, or remove it"]


def test_nobody_reads(workload: Stepped) -> None:
    with piped(workload) as process:
        assert process.stdout
        process.stdout.close()
        workload.go()
        assert process.wait(ATTACH_SECONDS) == 128 + signal.SIGPIPE
        assert process.stderr
        assert unexpected(process.stderr.read()) == []


def test_it_ends_with_what_it_watches(workload: Stepped) -> None:
    with piped(workload) as process:
        workload.go()
        workload.wait_for("grown")
        workload.go()
        workload.finish()
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, unexpected(errors)) == (0, [])
    assert GROWN in output
    assert " gone " in output


def test_one_line_where_nothing_matches() -> None:
    done = subprocess.run(
        [*SHMTRACE, "top", "-p", "no-such-program"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("shmtrace: no process matches -p no-such-program: ")


DONE = {"alpha": 28, "beta": 9, "gamma": 17, "(none)": 11, "\\x1b[31m<b>\\xff\\x0a'": 13, "?": 9}
"""What the pages of the workload that says what it does are for: see test_labels."""


@pytest.fixture
def talking(program: Path, tmp_path: Path) -> Iterator[Stepped]:
    with stepped(program, "labelled", tmp_path / "notes") as started:
        started.wait_for("ready")
        yield started


def test_by_label_on_a_terminal(talking: Stepped) -> None:
    command = [*SHMTRACE, "top", "-i", "0.3", "-p", str(talking.tgid), "--label", "workload:doing"]
    with on_terminal(command) as terminal:
        terminal.wait_for("balance 0 pages")
        talking.go()
        talking.wait_for("done")
        terminal.wait_for("balance 94 pages = 94 touched + 0 before + 0 unseen")
        terminal.type("b")
        terminal.wait_for("exited label")
        for text, pages in DONE.items():
            terminal.wait_for(text)
            assert re.search(
                rf"{re.escape(format_bytes(pages * PAGE_BYTES))} .* [12] +\d {re.escape(text)}", terminal.seen
            )
        assert "\x1b[31m<b>" not in terminal.seen
        terminal.type("q")
        assert terminal.finish() == 0


def test_by_label_through_a_pipe(talking: Stepped) -> None:
    with piped(talking, "--label", "workload:doing", "--by", "label") as process:
        talking.go()
        talking.wait_for("done")
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, unexpected(errors)) == (0, [])
    for text, pages in DONE.items():
        line = rf"^\S+ grower \S+ \w+  [12] process\(es\), touched (\S+ \w+)  {re.escape(text)}$"
        assert re.findall(line, output, re.MULTILINE)[-1] == format_bytes(pages * PAGE_BYTES)

"""The demo and the doctor as a newcomer runs them."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.reports import ROOT, SHMTRACE, without_bcc
from tracer.formatting import width

pytestmark = pytest.mark.bpf

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SIZE_MB = 22
PATIENCE_S = 30
QUARTER_PAGES = SIZE_MB * 256 // 4


def stages(output: str) -> list[str]:
    found = re.split(r"^\d  ", output, flags=re.MULTILINE)[1:]
    assert len(found) == 6
    return found


def row(stage: str, name: str) -> list[str]:
    """The words after name and PID; none where there is no such row."""
    found = re.search(rf"^  {name} +\d+ +(.*)$", stage, re.MULTILINE)
    return found[1].split() if found else []


def tgids(output: str) -> list[int]:
    return sorted({int(word) for word in re.findall(r"^  (?:parent|[A-D]) +(\d+)", output, re.MULTILINE)})


def test_every_stage_has_its_figures(shmtrace: Run) -> None:
    done = shmtrace("demo", "--size", str(SIZE_MB))
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert max(map(width, done.stdout.splitlines())) <= 80
    assert re.search(r"^  /proc/\d+/map_files/\w+-\w+: tmpfs$", done.stdout, re.MULTILINE)
    mapped, a_wrote, b_wrote, a_gone, b_gone, alone = stages(done.stdout)
    pages = [str(QUARTER_PAGES), "pages"]
    assert row(mapped, "parent")[2:] == ["0", "0", "0", "made", "it"]
    assert row(a_wrote, "A")[2:] == ["5.5", "5.5", "5.5", *pages]
    assert row(b_wrote, "A")[2:] == ["5.5", "2.8", "5.5", *pages]
    assert row(b_wrote, "B")[2:] == ["11", "8.2", "5.5", *pages]
    assert row(a_gone, "A") == row(alone, "B") == ["5.5", str(QUARTER_PAGES), "pages,", "exited"]
    assert row(a_gone, "C")[2:] == row(b_gone, "D")[2:] == ["0", "0", "0"]
    assert row(alone, "parent")[2:] == ["0", "0", "0", "made", "it"]
    allocated = [re.search(r"VSS 22, RSS ([\d.]+)$", stage, re.MULTILINE) for stage in stages(done.stdout)]
    assert [found[1] for found in allocated if found] == ["0", "5.5", "11", "11", "11", "11"]


def test_it_ends_with_an_account_that_balances(shmtrace: Run) -> None:
    output = shmtrace("demo", "--size", str(SIZE_MB)).stdout
    assert "of 11 MB allocated, A touched 5.5 first and B touched 5.5 first." in " ".join(output.split())
    assert f"balance {2 * QUARTER_PAGES} pages = {2 * QUARTER_PAGES} touched + 0 before + 0 unseen" in output
    assert len(tgids(output)) == 5
    assert not [tgid for tgid in tgids(output) if Path(f"/proc/{tgid}").exists()]


def test_the_original_sizes_to_the_page(shmtrace: Run) -> None:
    output = shmtrace("demo", "--size", "2000").stdout
    assert row(stages(output)[-1], "A") == row(stages(output)[-1], "B") == ["500", "128000", "pages,", "exited"]
    assert "balance 256000 pages = 256000 touched + 0 before + 0 unseen" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_cut_short_it_leaves_no_process(number: signal.Signals) -> None:
    command = [*SHMTRACE, "demo", "--size", "400"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        said = ""
        while not re.search(r"^  A .*\n", said, re.MULTILINE):
            said += process.stdout.readline()
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode
    assert len(tgids(said)) == 2
    deadline = time.monotonic() + PATIENCE_S
    while any(map(is_alive, tgids(said))):  # those of a killed demo end by themselves, a moment later
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(tgid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{tgid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_without_bcc_it_runs_and_says_what_is_missing(tmp_path: Path) -> None:
    command = [*without_bcc(tmp_path), "demo", "--size", str(SIZE_MB)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Tracing does not work here" in done.stdout
    assert row(stages(done.stdout)[1], "A")[2:] == ["5.5", "5.5", "?"]
    assert row(stages(done.stdout)[-1], "parent")[2:] == ["0", "0", "?", "made", "it", "(inferred)"]


def test_the_doctor_finds_this_host_well(shmtrace: Run) -> None:
    done = shmtrace("doctor")
    assert done.returncode == 0
    assert re.match(r"tier (exact|faults): ", done.stdout)
    assert "missing" not in done.stdout
    assert max(width(line) for line in done.stdout.splitlines() if "fix: " not in line) <= 80


def test_the_doctor_says_what_is_missing_and_fails(tmp_path: Path) -> None:
    command = [*without_bcc(tmp_path), "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.startswith("tier proc: only `shmtrace snapshot` works here; tracing needs: exact by kprobe,")
    assert re.search(r"^note     bcc .*\n(?: {26}.*\n)* +fix: .*(?:bcc|site-packages)", done.stdout, re.MULTILINE)

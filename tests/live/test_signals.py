"""However a trace is ended: the first signal prints the report, and nothing is left behind by any of them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.live.remains import alive, children, held, nothing_remains
from tests.live.reports import ROOT, SHMTRACE, find_region, pages_by_part, patched, read_report
from tests.live.shmem import PAGE_BYTES
from tests.live.terminal import on_terminal
from tests.live.workload import stepped

PROMPT_S = 8.0  # 2 are promised; the rest is for a machine that is busy
PATIENCE_S = 20.0
START_AT_MOST_S = 60.0  # on CPUs that have other work
MOMENTS, START_S = 12, 2.0  # when to kill one that starts, and how long a start takes about
STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE]

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]

Running = subprocess.Popen[bytes]


@pytest.fixture(autouse=True)
def leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program, map or mount; and no temporary file."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with nothing_remains():
        yield
    assert not list(temporary.iterdir())


@pytest.fixture
def target(program: Path, tmp_path: Path) -> Iterator[str]:
    """A process to trace, by its PID."""
    with stepped(program, "grown", tmp_path / "target") as workload:
        workload.wait_for("running")
        yield str(workload.tgid)


@contextmanager
def running(*arguments: str, shmtrace: Sequence[str] = SHMTRACE, until: bytes = b"") -> Iterator[Running]:
    """shmtrace ARGUMENTS, once it has said that."""
    with subprocess.Popen(
        [*shmtrace, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr
            while until and until not in (line := process.stderr.readline()):
                assert line, "it ended before"
            yield process
        finally:
            process.kill()


def end(process: Running) -> tuple[bytes, bytes]:
    """What it said, when it has ended, which must be soon."""
    return process.communicate(timeout=PROMPT_S)


# ---- a trace ----


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_prints_the_report(program: Path, tmp_path: Path, number: signal.Signals) -> None:
    with stepped(program, "grown", tmp_path / "notes") as workload:
        workload.wait_for("running")
        with running("--json", "-p", str(workload.tgid), until=b"tracing") as process:
            assert len(held(str(process.pid))) > 10  # else the fixture would see nothing
            workload.go()
            notes = workload.wait_for("grown")
            process.send_signal(number)
            output, errors = end(process)
    assert process.returncode == 0
    assert errors == b""
    region = find_region(read_report(output), notes.regions["pool"].id)
    assert pages_by_part(region, notes.parts, "touched_bytes") == {"A": 17, "B": 8, "main": 3}


@pytest.mark.parametrize("pause_s", [0, 0.005, 0.02, 0.05, 0.1])
def test_two_in_quick_succession(target: str, pause_s: float) -> None:
    """The second finds it reporting, or done; two that come at once are one."""
    with running("-p", target, until=b"tracing") as process:
        process.send_signal(signal.SIGINT)
        time.sleep(pause_s)
        process.send_signal(signal.SIGINT)
        output, errors = end(process)
    # one that comes as Python itself ends kills: a shell shows 130 of that, too
    assert process.returncode in (0, 128 + signal.SIGINT, -signal.SIGINT)
    assert process.returncode or b"balance" in output
    assert errors == b""


@pytest.mark.parametrize("number", STOPPING)
def test_during_the_report(target: str, number: signal.Signals) -> None:
    slow = patched(
        "import sys, time",
        "from tracer import account",
        "account.read = lambda capture: (print('reporting', file=sys.stderr, flush=True), time.sleep(60))",
    )
    with running("-p", target, shmtrace=slow, until=b"tracing") as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert process.stderr.readline() == b"reporting\n"
        process.send_signal(number)
        assert end(process) == (b"", b"")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", STOPPING)
def test_during_the_start_with_probes_attached(target: str, number: signal.Signals) -> None:
    slow = patched(
        "import sys, time",
        "from tracer.kernel.probes import Probes",
        "attach = Probes.attach",
        "Probes.attach = lambda self: (attach(self), print('attached', file=sys.stderr, flush=True), time.sleep(60))",
    )
    with running("-p", target, shmtrace=slow, until=b"attached") as process:
        assert held(str(process.pid))
        process.send_signal(number)
        assert end(process) == (b"", b"")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5])
def test_at_any_moment_of_the_start(target: str, number: signal.Signals, after_s: float) -> None:
    with running("-p", target) as process:
        time.sleep(after_s)
        process.send_signal(number)
        output, _ = end(process)
    assert process.returncode or b"balance" in output


def test_killed(target: str) -> None:
    with running("-p", target, until=b"tracing") as process:
        process.kill()
        end(process)
    assert process.returncode == -signal.SIGKILL


@contextmanager
def mounts_without_tracefs() -> Iterator[int]:
    """The PID of a process in a mount namespace that tracefs was taken out of."""
    script = "umount -l /sys/kernel/tracing /sys/kernel/debug 2>/dev/null; echo; exec cat"
    line = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(1)
        yield process.pid
        process.kill()


def test_killed_at_any_moment_of_the_start(target: str) -> None:
    """Each moment is of another start; a mount would be there for the next."""
    with mounts_without_tracefs() as there:
        before = Path(f"/proc/{there}/mounts").read_text()
        assert "tracefs" not in before
        entered = ["nsenter", f"--mount=/proc/{there}/ns/mnt", f"--wd={ROOT}", *SHMTRACE]
        for moment in range(MOMENTS):
            with running("-p", target, shmtrace=entered) as process:
                time.sleep(START_S * moment / MOMENTS)
                process.kill()
                end(process)
            assert Path(f"/proc/{there}/mounts").read_text() == before


def test_somebody_else_has_a_lock() -> None:
    """On a directory that anybody may open: nothing waits for that."""
    directory = os.open("/sys/kernel", os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        line = [*SHMTRACE, "--", "true"]
        subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=START_AT_MOST_S)
    finally:
        os.close(directory)


def test_nohup(target: str) -> None:
    with running("-p", target, shmtrace=["nohup", *SHMTRACE], until=b"tracing") as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert b"balance" in end(process)[0]
    assert process.returncode == 0


# ---- a closing that takes long ----

SLOW = (  # a minute and more in all
    "import time",
    "from tracer.record import region_writer, trace",
    "alive = region_writer.RegionWriter.close_alive",
    "region_writer.RegionWriter.close_alive = lambda *arguments: (time.sleep(0.2), alive(*arguments))",
)
MANY = 307
HOLD_MANY = f"""
import mmap, sys
regions = [mmap.mmap(-1, 5 * 4096) for _ in range({MANY})]
for region in regions:
    region[4096] = region[4 * 4096] = 1
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def many() -> Iterator[str]:
    """A process with many regions, of two pages each, by its PID."""
    with subprocess.Popen([sys.executable, "-c", HOLD_MANY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield str(process.pid)
        process.kill()


def test_what_there_is_no_time_for_is_left_out(many: str) -> None:
    with running("--json", "-p", many, shmtrace=patched(*SLOW, "trace.PATIENCE_S = 0.7"), until=b"tracing") as process:
        began_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, b"")
    assert time.monotonic() - began_s < MANY * 0.2 / 4  # far from what all would have taken
    report = read_report(output)
    (left_out,) = [warning for warning in report["warnings"] if "regions are shown as last sampled" in warning]
    assert 100 < int(left_out.split()[3]) < MANY
    assert sum(region["allocated_bytes"] for region in report["regions"]) == 2 * MANY * PAGE_BYTES
    assert len(report["regions"]) == MANY


def test_the_second_signal_does_not_wait_for_the_closing(many: str) -> None:
    slow = patched(*SLOW, "trace.PATIENCE_S = 60")
    with running("-p", many, shmtrace=slow, until=b"tracing") as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert end(process) == (b"", b"")
    assert process.returncode == 128 + signal.SIGTERM


def test_a_long_closing_says_so_and_can_be_cut_short(many: str) -> None:
    slow = patched(*SLOW, "trace.SILENCE_S = 0.1")
    with running("--json", "-p", many, "-d", "0.1", shmtrace=slow, until=b"closing") as process:
        process.send_signal(signal.SIGINT)
        output, errors = end(process)
    assert (process.returncode, errors) == (0, b"")
    assert any("told to stop" in warning for warning in read_report(output)["warnings"])


# ---- the reader of the report ----


def test_the_reader_has_seen_enough(target: str) -> None:
    with running("-p", target, until=b"tracing") as process:
        assert process.stdout
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert process.stderr.read() == b""
        process.wait(PROMPT_S)
    assert process.returncode == 128 + signal.SIGPIPE


def test_piped_into_head() -> None:
    line = f"{' '.join(SHMTRACE)} -- true | head -1"
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=True)
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 2>&-"])
def test_closed_by_the_caller(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(SHMTRACE)} -- true {closed}"], cwd=ROOT, stdout=subprocess.PIPE, timeout=PATIENCE_S
    )
    assert done.returncode == 0
    assert b"balance" in done.stdout


@pytest.mark.parametrize(("output", "reason"), [(">&-", b"standard output is closed"), (">/dev/full", b"No space")])
def test_nowhere_to_report_to(output: str, reason: bytes) -> None:
    line = f"{' '.join(SHMTRACE)} -- true {output}"
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, stderr=subprocess.PIPE, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.count(b"\n") == 1


# ---- -- COMMAND ----


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("exit 127", 127), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_the_status_of_the_command(script: str, status: int) -> None:
    with running("--", "sh", "-c", script) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status
    assert b"balance" in output
    assert errors == b""


def test_the_command_has_the_signals_it_would_have_without() -> None:
    script = "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status"
    with running("--", "sh", "-c", script) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    plain = subprocess.run(["sh", "-c", script], check=True, capture_output=True)
    assert output.startswith(plain.stdout)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_the_command_too(number: signal.Signals) -> None:
    with running("--", "sleep", "1000") as process:
        command = wait_for_child(process.pid, "sleep")
        process.send_signal(number)
        output, errors = end(process)
    assert not alive(command)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"balance" in output
    assert errors == b""


def test_a_second_signal_does_not_wait_for_the_command() -> None:
    with running("--", "sh", "-c", "trap '' TERM; exec sleep 1000") as process:
        command = wait_for_child(process.pid, "sleep")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert end(process) == (b"", b"")
    assert not alive(command)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_was_not_let_go_never_runs(tmp_path: Path, number: signal.Signals) -> None:
    """It is held until the probes are attached."""
    slow = patched(
        "import sys, time",
        "from tracer.kernel.probes import Probes",
        "Probes.attach = lambda self: (print('attaching', file=sys.stderr, flush=True), time.sleep(60))",
    )
    with running("--", "touch", str(tmp_path / "touched"), shmtrace=slow, until=b"attaching") as process:
        [command] = children(process.pid)
        process.send_signal(number)
        assert end(process) == (b"", b"")
    deadline = time.monotonic() + PROMPT_S
    while alive(command):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (tmp_path / "touched").exists()


def wait_for_child(tgid: int, comm: str) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for child in children(tgid):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                if Path(f"/proc/{child}/comm").read_text() == f"{comm}\n":
                    return child
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- on a terminal ----


def test_ctrl_c_goes_to_both_and_the_command_has_its_way() -> None:
    script = "trap 'echo cleaning up; sleep 0.3; exit 7' INT; echo up; while :; do sleep 0.05; done"
    with on_terminal([*SHMTRACE, "--", "sh", "-c", script]) as terminal:
        terminal.wait_for("up\r\n")
        terminal.type("\x03")
        assert terminal.finish() == 7
    assert "cleaning up" in terminal.seen
    assert "balance" in terminal.seen


def test_a_command_that_does_not_mind_ctrl_c_is_told_to_end() -> None:
    with on_terminal([*SHMTRACE, "--", "sh", "-c", "trap '' INT; echo up; exec sleep 1000"]) as terminal:
        terminal.wait_for("up\r\n")
        terminal.type("\x03")
        assert terminal.finish() == 128 + signal.SIGTERM
    assert "balance" in terminal.seen


def test_ctrl_c_twice_on_a_terminal(target: str) -> None:
    slow = patched("import time", "from tracer import account", "account.read = lambda capture: time.sleep(60)")
    with on_terminal([*slow, "-p", target]) as terminal:
        terminal.wait_for("Ctrl-C")
        terminal.type("\x03")
        time.sleep(0.5)
        terminal.type("\x03")
        assert terminal.finish() == 128 + signal.SIGINT
    assert "Traceback" not in terminal.seen

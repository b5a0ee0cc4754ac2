"""What goes wrong is one line on stderr, which says what mends it; what is only lost is said in the report."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.live.reports import (
    ROOT,
    SHMTRACE,
    Report,
    assert_balanced,
    find_region,
    pages_by_part,
    part_of,
    patched,
    read_report,
    trace,
    trace_command,
    without_bcc,
)
from tests.live.shmem import PAGE_BYTES
from tests.live.workload import Notes, stepped

PATIENCE_S = 60.0
SNAPSHOT_WORKS = "`shmtrace snapshot` works without"

pytestmark = pytest.mark.bpf
needs_cc = pytest.mark.needs("cc")


class Failed:
    """A command that ended badly, having said one line."""

    def __init__(
        self, command: Sequence[object], env: Mapping[str, str] = os.environ, before: Callable[[], None] | None = None
    ) -> None:
        line = list(map(str, command))
        done = subprocess.run(
            line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S, preexec_fn=before
        )
        self.status, self.line = done.returncode, done.stderr.rstrip("\n")
        assert self.status > 0, done.stdout
        assert self.line.startswith("shmtrace: "), done.stderr
        assert "\n" not in self.line
        assert not done.stdout


def fails(*arguments: object) -> Failed:
    return Failed([*SHMTRACE, *arguments])


# ---- the command line ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bogus"], "--bogus"),
        (["-p"], "requires an argument"),
        (["snapshot", "extra"], "unexpected extra argument (extra)"),
        (["trace"], "-p NAME, -a (all), --armed, -- COMMAND"),
        (["-d", "1"], "-p NAME, -a (all), --armed, -- COMMAND"),
        (["-a", "-p", "sshd"], "-p NAME, -a (all), --armed, -- COMMAND"),
        (["-p", "sshd", "--", "true"], "-p NAME, -a (all), --armed, -- COMMAND"),
        (["-a", "-d", "0"], "0.0 is not in the range x>0"),
        (["-a", "-d", "soon"], "'soon' is not a valid float"),
        (["-a", "-i", "0"], "0.0 is not in the range 0.1<=x<=1"),
        (["-a", "--room", "0"], "'0' is not a size: write 512M or 4G"),
        (["-a", "--room", "4Q"], "'4Q' is not a size: write 512M or 4G"),
        (["-a", "--room", ""], "'' is not a size: write 512M or 4G"),
    ],
)
def test_arguments_that_are_none(arguments: list[str], said: str) -> None:
    failed = fails(*arguments)
    assert failed.status == 2
    assert said in failed.line
    assert failed.line.endswith("--help` says more")


def test_a_pattern_that_is_none() -> None:
    """Also with --wait, which must not wait for it to become one."""
    assert "is not a regular expression" in fails("-p", "(", "--wait").line
    assert "-a" in fails("-p", "").line


# ---- the target ----


def test_nothing_matches() -> None:
    failed = fails("-p", "nobody-is-called-so")
    assert "no process matches -p nobody-is-called-so" in failed.line
    assert "--wait" in failed.line
    assert "did you mean" not in failed.line


def test_nothing_matches_but_something_comes_close(tmp_path: Path) -> None:
    sleeper = tmp_path / f"fnord{os.getpid()}"
    sleeper.symlink_to("/bin/sleep")
    with subprocess.Popen([sleeper, "60"]) as process:
        assert f"did you mean {sleeper.name}?" in fails("-p", sleeper.name.replace("fnord", "fndor")).line
        assert f"did you mean {sleeper.name}?" in fails("snapshot", "-p", sleeper.name.replace("fnord", "fndor")).line
        process.kill()


def test_no_such_pid_or_pidfile(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    assert f"no process matches -p {ended.pid}" in fails("-p", ended.pid).line
    pidfile = tmp_path / "pid"
    assert "No such file" in fails("-p", pidfile).line
    pidfile.write_text("starting\n")
    assert "holds no PID, but 'starting'" in fails("-p", pidfile).line


def test_itself_and_who_started_it_are_no_targets() -> None:
    assert "what started it" in fails("-p", os.getpid()).line


@needs_cc
def test_waits_for_a_pidfile(program: Path, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    line = [*SHMTRACE, "--json", "--wait", "-p", str(pidfile)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        said = process.stderr.readline()  # before there is a file
        with stepped(program, "grown", tmp_path / "notes") as workload:
            workload.wait_for("running")
            pidfile.write_text(f"{workload.tgid}\n")
            said += process.stderr.readline()
            workload.go()
            notes = workload.wait_for("grown")
            process.terminate()
            report = read_report(process.communicate()[0])
    assert b"waiting for -p" in said
    assert b"tracing" in said
    touched = pages_by_part(find_region(report, notes.regions["pool"].id), notes.parts, "touched_bytes")
    assert touched == {"A": 17, "B": 8, "main": 3}


@needs_cc
def test_the_end_of_the_target_is_said(program: Path, tmp_path: Path) -> None:
    with stepped(program, "grown", tmp_path / "notes") as workload:
        workload.wait_for("running")
        with trace("-p", workload.tgid) as tracing:
            workload.go()
            workload.wait_for("grown")
            workload.go()
            output, errors = tracing.process.communicate(timeout=PATIENCE_S)
    assert tracing.process.returncode == 0
    assert b"all traced processes have exited" in errors
    assert len(read_report(output)["regions"]) == 1


# ---- the command ----


def test_a_command_that_is_none(tmp_path: Path) -> None:
    """With the statuses that a shell, env and nohup have for it."""
    failed = fails("--", "/nonexistent/command")
    assert failed.status == 127
    assert failed.line == "shmtrace: cannot run /nonexistent/command: No such file or directory"
    assert fails("--", "nobody-has-such-a-command").status == 127
    text = tmp_path / "text"
    text.write_text("nothing to run\n")
    failed = fails("--", text)
    assert failed.status == 126
    assert "Permission denied" in failed.line
    text.chmod(0o755)
    failed = fails("--", text)
    assert failed.status == 126
    assert "Exec format error" in failed.line


# ---- what this host or this user does not allow ----


def without(*capabilities: str) -> list[str]:
    dropped = ",".join(f"-{name}" for name in capabilities)
    return ["setpriv", "--bounding-set", dropped, "--inh-caps", dropped]


def test_not_root() -> None:
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if subprocess.run([*nobody, "test", "-r", ROOT / "tracer", "-a", "-x", sys.executable], check=False).returncode:
        pytest.skip("the checkout or Python is where nobody but its owner can read it")
    failed = Failed([*nobody, *SHMTRACE, "-a"])
    assert "lacks CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE, CAP_BPF, CAP_PERFMON: run it as root" in failed.line
    failed = Failed([*nobody, *SHMTRACE, "snapshot"])
    assert "lacks CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE: run it as root" in failed.line


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        (["all"], "CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE, CAP_BPF, CAP_PERFMON"),
        (["sys_admin", "bpf"], "CAP_BPF"),
        (["sys_admin", "perfmon"], "CAP_PERFMON"),
        (["sys_ptrace"], "CAP_SYS_PTRACE"),
    ],
)
def test_missing_capabilities_of_root_are_named(dropped: list[str], named: str) -> None:
    failed = Failed([*without(*dropped), *SHMTRACE, "-a"])
    assert f"lacks {named}: docker run --cap-add=" in failed.line


def test_sys_admin_stands_for_the_finer_ones() -> None:
    line = [*without("bpf", "perfmon", "checkpoint_restore"), *SHMTRACE, "--", "true"]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def in_own_mounts(
    *command: str, change: str = "umount -l /sys/kernel/tracing /sys/kernel/debug 2>/dev/null"
) -> list[str]:
    """change: of what is mounted; that tracefs is not, if nothing else is said."""
    return ["unshare", "--mount", "sh", "-c", f'{change}; exec "$@"', "sh", *command]


def test_tracefs_need_not_be_mounted() -> None:
    subprocess.run(in_own_mounts(*SHMTRACE, "--", "true"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("place", ["/sys/kernel/tracing", "/mnt"])
def test_tracefs_is_found_where_it_is_mounted(place: str) -> None:
    """Then no privilege is asked for that only a mount takes."""
    mounted = in_own_mounts("sh", "-c", f'mount -t tracefs tracefs {place} && exec "$@"', "sh")
    line = [*mounted, *without("sys_admin"), *SHMTRACE, "--", "true"]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_tracefs_cannot_be_mounted() -> None:
    failed = Failed(in_own_mounts(*without("sys_admin"), *SHMTRACE, "-a"))
    assert "tracefs is not mounted, and cannot be (Operation not permitted)" in failed.line
    assert "mount -t tracefs tracefs /sys/kernel/tracing" in failed.line


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("umount -l /proc", "/proc/self/status"),
        ("mount -t tmpfs none /proc", "/proc/self/status"),
        ("mount -t proc -o subset=pid proc /proc", "/proc/meminfo"),
    ],
)
@pytest.mark.parametrize(
    "arguments", [["doctor"], ["--", "true"], ["snapshot"], ["demo", "--size", "4"], ["read", "x"]]
)
def test_without_proc(arguments: list[str], change: str, missing: str) -> None:
    failed = Failed(in_own_mounts(*SHMTRACE, *arguments, change=change))
    assert f"{missing} cannot be read (No such file or directory): mount -t proc proc /proc" in failed.line
    assert failed.status == 1


@pytest.mark.parametrize("arguments", [["--", "true"], ["snapshot"], ["demo", "--size", "4"], ["read", "x"]])
def test_in_the_namespaces_of_a_container(arguments: list[str]) -> None:
    failed = Failed(["unshare", "--user", "--map-root-user", *SHMTRACE, *arguments])
    assert "this user namespace is not the host's" in failed.line
    failed = Failed(["unshare", "--pid", "--fork", *SHMTRACE, *arguments])
    assert "/proc is of another PID namespace than this process: mount -t proc proc /proc" in failed.line


@pytest.mark.parametrize("change", ["umount -l /sys", "mount -t tmpfs none /sys"])
def test_without_sys(change: str) -> None:
    line = in_own_mounts(*SHMTRACE, "doctor", change=change)
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "only `shmtrace snapshot` works here; tracing needs: BTF" in " ".join(done.stdout.split())
    done = subprocess.run(in_own_mounts(*SHMTRACE, "snapshot", change=change), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    failed = Failed(in_own_mounts(*SHMTRACE, "-a", change=change))
    assert f"the kernel offers no usable BTF (ENOENT): {SNAPSHOT_WORKS}" in failed.line


@pytest.mark.parametrize("arguments", [["--", "true"], ["snapshot"], ["demo", "--size", "4"], ["doctor"]])
def test_ascii(arguments: list[str]) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([*SHMTRACE, *arguments], cwd=ROOT, env=ascii_only, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


@needs_cc
def test_no_trace_ends_for_want_of_a_place_to_say_so(program: Path, tmp_path: Path) -> None:
    """The disk with the log is full."""
    with stepped(program, "grown", tmp_path / "notes") as workload:
        workload.wait_for("running")
        line = f"{' '.join(SHMTRACE)} record -p {workload.tgid} -d 3 -o {tmp_path}/x.capture 2>/dev/full"
        done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True)
        assert (done.returncode, done.stdout) == (0, b"")
    report = subprocess.run([*SHMTRACE, "report", tmp_path / "x.capture", "--json"], cwd=ROOT, capture_output=True)
    assert read_report(report.stdout)


def test_bcc_cannot_be_imported(tmp_path: Path) -> None:
    shmtrace = without_bcc(tmp_path)
    failed = Failed([*shmtrace, "-a"])
    for part in (sys.executable, "there is none", "python3-bpfcc", "`shmtrace prepare`", SNAPSHOT_WORKS):
        assert part in failed.line
    done = subprocess.run([*shmtrace, "snapshot", "--json"], cwd=ROOT, check=True, capture_output=True)
    assert_balanced(read_report(done.stdout))


BPF, PERF_EVENT_OPEN = 321, 298


def forbid(system_call: int) -> Callable[[], None]:
    """By a seccomp filter, as container runtimes do: it fails with EPERM, in this process and its children."""

    def filter_it() -> None:
        instructions = [
            (0x20, 0, 0, 0),  # load the number of the system call
            (0x15, 0, 1, system_call),
            (0x06, 0, 0, 0x00050001),  # SECCOMP_RET_ERRNO | EPERM
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        ]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
        program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
        pr_set_seccomp, seccomp_mode_filter = 22, 2
        if ctypes.CDLL(None).prctl(pr_set_seccomp, seccomp_mode_filter, program):
            raise OSError("no seccomp")

    return filter_it


def test_bpf_is_refused() -> None:
    failed = Failed([*SHMTRACE, "-a"], before=forbid(BPF))
    assert "BPF refused: " in failed.line
    assert "Operation not permitted" in failed.line
    assert "`shmtrace doctor` says more" in failed.line
    assert SNAPSHOT_WORKS in failed.line


def test_perf_events_are_refused() -> None:
    failed = Failed([*SHMTRACE, "-a"], before=forbid(PERF_EVENT_OPEN))
    assert "tracepoint syscalls:sys_exit_mmap cannot be used (" in failed.line
    assert "Operation not permitted" in failed.line
    assert SNAPSHOT_WORKS in failed.line


def test_locked_down() -> None:
    locked = patched("from tracer.kernel import host", "host.lockdown = lambda: 'confidentiality'")
    failed = Failed([*locked, "-a"], before=forbid(BPF))
    assert "locked down (confidentiality) and refuses BPF: boot with lockdown=integrity" in failed.line
    assert SNAPSHOT_WORKS in failed.line


def test_not_the_hosts_pids() -> None:
    contained = patched("from tracer.kernel import host", "host.sees_host_pids = lambda: False")
    failed = Failed([*contained, "-a"])
    assert "--pid=host" in failed.line
    assert "`shmtrace snapshot` works here" in failed.line


def with_probe(probe: str) -> list[str]:
    return patched("from tracer.kernel import tiers", f"tiers.FAULTS.probes.insert(5, tiers.Probe({probe}))")


@pytest.mark.parametrize(
    "probe",
    [
        "'sys_exit_mmap', tiers.Kind.TRACEPOINT, ('syscalls:sys_exit_frob',)",
        "'page_fault', tiers.Kind.RAW, ('exceptions:page_frob',)",
    ],
)
class TestTracepointAbsent:
    def test_required(self, probe: str) -> None:
        failed = Failed([*with_probe(probe), "-a"])
        assert "tracepoint syscalls:sys_exit_frob" in failed.line or "tracepoint exceptions:page_frob" in failed.line
        assert "`shmtrace doctor` says more" in failed.line
        assert SNAPSHOT_WORKS in failed.line

    @needs_cc
    def test_optional(self, probe: str, program: Path, tmp_path: Path) -> None:
        report = trace_command(
            program, "anon", tmp_path / "notes", shmtrace=with_probe(f"{probe}, costs='who frobbed it'")
        )
        assert "who frobbed it" in report["blind_to"]
        assert pool(report, tmp_path) == ({"A": 13, "B": 6}, 0)


# ---- no room: what is not written down is unseen, and said to be ----


def pool(report: Report, directory: Path) -> tuple[dict[str, int], int]:
    """Pages touched by part, and unseen, of the region called so."""
    notes = Notes.read(directory / "notes")
    region = find_region(report, notes.regions["pool"].id)
    assert region["allocated_bytes"] == notes.regions["pool"].pages * PAGE_BYTES
    return pages_by_part(region, notes.parts, "touched_bytes"), region["unseen_bytes"] // PAGE_BYTES


def with_sizes(**sizes: int) -> list[str]:
    everything = {"blocks": 4096, "processes": 2048, "regions": 1024, "usages": 4096, "alive": 1024, **sizes}
    values = ", ".join(f"{name}={size}" for name, size in everything.items())
    return patched(
        "from tracer.kernel.loader import Sizes",
        "from tracer.record.trace import Trace",
        f"Trace._room = lambda self, processes: Sizes({values})",
    )


def assert_warned(report: Report, *parts: str) -> None:
    assert any(all(part in warning for part in parts) for warning in report["warnings"]), report["warnings"]


SLOW = patched(
    "import time",
    "from tracer.kernel import probes",
    f"probes.EVENT_BYTES = {PAGE_BYTES}",
    "poll = probes.Probes.poll",
    "probes.Probes.poll = lambda self, timeout_s: (time.sleep(0.3), poll(self, timeout_s))[1]",
)


@needs_cc
class TestFull:
    def test_ledger(self, program: Path, tmp_path: Path) -> None:
        report = trace_command(program, "contended", tmp_path / "notes", options=["--room", "1M"])
        touched, unseen = pool(report, tmp_path)
        assert sum(touched.values()) in (
            4 * 64,
            3 * 64 + 5003 % 64,
        )  # what fits in 1M: blocks of 64, the last one smaller
        assert unseen == 5003 - sum(touched.values())
        assert report["lost"]["pages"] >= unseen
        assert_warned(report, "the ledger is full", "--room")

    def test_ledger_in_the_text(self, program: Path, tmp_path: Path) -> None:
        line = [*SHMTRACE, "--room", "4K", "--", str(program), "contended", str(tmp_path / "notes")]
        done = subprocess.run(line, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        assert "--room" in done.stdout
        assert "4939 unseen" in done.stdout

    def test_regions(self, program: Path, tmp_path: Path) -> None:
        report = trace_command(program, "many_regions", tmp_path / "notes", shmtrace=with_sizes(regions=7))
        assert len(report["regions"]) == 7
        assert all(region["unseen_bytes"] == 0 for region in report["regions"])
        assert_warned(report, "more regions than there is room for")
        assert_warned(report, "no room for more regions: main has 7 of them")

    def test_processes(self, program: Path, tmp_path: Path) -> None:
        """There is room for main alone; it makes 3 pages, and its hundred children 7 each."""
        report = trace_command(program, "hundred", tmp_path / "notes", shmtrace=with_sizes(processes=1))
        assert pool(report, tmp_path) == ({"main": 3}, 700)
        assert_warned(report, "more processes than there is room for: the rest is unseen")

    def test_usages(self, program: Path, tmp_path: Path) -> None:
        """Only faults are not counted; who touched stands in the ledger."""
        report = trace_command(program, "hundred", tmp_path / "notes", shmtrace=with_sizes(usages=1))
        touched, unseen = pool(report, tmp_path)
        assert touched == {"main": 3, **{f"child-{number}": 7 for number in range(100)}}
        assert unseen == 0
        assert_warned(report, "some faults are not counted")


@needs_cc
class TestLate:
    """Who is slow to read loses nothing."""

    def test_processes(self, program: Path, tmp_path: Path) -> None:
        report = trace_command(program, "hundred", tmp_path / "notes", shmtrace=SLOW)
        touched, unseen = pool(report, tmp_path)
        assert touched == {"main": 3, **{f"child-{number}": 7 for number in range(100)}}
        assert (unseen, report["lost"]["events"]) == (0, 0)
        notes = Notes.read(tmp_path / "notes")
        touchers = find_region(report, notes.regions["pool"].id)["touchers"]
        processes = {part_of(toucher["process"], notes.parts): toucher["process"] for toucher in touchers}
        main = processes.pop("main")
        assert all((each["parent"], each["comm"]) == (main["tgid"], part) for part, each in processes.items())
        assert all(main["exited"] >= each["exited"] > each["started"] > main["started"] for each in processes.values())

    def test_regions(self, program: Path, tmp_path: Path) -> None:
        report = trace_command(program, "many_regions", tmp_path / "notes", shmtrace=SLOW)
        notes = Notes.read(tmp_path / "notes")
        for number in range(45):
            region = find_region(report, notes.regions[f"pool-{number}"].id)
            assert pages_by_part(region, notes.parts, "touched_bytes") == {"B" if number % 2 else "A": number + 1}
            assert (region["unseen_bytes"], region["name"]) == (0, "/dev/zero")
        assert report["lost"]["events"] == 0

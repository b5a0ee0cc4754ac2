"""The command line, as far as it goes without root and BPF: every mistake is one line, and says what mends it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from tracer import __version__, cli
from tracer.cli import options, preflight
from tracer.errors import ShmtraceError
from tracer.kernel import host
from tracer.proc.procfs import Proc
from tracer.record.child import Started
from tracer.record.signals import STOP_SIGNALS, Signals

CHECKOUT = Path(__file__).parent.parent
PR_CAPBSET_DROP = 24
CAPABILITIES = [
    host.CAP_SYS_PTRACE,
    host.CAP_SYS_ADMIN,
    host.CAP_PERFMON,
    host.CAP_BPF,
    host.CAP_CHECKPOINT_RESTORE,
]


def run(*arguments: str) -> tuple[int, str]:
    """(exit status, all that was said)"""
    result = CliRunner().invoke(cli.main, arguments, prog_name="shmtrace")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def fail(*arguments: str) -> tuple[int, str]:
    """(exit status, the one line that was said)"""
    status, output = run(*arguments)
    line, end, rest = output.partition("\n")
    assert (end, rest) == ("\n", "")
    assert line.startswith("shmtrace: ")
    return status, line[len("shmtrace: ") :]


def drop_capabilities() -> None:
    """What shmtrace needs, and nothing else: the checkout may be another user's."""
    libc = ctypes.CDLL(None)
    for capability in CAPABILITIES:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def _may_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were root on a host."""
    monkeypatch.setattr("tracer.kernel.host.missing_capabilities", lambda bpf: [])
    monkeypatch.setattr("tracer.kernel.host.need_host_pids", lambda: None)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """A host without a process; puts one there."""

    def put(tgid: int, comm: str) -> None:
        (tmp_path / "proc" / str(tgid)).mkdir(parents=True)
        (tmp_path / "proc" / str(tgid) / "stat").write_text(f"{tgid} ({comm}) S 1 " + "0 " * 17 + "7 0\n")
        (tmp_path / "proc" / str(tgid) / "cmdline").write_text(f"/usr/sbin/{comm}\0")

    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(preflight, "Proc", lambda: Proc(str(tmp_path / "proc")))
    return put


# ---- help ----


def test_help() -> None:
    status, output = run("--help")
    assert status == 0
    assert output.startswith("Usage: shmtrace [OPTIONS] COMMAND [ARGS]...\n")
    for command in cli.main.commands:
        assert f"\n  {command} " in output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("command", cli.main.commands)
def test_help_of_a_command(command: str) -> None:
    status, output = run(command, "--help")
    assert status == 0
    assert output.startswith(f"Usage: shmtrace {command} [OPTIONS]")
    assert max(map(len, output.splitlines())) <= 80


def test_no_arguments_is_help() -> None:
    assert run()[1].strip() == run("--help")[1].strip()


def test_version() -> None:
    assert run("--version") == (0, f"shmtrace, version {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["snapshot", "--help"], ["report", "-h"]])
def test_help_needs_no_right_and_no_bcc(
    arguments: list[str], shmtrace: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = shmtrace(*arguments, preexec_fn=drop_capabilities)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


# ---- mistakes ----


@pytest.mark.usefixtures("_may_trace")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--bogus"], "No such option: --bogus: `shmtrace trace --help` says more"),
        (["snapshot", "--bogus"], "No such option: --bogus: `shmtrace snapshot --help` says more"),
        (["snapshot", "-d", "3"], "No such option: -d: `shmtrace snapshot --help` says more"),
        (["php-fpm"], "no command is called php-fpm: to trace processes of that name, `shmtrace -p php-fpm`"),
        (["1234"], "no command is called 1234: to trace processes of that name, `shmtrace -p 1234`"),
        (["tpo"], "no command is called tpo: did you mean top? or, to trace processes of that name, `shmtrace -p tpo`"),
        (
            ["-a", "-d", "1x"],
            "Invalid value for '-d' / '--duration': '1x' is not a valid float range: `shmtrace trace --help` says more",
        ),
        (
            ["completion"],
            "Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish: `shmtrace completion --help` says more",
        ),
        (["-p"], "Option '-p' requires an argument: `shmtrace --help` says more"),
        (["trace"], "give one of -p NAME, -a (all), --armed, -- COMMAND: `shmtrace trace --help` says more"),
        (["--json"], "give one of -p NAME, -a (all), --armed, -- COMMAND: `shmtrace trace --help` says more"),
        (["-a", "-p", "x"], "give one of -p NAME, -a (all), --armed, -- COMMAND: `shmtrace trace --help` says more"),
        (["-a", "--", "x"], "give one of -p NAME, -a (all), --armed, -- COMMAND: `shmtrace trace --help` says more"),
        (
            ["-p", "x", "--", "x"],
            "give one of -p NAME, -a (all), --armed, -- COMMAND: `shmtrace trace --help` says more",
        ),
        (
            ["-a", "--stacks"],
            "--stacks needs -o FILE, for `shmtrace report FILE --by stack`: `shmtrace trace --help` says more",
        ),
        (
            ["top", "-a", "--by", "script"],
            "--by script needs --label php or php:file: `shmtrace top --help` says more",
        ),
        (
            ["top", "-a", "--by", "query", "--label", "php"],
            "--by query needs --label postgres: `shmtrace top --help` says more",
        ),
        (
            ["top", "-a", "--by", "label"],
            "--by label needs --label php or php:file or postgres or BINARY:SYMBOL: `shmtrace top --help` says more",
        ),
        (
            ["-a", "--room", "big"],
            "Invalid value for '--room': 'big' is not a size: write 512M or 4G: `shmtrace trace --help` says more",
        ),
    ],
)
def test_arguments_that_are_wrong(arguments: list[str], line: str) -> None:
    assert fail(*arguments) == (2, line)


@pytest.mark.usefixtures("_may_trace")
@pytest.mark.parametrize(
    "size", ["", "0", "0G", "G", "-1", "1.5G", "4Q", "4GB", "²", "²G", "1e9", "9" * 19, "8388608T"]
)
def test_sizes_that_are_none(size: str) -> None:
    status, line = fail("-a", "--room", size)
    assert status == 2
    assert f"{size!r} is not a size: write 512M or 4G" in line


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [("1", 1), ("3k", 3 << 10), ("512M", 512 << 20), ("4g", 4 << 30), ("1T", 1 << 40)],
)
def test_sizes(size: str, size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli.main.commands["trace"], "callback", lambda **options: seen.append(options["room_bytes"]))
    assert run("-a", "--room", size) == (0, "")
    assert seen == [size_bytes]


@pytest.mark.usefixtures("_may_trace")
@pytest.mark.parametrize("number", ["0", "-1", "soon", "", "nan"])
@pytest.mark.parametrize("option", ["-d", "-i"])
def test_times_that_are_none(option: str, number: str) -> None:
    status, line = fail("-a", option, number)
    assert status == 2
    assert line.startswith(f"Invalid value for '{option}'")


# ---- targets ----


@pytest.mark.usefixtures("_may_trace")
@pytest.mark.parametrize("command", [["trace"], ["trace", "--wait"], ["snapshot"]])
def test_a_word_that_is_no_expression(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor will it become one by waiting."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))
    line = "-p '*php' is not a regular expression (nothing to repeat at position 0): escape it with \\"
    assert fail(*command, "-p", "*php") == (1, line)


@pytest.mark.usefixtures("_may_trace")
@pytest.mark.parametrize("command", ["trace", "snapshot"])
def test_pidfiles(command: str, tmp_path: Path) -> None:
    pidfile = tmp_path / "fpm.pid"
    missing = f"pidfile {pidfile}: No such file or directory: is the service running?"
    assert fail(command, "-p", str(pidfile)) == (1, missing)
    pidfile.write_text("starting\n")
    empty = f"pidfile {pidfile} holds no PID, but 'starting': name the process or its PID"
    assert fail(command, "-p", str(pidfile)) == (1, empty)


@pytest.mark.usefixtures("_may_trace")
@pytest.mark.parametrize("command", ["trace", "snapshot"])
def test_nothing_matches(command: str, host: Callable[[int, str], None]) -> None:
    host(811, "php-fpm8.2")
    remedy = "--wait waits for one, -a traces the whole host"
    assert fail(command, "-p", "xyzzy", "-p", "9") == (1, f"no process matches -p xyzzy -p 9: {remedy}")
    close = f"no process matches -p php-fmp: did you mean php-fpm8.2? {remedy}"
    assert fail(command, "-p", "php-fmp") == (1, close)


@pytest.mark.usefixtures("_may_trace")
def test_an_empty_name() -> None:
    """As of a variable that is not set: it would match everything."""
    assert fail("-p", "") == (1, "-p '' would match every process: name one, or take the whole host with -a")


@pytest.mark.usefixtures("_may_trace")
def test_shmtrace_itself() -> None:
    line = f"-p {os.getpid()} is shmtrace itself or what started it: give another process"
    assert fail("-p", str(os.getpid())) == (1, line)


@pytest.mark.usefixtures("_may_trace")
def test_a_name_that_breaks_lines_makes_one_line() -> None:
    status, line = fail("-p", "a\nb\x1b[2J")
    assert status == 1
    assert line.isprintable()


def test_waiting_for_a_pidfile(
    host: Callable[[int, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pidfile = tmp_path / "fpm.pid"

    def start(_seconds: float) -> None:
        host(811, "php-fpm8.2")
        pidfile.write_text("811\n")

    monkeypatch.setattr(time, "sleep", start)
    assert preflight.wanted([str(pidfile)], everything=False, wait=True).tgids == {811}


# ---- rights ----


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["-a"], "CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE, CAP_BPF, CAP_PERFMON"),
        (["--", "true"], "CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE, CAP_BPF, CAP_PERFMON"),
        (["snapshot"], "CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE"),
        (["demo"], "CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE"),
    ],
)
def test_capabilities_that_are_missing_are_named(
    command: list[str], missing: str, shmtrace: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = shmtrace(*command, preexec_fn=drop_capabilities)
    assert (done.returncode, done.stdout) == (1, "")
    line, end, rest = done.stderr.partition("\n")
    assert line.startswith(f"shmtrace: this process lacks {missing}: ")
    assert (end, rest) == ("\n", "")


@pytest.mark.parametrize(
    ("uid", "remedy"),
    [
        (1000, "run it as root (sudo shmtrace …)"),
        (0, "docker run --cap-add=SYS_PTRACE --cap-add=CHECKPOINT_RESTORE …"),
    ],
)
def test_who_lacks_capabilities_is_told_what_to_do(uid: int, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tracer.kernel.host.missing_capabilities", lambda bpf: ["CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE"]
    )
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert fail("-a") == (1, f"this process lacks CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE: {remedy}")


# ---- bcc ----


@pytest.mark.parametrize(
    "module", ["record.trace", "kernel.probes", "record.snapshot", "account", "doctor", "demo.demo", "views.json"]
)
def test_nothing_but_the_compiler_imports_bcc(module: str) -> None:
    code = f"import sys; sys.modules['bcc'] = None; import tracer.{module}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)


# ---- a command of its own ----


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
def test_a_command_and_its_status(script: str, status: int) -> None:
    with Started(("sh", "-c", script)) as started:
        started.go()
        started.end(patience_s=10)
        assert started.status == status


def test_a_command_does_nothing_before_it_may(tmp_path: Path) -> None:
    with Started(("touch", str(tmp_path / "done"))) as started:
        assert Proc().process(started.tgid)
        assert not started.ended()
        assert not list(tmp_path.iterdir())
        started.go()
        started.end(patience_s=10)
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_a_command_that_never_may_is_gone_in_the_end(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Started(("touch", str(tmp_path / "done"))) as started:
        raise KeyboardInterrupt
    assert Proc().process(started.tgid) is None
    assert not list(tmp_path.iterdir())


def test_a_command_that_will_not_end_is_made_to() -> None:
    with Started(("sleep", "600")) as started:
        started.go()
        started.end(patience_s=0)
        assert started.status == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("name", "mode", "status", "reason"),
    [("absent", None, 127, "No such file or directory"), ("there", 0o644, 126, "Permission denied")],
)
def test_a_command_that_cannot_run(name: str, mode: int | None, status: int, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if mode:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    with Started((str(path),)) as started, pytest.raises(ShmtraceError) as raised:
        started.go()
    assert (str(raised.value), raised.value.status) == (f"cannot run {path}: {reason}", status)


def test_a_command_without_a_name() -> None:
    """As of a variable that is not set."""
    with Started(("",)) as started, pytest.raises(ShmtraceError, match="No such file") as raised:
        started.go()
    assert raised.value.status == 127


# ---- signals ----


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_lets_it_report_and_the_second_ends_it(number: int) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        signals.trace = SimpleNamespace(stopping=False)
        signal.raise_signal(number)
        assert (signals.trace.stopping, signals.first) == (True, number)
        with pytest.raises(SystemExit) as raised:
            signal.raise_signal(signal.SIGTERM)
        assert raised.value.code == 128 + signal.SIGTERM
        signal.raise_signal(number)  # cleaning up is not disturbed
    assert signal.getsignal(number) == before


def test_a_signal_before_there_is_a_trace_ends_it() -> None:
    with Signals(), pytest.raises(SystemExit) as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 128 + signal.SIGTERM


def test_under_nohup_a_hangup_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signals.trace = SimpleNamespace(stopping=False)
            signal.raise_signal(signal.SIGHUP)
            assert not signals.trace.stopping
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- the report ----


def report(text: str) -> list[str]:
    """A program that prints it as a trace does at its end."""
    code = f"""
from tracer.cli import output, streams
from tracer.errors import ShmtraceError
from tracer.views import report
report.render = str
streams.open_all()
try:
    output.report({text}, as_json=False)
except ShmtraceError as error:
    raise SystemExit(str(error))
"""
    return [sys.executable, "-c", code]


def test_a_reader_that_has_seen_enough() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(report("'x' * 1_000_000"), cwd=CHECKOUT, **pipes) as printing:
        assert printing.stdout
        assert printing.stderr
        printing.stdout.close()
        assert (printing.stderr.read(), printing.wait()) == (b"", 128 + signal.SIGPIPE)


def test_a_report_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(report("'x'"), cwd=CHECKOUT, stdout=full, stderr=subprocess.PIPE, text=True)
    line = "the output cannot be written (No space left on device): redirect it to another place\n"
    assert (done.stderr, done.returncode) == (line, 1)


def test_a_reader_that_is_slow() -> None:
    """What is non-blocking, because somebody who shares it has made it so, is waited for."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with subprocess.Popen(report("'x' * 1_000_000"), cwd=CHECKOUT, stdout=writing) as printing:
        os.close(writing)
        time.sleep(0.5)
        with open(reading, "rb") as reader:
            assert len(reader.read()) == 1_000_001
    assert printing.returncode == 0


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172800)]
)
def test_durations(written: str, seconds: float) -> None:
    assert options.Seconds(min=0).convert(written, None, None) == seconds


@pytest.mark.parametrize("written", ["m", "1w", "-1m", "1 m", "1e3m", "nan", "9999999999m"])
def test_what_is_no_duration(written: str) -> None:
    with pytest.raises(click.BadParameter):
        options.Seconds(min=0).convert(written, None, None)

"""One input, given to the program in a forked child of limited memory and time: how that ended."""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner
from hypothesis.strategies import SearchStrategy

from tests.conftest import CHECKOUT
from tracer import cli
from tracer.cli import streams
from tracer.errors import ShmtraceError

Given = dict[str, Any]
"""An input, as JSON can hold it."""

# Beside what the fuzzer has itself: in a test that is all that other tests have left.
MEMORY_BYTES = 300 << 20  # what may be in memory at once
ADDRESS_BYTES = 1 << 30  # what may be mapped: what wants more is told so, before the host suffers
CPU_S = 10
WALL_S = 60  # of what waits for something; far more than the other, for the machine may be busy
OUTPUT_BYTES = 1 << 30
LONGEST_LINE = 8000  # of an error: it may have two paths in it
STATUSES = (0, 1, 2)
WARNING = "shmtrace: warning: "

RESULT, REFUSED = "result", "refused"
TRACEBACK, HANG, WRONG = "traceback", "hang", "wrong"


class Ended(NamedTuple):
    """How the program ended on one input."""

    how: str
    """result or refused, which are well; traceback, hang or wrong"""
    what: str
    """of what is not well: which one, told apart from others by this text"""
    detail: str
    """all that was printed, or why it is not well"""
    seconds: float
    peak_bytes: int
    """more than it began with"""

    @property
    def well(self) -> bool:
        return self.how in (RESULT, REFUSED)


class Fuzzer(NamedTuple):
    """A kind of input."""

    name: str
    inputs: SearchStrategy[Given]
    give: Callable[[Given], Any]
    """to the program, in a directory that write() has filled; what it raises is how the program ended"""
    examples: int
    """of the short run"""
    write: Callable[[Given, Path], None] = lambda _given, _directory: None
    """its files"""
    check: Callable[[Given, Path, str], None] = lambda _given, _directory, _stdout: None
    """of what ended with a result, what it has printed, and in which directory; raises AssertionError"""
    warm: Callable[[], None] = lambda: None
    """once, before the first: what each child would have to do by itself"""
    made: Callable[[Given], set[str]] = lambda _given: set()
    """names of files that it may make where none was"""


def command(*arguments: str) -> None:
    """Of the command line, as __main__ runs it, but for its last resort. Raises what it does."""
    streams.open_all()
    cli.main(list(arguments), prog_name="shmtrace")


def imported(*commands: list[str]) -> None:
    """All that these commands import, so that not each child has to. They are run in a child, for what reads a capture
    sets limits to SQLite, which the process then has."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for arguments in commands:
                CliRunner().invoke(cli.main, arguments)
            os.write(writable, " ".join(sys.modules.keys()).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable) as told:
        names = told.read().split()
    os.waitpid(child, 0)
    for name in names:
        if name.startswith("tracer."):
            importlib.import_module(name)


@contextlib.contextmanager
def files_of(fuzzer: Fuzzer, given: Given) -> Iterator[Path]:
    """The directory that an input is given in, in an empty one."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as outer:
        (Path(outer) / "tmp").mkdir()
        inner = Path(outer) / "input"
        inner.mkdir()
        fuzzer.write(given, inner)
        yield inner


def run(fuzzer: Fuzzer, given: Given) -> Ended:
    """In a child; what it leaves behind is looked at, and removed."""
    with files_of(fuzzer, given) as directory:
        before = _files(directory.parent)
        mapped_bytes, resident_bytes = _own_memory()
        readable, writable = os.pipe()
        began_s = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(fuzzer, given, directory, writable, mapped_bytes + ADDRESS_BYTES)
        os.close(writable)
        in_time = bool(select.select([readable], [], [], WALL_S)[0])
        told = os.read(readable, 1 << 16) if in_time else b""
        os.close(readable)
        seconds = time.monotonic() - began_s
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        peak_bytes = usage.ru_maxrss * 1024 - resident_bytes
        if told:
            how, what, detail = _judged(fuzzer, given, directory, json.loads(told))
        else:
            how, what, detail = _killed(in_time, status)
        if how in (RESULT, REFUSED):
            new = {f"input/{name}" for name in fuzzer.made(given)}
            if changed := _changed(before, _files(directory.parent), new):
                how, what, detail = WRONG, "files are not as they were", "\n".join(changed)
            elif peak_bytes > MEMORY_BYTES:
                how, what, detail = WRONG, "too much memory", f"{peak_bytes >> 20} MB"
        return Ended(how, what, detail, seconds, peak_bytes)


def _own_memory() -> tuple[int, int]:
    """What of this process is mapped and resident, in bytes: a child begins with it."""
    mapped, resident, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return mapped * mmap.PAGESIZE, resident * mmap.PAGESIZE


def _killed(in_time: bool, status: int) -> tuple[str, str, str]:
    if not in_time:
        return HANG, f"no answer in {WALL_S} s", ""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGXCPU:
        return HANG, f"over {CPU_S} s of CPU", ""
    return WRONG, f"killed by {signal.Signals(number).name}" if number else "it ended itself", ""


def _judged(fuzzer: Fuzzer, given: Given, directory: Path, answer: tuple[int, str, str]) -> tuple[str, str, str]:
    """How, what and detail, by what the child has told and printed."""
    code, what, detail = answer
    stdout, stderr = (
        (directory.parent / name).read_text(encoding="utf-8", errors="backslashreplace")
        for name in ("stdout", "stderr")
    )
    if what:
        return TRACEBACK, what, detail
    if code not in STATUSES:
        return WRONG, f"status {code}", stderr
    if problem := _of_stderr(code, stderr):
        return WRONG, problem, f"status {code}, stderr:\n{stderr}"
    if code:
        return REFUSED, "", stderr
    try:
        fuzzer.check(given, directory, stdout)
    except Exception as error:  # noqa: BLE001 - what is checked may be none of what was expected
        at = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"{type(error).__name__} in {at.name}: {at.line}"
        return WRONG, str(error).partition("\n")[0] if isinstance(error, AssertionError) else wrong, str(error)
    return RESULT, "", stdout


def _become(fuzzer: Fuzzer, given: Given, directory: Path, writable: int, address_bytes: int) -> None:
    """The child: a process of its own group, that tells (exit status, class of traceback, traceback) and ends."""
    answer: tuple[int, str, str] = 0, "", ""
    try:
        os.setpgid(0, 0)
        os.chdir(directory)
        _limit(address_bytes)
        os.environ.update(TMPDIR=str(directory.parent / "tmp"))
        tempfile.tempdir = None
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(directory.parent / name, os.O_CREAT | os.O_WRONLY, 0o600), fd)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding=given.get("encoding", "utf-8"), closefd=False)  # noqa: SIM115
        answer = _given(fuzzer, given)
    finally:
        os.write(writable, json.dumps(answer).encode())
        os._exit(0)


def _limit(address_bytes: int) -> None:
    for which, soft, hard in (
        (resource.RLIMIT_AS, address_bytes, resource.RLIM_INFINITY),
        (resource.RLIMIT_CPU, CPU_S, CPU_S + 2),
        (resource.RLIMIT_FSIZE, OUTPUT_BYTES, OUTPUT_BYTES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(which, (soft, hard))


def _given(fuzzer: Fuzzer, given: Given) -> tuple[int, str, str]:
    try:
        try:
            fuzzer.give(given)
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return (end.code if isinstance(end.code, int) else 1 if end.code else 0), "", ""
    except ShmtraceError as error:
        print(f"shmtrace: {error}", file=sys.stderr)
        return error.status, "", ""
    except BaseException as error:  # noqa: BLE001 - that there is none is what is tried
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(CHECKOUT / "tracer")]
        at = (ours or frames)[-1]
        what = f"{type(error).__name__} in {Path(at.filename).name}: {at.name}"
        return 0, what, "".join(traceback.format_exception(type(error), error, error.__traceback__))[-4000:]
    finally:
        sys.stderr.flush()
    return 0, "", ""


def _of_stderr(code: int, stderr: str) -> str:
    """What is wrong with what it said: nothing is said but of errors and what is missing, in lines of its own."""
    lines = stderr.splitlines()
    if not all(line.isprintable() for line in stderr.split("\n")):
        return "an error that is not printable"
    if any(not line.startswith("shmtrace: ") for line in lines):
        return "an error that does not begin with shmtrace:"
    errors = [line for line in lines if not line.startswith(WARNING)]  # those are told whole
    if code and len(errors) != 1:
        return f"an error of {len(errors)} lines"
    if any(len(line) > LONGEST_LINE for line in errors):
        return "an error that is too long"
    return ""


def _changed(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]], made: set[str]) -> list[str]:
    """Names of files; of a directory that has a new one the times are others, too."""
    new = made & (after.keys() - before.keys())
    ours = {*new, *(str(Path(name).parent) for name in new)}
    return sorted(ascii(name) for name, _ in set(before.items()) ^ set(after.items()) if name not in ours)


def _files(directory: Path) -> dict[str, tuple[int, ...]]:
    """All below a directory, each with what would tell that it was changed; but for what the harness writes there."""
    found = {}
    for path in directory.rglob("*"):
        stat = path.lstat()
        found[str(path.relative_to(directory))] = (
            # not st_ctime: for root, SQLite gives each journal that it opens to the owner whom it has already
            *(stat.st_mode, stat.st_ino, stat.st_uid, stat.st_gid, stat.st_size, stat.st_nlink, stat.st_mtime_ns),
        )
    return {name: told for name, told in found.items() if name not in ("stdout", "stderr", "tmp")}

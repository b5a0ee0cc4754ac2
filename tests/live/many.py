"""Builds tests/live/many.c and runs it under shmtrace."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.live.reports import PATIENCE_SECONDS, ROOT, SHMTRACE, Report, read_report
from tests.live.running import running


def build(directory: Path) -> Path:
    program = directory / "many"
    source = Path(__file__).with_name("many.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program


class Found(NamedTuple):
    report: Report
    values: dict[str, float]
    """What the program reported itself."""
    after_s: float
    """Seconds from its end to the report."""
    cpu_s: float
    """CPU seconds of shmtrace until then."""


def values(result: Path) -> dict[str, float]:
    """The values written so far."""
    lines = result.read_text().splitlines() if result.exists() else []
    return {name: float(value) for name, value in map(str.split, lines)}


def run(program: Path, what: str, *, shmtrace: Sequence[str] = SHMTRACE) -> Found:
    """Run it under shmtrace, which must succeed."""
    result = program.with_name("result")
    result.unlink(missing_ok=True)
    line = [*shmtrace, "--json", "--", str(program), str(result), *what.split()]
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        found = read(process)
    ended = values(result)
    return found._replace(values=ended, after_s=found.after_s - ended["ended"])


def read(process: subprocess.Popen[bytes]) -> Found:
    """The report of a shmtrace. after_s: when it was complete, by CLOCK_MONOTONIC."""
    assert process.stdout
    output, last_s, cpu_s = bytearray(), 0.0, 0.0
    while more := os.read(process.stdout.fileno(), 1 << 16):  # detaching comes after that and takes time, too
        output += more
        last_s, cpu_s = time.monotonic(), cpu_seconds(process.pid)
    assert process.wait() == 0
    return Found(read_report(bytes(output)), {}, last_s, cpu_s)


def cpu_seconds(tgid: int) -> float:
    """CPU seconds of all threads of a process so far, without its children."""
    return time.clock_gettime(~tgid << 3 | 2)  # CPUCLOCK_SCHED of MAKE_PROCESS_CPUCLOCK (include/linux/posix-timers.h)


class Waiting:
    """The program, before it starts its work."""

    def __init__(self, process: subprocess.Popen[bytes], result: Path) -> None:
        self.tgid = process.pid
        self._process = process
        self._result = result

    def go(self) -> dict[str, float]:
        """Run it to its end; the process still exists then."""
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self.wait_for("ended")

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    def wait_for(self, name: str) -> dict[str, float]:
        end_s = time.monotonic() + PATIENCE_SECONDS
        while name not in (found := values(self._result)):
            assert self._process.poll() is None, "it has ended early"
            assert time.monotonic() < end_s, f"no {name}"
            time.sleep(0.01)
        return found


@contextmanager
def waiting(program: Path, what: str) -> Iterator[Waiting]:
    result = program.with_name("result")
    result.unlink(missing_ok=True)
    with running([program, result, *what.split()], stdin=subprocess.PIPE) as process:
        found = Waiting(process, result)
        found.wait_for("ready")
        yield found

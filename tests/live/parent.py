"""A process with a region of its own, which does as it is told, and a trace of it into a capture."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live.reports import PATIENCE_SECONDS, ROOT, SHMTRACE
from tests.live.running import running
from tests.live.shmem import PAGE_BYTES

OF_REGION = 401  # pages; no other region here is as large
BY_PARENT = 3


class Parent:
    """A process with a region, that does as it is told in lines: touch PAGE NUMBER, in a child that ends; pass NUMBER,
    which makes another region, touches it and unmaps it."""

    def __init__(self, uid: int = 0, file: Path | None = None) -> None:
        """uid: whose it is. file: what its region is of; None: anonymous."""
        told, telling = os.pipe()
        done, doing = os.pipe()
        self.tgid = os.fork()
        if not self.tgid:
            os.close(telling)
            os.close(done)
            os.setuid(uid)
            self._work(told, doing, file)
        os.close(told)
        os.close(doing)
        self._telling, self._done = os.fdopen(telling, "w"), os.fdopen(done)
        assert self._done.readline() == "0\n"

    def _work(self, told: int, doing: int, file: Path | None) -> None:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) if file else -1
        if file:
            os.ftruncate(fd, OF_REGION * PAGE_BYTES)
        memory = mmap.mmap(fd, OF_REGION * PAGE_BYTES)
        for page in range(BY_PARENT):
            memory[page * PAGE_BYTES] = 1
        os.write(doing, b"0\n")
        for line in os.fdopen(told):
            what, *numbers = line.split()
            child = 0
            if what == "pass":
                passing = mmap.mmap(-1, int(numbers[0]) * PAGE_BYTES)
                for page in range(int(numbers[0])):
                    passing[page * PAGE_BYTES] = 1
                passing.close()
            else:
                child = os.fork()
                if not child:
                    first, number = map(int, numbers)
                    for page in range(first, first + number):
                        memory[page * PAGE_BYTES] = 1
                    os._exit(0)
                os.waitpid(child, 0)
            os.write(doing, b"%d\n" % child)
        os._exit(0)

    def tell(self, *words: object) -> int:
        """Have something done; returns the PID of the child that did it."""
        print(*words, file=self._telling, flush=True)
        return int(self._done.readline())

    def end(self) -> None:
        self._telling.close()
        os.waitpid(self.tgid, 0)


@contextmanager
def recording(
    path: Path, tgid: int, *options: str, shmtrace: list[str] = SHMTRACE
) -> Iterator[subprocess.Popen[bytes]]:
    """A trace, from the moment it is attached. If nobody stops it, it is killed."""
    command = [*shmtrace, "record", "-p", str(tgid), "-o", str(path), *options]
    with running(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr
        while b"tracing" not in (line := process.stderr.readline()):
            assert line, "it ended"
        yield process


def stop(recorder: subprocess.Popen[bytes]) -> str:
    """What it has said at its end."""
    recorder.send_signal(signal.SIGTERM)
    _, said = recorder.communicate(timeout=PATIENCE_SECONDS)
    assert recorder.returncode == 0, said
    return said.decode()

"""A program on a terminal of its own, 80 columns wide."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from tests.live.reports import ROOT

COLUMNS = 80
PATIENCE_S = 20.0


class Terminal:
    """What is seen and typed there."""

    def __init__(self, tgid: int, descriptor: int) -> None:
        self.tgid = tgid
        self.seen = ""
        self._descriptor = descriptor

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda seen: text in seen, text)

    def wait_until(self, is_there: Callable[[str], bool], what: str) -> None:
        """Read until is_there(all that was seen). what: told if it never is."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_there(self.seen):
            assert time.monotonic() < deadline, f"never said {what!r}, but {self.seen!r}"
            assert self._read(), f"ended without {what!r}, but {self.seen!r}"

    def finish(self) -> int:
        """Its status, once it has ended; 128 + the signal that killed it."""
        while self._read():
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.tgid, 0)[1])
        return code if code >= 0 else 128 - code

    def _read(self) -> bool:
        assert select.select([self._descriptor], [], [], PATIENCE_S)[0], f"hangs after {self.seen!r}"
        with suppress(OSError):  # EIO is the end
            more = os.read(self._descriptor, 65536).decode(errors="replace")
            self.seen += more
            return bool(more)
        return False


@contextmanager
def on_terminal(command: Sequence[str]) -> Iterator[Terminal]:
    tgid, descriptor = pty.fork()
    if tgid == 0:
        os.chdir(ROOT)
        os.execvp(command[0], command)  # noqa: S606
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    try:
        yield Terminal(tgid, descriptor)
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(tgid, signal.SIGKILL)
            os.waitpid(tgid, 0)
        os.close(descriptor)

"""Runs a command under trace, from its first instruction to its end."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import NoReturn

from tracer.errors import ShmtraceError

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit statuses of a shell that cannot run a command
FOREVER_S = 10**9


class Started:
    """A command to trace, as a context manager.

    It is forked at once, and waits until go() before it executes the command.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self.status: int | None = None
        """Exit status once it has ended, or 128 + the signal that killed it."""

    def __enter__(self) -> Started:
        hold, self._release = os.pipe()
        self._failed, failed = os.pipe()
        self.tgid = os.fork()
        if self.tgid == 0:
            self._become(hold, failed)
        os.close(hold)
        os.close(failed)
        return self

    def __exit__(self, *_: object) -> None:
        self._end((signal.SIGKILL, FOREVER_S))
        os.close(self._failed)

    def _become(self, hold: int, failed: int) -> NoReturn:
        """In the child: wait for go(), then execute the command."""
        try:
            os.close(self._release)
            if os.read(hold, 1):
                for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, and exec would keep that
                    signal.signal(number, signal.SIG_DFL)
                os.execvp(self._command[0], self._command)  # noqa: S606
        except OSError as error:
            os.write(failed, bytes([error.errno or 0]))
        except ValueError:  # an empty command name
            os.write(failed, bytes([errno.ENOENT]))
        finally:
            os._exit(NOT_FOUND)

    def go(self) -> None:
        """Let it run. Raises ShmtraceError with a shell's exit status where the command cannot be executed."""
        os.write(self._release, b"g")
        os.close(self._release)
        error = os.read(self._failed, 1)  # exec closes the pipe
        if error:
            status = NOT_FOUND if error[0] == errno.ENOENT else NOT_EXECUTABLE
            raise ShmtraceError(f"cannot run {self._command[0]}: {os.strerror(error[0])}", status=status)

    def ended(self) -> bool:
        """Whether it has ended; sets `status`."""
        if self.status is None:
            tgid, status = os.waitpid(self.tgid, os.WNOHANG)
            if tgid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
        return self.status is not None

    def end(self, patience_s: float) -> None:
        """Wait patience_s for it to end. Then send SIGTERM, and after 5 more seconds SIGKILL."""
        self._end((0, patience_s), (signal.SIGTERM, 5), (signal.SIGKILL, FOREVER_S))

    def _end(self, *steps: tuple[int, float]) -> None:
        """Each step is a signal, 0 for none, and how many seconds to wait after it."""
        for number, seconds in steps:
            if self.ended():
                return
            os.kill(self.tgid, number)
            end = time.monotonic() + seconds
            while not self.ended() and time.monotonic() < end:
                time.sleep(0.01)

"""Standard input, output and error for a host in trouble.

The disk may be full, the terminal gone, the encoding ASCII, a descriptor closed. None of this may end a trace.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

from tracer.errors import ShmtraceError

BUFFER_BYTES = 1 << 16


class Output(io.FileIO):
    """Standard output. A failed write raises ShmtraceError; a write to a closed pipe exits."""

    def write(self, data: Any) -> int:
        try:
            with writing():
                while (written := super().write(data)) is None:  # another process made it non-blocking
                    select.select([], [self], [])
        except BaseException:  # also SystemExit of a signal: the buffer would be written again at exit
            _discard()
            raise
        return written


class Stderr(io.FileIO):
    """Standard error, unbuffered. A message that cannot be written is dropped: it must not end the trace."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            left = memoryview(data)
            while left:
                left = left[super().write(left) or len(left) :]
        return len(data)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn OSError into ShmtraceError, and a broken pipe into exit with 128 + SIGPIPE."""
    try:
        yield
    except OSError as error:
        _discard()
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe, like head
            sys.exit(128 + signal.SIGPIPE)
        raise ShmtraceError(
            f"the output cannot be written ({error.strerror})", "redirect it to another place"
        ) from None


def _discard() -> None:
    """Send the rest of standard output to /dev/null, or the interpreter writes its buffer again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_all() -> None:
    """Reopen the standard files. Characters that the encoding lacks are written as escapes.

    A closed one is opened on /dev/null: the next file that is opened would get its descriptor. Raises ShmtraceError if
    standard output was closed.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for good
    buffer = io.BufferedWriter(Output(sys.stdout.fileno(), "w", closefd=False), BUFFER_BYTES)
    sys.stdout = _text(buffer, sys.stdout)
    sys.stderr = _text(Stderr(sys.stderr.fileno(), "w", closefd=False), sys.stderr, write_through=True)
    if "stdout" in closed:
        raise ShmtraceError("standard output is closed", "redirect it, if only to /dev/null")


def _text(buffer: Any, like: Any, write_through: bool = False) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        buffer, like.encoding, "backslashreplace", line_buffering=like.line_buffering, write_through=write_through
    )

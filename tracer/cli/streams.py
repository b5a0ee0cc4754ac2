"""The standard files, as a program that runs where a host is in trouble wants them: the disk may be full, the terminal
gone, the encoding ASCII, a descriptor closed."""

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
    """Standard output. Raises ShmtraceError where it is not taken; ends where nobody reads."""

    def write(self, data: Any) -> int:
        with writing():
            while (written := super().write(data)) is None:  # who shares it has made it non-blocking
                select.select([], [self], [])
        return written


class Told(io.FileIO):
    """Standard error. What is told to whoever watches may get lost, and nothing else may by that."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        return len(data)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """What cannot be written to standard output raises ShmtraceError; where nobody reads, this process ends."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit tries again what is left
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            sys.exit(128 + signal.SIGPIPE)
        raise ShmtraceError(f"the output cannot be written ({error.strerror})", "send it elsewhere") from None


def open_all() -> None:
    """What the caller closed is opened on nothing, or files of our own would take its place; and what the caller's
    encoding has not is written as its code.

    Raises ShmtraceError for the one that the report goes to.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for good
    sys.stdout = _text(Output(sys.stdout.fileno(), "w", closefd=False), sys.stdout)
    sys.stderr = _text(Told(sys.stderr.fileno(), "w", closefd=False), sys.stderr)
    if "stdout" in closed:
        raise ShmtraceError("standard output is closed", "the report needs a place to go, if only /dev/null")


def _text(raw: io.FileIO, like: Any) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(raw, BUFFER_BYTES)
    return io.TextIOWrapper(buffer, like.encoding, "backslashreplace", line_buffering=like.line_buffering)

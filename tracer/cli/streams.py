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
        try:
            with writing():
                while (written := super().write(data)) is None:  # who shares it has made it non-blocking
                    select.select([], [self], [])
        except BaseException:  # as of a signal that ends all, once it has been written: it would be again
            _discard()
            raise
        return written


class Stderr(io.FileIO):
    """Standard error, without a buffer. What is told to whoever watches may get lost, and nothing else may by that."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            left = memoryview(data)
            while left:
                left = left[super().write(left) or len(left) :]
        return len(data)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """What cannot be written to standard output raises ShmtraceError; where nobody reads, this process ends."""
    try:
        yield
    except OSError as error:
        _discard()
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            sys.exit(128 + signal.SIGPIPE)
        raise ShmtraceError(f"the output cannot be written ({error.strerror})", "send it elsewhere") from None


def _discard() -> None:
    """What is left for standard output, or the exit tries it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_all() -> None:
    """What the caller closed is opened on nothing, or files of our own would take its place; and what the caller's
    encoding has not is written as its code.

    Raises ShmtraceError for the one that the report goes to.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for good
    buffer = io.BufferedWriter(Output(sys.stdout.fileno(), "w", closefd=False), BUFFER_BYTES)
    sys.stdout = _text(buffer, sys.stdout)
    sys.stderr = _text(Stderr(sys.stderr.fileno(), "w", closefd=False), sys.stderr, write_through=True)
    if "stdout" in closed:
        raise ShmtraceError("standard output is closed", "the report needs a place to go, if only /dev/null")


def _text(buffer: Any, like: Any, write_through: bool = False) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        buffer, like.encoding, "backslashreplace", line_buffering=like.line_buffering, write_through=write_through
    )

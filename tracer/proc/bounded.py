"""Files of the kernel's, read to a bound: what is in them others choose, and how much of it there is."""

from __future__ import annotations

import codecs
import errno
import os
from collections.abc import Iterator
from pathlib import Path

READ_BYTES = 1 << 16
BLOCK_BYTES = 1 << 20
LINE_BYTES = 1 << 16  # of maps 16.5 KiB are possible: a path has 4096 bytes at most, of which each may take four

CUT = "…"

UNREADABLE = frozenset(
    (
        errno.ENOENT,  # it has gone, or there is no such file in this kernel
        errno.ENOTDIR,
        errno.ESRCH,  # it went after its file was opened
        errno.ENODEV,  # so did the cgroup
        errno.EACCES,  # not every process lets root see what it maps
        errno.EPERM,
        errno.EIO,
        errno.EINVAL,
        errno.ENAMETOOLONG,  # a path in it is
        errno.EOPNOTSUPP,
        errno.EWOULDBLOCK,  # somebody has a lease on it
        errno.ETIMEDOUT,  # promptly.NoAnswerError
    )
)
"""What an OSError's errno is where something of the host's is gone, or not to be looked at: unknown, and no fault."""


def unreadable(error: OSError) -> bool:
    """Whether it says so. All else is a fault of ours, such as too many open files."""
    return error.errno in UNREADABLE


def read(path: Path, size_bytes: int) -> bytes:
    """Its beginning. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read(fd, size_bytes)
    finally:
        os.close(fd)


def blocks(path: Path) -> Iterator[bytes]:
    """All of it, piece by piece. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while block := _read(fd, BLOCK_BYTES):
            yield block
    finally:
        os.close(fd)


def _read(fd: int, size_bytes: int) -> bytes:
    """So much, but at the end: the kernel gives a page at a time."""
    parts = []
    while size_bytes and (part := os.read(fd, min(size_bytes, READ_BYTES))):
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)


def lines(found: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of such blocks, but for any that is longer than LINE_BYTES. Raises what the blocks do."""
    rest = b""
    for block in found:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line for line in whole if len(line) <= LINE_BYTES)
        rest = rest[: LINE_BYTES + 1]  # enough to tell that it is too long
    if 0 < len(rest) <= LINE_BYTES:
        yield rest


def text(raw: bytes, size_bytes: int) -> str:
    """Of a longer one the beginning, and an ellipsis. Names are what strangers chose, and need not be UTF-8."""
    if len(raw) <= size_bytes:
        return raw.decode(errors="backslashreplace")
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")  # the last character may be cut
    return decoder.decode(raw[:size_bytes]) + CUT

"""Reads files of the kernel up to a limit: other users choose what is in them, and how much."""

from __future__ import annotations

import codecs
import errno
import os
from collections.abc import Iterator
from pathlib import Path

READ_BYTES = 1 << 16
BLOCK_BYTES = 1 << 20
LINE_BYTES = 1 << 16  # a line of maps can have 16.5 KiB: a path of 4096 bytes, each escaped as four

CUT = "…"

UNREADABLE = frozenset(
    (
        errno.ENOENT,  # it is gone, or this kernel has no such file
        errno.ENOTDIR,
        errno.ESRCH,  # the process exited after its file was opened
        errno.ENODEV,  # likewise the cgroup
        errno.EACCES,  # some processes do not let root see what they map
        errno.EPERM,
        errno.EIO,
        errno.EINVAL,
        errno.ENAMETOOLONG,  # a path in it is too long
        errno.EOPNOTSUPP,
        errno.EWOULDBLOCK,  # there is a lease on it
        errno.ETIMEDOUT,  # blocking.NoAnswerError
    )
)
"""errno values that mean: gone, or not to be read. The caller treats the value as unknown, not as a failure."""


def unreadable(error: OSError) -> bool:
    """Whether an error means that something is gone or not to be read.

    Any other error, such as EMFILE, is a bug here.
    """
    return error.errno in UNREADABLE


def read(path: Path, size_bytes: int) -> bytes:
    """The first size_bytes of a file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read(fd, size_bytes)
    finally:
        os.close(fd)


def blocks(path: Path) -> Iterator[bytes]:
    """All of a file, in blocks of at most BLOCK_BYTES. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while block := _read(fd, BLOCK_BYTES):
            yield block
    finally:
        os.close(fd)


def _read(fd: int, size_bytes: int) -> bytes:
    """Read size_bytes, or up to the end: a read(2) of /proc returns at most a page or so."""
    parts = []
    while size_bytes and (part := os.read(fd, min(size_bytes, READ_BYTES))):
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)


def lines(found: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of these blocks, without those longer than LINE_BYTES. Raises what reading the blocks raises."""
    rest = b""
    for block in found:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line for line in whole if len(line) <= LINE_BYTES)
        rest = rest[: LINE_BYTES + 1]  # enough to see that it is too long
    if 0 < len(rest) <= LINE_BYTES:
        yield rest


def text(raw: bytes, size_bytes: int) -> str:
    """Decode a name, cut with an ellipsis if it is longer. Users choose names, and these need not be UTF-8."""
    if len(raw) <= size_bytes:
        return raw.decode(errors="backslashreplace")
    # incremental, since the last character may be cut
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    return decoder.decode(raw[:size_bytes]) + CUT

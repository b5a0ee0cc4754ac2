"""Files with a lease. Opening one makes the kernel send a signal to the lease's holder, which may die of it."""

from __future__ import annotations

import os
import re
import time
from itertools import islice
from pathlib import Path

from tracer.proc import bounded

MAX_LOCKS = 4096  # limit for locks of all kinds; the kernel's time to write the file grows with their square
FRESH_S = 0.1
READINGS = 3  # the kernel writes a page at a time, and skips a lock if an earlier one is removed meanwhile
# 1: LEASE  ACTIVE    WRITE 811 00:17:1047 0 EOF
LINE = re.compile(
    rb"\d+: (?:LEASE|DELEG) +(?:\S+ +WRITE|BREAKING +\S+) +-?\d+ ([0-9a-f]{1,8}):([0-9a-f]{1,8}):(\d{1,20}) "
)

_known: tuple[float, frozenset[tuple[int, int]]] = (float("-inf"), frozenset())


def leased(dev: int, ino: int) -> bool:
    """Whether opening a file to read breaks a lease, by /proc/locks of at most FRESH_S ago."""
    global _known
    if time.monotonic() - _known[0] > FRESH_S:
        found = (find(Path("/proc/locks")) for _ in range(READINGS))
        _known = time.monotonic(), frozenset().union(*found)
    return (dev, ino) in _known[1]


def find(locks: Path) -> frozenset[tuple[int, int]]:
    """(dev, ino) of files with a write lease, or with a lease that is being broken."""
    found = set()
    try:
        for line in islice(bounded.lines(bounded.blocks(locks)), MAX_LOCKS):
            field = LINE.match(line)
            if field:
                major, minor = (int(text, 16) for text in field.group(1, 2))
                found.add((os.makedev(major, minor), int(field[3])))
    except OSError as error:
        if not bounded.unreadable(error):
            raise
    return frozenset(found)

"""What is alike: processes by their title, regions by their name, with what varies folded. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from tracer import guess
from tracer.account import Process, Region

MAX_WORDS = 2  # of a command line, after the program
# Numbers, and long hexadecimal ones. After a letter a number is part of a name, as in python3, but not at a title's.
VARIES = re.compile(r"(?<![A-Za-z])(?:(?=[0-9a-f]*\d)[0-9a-f]{8,}(?![A-Za-z])|\d+)")
NUMBER = re.compile(r"\d+")
# PostgreSQL adds to a backend's title where its client is, and what it does: postgres: app orders 10.0.0.7(41234) idle
BACKEND = re.compile(r"(postgres: \S+ \S+) (?:\[local\]|\S+\(\d+\)) .*")


def of_process(process: Process) -> str:
    """What processes of one pool have in common: a title, or a program and its first arguments."""
    words = (process.command or "").split()
    if not words:
        return NUMBER.sub("#", process.comm or "?")
    if words[0].endswith(":"):  # a title
        return NUMBER.sub("#", BACKEND.sub(r"\1", " ".join(words)))
    if process.is_renamed:
        return NUMBER.sub("#", process.comm or "?")
    program = PurePosixPath(words[0]).name or words[0]
    return " ".join([program, *(VARIES.sub("#", word) for word in words[1 : 1 + MAX_WORDS])])


def of_region(region: Region, parent: Process | None) -> str:
    """What regions of one kind have in common: a guessed use, or a name."""
    return VARIES.sub("#", guess.guess(region, parent) or region.name or region.kind)

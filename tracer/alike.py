"""What is alike: processes by their title, regions by their name, with what varies folded. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from tracer import guess
from tracer.model import OomKill, Process, Region, is_renamed

HANDFUL = 5  # of processes or regions that are alike: more are told together
MAX_WORDS = 2  # of a command line, after the program
ALONE = re.compile(r"--[^=]+=")  # as in --type=renderer: what follows says less
# Numbers, and long hexadecimal ones. After a letter a number is part of a name, as in python3, but not at a title's.
# Only at the beginning of a run of such characters does it look ahead: a stranger's name may have a million of them.
VARIES = re.compile(r"(?<![A-Za-z0-9])(?=[0-9a-f]*\d)[0-9a-f]{8,}(?![A-Za-z0-9])|(?<![A-Za-z])\d+")
NUMBER = re.compile(r"\d+")
# As in /SYSV0052e2c1, torch_11043_412 and sem.UyrEBN, which mkstemp(3) made
IN_REGION = re.compile(
    r"(?<![0-9a-f])(?=[0-9a-f]*\d)[0-9a-f]{8,}(?![A-Za-z0-9])|\d+"
    r"|(?<=[._-])(?=[A-Za-z0-9]{6}$)(?=[A-Z0-9]*[a-z])(?=[A-Za-z0-9]+[A-Z])[A-Za-z0-9]{6}"
)
# PostgreSQL adds to a backend's title where its client is, and what it does: postgres: app orders 10.0.0.7(41234) idle
BACKEND = re.compile(r"(postgres: \S+ \S+) (?:\[local\]|\S+\(\d+\)) .*")


def of_process(process: Process) -> str:
    """What processes of one pool have in common: a title, or a program and its first arguments, with # for numbers."""
    return _name_of(process.comm, process.command).folded


def of_victim(kill: OomKill) -> str:
    """What of_process() says of a process that the OOM killer chose."""
    return _name_of(kill.comm, kill.command).folded


def victims_called(kills: Iterable[OomKill]) -> str:
    """What to call victims that are alike, as called() does."""
    return _called(dict.fromkeys((kill.comm, kill.command) for kill in kills))


def called(processes: Iterable[Process]) -> str:
    """What to call processes that are alike: their title if they all have the same, or else what of_process() says."""
    return _called(dict.fromkeys((process.comm, process.command) for process in processes))


def _called(of: Collection[tuple[str | None, str | None]]) -> str:
    names = [_name_of(*name) for name in of]
    return names[0].text if len({name.text for name in names}) == 1 else names[0].folded


class _Name(NamedTuple):
    text: str
    folded: str
    """with # for what varies"""


@functools.lru_cache(maxsize=4096)  # most processes have the name of another
def _name_of(comm: str | None, command: str | None) -> _Name:
    words = (command or "").split()
    if not words or is_renamed(comm, command):
        return _title(comm or "?")
    if words[0].endswith(":"):
        return _title(BACKEND.sub(r"\1", " ".join(words)))
    arguments = words[1 : 1 + MAX_WORDS]
    if arguments and ALONE.match(arguments[0]):
        del arguments[1:]
    line = " ".join([PurePosixPath(words[0]).name or words[0], *arguments])
    return _Name(line, VARIES.sub("#", line))


def _title(text: str) -> _Name:
    """In a title, any number varies; in a command line, one after a letter is part of a name."""
    return _Name(text, NUMBER.sub("#", text))


def of_region(region: guess.Looks, parent: Process | None) -> str:
    """What regions of one kind have in common: a guessed use, or a name, with # for numbers."""
    return IN_REGION.sub("#", _name(region, parent))


def segment(region: guess.Looks, parent: Process | None) -> str:
    """The same without the question mark of a guess: for SQL and metrics, where it is in the way."""
    name = of_region(region, parent)
    return name[:-1] if guess.guess(region, parent) else name


def regions_called(regions: Iterable[tuple[Region, Process | None]]) -> str:
    """What to call regions that are alike, each with its parent: as called() does."""
    some = list(regions)
    names = {_name(region, parent) for region, parent in some}
    return names.pop() if len(names) == 1 else of_region(*some[0])


def _name(region: guess.Looks, parent: Process | None) -> str:
    return guess.called(region, parent) or region.kind

"""Find what a user names: a region by id, by PID:ADDRESS, by name or by its guessed use; the regions of processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tracer import account, alike
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.formatting import printable
from tracer.guess import guess
from tracer.model import Account, Region
from tracer.record import targets

MAX_SHOWN = 40  # characters of a word that an error repeats
PLACE = re.compile(r"(\d{1,9}):(?:0[xX])?([0-9a-fA-F]{1,15})", re.ASCII)


class Known(NamedTuple):
    """A region and its guessed use, such as "opcache?"."""

    region: Region
    guess: str | None
    alike: str
    """what it is called together with those that are alike, as in /dev/shm/torch_#_#"""

    @property
    def shown(self) -> str:
        """As reports call it."""
        return self.guess or self.region.name

    @property
    def names(self) -> list[str]:
        """All that a user may call it; the guess also without its question mark, the inode as in the tables."""
        names = [self.region.id, str(self.region.ino), self.region.name, printable(self.region.name), self.alike]
        names += [self.guess, self.guess.rstrip("?")] if self.guess else []
        return [*names, f"{self.shown} {self.region.ino}"]


def tgid_of(word: str) -> int | None:
    """The PID of PID:ADDRESS; None if the word has another form."""
    place = PLACE.fullmatch(word)
    return int(place[1]) if place else None


def find(regions: Sequence[Known], capture: Capture, word: str) -> list[Known]:
    """Those of the regions, which are all of a capture, that the word names."""
    place = PLACE.fullmatch(word)
    if not place:
        # a name that the kernel gave to all alike, such as /dev/zero, means those that have no other
        shown = [each for each in regions if word in (each.shown, printable(each.shown))]
        return shown or [each for each in regions if word in each.names]
    query = """
        SELECT DISTINCT region FROM mapping JOIN process ON process.id = mapping.process
        WHERE tgid = ? AND mapping.address <= ? AND ? < mapping.address + pages * (SELECT page_bytes FROM session)
    """
    address = int(place[2], 16)
    rows = {row for (row,) in capture.rows(query, (int(place[1]), address, address))}
    return [each for each in regions if each.region.row in rows]


def did_you_mean(word: str, names: Iterable[str | None], otherwise: str) -> str:
    """A question with up to three names that are spelt like the word; otherwise, if there is none."""
    import difflib  # slow to import, and needed only for an error

    printed = sorted({printable(name) for name in names if name})
    close = difflib.get_close_matches(word, printed, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def names(regions: Iterable[Known]) -> list[str | None]:
    """What these regions may be called."""
    return [name for each in regions for name in ((each.guess or "").rstrip("?"), each.region.name, each.region.id)]


def known(read: Account) -> list[Known]:
    """All regions of an account, most allocated first."""
    found = [
        Known(region, guess(region, parent.process), alike.of_region(region, parent.process))
        for parent in read.parents
        for region in parent.regions
    ]
    return sorted(found, key=lambda each: -each.region.allocated_bytes)


# ---- a part of a capture ----


def narrow(capture: Capture, words: Sequence[str], of: Sequence[str]) -> None:
    """Leave of a capture only the regions that words name, and of those only the ones that some processes use.

    of: PIDs and regular expressions, as -p takes them. They stand for processes and all their descendants, and those
    use the regions that they created, touched or map. Raises ShmtraceError if nothing is left.
    """
    read = account.read(capture)
    regions = known(read)
    rows = set() if words else {each.region.row for each in regions}
    for word in words:
        found = find(regions, capture, word)
        if not found:
            hint = did_you_mean(word, names(regions), "`shmtrace report --by region --csv` lists them")
            raise ShmtraceError(f"no region of the capture is called {word[:MAX_SHOWN]}", hint)
        rows |= {each.region.row for each in found}
    if of:
        rows &= _used_by(_processes(capture, of), read, capture)
    if not rows:
        raise ShmtraceError(f"{' '.join(of)[:MAX_SHOWN]} uses none of these regions", "name other processes")
    capture.narrow(rows)


def _processes(capture: Capture, of: Sequence[str]) -> set[int]:
    """The rows of the processes that are meant, and of their descendants."""
    processes = account.read_processes(capture)
    found: set[int] = set()
    for word in of:
        pattern = targets.pattern(word)
        matching = {
            row
            for row, process in processes.items()
            if (
                str(process.tgid) == word
                if word.isdecimal()
                else pattern.search(process.comm or "") or pattern.search(process.command or "")
            )
        }
        if not matching:
            comms = (process.comm for process in processes.values())
            hint = did_you_mean(word, comms, "`shmtrace report --by process --csv` lists them")
            raise ShmtraceError(f"no process of the capture matches {word[:MAX_SHOWN]}", hint)
        found |= matching
    children: dict[int, list[int]] = {}
    for row, parent in capture.each("SELECT id, parent FROM process WHERE parent IS NOT NULL"):
        children.setdefault(parent, []).append(row)
    waiting = list(found)
    while waiting:
        new = set(children.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found


def _used_by(processes: set[int], read: Account, capture: Capture) -> set[int]:
    """The rows of the regions that one of these processes created, owns, touched or maps."""
    found = {region for region, process in capture.each("SELECT region, process FROM mapping") if process in processes}
    for parent in read.parents:
        for region in parent.regions:
            users = [parent.process, region.creator and region.creator.process]
            users += [toucher.process for toucher in region.touchers]
            if any(user and user.row in processes for user in users):
                found.add(region.row)
    return found

"""Which region is meant: as reports print it, by an address where it is mapped, by its name or what it probably is."""

from __future__ import annotations

import re
from typing import NamedTuple

from tracer import account
from tracer.account import Region
from tracer.capture.capture import Capture
from tracer.formatting import printable
from tracer.guess import guess

PLACE = re.compile(r"(\d{1,9}):(?:0[xX])?([0-9a-fA-F]{1,15})", re.ASCII)


class Known(NamedTuple):
    """A region with all that it may be called."""

    region: Region
    guess: str | None

    @property
    def names(self) -> list[str]:
        names = [self.region.id, self.region.name, printable(self.region.name)]
        return names + ([self.guess, self.guess.rstrip("?")] if self.guess else [])


def tgid_of(word: str) -> int | None:
    """The process of PID:ADDRESS; None for all else."""
    place = PLACE.fullmatch(word)
    return int(place[1]) if place else None


def find(capture: Capture, word: str) -> list[Known]:
    """The regions of a capture that a word may mean, biggest first."""
    regions = known(capture)
    place = PLACE.fullmatch(word)
    if not place:
        return [each for each in regions if word in each.names]
    query = """
        SELECT DISTINCT region FROM mapping JOIN process ON process.id = mapping.process
        WHERE tgid = ? AND mapping.address <= ? AND ? < mapping.address + pages * 4096
    """
    address = int(place[2], 16)
    rows = {row for (row,) in capture.rows(query, (int(place[1]), address, address))}
    return [each for each in regions if each.region.row in rows]


def close_to(capture: Capture, word: str) -> list[str]:
    """Up to three names that look like the word."""
    import difflib  # takes as long to import as all the rest of this, for an error

    names = {name for each in known(capture) for name in (each.guess, printable(each.region.name), each.region.id)}
    return difflib.get_close_matches(word, sorted(filter(None, names)), n=3, cutoff=0.5)


def known(capture: Capture) -> list[Known]:
    """All of a capture's regions, biggest first."""
    found = [
        Known(region, guess(region, parent.process))
        for parent in account.read(capture).parents
        for region in parent.regions
    ]
    return sorted(found, key=lambda each: -each.region.allocated_bytes)

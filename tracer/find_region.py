"""Find the region that a user names: by id, by PID:ADDRESS, by name, or by its guessed use."""

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
    """A region and its guessed use, such as "opcache?"."""

    region: Region
    guess: str | None

    @property
    def names(self) -> list[str]:
        """All that a user may call it; the guess also without its question mark."""
        names = [self.region.id, self.region.name, printable(self.region.name)]
        return names + ([self.guess, self.guess.rstrip("?")] if self.guess else [])


def tgid_of(word: str) -> int | None:
    """The PID of PID:ADDRESS; None if the word has another form."""
    place = PLACE.fullmatch(word)
    return int(place[1]) if place else None


def find(capture: Capture, word: str) -> list[Known]:
    """The regions of a capture that the word names, most allocated first."""
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
    """Up to three names of regions that are spelt like the word."""
    import difflib  # slow to import, and needed only for an error

    names = {name for each in known(capture) for name in (each.guess, printable(each.region.name), each.region.id)}
    return difflib.get_close_matches(word, sorted(filter(None, names)), n=3, cutoff=0.5)


def known(capture: Capture) -> list[Known]:
    """All regions of a capture, most allocated first."""
    found = [
        Known(region, guess(region, parent.process))
        for parent in account.read(capture).parents
        for region in parent.regions
    ]
    return sorted(found, key=lambda each: -each.region.allocated_bytes)

"""The conditions of --when: what they say, and whether they hold of what was measured. Pure."""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from tracer.formatting import parse_bytes

SHMEM, PRESSURE = "shmem", "pressure"
"""What a condition may be about, other than a region. Upper case is the same."""
MAX_TEXT = 8192  # characters; a path has at most 4096
MAX_SHOWN = 40  # characters of a word that an error repeats
TIMES_S = {"s": 1, "min": 60, "h": 3600}
FORMS = "write 'opcache > 80%', 'opcache > 900M', 'opcache +50M/min', 'shmem +100M/min' or 'pressure > 10%'"
# The last > or + divides it: a name may have some of its own.
SIDES = re.compile(r"(.+)([>+])([^>+]+)", re.DOTALL)
PERCENT = re.compile(r"(?a)(\d{1,3}(?:\.\d{1,9})?)\s*%")
RATE = re.compile(r"(?ai)(\w+)\s*/\s*(s|min|h)")
STALLED = re.compile(rb"some avg10=(\d{1,3}\.\d\d) ")


class Condition(NamedTuple):
    """One condition. Either percent or size_bytes is set; with over_s it is a growth."""

    text: str
    """As the user wrote it."""
    what: str
    """SHMEM, PRESSURE, or what a region is called."""
    percent: float | None = None
    """More than this; of a region, of its size."""
    size_bytes: int | None = None
    """More than this; of a growth, at least this."""
    over_s: int | None = None
    """Within this time."""

    @property
    def of_region(self) -> bool:
        """It is about regions of one name."""
        return self.what not in (SHMEM, PRESSURE)


def parse(text: str) -> Condition:
    """The condition that a text says. Raises ValueError, which names the forms, where it says none."""
    sides = SIDES.fullmatch(text) if len(text) <= MAX_TEXT else None
    what = sides[1].strip() if sides else ""
    if not sides or not what:
        raise _no_condition(text)
    if what.lower() in (SHMEM, PRESSURE):
        what = what.lower()
    value = sides[3].strip()
    percent, rate = PERCENT.fullmatch(value), RATE.fullmatch(value)
    if sides[2] == "+":
        size_bytes = parse_bytes(rate[1]) if rate and what != PRESSURE else None
        if not rate or size_bytes is None:
            raise _no_condition(text)
        return Condition(text, what, size_bytes=size_bytes, over_s=TIMES_S[rate[2].lower()])
    if percent and what == SHMEM:
        raise ValueError(f"{text[:MAX_SHOWN]!r}: shmem has no size to be filled: write 'shmem > 4G'")
    if percent and float(percent[1]) >= 100:
        raise ValueError(f"{text[:MAX_SHOWN]!r} never holds: name less than 100%")
    if percent:
        return Condition(text, what, percent=float(percent[1]))
    size_bytes = parse_bytes(value) if what != PRESSURE else None
    if size_bytes is None:
        raise _no_condition(text)
    if value.isdecimal():
        raise ValueError(f"{text[:MAX_SHOWN]!r} has no unit: {FORMS}")
    return Condition(text, what, size_bytes=size_bytes)


def _no_condition(text: str) -> ValueError:
    return ValueError(f"{text[:MAX_SHOWN]!r} is not a condition: {FORMS}")


class Reading(NamedTuple):
    """What was measured of a region, or of the sum of some."""

    time_s: float
    """By a clock that is never set back."""
    allocated_bytes: int
    size_bytes: int | None = None
    """None: it has none."""


class Check:
    """Whether a condition holds, given one reading after another."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        # Of a growth, the readings that it may be measured from, each lower than those after it: from one that is as
        # high as a later one, the growth is no more, and took longer.
        self._lows: deque[Reading] = deque()

    def holds(self, now: Reading) -> bool:
        """Whether it holds now. Times must not go back."""
        percent, size_bytes, over_s = self._condition[2:]
        if percent is not None:
            return now.size_bytes is not None and now.allocated_bytes * 100 > now.size_bytes * percent
        if size_bytes is None:
            return False
        return now.allocated_bytes > size_bytes if over_s is None else self._has_grown(now, size_bytes, over_s)

    def _has_grown(self, now: Reading, size_bytes: int, over_s: int) -> bool:
        """Since a reading within the time; or since the last one before, if it was as fast as that over all of it."""
        lows = self._lows
        while len(lows) > 1 and lows[1].time_s <= now.time_s - over_s:
            lows.popleft()
        times = ((low, max(now.time_s - low.time_s, over_s)) for low in (lows[index] for index in range(len(lows))[:2]))
        grown = any(
            (now.allocated_bytes - low.allocated_bytes) * over_s >= size_bytes * took_s for low, took_s in times
        )
        while lows and lows[-1].allocated_bytes >= now.allocated_bytes:
            lows.pop()
        lows.append(now)
        return grown


def stalled_percent(pressure: bytes) -> float | None:
    """From a pressure file: how much of the last ten seconds some process waited for memory. None: it does not say."""
    found = STALLED.match(pressure)
    return float(found[1]) if found else None

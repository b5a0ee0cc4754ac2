"""How much private memory processes have, without walking page tables: reading smaps would stall them.

The sum of RssAnon and VmSwap counts a page that fork(2) shared once for each process, until it is written. Measured: a
process of 2030 pages and 3 children that wrote to 101 each summed up to 8120, where 2370 were in memory. So the sum is
an upper bound, and grows with every fork.

memory.stat of a cgroup counts each page once. It is used if the processes are all that is in the cgroup and nothing is
swapped out, since swapped private and shared memory are not told apart. It said 2343 in that measurement: 27 pages from
before the process was moved into the cgroup stay charged to the other one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tracer.proc import bounded, memory_cgroups
from tracer.proc.memory_cgroups import STAT_BYTES
from tracer.proc.procfs import Proc

MAX_CGROUPS = 4096  # users can create any number below a cgroup that is delegated to them
EXACT, AT_MOST = "memory.stat", "status"


class Private(NamedTuple):
    """The private memory of some processes at one moment."""

    status_bytes: int
    """Sum of RssAnon and VmSwap: an upper bound."""
    cgroups_bytes: int | None
    """Exact, except for up to 64 pages per CPU that the kernel has not added up yet.

    None: other processes are in these cgroups.
    """


def measure(proc: Proc, tgids: Iterable[int], cgroups: Iterable[str | None]) -> Private:
    """Measure processes that are in these cgroups. Processes that have exited count nothing."""
    alive = set(tgids)
    return Private(sum(map(proc.private_bytes, alive)), _of_cgroups(proc, alive, set(cgroups)) if alive else 0)


class Change(NamedTuple):
    """The private memory of some processes over a time, measured in one way."""

    start_bytes: int
    peak_bytes: int
    """Of the measurements: it may have been higher in between. Where EXACT was not to be had, it is at most so much."""
    end_bytes: int
    how: str
    """EXACT or AT_MOST."""


def change(measured: Sequence[Private]) -> Change:
    """The change from the first to the last measurement. How these two can both be measured is how it is."""
    start, end = measured[0], measured[-1]
    if start.cgroups_bytes is None or end.cgroups_bytes is None:
        return Change(start.status_bytes, max(each.status_bytes for each in measured), end.status_bytes, AT_MOST)
    return Change(start.cgroups_bytes, max(map(_best, measured)), end.cgroups_bytes, EXACT)


def highest(one: Private, other: Private) -> Private:
    """The higher of two measurements, in either way."""
    return Private(max(one.status_bytes, other.status_bytes), max(_best(one), _best(other)))


def _best(measured: Private) -> int:
    return measured.status_bytes if measured.cgroups_bytes is None else measured.cgroups_bytes


def _of_cgroups(proc: Proc, tgids: set[int], cgroups: set[str | None]) -> int | None:
    root = proc.memory_cgroups()
    if root is None or None in cgroups:
        return None
    places = {root / cgroup.lstrip("/") for cgroup in cgroups if cgroup is not None}
    anon_bytes = 0
    try:
        for directory in places:
            if places.intersection(directory.parents):
                continue  # its parent's sum includes it
            for nr, (inner, _, _) in enumerate(os.walk(directory, onerror=_raise)):
                if nr == MAX_CGROUPS:
                    return None
                for line in bounded.lines(bounded.blocks(Path(inner, "cgroup.procs"))):
                    # a child forked just now belongs to them too
                    if int(line) not in tgids and proc.parent(int(line)) not in tgids:
                        return None
            stat = memory_cgroups.read_stat(directory)
            swap = directory / "memory.swap.current"
            if int(bounded.read(swap, STAT_BYTES)) if swap.exists() else stat.get(b"total_swap", 0):
                return None
            anon_bytes += memory_cgroups.anon_bytes(stat)
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return None  # no memory controller, a threaded cgroup, or it is gone
    return anon_bytes


def _raise(error: OSError) -> None:
    raise error

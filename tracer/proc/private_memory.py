"""How much private memory processes have, without a walk of their page tables: smaps would stall them.

The sum of RssAnon and VmSwap over processes counts a page that fork(2) left shared once for each that has it, until it
is written to: a process of 2030 pages and 3 children that had written to 101 each came to 8120, where 2370 were in
memory. So it is an upper bound, and grows by every fork. memory.stat of a cgroup counts each page once; that is the
processes' own where they are all that is in the cgroup and nothing is swapped out, which it does not tell from shared
memory. It said 2343 there: what a process had before it was moved into a cgroup, 27 pages, stays charged to the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tracer.proc import bounded
from tracer.proc.procfs import Proc

MAX_CGROUPS = 4096  # a user may make any number of them, where some were given to them
STAT_BYTES = 1 << 16
EXACT, AT_MOST = "memory.stat", "status"


class Private(NamedTuple):
    """Of some processes, at one moment."""

    status_bytes: int
    """RssAnon and VmSwap of each: at most so much"""
    cgroups_bytes: int | None
    """exact, but for up to 64 pages a CPU that the kernel has not added up yet; None: others are in these cgroups"""


def measure(proc: Proc, tgids: Iterable[int], cgroups: Iterable[str | None]) -> Private:
    """Of processes that are in these cgroups; of one that has exited nothing is left."""
    alive = set(tgids)
    return Private(sum(map(proc.private_bytes, alive)), _of_cgroups(proc, alive, set(cgroups)) if alive else 0)


def change(start: Private, end: Private) -> tuple[int, int, str]:
    """Bytes at the start and at the end, told in the same way, and in which."""
    if start.cgroups_bytes is None or end.cgroups_bytes is None:
        return start.status_bytes, end.status_bytes, AT_MOST
    return start.cgroups_bytes, end.cgroups_bytes, EXACT


def _of_cgroups(proc: Proc, tgids: set[int], cgroups: set[str | None]) -> int | None:
    root = proc.memory_cgroups()
    if root is None or None in cgroups:
        return None
    places = {root / cgroup.lstrip("/") for cgroup in cgroups if cgroup is not None}
    anon_bytes = 0
    try:
        for directory in places:
            if places.intersection(directory.parents):
                continue  # which has it in its sum
            for nr, (inner, _, _) in enumerate(os.walk(directory, onerror=_raise)):
                if nr == MAX_CGROUPS:
                    return None
                for line in bounded.lines(bounded.blocks(Path(inner, "cgroup.procs"))):
                    # one that was forked just now is of them too
                    if int(line) not in tgids and proc.parent(int(line)) not in tgids:
                        return None
            stat_of = dict(line.split() for line in bounded.read(directory / "memory.stat", STAT_BYTES).splitlines())
            swap = directory / "memory.swap.current"
            if int(bounded.read(swap, STAT_BYTES) if swap.exists() else stat_of.get(b"total_swap", b"0")):
                return None
            anon_bytes += int(stat_of[b"anon"] if b"anon" in stat_of else stat_of[b"total_rss"])  # of v2, of v1
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return None  # no memory controller here, threads apart from their process, or it has just gone
    return anon_bytes


def _raise(error: OSError) -> None:
    raise error

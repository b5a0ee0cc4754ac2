"""Notes on the chart: reloads, execs of those who made regions, OOM kills, and marks that a user gave. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tracer import alike
from tracer.capture.capture import Capture
from tracer.formatting import format_bytes
from tracer.model import Account, Process, Region

NEAR_NS = 60 * 10**9  # a region that went replaces none that came more than so much before or after
ONE_RELOAD_NS = 10**9  # what is replaced within this time is one reload
MOST = 3  # regions named of one reload
MAX_EXECS = 500


class Note(NamedTuple):
    """Something that happened at one moment."""

    time_ns: int
    """CLOCK_REALTIME"""
    kind: str
    """reload, exec, OOM kill or mark"""
    text: str
    """what other programs, or the user, call it: to be escaped"""


def notes(account: Account, capture: Capture, marks: Sequence[tuple[int, str]]) -> list[Note]:
    """All of them, in the order of time. marks: (CLOCK_REALTIME, text)."""
    makers = {region.creator.process.row: region.creator.process for region in account.regions if region.creator}
    makers.update((parent.process.row, parent.process) for parent in account.parents if parent.process)
    touchers = {toucher.process.row: toucher.process for region in account.regions for toucher in region.touchers}
    found = [*_reloads(account), *_execs(capture, makers)]
    found += [
        Note(kill.time_ns, "OOM kill", kill.process.who if kill.process else f"{kill.tgid} {kill.command or kill.comm}")
        for kill in account.ooms
    ]
    told = {kill.process.row for kill in account.ooms if kill.process}
    found += [  # as far as the kill itself was not seen
        Note(process.exited_ns, "OOM kill", process.who)
        for process in {**makers, **touchers}.values()
        if process.oom_killed and process.exited_ns is not None and process.row not in told
    ]
    return sorted([*found, *(Note(time_ns, "mark", text) for time_ns, text in marks)])


def _execs(capture: Capture, makers: dict[int, Process]) -> Iterator[Note]:
    """Those by which a process that makes regions became another program, or its own anew."""
    rows = capture.each("SELECT time_ns, process, comm, command FROM exec ORDER BY time_ns")
    of_makers = (
        (time_ns, makers[row], command or comm or "?") for time_ns, row, comm, command in rows if row in makers
    )
    for _, (time_ns, process, command) in zip(range(MAX_EXECS), of_makers):
        yield Note(time_ns, "exec", f"{process.tgid} {command}")


# ---- reloads ----


def _reloads(account: Account) -> Iterator[Note]:
    """Replaced regions, those of one reload together."""
    at_once: list[tuple[int, str]] = []
    for time_ns, text in sorted(_replaced(account)):
        if at_once and time_ns - at_once[0][0] > ONE_RELOAD_NS:
            yield _reload(at_once)
            at_once = []
        at_once.append((time_ns, text))
    if at_once:
        yield _reload(at_once)


def _reload(at_once: Sequence[tuple[int, str]]) -> Note:
    more = f" and {len(at_once) - MOST} more" if len(at_once) > MOST else ""
    return Note(at_once[0][0], "reload", ", ".join(text for _, text in at_once[:MOST]) + more)


def _replaced(account: Account) -> Iterator[tuple[int, str]]:
    """When a region came for one that went, and in words. Regions that came and went before tell of no reload."""
    started_ns = account.session.started_ns
    alikes: dict[tuple[str, str], list[Region]] = {}
    for parent in account.parents:
        for region in parent.regions:
            alikes.setdefault((alike.of_region(region, parent.process), region.kind), []).append(region)
    for (what, _), regions in alikes.items():
        went = [
            (region.gone_ns, region.row, region)
            for region in regions
            if region.gone_ns is not None and (region.created_ns or 0) <= started_ns
        ]
        heapq.heapify(went)
        came = [
            (region.created_ns, region.row, region)
            for region in regions
            if region.created_ns is not None and region.created_ns > started_ns
        ]
        for created_ns, row, region in sorted(came):
            while went and went[0][0] < created_ns - NEAR_NS:
                heapq.heappop(went)
            if went and went[0][0] <= created_ns + NEAR_NS:
                old = heapq.heappop(went)[2]
                yield created_ns, f"{what} replaced, {format_bytes(old.allocated_bytes)} went"
                if region.gone_ns is not None:
                    heapq.heappush(went, (region.gone_ns, row, region))

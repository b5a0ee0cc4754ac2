"""Closes the accounts of a trace: all that a report needs, as it is at this moment.

That is done at the end of a trace, and whenever it is to be told in full in between.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Callable, NamedTuple, Protocol, TypeVar

from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.kernel import host, tiers
from tracer.kernel.probes import Probes
from tracer.proc import shmem
from tracer.proc.blocking import each
from tracer.proc.procfs import Proc
from tracer.record import host_memory
from tracer.record.label_history import LabelHistory
from tracer.record.looker import Looker
from tracer.record.processes import Processes, TracedProcess
from tracer.record.region_writer import NOTHING, Looked, RegionWriter
from tracer.record.regions import FILES, Finder, TracedRegion
from tracer.record.targets import Targets

FIND_S = 1.0  # for finding files that nobody has open
SMALL_BYTES = 1 << 16  # files as small as this are not looked at one by one, if nobody has them open
MOST_OF = {  # keys: the kinds of wire.LOSSES; each query says how much of that was recorded, and for which command
    "processes": "SELECT count(*), comm FROM process",
    "regions": "SELECT count(*), comm FROM region JOIN process ON process.id = creator",
    "usages": "SELECT count(*), comm FROM usage JOIN process ON process.id = process",
    "pages": 'SELECT sum("end" - start), comm FROM extent JOIN process ON process.id = process',
}

Thing = TypeVar("Thing")


class Patience(Protocol):
    """How much time there is to close the accounts."""

    def left_s(self) -> float:
        """Seconds that are left; infinite if nobody waits."""

    def in_time(self, things: Iterable[Thing]) -> Iterator[Thing]:
        """Yield the items until the time is used up."""


class Closed(NamedTuple):
    """What close() has come to."""

    regions: list[TracedRegion]
    """Those whose last account was written."""
    session: dict[str, Any]
    """Columns of the session that are sums over all processes; empty: some were not asked."""


class Ending:
    """Writes the last accounts of what exists. It ends nothing: the trace may go on."""

    def __init__(
        self,
        capture: Capture,
        probes: Probes,
        proc: Proc,
        finder: Finder,
        processes: Processes,
        writer: RegionWriter,
        looker: Looker,
        labelling: LabelHistory | None,
        wanted: Targets,
        clock: Clock,
        warn: Callable[[str], None],
    ) -> None:
        self._capture = capture
        self._probes = probes
        self._proc = proc
        self._finder = finder
        self._lives = processes
        self._writer = writer
        self._looker = looker
        self._labelling = labelling
        self._wanted = wanted
        self._clock = clock
        self._warn = warn

    def close(self, known_regions: Collection[TracedRegion], patience: Patience) -> Closed:
        """Write the last accounts of these regions, who maps them, and what else is known of them only now."""
        known = self._lives.all_alive()
        alive: dict[int, TracedProcess] = {}
        rss_bytes = 0
        for process, stat in patience.in_time(self._looker.read_again(known)):
            alive[process.tgid] = process
            self._looker.refresh_title(process, stat)
            rss_bytes += 0 if process.outside_tree else self._proc.rss_bytes(process.tgid) or 0
        if len(alive) < len(known):
            self._warn(f"told to stop: {len(known) - len(alive)} processes were not examined")
        regions = list(known_regions) if patience.left_s() > 0 else []
        mapped = self._finder.mapped(alive.values(), regions)
        opened = self._finder.open_files(alive.values(), [region for region in regions if region.id not in mapped])
        in_use = mapped.keys() | opened.keys()
        alone = [region for region in regions if region.kind in FILES and region.id not in in_use]
        names = self._finder.files(alone, min(patience.left_s(), FIND_S))
        self._infer_older([region for region in regions if region.is_older and not region.creator], patience)
        if self._labelling:
            self._labelling.finish()
        if self._probes.tier.by == tiers.FENTRY.by and host.preempts():
            self._warn("the kernel's preemption model was changed during the trace: pages may be unseen")
        closed = []
        with self._writer.closing() if regions else contextlib.nullcontext():
            for region in patience.in_time(regions):
                self._finder.locate(region, mapped, opened)
                # there may be very many: of those that the trace has seen from their first page the probes know all
                is_small = region.allocated_bytes <= SMALL_BYTES and not self._looker.had_pages(region)
                if region.id in names and not is_small:
                    region.path = names[region.id][1]
                self._looker.read_hint(region, mapped)
            for region, found in patience.in_time(each(TracedRegion.whom, Looked.at, regions)):
                looked = found or NOTHING
                if region.id in names:
                    self._looker.first_look(region, names[region.id][0], looked.born_ns)
                mappers = {alive[tgid]: theirs for tgid, theirs in mapped.get(region.id, {}).items()}
                self._writer.close_alive(region, mappers, looked)
                closed.append(region)
        if self._wanted.everything and patience.left_s() <= 0:  # what is mapped was not looked at either
            self._warn("told to stop: what no process maps was not looked at")
        elif self._wanted.everything:
            self.write_unmapped(regions, patience.left_s())
        counted = len(alive) == len(known) and not self._wanted.tmpfs
        return Closed(closed, {"sum_of_rss_bytes": rss_bytes} if counted else {})

    def explain_losses(self) -> None:
        """Warn of what there was no room for, with the command that has most of it."""
        losses = self._probes.losses()
        for what, query in MOST_OF.items():
            if losses[what]:
                for number, comm in self._capture.rows(f"{query} GROUP BY comm ORDER BY 1 DESC LIMIT 1"):
                    self._warn(f"there was no room for more {what}: {comm} has {number} of them")

    def _infer_older(self, regions: Collection[TracedRegion], patience: Patience) -> None:
        """Infer who made regions that are older than the trace: not who was seen to begin using them, but another."""
        users = self._finder.users(regions, min(patience.left_s(), FIND_S))
        for region in regions:
            born_ns = shmem.birth_time_ns(region.path) if region.path else None
            first = region.first_user and region.first_user.tgid
            suspects = (
                self._finder.process(tgid, self._lives, born_ns, self._clock)
                for tgid in users.get(region.id, ())
                if tgid != first
            )
            self._writer.infer_creator(region, [process for process in suspects if process])

    def write_unmapped(self, regions: Collection[TracedRegion], left_s: float = math.inf) -> None:
        """Write what else is in the tmpfs that -p names, or what of the host no process maps.

        regions: those that exist.
        """

        def command(tgid: int) -> str | None:
            process = self._lives.last(tgid)
            return process.command if process else None

        only, patience_s = self._wanted.tmpfs, min(left_s, host_memory.PATIENCE_S)
        for text in host_memory.write(self._capture, self._proc, regions, command, only, patience_s):
            self._warn(text)

"""Runs a trace: joins the probes' events and the ledger with /proc, and writes the result into a capture."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from tracer import __version__, wire
from tracer.capture.capture import PAGE_BYTES, Capture
from tracer.capture.carry import Needed
from tracer.clock import Clock
from tracer.errors import ShmtraceError
from tracer.kernel import events, host, probes, tiers
from tracer.kernel.events import Event
from tracer.kernel.loader import Beginning, Sizes
from tracer.kernel.probes import Probes
from tracer.kernel.updates import kernel_dev
from tracer.labels import Source
from tracer.proc import private_memory, procfs, shmem
from tracer.proc.private_memory import Private
from tracer.proc.procfs import Proc, ProcessStat
from tracer.proc.shmem import RegionKey
from tracer.proc.tmpfs import Place
from tracer.record import ledger, targets
from tracer.record.ending import Closed, Ending
from tracer.record.label_history import LabelHistory
from tracer.record.ledger import ALL_PAGES
from tracer.record.looker import Looker
from tracer.record.oom import OomKills
from tracer.record.processes import Processes, TracedProcess
from tracer.record.region_writer import SAMPLE, RegionWriter
from tracer.record.regions import FILES, Finder, TracedRegion, on_lease
from tracer.record.seed import Seeder
from tracer.record.targets import Targets
from tracer.status import Status

if TYPE_CHECKING:
    from tracer.record.stacks import Stacks

ROOM_BYTES = 4 << 30  # room for regions created during the trace, unless --room says otherwise
# On a host with less memory than ROOM_BYTES the following limits shrink in proportion; --room raises them.
ROOM_PROCESSES = 1 << 15  # including processes that have exited, until user space has read their exit
ROOM_REGIONS = 1 << 15
ROOM_USAGES = 1 << 16
ROOM_ALIVE = 1 << 12
MAX_REGIONS = (1 << wire.SLOT_BITS) - 1
BLOCK_BYTES = wire.BLOCK_PAGES * PAGE_BYTES
AT_ONCE = 512  # regions sampled in one batch
BURY_S = 0.2  # longest time spent on closing dead regions in one round: meanwhile no events are read
# the pause between samples is at least this many times as long as the last sample took, to leave time for events
IDLE = 4
PRIVATE_S = 1.0  # at least, between two measurements of private memory
PRIVATE_IDLE = 50  # times as long as measuring it took
TEARDOWN_S = 1.0  # if no end of a teardown was seen by then, it was missed
POLL_S = 0.2
GATHER_S = 0.02
PATIENCE_S = 1.0  # after the user asked to stop: time left for closing the accounts; the report comes on top
SILENCE_S = 2.0  # closing may take this long before a progress message is shown
TOO_LONG = "it has lasted for more than 50 days: of pages touched since then only the PID is known; begin another trace"
HEARD_AT_ONCE = 1024  # events applied in one round, so that _keep_up() also gets to its other work
MOST_TOUCHED = """
    SELECT tgid || ' ' || command, pages FROM process JOIN (
        SELECT process, sum("end" - start) AS pages FROM extent WHERE process IS NOT NULL
        GROUP BY process ORDER BY pages DESC LIMIT 1
    ) ON process.id = process
"""

Thing = TypeVar("Thing")


class Trace:
    """A running trace, as a context manager.

    On entry it attaches the probes and takes in all processes and regions that exist. On exit it detaches the probes.
    Entering raises ShmtraceError when this host cannot be traced.
    """

    def __init__(
        self,
        capture: Capture,
        wanted: Targets,
        excluded: Iterable[int] = (),
        interval_s: float = 0.5,
        room_bytes: int = ROOM_BYTES,
        source: Source | None = None,
        stacks: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """Prepare a trace; entering the context starts it.

        excluded: tgids never to trace. interval_s: seconds between samples. room_bytes: how much memory of new regions
        the maps must have room for. source: where labels come from; None: no labels. stacks: also count pages by user
        stack. clock: when the capture began; None: now.
        """
        self._stopping = False
        self.waits = False
        """Whether to wait while the capture is not in its place, instead of failing."""
        # CLOCK_MONOTONIC; later regions are not taken in. None: finish() has not begun
        self._ends_at_ns: int | None = None
        self._late_at_s = math.inf  # time.monotonic(); from then on the remaining work is skipped
        self._say: Callable[[str], None] | None = None
        self._say_at_s = math.inf
        self.regions: dict[int, TracedRegion] = {}
        self._capture = capture
        self._wanted = wanted
        self._excluded = {os.getpid(), *excluded}
        self._interval_s = interval_s
        self._room_bytes = room_bytes
        self._source = source
        self._labelling: LabelHistory | None = None
        self._wants_stacks = stacks
        self._stacks: Stacks | None = None
        self._proc = Proc()
        self._finder = Finder(self._proc, wanted.tmpfs and wanted.tmpfs.dev)
        self._dying: dict[int, TracedRegion] = {}
        self._heard: deque[Event] = deque()  # events read but not yet applied
        self._heard_at_s = 0.0
        # events by region id, kept until the region's RegionMet arrives
        self._unmet: dict[int, list[events.Touch | events.Punch]] = {}
        self._segments: dict[int, int] = {}  # SysV segments that existed at the start: shmid to the creator's tgid
        self._warnings: list[str] = []
        self._shmem_bytes: int | None = None
        self._private: tuple[Private, Private, Private] | None = None  # at the start, the most, and the last
        self._private_at_s = 0.0
        self._sample_at_s = self._rested_at_s = 0.0
        self._skipped_lives = 0
        self._clock = clock or Clock.start()
        self.lives = Processes(capture, self._clock, self._hear_all)
        self._ooms = OomKills(capture, self._proc, self.lives, self._clock)

    # ---- start ----

    def __enter__(self) -> Trace:
        host.need_host_pids()
        if shmem.PAGE_BYTES != PAGE_BYTES:
            raise ShmtraceError(
                f"this host's pages have {shmem.PAGE_BYTES} bytes, and a trace counts pages of {PAGE_BYTES}",
                "`shmtrace snapshot` works here",
            )
        processes = self._proc.processes()
        self._probes = self._attach(processes)
        self._probes.__enter__()
        for text in self._probes.warnings:
            self._warn(text)
        try:
            self._attached_ns = time.monotonic_ns()
            self._session = self._enter_session()
            if self._source:
                self._labelling = LabelHistory(self._capture, self._probes, self._proc, self._source)
            self._looker = Looker(self._capture, self._probes, self._proc, self._finder, self.lives, self._clock)
            self._adopting = Seeder(
                self._probes,
                self._proc,
                self._finder,
                self.lives,
                self.regions,
                self._enter,
                self._warn,
            )
            self._writer = RegionWriter(
                self._capture, self._probes, self.lives, self._labelling, self._finder, self._clock
            )
            self._ending = Ending(
                self._capture,
                self._probes,
                self._proc,
                self._finder,
                self.lives,
                self._writer,
                self._looker,
                self._labelling,
                self._wanted,
                self._clock,
                self._warn,
            )
            if self._wants_stacks:
                from tracer.record.stacks import Stacks

                self._stacks = Stacks(self._capture, self._probes, self.lives, self.regions, self._warn)
            self._take_in(processes)
            self._measure_private()
        except BaseException:
            self._probes.__exit__(None, None, None)
            raise
        return self

    def _attach(self, processes: dict[int, ProcessStat]) -> Probes:
        """Attach the probes of the best tier that works here."""
        self._sizes = self._room(processes)
        flags: list[str] = []
        best_first = tiers.tiers()
        if self._source:
            best_first = [tiers.labelled(tier) for tier in best_first]
            flags += self._source.flags
        flags += [probes.STACKS] if self._wants_stacks else []
        return probes.attached(best_first, self._sizes, self._beginning(), *flags)

    def _beginning(self) -> Beginning:
        return Beginning(
            self._clock.monotonic_ns,
            self._clock.boot_ns,
            self._wanted.everything,
            watches_execs=self._wanted.everything or bool(self._wanted.patterns),
            only_dev=kernel_dev(self._wanted.tmpfs.dev) if self._wanted.tmpfs else 0,
            letters=self._wanted.letters(),
        )

    def _enter_session(self) -> int:
        """Write the session, and return its row."""
        return self._capture.insert(
            "session",
            version=__version__,
            host=procfs.host(),
            kernel=host.release(),
            tier=self._probes.tier.name,
            mechanism=self._probes.tier.by,
            label=self._source.name if self._source else None,
            tmpfs=self._wanted.tmpfs and self._wanted.tmpfs.name(),
            blind_to="\n".join(dict.fromkeys(self._probes.tier.blind_to + self._probes.missing)),
            started_ns=self._clock.wall(self._attached_ns),
            ended_ns=self._clock.wall(self._attached_ns),
            attach_seconds=(self._attached_ns - self._clock.monotonic_ns) / 1e9,
        )

    def _take_in(self, processes: dict[int, ProcessStat]) -> None:
        """Take in what existed before the probes."""
        self._segments = {segment.shmid: segment.creator for segment in self._proc.sysv_segments().values()}
        self._adopt_tree(processes)
        if self._wanted.tmpfs:
            self._adopt_files(self._wanted.tmpfs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._probes.__exit__(kind, error, trace)

    def _measure_private(self) -> None:
        """Measure the private memory of the tree: what of it ends between two measurements is not seen."""
        if self._wanted.tmpfs:
            return
        began_s = time.monotonic()
        tree = self.lives.tree()
        if not self._private:  # a command that is to be run is still a copy of this process
            tree = [process for process in tree if self._proc.parent(process.tgid) != os.getpid()]
        now = private_memory.measure(
            self._proc, (process.tgid for process in tree), (process.cgroup for process in tree)
        )
        start, peak = (self._private[0], self._private[1]) if self._private else (now, now)
        self._private = start, private_memory.highest(peak, now), now
        took_s = time.monotonic() - began_s
        self._private_at_s = began_s + max(PRIVATE_S, PRIVATE_IDLE * took_s)

    def _tree(self, processes: dict[int, ProcessStat]) -> list[int]:
        found = targets.tree(processes, self._wanted.roots(processes, self._excluded))
        return [tgid for tgid in found if tgid not in self._excluded]

    def _room(self, processes: dict[int, ProcessStat]) -> Sizes:
        """Size the BPF maps for what the targets map now, plus room to grow.

        Unless --room was given, this is at most what memory and swap can hold.
        """
        tree = self._tree(processes)
        seen: dict[tuple[int, int, str], int] = {}
        for tgid in tree:
            for mapping in self._finder.mappings(tgid):
                identity = mapping.dev, mapping.ino, mapping.path
                if identity not in seen:
                    stat = shmem.region_stat(self._proc.map_file(tgid, mapping))
                    seen[identity] = stat.size_bytes if stat else 0
        memory = self._proc.memory()
        size_bytes = sum(seen.values()) + self._room_bytes
        if self._room_bytes == ROOM_BYTES:
            size_bytes = min(size_bytes, memory.total_bytes + memory.swap_bytes)
        scale = max(self._room_bytes / ROOM_BYTES, 1) * min(memory.total_bytes / ROOM_BYTES, 1)
        return Sizes(
            # also one block for each small region, unless --room was given
            blocks=-(-size_bytes // BLOCK_BYTES) + (int(scale * ROOM_REGIONS) if self._room_bytes == ROOM_BYTES else 0),
            processes=max(int(scale * ROOM_PROCESSES), 4 * len(processes)),
            regions=min(int(scale * ROOM_REGIONS), MAX_REGIONS),
            usages=int(scale * ROOM_USAGES),
            alive=max(ROOM_ALIVE, 4 * len(tree)),
        )

    def _adopt_tree(self, processes: dict[int, ProcessStat]) -> None:
        """Take in every process of the tree that exists and is not tracked yet, with its regions."""
        known = set(self.regions)
        # The kernel tracks a child from its fork on if it tracks the parent. Others may have forked before: look again.
        while tree := [tgid for tgid in self._tree(processes) if not self.lives.alive(tgid)]:
            for tgid in tree:
                if self._labelling:
                    self._labelling.adopt(tgid)
                self._adopting.adopt(processes[tgid])
            processes = self._proc.processes(processes)
        self._begin_accounts(known)

    def _adopt_files(self, place: Place) -> None:
        """Take in the largest files of a tmpfs, whether a process uses them or not."""
        known = set(self.regions)
        self._adopting.adopt_files(place)
        self._begin_accounts(known)

    def _begin_accounts(self, known: set[int]) -> None:
        """Start the account of every region not in `known`. These regions existed before the trace."""
        fresh = [self.regions[number] for number in self.regions.keys() - known]
        mapped = self._finder.mapped(self.lives.tree(), fresh) if fresh else {}
        for region in fresh:
            self._looker.take_baseline(region)
            self._writer.infer_creator(
                region, [process for tgid in mapped.get(region.id, ()) if (process := self.lives.alive(tgid))]
            )

    def _ask_again(self) -> None:
        """Retry what could not be read earlier, and catch up on forks and exits that the probes missed."""
        skipped_lives = self._probes.skipped_lives()
        if skipped_lives != self._skipped_lives:
            self._skipped_lives = skipped_lives
            self._look_for_lives()
        known = set(self.regions)
        self._adopting.ask_again()
        self._begin_accounts(known)
        for region in self.regions.values():
            if region.unread:
                self._looker.take_baseline(region)

    def _look_for_lives(self) -> None:
        processes = self._proc.processes()
        for process in self.lives.all_alive():
            stat = processes.get(process.tgid)
            if not stat or abs(stat.start_time_ns - process.start_time_ns) > procfs.TICK_NS:
                self._probes.leave(*process.key)
                self.lives.end(process, None)

    def _enter(
        self,
        number: int,
        key: RegionKey,
        kind: str,
        name: str,
        created_ns: int | None = None,
        creator: TracedProcess | None = None,
        how: str = "traced",
    ) -> TracedRegion:
        """creator: the process that created the region, and how that is known; None: it is not known."""
        row = self._capture.insert(
            "region",
            dev=key.dev,
            ino=key.ino,
            generation=key.generation,
            kind=kind,
            name=name,
            created_ns=created_ns,
            creator=creator.row if creator else None,
            creator_how=how if creator else None,
        )
        region = self.regions[number] = TracedRegion(row, number, key, kind, path=None)
        region.creator = creator
        if self._stacks:
            self._stacks.enter(region)
        return region

    def _leave(self, region: TracedRegion) -> None:
        """Drop a region whose account is closed."""
        del self.regions[region.id]
        self._looker.leave(region)
        self._dying.pop(region.id, None)

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    # ---- events and samples ----

    @property
    def stopping(self) -> bool:
        """Whether the trace was asked to stop."""
        return self._stopping

    @stopping.setter
    def stopping(self, told: bool) -> None:
        """Called from a signal handler. During finish() it leaves PATIENCE_S for the rest."""
        self._stopping = told
        if self._ends_at_ns:
            self._late_at_s = time.monotonic() + PATIENCE_S

    def run(self, seconds: float) -> None:
        """Process events and sample until `seconds` have passed or `stopping` is set."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            self._keep_up(min(left, POLL_S, max(self._sample_at_s - time.monotonic(), 0)))

    def _keep_up(self, timeout_s: float) -> None:
        if self._is_held_up():  # the kernel's side remembers
            time.sleep(timeout_s)
            return
        self._listen(timeout_s)
        if self._is_held_up():
            return
        self._apply_some()
        self._bury()
        now = time.monotonic()
        # If regions without pages come and go, only a sample notices that they are gone. Sample early when room is
        # short.
        if now >= (self._rested_at_s if len(self.regions) > self._sizes.regions // 2 else self._sample_at_s):
            self._sample()
            self._rested_at_s = now + IDLE * (time.monotonic() - now)
            self._sample_at_s = max(now + self._interval_s, self._rested_at_s)

    def _is_held_up(self) -> bool:
        return self.waits and not self._capture.is_in_place()

    def _listen(self, timeout_s: float) -> None:
        """Read the pending events.

        Returns after at most timeout_s. If events arrived just now, first wait GATHER_S so that more arrive together.
        """
        if not self._heard:
            time.sleep(min(max(self._heard_at_s + GATHER_S - time.monotonic(), 0), timeout_s))
        self._heard += self._probes.poll(0 if self._heard else timeout_s)
        if self._heard:
            self._heard_at_s = time.monotonic()

    def _hear_all(self) -> None:
        """Apply all events up to now, unless the trace must stop."""
        self._heard += self._probes.poll(0)
        while self._heard and not self._is_urgent():
            self._apply_some()

    def _apply_some(self) -> None:
        for _ in range(min(len(self._heard), HEARD_AT_ONCE)):
            self._apply(self._heard.popleft())
        self._looker.look()

    def left_s(self) -> float:
        """Seconds left for closing the accounts; 0 after a request to stop."""
        return 0.0 if self._is_urgent() else self._late_at_s - time.monotonic()

    def in_time(self, things: Iterable[Thing]) -> Iterator[Thing]:
        """Yield the items until the time left after a request to stop is used up."""
        for thing in things:
            if self._is_urgent():
                return
            if self._say and time.monotonic() > self._say_at_s:
                self._say(f"closing {len(self.regions)} regions; Ctrl-C skips the rest")
                self._say = None
            yield thing

    def _bury(self) -> None:
        if not self._dying:
            return
        now = time.monotonic()
        with self._writer.closing():
            for region in self.in_time(list(self._dying.values())):
                if not self._ends_at_ns and time.monotonic() > now + BURY_S:
                    break
                last = self._probes.region(region.id)
                late = now - (region.dying_since_s or now) > TEARDOWN_S
                if late or not last or self._writer.is_over(last):
                    self._writer.close_gone(region, last)
                    self._leave(region)

    def _apply(self, event: Event) -> None:
        if isinstance(event, events.Fork):
            self._forked(event)
        elif isinstance(event, events.Exec):
            self._executed(event)
        elif isinstance(event, events.Exit):
            self._exited(event)
        elif isinstance(event, events.OomKill):
            self._ooms.heard(event)
        elif isinstance(event, events.LabelRead):
            if self._labelling:
                self._labelling.heard(event)
        elif isinstance(event, events.RegionMet):
            self._met(event)
        elif isinstance(event, events.RegionGone):
            self._gone(event)
        elif event.id not in self.regions:
            if self._probes.has(event.id):
                self._unmet.setdefault(event.id, []).append(event)
        elif isinstance(event, events.Touch):
            self._touched(event)
        elif event.first < event.end:
            region = self.regions[event.id]
            region.punches.add(event.first, event.end, self._clock.since_us(event.time_ns))
            region.punched.append((event.first, event.end))
        if self._stacks:
            self._stacks.apply(event)

    def _exited(self, event: events.Exit) -> None:
        head = event.head
        process = self.lives.find(head.tgid, head.start_time_ns)
        if self._labelling and self.lives.alive(head.tgid) is process:
            self._labelling.ended(head.tgid)
        if process:
            self.lives.rename(process, event.comm, event.command)
            self.lives.end(process, self._clock.wall(head.time_ns), event.status, event.oom_killed)

    def _touched(self, event: events.Touch) -> None:
        process = self.lives.find(*event.process) or self._enter_toucher(event)
        region = self.regions[event.id]
        self._looker.note(process, region if region.address is None else None)

    def _dies(self, region: TracedRegion) -> None:
        region.dying_since_s = time.monotonic()
        self._dying[region.id] = region

    def _enter_toucher(self, touch: events.Touch) -> TracedProcess:
        """Add a process of which only its touch is known: it is outside the tree, or the probes have forgotten it."""
        tgid, start_time_ns = touch.process
        stat = self._proc.process(tgid)
        if stat and abs(stat.start_time_ns - start_time_ns) > procfs.TICK_NS:
            stat = None  # the PID was reused: /proc shows its new owner
        # The PID may have belonged to a process of the tree before.
        began_us = max((start_time_ns - self._clock.boot_ns) // 1000, -1)
        return self.lives.begin(
            tgid,
            start_time_ns,
            stat.parent if stat else None,
            touch.comm,
            stat.command if stat else "",
            began_us,
            cgroup=self._proc.cgroup(tgid) if stat else None,
            outside_tree=not touch.of_tree,
            ns_tgid=self._proc.ns_tgid(tgid) if stat else None,
        )

    def _forked(self, event: events.Fork) -> None:
        head = event.head
        parent = self.lives.alive(event.parent_tgid)
        if event.watched and (not parent or parent.outside_tree):
            self._probes.drop(event)
        # otherwise /proc showed the child first, and it is known
        elif not self.lives.find(head.tgid, head.start_time_ns):
            if event.watched:
                self._probes.keep(event)
            command = parent.command if parent else ""
            began_us = self._clock.since_us(head.time_ns)
            child = self.lives.begin(head.tgid, head.start_time_ns, event.parent_tgid, event.comm, command, began_us)
            if parent and parent.ns_tgid is not None:
                self._looker.note(child)  # only /proc has its PID in its own namespace, and only while it lives
            if self._labelling:
                self._labelling.begin(head.tgid, began_us, event.parent_tgid)

    def _executed(self, event: events.Exec) -> None:
        head = event.head
        process = self.lives.find(head.tgid, head.start_time_ns)
        if process and not process.outside_tree:
            self.lives.executed(process, event.comm, event.command, self._clock.wall(head.time_ns))
            self._label(head)
        elif self._wanted.match(event.comm, event.title) and head.tgid not in self._excluded:
            was_tracked = self._probes.keep(event)
            stat = self._proc.process(head.tgid)
            found = self.lives.begin(
                head.tgid,
                head.start_time_ns,
                stat.parent if stat else None,
                event.comm,
                event.command,
                self._clock.since_us(head.time_ns),
                cgroup=self._proc.cgroup(head.tgid),
                ns_tgid=self._proc.ns_tgid(head.tgid),
            )
            self._label(head)
            # dropped at its fork as the child of a process outside the tree, so its regions and children were not
            # tracked
            if stat and not was_tracked:
                self._adopting.seed(found)
                self._adopt_tree(self._proc.processes())
        else:
            self._probes.drop(event)

    def _label(self, head: events.Head) -> None:
        """Start over with labels: the new program has its own, or none."""
        if self._labelling:
            self._labelling.begin(head.tgid, self._clock.since_us(head.time_ns))
            self._labelling.adopt(head.tgid)

    def _met(self, event: events.RegionMet) -> None:
        """Add a region that the probes met: the tree created it, or mapped it for the first time."""
        is_after_the_end = self._ends_at_ns is not None and event.head.time_ns > self._ends_at_ns
        if event.id in self.regions or is_after_the_end or not self._probes.has(event.id):
            return
        user = self.lives.find(event.head.tgid, event.head.start_time_ns)
        touchers = (self.lives.find(*key) for key in self._probes.usages(event.id))
        known = user or next(filter(None, touchers), None)
        if not (known or event.of_tree):  # only a candidate was seen using it, and -p did not match that process
            self._forget(event.id)
            return
        file_system = shmem.HUGETLBFS_MAGIC if event.huge else shmem.TMPFS_MAGIC
        kind = shmem.kind_of(event.key.dev, file_system, event.name)
        directory = (kind in FILES and self._proc.mounts.path(event.key.dev)) or ""
        name = f"{directory.rstrip('/')}/{'…/' * event.deep}{event.name}"
        maker = event.made and self.lives.find(event.made.tgid, event.made.start_time_ns)
        created_ns = self._clock.wall(event.made.time_ns) if event.made and maker else None
        how = "traced"
        if not maker and kind == "sysv":
            maker, how = self._asker(event.key.ino)
        region = self._enter(event.id, event.key, kind, name, created_ns, maker, how)
        region.size_bytes, region.made = event.size_bytes, bool(event.made)
        region.first_user = user  # whom the probes of an armed trace may have forgotten
        for earlier in self._unmet.pop(event.id, ()):
            self._apply(earlier)
        # it was created just now and has no path to write to before mapping it: the baseline is empty
        if event.made and kind not in ("posix", "other"):
            return
        self._looker.survey(region)
        if known:
            self._looker.note(known, region)

    def _asker(self, shmid: int) -> tuple[TracedProcess | None, str]:
        """The creator of a SysV segment, and how that is known.

        Either the kernel's own record at the start of the trace, or who called shmget() since.
        """
        if shmid in self._segments:
            return self._finder.maker(self._segments[shmid], self.lives, self._clock.wall_ns, self._clock), "shmget"
        asker = self._probes.asker(shmid)
        return self.lives.find(*asker) if asker else None, "traced"

    def _gone(self, event: events.RegionGone) -> None:
        if event.id in self.regions:
            self._dies(self.regions[event.id])
        else:  # a tmpfs file that was never mapped, or one that only a candidate used
            self._forget(event.id)

    def _forget(self, number: int) -> None:
        self._unmet.pop(number, None)
        self._probes.forget(number)

    def _sample(self) -> None:
        """Write a sample of every region: its size by the inode's own count, and who touched its pages."""
        if not self._is_urgent():
            self._ask_again()
        now_ns = time.time_ns()
        known = [number for number, region in self.regions.items() if not region.dying_since_s]
        for first in self.in_time(range(0, len(known), AT_ONCE)):
            self._sample_some(known[first : first + AT_ONCE], now_ns)
        self._writer.checkpoint_usages(self.regions)
        self._ooms.sample()
        self.lives.pods.write()
        if self._stacks:
            self._stacks.write()
        if time.monotonic() >= self._private_at_s and not self._is_urgent():
            self._measure_private()
        shmem_bytes = self._proc.memory().shmem_bytes
        if shmem_bytes != self._shmem_bytes:
            self._capture.insert_all("host_sample", "time_ns, shmem_bytes", [(now_ns, shmem_bytes)])
            self._shmem_bytes = shmem_bytes
        if not self._capture.keep_small():
            self._warn("the capture exceeds --max-size: its records of pages and processes alone take that much")
        self._keep_session(now_ns)
        self._capture.commit()

    def _sample_some(self, numbers: Sequence[int], now_ns: int) -> None:
        changed, measured = self._writer.collect(numbers)
        self._hear_all()
        rows = []
        for number, now in measured.items():
            region = self.regions[number]
            if now:
                allocated_bytes, swapped_bytes = now.pages * PAGE_BYTES, now.swapped_pages * PAGE_BYTES
                sample = allocated_bytes, allocated_bytes - swapped_bytes, swapped_bytes
                if sample != region.sample:
                    rows.append((region.row, now_ns, *sample))
                region.size_bytes, region.allocated_bytes, region.sample = now.size_bytes, allocated_bytes, sample
                region.peak_bytes = max(region.peak_bytes, allocated_bytes, now.peak_pages * PAGE_BYTES)
                region.samples_missed = 0
                continue
            if region.dying_since_s:
                continue
            last = self._probes.region(number)
            region.samples_missed += 1
            # Its RegionGone is still to come, or was lost. Or it had no pages, so no teardown was seen.
            if (last and last.gone_us) or region.samples_missed > 1:
                self._dies(region)
        self._writer.checkpoint(changed, {number: self.regions[number] for number in numbers})
        self._capture.insert_all(*SAMPLE, rows)

    def _is_urgent(self) -> bool:
        """Whether to skip work that is not essential, because the trace was asked to stop."""
        return self._stopping if self._ends_at_ns is None else time.monotonic() > self._late_at_s

    def _keep_session(self, now_ns: int, **more: Any) -> None:
        losses = self._probes.losses()
        used = resource.getrusage(resource.RUSAGE_SELF)
        if self._private:
            private = private_memory.change(self._private)
            more |= {f"private_{name}": value for name, value in private._asdict().items()}
        self._capture.update(
            "session",
            self._session,
            ended_ns=now_ns,
            shmem_total_bytes=self._shmem_bytes,
            lost_events=losses["events"],
            lost_pages=losses["pages"],
            lost_probes=losses["probes"],
            nr_ooms=None if tiers.OOM in self._probes.missing else self._ooms.nr_of_part,
            warnings="\n".join(
                self._warnings
                + on_lease("the pages of {} from before the trace are unseen", self._looker.unread.values())
                + self._proc.warnings()
                + self.lives.pods.warnings
                + (self._labelling.warnings if self._labelling else [])
                + tiers.explain(losses)
                + self._recycled()
                + [TOO_LONG] * (self._clock.since_us(time.monotonic_ns()) > ledger.WHEN_MASK)
            ),
            self_cpu_seconds=used.ru_utime + used.ru_stime,
            self_rss_bytes=used.ru_maxrss * 1024,
            **more,
        )

    def _recycled(self) -> list[str]:
        """What was forgotten to make room, one sentence each."""
        return []

    # ---- status ----

    @property
    def nr_ooms(self) -> int:
        """How many kills of the OOM killer were heard of so far, on the whole host."""
        return self._ooms.nr

    def over(self) -> bool:
        """Whether every process of the tree has exited."""
        if not self.lives.tree():
            self._hear_all()  # one of the last processes may have left a child
        return not self.lives.tree()

    def size(self) -> str:
        """A short description of what is traced, such as "4 processes, 2 region(s)"."""
        alive = len(self.lives.tree())
        return f"{alive} {'process' if alive == 1 else 'processes'}, {len(self.regions)} region(s)"

    def doubt(self) -> str | None:
        """Why the trace has found no labels so far; None: no reason to doubt."""
        return self._labelling.doubt if self._labelling else None

    def status(self) -> Status:
        """Figures for the status line."""
        most = self._capture.rows(MOST_TOUCHED)
        grower, grower_pages = most[0] if most else (None, 0)
        regions = self.regions.values()
        return Status(
            elapsed_s=(time.monotonic_ns() - self._attached_ns) / 1e9,
            nr_processes=len(self.lives.tree()),
            nr_regions=len(self.regions),
            allocated_bytes=sum(region.allocated_bytes for region in regions),
            grown_bytes=sum(region.allocated_bytes - region.start_bytes for region in regions),
            grower=grower,
            grower_bytes=grower_pages * PAGE_BYTES,
        )

    def touched_pages(self, region: TracedRegion) -> dict[int, int]:
        """Pages of a region by the tgid that first touched them, up to now."""
        touched: dict[int, int] = {}
        entries = ledger.read(
            self._probes.blocks(region.id), region.baseline, ALL_PAGES, lambda tgid, *_: tgid, punches=region.punches
        )
        for extent in entries.extents:
            if extent.owner is not None:
                touched[extent.owner] = touched.get(extent.owner, 0) + extent.end - extent.start
        return touched

    # ---- parts ----

    @contextlib.contextmanager
    def closed(self) -> Iterator[bool]:
        """Within it the capture is complete, as at the end of a trace; then the trace goes on with the same probes.

        It yields whether all accounts were closed: not if the trace was told to stop meanwhile.
        """
        self._look_for_lives()
        self._writer.asked.clear()
        warnings = list(self._warnings)
        closed = self._close()
        whole = not self._stopping
        if whole:
            self._complete(closed)
        else:
            self._warnings = warnings  # what was left out is not: the end of the trace does it
        try:
            yield whole
        finally:
            for region in closed.regions:
                if not self._probes.has(region.id):  # it went while its account was closed
                    self._leave(region)
            self._writer.go_on(closed.regions)
            self._capture.reopen()
            self._capture.commit()

    def needed(self, since_ns: int) -> Needed:
        """The rows of the capture that are needed when the trace goes on, as Capture.choose() has them.

        Call it within closed(): by then the ledger was read, and who has pages is known.
        """
        lives = {process for process, _ in self._writer.asked}
        lives.update(self.lives.all_alive())
        for region in self.regions.values():
            lives.update(process for process in (region.creator, region.first_user) if process)
        labels = set()
        if self._labelling:
            alive = {process.tgid for process in self.lives.all_alive()}
            asked = ((process.tgid, when_us) for process, when_us in self._writer.asked)
            labels = self._labelling.needed(asked, alive)
        return self._capture.choose(
            Needed(
                {region.row for region in self.regions.values()},
                {process.row for process in lives},
                labels,
                self._stacks.needed() if self._stacks else set(),
            ),
            since_ns,
        )

    def prune(self, needed: Needed, since_ns: int) -> None:
        """Forget what is not needed, in the capture and in memory. needed: what needed() has returned."""
        self._capture.drop_others(since_ns)
        self.lives.prune(needed.processes)
        if self._labelling:
            self._labelling.prune(needed.labels)
        if self._stacks:
            self._stacks.prune(needed.stacks, needed.processes)
        self._looker.prune(needed.regions)
        self._proc.forget_others(self.lives.tgids())
        for region in self.regions.values():
            keys = [key for key in self._probes.usages(region.id) if not self._is_known(*key)]
            self._probes.forget_usages(region.id, keys)
        self._writer.asked.clear()
        self._ooms.begin_part()

    def begin_part(self, part: int, started_ns: int) -> None:
        """Say in the capture which part of the trace it has, and since when (CLOCK_REALTIME)."""
        self._capture.update("session", self._session, part=part, part_started_ns=started_ns)
        self._capture.commit()

    def _is_known(self, tgid: int, start_time_ns: int) -> bool:
        """Whether a process of the kernel's maps is known; start_time_ns 0: one that had exited."""
        return bool(self.lives.find(tgid, start_time_ns) if start_time_ns else self.lives.has_dead(tgid))

    # ---- the end ----

    def finish(self, say: Callable[[str], None] | None = None) -> None:
        """Close all accounts. say: called once with a message if this takes longer than SILENCE_S.

        If the user asked to stop, what does not fit into PATIENCE_S is left out, and a warning says so.
        """
        began_s = time.monotonic()
        self._say, self._say_at_s = say, began_s + SILENCE_S
        self._ends_at_ns = time.monotonic_ns()
        if self._stopping:
            self._late_at_s = began_s + PATIENCE_S
        closed = self._close()
        for region in closed.regions:
            self._leave(region)
        if self.regions:
            self._warn(f"told to stop: {len(self.regions)} regions are shown as last sampled, or all unseen")
            last = self._probes.read_regions()
            self._writer.close_unread((region, last.get(number)) for number, region in self.regions.items())
        self._complete(closed)
        self._stopping = True  # a second request to stop also cuts the report short

    def _close(self) -> Closed:
        """Take in all that has happened up to now, and write the last account of every region that exists."""
        self._hear_all()
        if self._heard:
            self._warn("told to stop: some events were not processed")
        self._sample()
        until_s = min(time.monotonic() + TEARDOWN_S, self._late_at_s)
        while self._dying and time.monotonic() < until_s:
            self._keep_up(0.01)
        return self._ending.close(self.regions.values(), self)

    def _complete(self, closed: Closed) -> None:
        """Write what else a complete capture has."""
        if self._stacks:
            self._stacks.write(patience_s=math.inf)
        self._ending.explain_losses()
        self.lives.pods.write(at_once=True)
        self._shmem_bytes = self._proc.memory().shmem_bytes
        if closed.session:
            self._measure_private()
        self._keep_session(time.time_ns(), complete=1, **closed.session)
        self._capture.commit()

    def look_at_host(self) -> None:
        """Write what of the host no process maps, as it is now; at the end of a trace with -a it is written anyway."""
        self._ending.write_unmapped(list(self.regions.values()))
        self._capture.commit()

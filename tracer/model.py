"""What an account is made of: processes, regions and who touched them, sessions, OOM kills. Pure.

For every region ``allocated = touched + before + unseen``. Allocated is the inode's own count. Touched and before come
from the ledger. What is left over is unseen: it is shown as such and never distributed over the processes.
"""

from __future__ import annotations

import os
import signal
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

from tracer import sql, unmapped
from tracer.cgroup import Names, Place, place
from tracer.proc.private_memory import EXACT
from tracer.unmapped import UnmappedRow

COMM_LENGTH = 15
SAME_BOOT_NS = 10 * 10**9  # boot times that differ by less are one boot: a clock may be adjusted, a boot takes longer
SIGNALS = {each.value: each.name for each in signal.Signals}

DAY_NS = 86400 * 10**9


class Process(NamedTuple):
    """A process of the capture, alive or exited."""

    row: int
    """row in the capture's table process: its identity, because PIDs are used again"""
    tgid: int
    start_time_ns: int
    """since boot; 0: nothing but the PID is known"""
    comm: str | None
    command: str | None
    parent: int | None
    """tgid"""
    exited_ns: int | None
    """CLOCK_REALTIME"""
    outside_tree: bool = False
    """it is no descendant of the targets, but touched one of their regions"""
    started_ns: int | None = None
    """CLOCK_REALTIME"""
    cgroup: str | None = None
    ns_tgid: int | None = None
    """its PID in its own PID namespace; None: the same as tgid, or unknown"""
    exit_status: int | None = None
    """as wait(2) tells it; None: unknown, or it has not exited"""
    oom_killed: bool = False
    """the OOM killer ended it"""
    names: Names | None = None
    """of the pod and the container it is in; None: it is in none, or they are unknown"""
    host: str | None = None
    """None: that of the capture"""

    @property
    def place(self) -> Place:
        """Its systemd unit, container and pod."""
        found = place(self.cgroup)
        return found._replace(names=self.names) if self.names else found

    @property
    def unit(self) -> str | None:
        """What it belongs to, in a name: namespace/pod/container, else its systemd unit, else the path of its cgroup.

        None: no cgroup is known.
        """
        where = self.place
        return where.in_pod or where.unit or self.cgroup

    @property
    def exit_code(self) -> int | None:
        """What it returned; None: unknown, or a signal ended it."""
        return None if self.exit_status is None or self.exit_status & 0x7F else self.exit_status >> 8 & 0xFF

    @property
    def exit_signal(self) -> str | None:
        """The signal that ended it, such as SIGKILL; None: none, or unknown."""
        number = (self.exit_status or 0) & 0x7F
        return SIGNALS.get(number, f"signal {number}") if number else None

    @property
    def ending(self) -> str:
        """How it ended, in a word or two: exited, if all is well or nothing is known."""
        if self.oom_killed:
            return "OOM kill"
        return self.exit_signal or (f"status {self.exit_code}" if self.exit_code else "exited")

    @property
    def is_renamed(self) -> bool:
        """Whether it has taken a name that its command line does not show, as by prctl(2)."""
        return is_renamed(self.comm, self.command)

    @property
    def name(self) -> str:
        """Its command line, or else its comm; both, if it has renamed itself."""
        if self.is_renamed:
            return f"{self.comm} ({self.command})"
        return self.command or self.comm or "?"

    @property
    def who(self) -> str:
        """Its PID and name. "4312 (7)" means PID 7 in its own PID namespace."""
        inside = "" if self.ns_tgid is None else f"({self.ns_tgid}) "
        return f"{self.tgid} {inside}{self.name}"


def is_renamed(comm: str | None, command: str | None) -> bool:
    """Whether a process of this name and command line has renamed itself.

    Asked of a program's path alone: a title that a process gave itself is its name.
    """
    words = (command or "").split()
    if not words or not comm or "/" not in words[0]:
        return False
    return comm not in {word.lstrip("-").rpartition("/")[2][:COMM_LENGTH] for word in words}


class Creator(NamedTuple):
    """The process that created a region, and how that is known."""

    process: Process
    how: str
    """traced (seen by a probe), shmget (recorded by the kernel) or inferred"""


class Made(NamedTuple):
    """The pages of a region that a process allocated from one user stack, including those freed since."""

    frames: tuple[str, ...] | None
    """callers first; None: the stack is unknown"""
    size_bytes: int
    row: int | None = None
    """of the stack in the capture; None: the bytes are what no stack has told"""


class Toucher(NamedTuple):
    """What one process did to one region."""

    process: Process
    touched_bytes: int
    """of the pages allocated now, those it touched first"""
    freed_bytes: int
    """of the pages it touched first, those freed since"""
    faults: int | None
    """all its page faults on the region, also those that allocated nothing; None: not counted"""
    first_ns: int | None
    """CLOCK_REALTIME of its first page that is still there"""
    last_ns: int | None
    made_for: Sequence[tuple[Process, int]] = ()
    """bytes that it allocated in the address spaces of other processes, including those freed since"""
    made_by: Sequence[Made] = ()
    """its stacks, most bytes first; empty: stacks were not recorded, or it has none"""

    @property
    def stacks(self) -> list[Made]:
        """The stacks, with one entry more, last, for bytes without a known stack.

        They add up to touched_bytes + freed_bytes, or to more if the stacks have recorded more.
        """
        known = [made for made in self.made_by if made.frames]
        told_bytes = sum(made.size_bytes for made in self.made_by)
        known_bytes = sum(made.size_bytes for made in known)
        unknown_bytes = max(told_bytes, self.touched_bytes + self.freed_bytes) - known_bytes
        return [*known, Made(None, unknown_bytes)] if unknown_bytes else known


class Label(NamedTuple):
    """What a process was doing, as texts read from its memory. None: empty, or not part of this kind of label."""

    script: str | None = None
    request: str | None = None
    file: str | None = None
    query: str | None = None
    title: str | None = None
    text: str | None = None

    def told(self, kind: str, depth: int | None = None) -> str:
        """One kind of text; "": it was empty.

        depth: of a directory, show only so many directories from the root.
        """
        if kind == "query":
            return sql.shape(self.query or "")
        if kind == "statement":
            return self.query or ""
        if kind == "directory":
            *directories, _ = (self.script or "").split("/")
            return "/".join(directories[: None if depth is None else depth + 1]) or "/" * bool(self.script)
        return getattr(self, kind) or ""


NAMELESS = "(none)"
"""How an empty label is shown."""


class Labelled(NamedTuple):
    """The pages of one region that a process touched first with one label."""

    label: Label | None
    """None: unknown"""
    process: Process
    touched_bytes: int
    first_ns: int
    last_ns: int

    def text(self, kind: str, depth: int | None = None) -> str | None:
        """One kind of text of the label, as Label.told() has it; None: unknown."""
        return None if self.label is None else self.label.told(kind, depth)

    def frames(self, kinds: Sequence[str]) -> tuple[str, ...]:
        """Texts of these kinds, as frames of a flame graph."""
        texts = (self.text(kind) for kind in kinds)
        return tuple("?" if text is None else text or NAMELESS for text in texts)


Identity = tuple[int, int, int, Optional[int]]
"""Of a region: row, dev, ino, generation. A part of a trace may use a row again that an earlier one has left."""


class Region(NamedTuple):
    """One region: an inode of shared memory."""

    row: int
    """row in the capture's table region: its identity"""
    id: str
    """for people: dev/ino/generation, the first two as in /proc/PID/maps; then /2 for a second region of the same id"""
    dev: int
    ino: int
    generation: int | None
    kind: str
    name: str
    created_ns: int | None
    gone_ns: int | None
    size_bytes: int | None
    allocated_bytes: int
    start_bytes: int
    """allocated when the capture first saw it"""
    peak_bytes: int
    resident_bytes: int | None
    swapped_bytes: int | None
    address: int | None
    """where it was last seen mapped, in any process"""
    creator: Creator | None
    before_bytes: int
    unseen_bytes: int
    touchers: list[Toucher]
    """most touched first"""
    mappers: list[int]
    """tgids of the processes that map it"""
    other_times_bytes: int = 0
    """touched outside the requested window"""
    labelled: Iterable[Labelled] = ()
    """the touched bytes by label and process; empty without --label"""
    hint: str | None = None
    """what its content says of its use"""
    host: str | None = None
    """None: that of the capture"""

    @property
    def identity(self) -> Identity:
        """The same in all accounts of one trace."""
        return self.row, self.dev, self.ino, self.generation

    @property
    def touched_bytes(self) -> int:
        """Of the pages allocated now, those touched in the window."""
        return sum(toucher.touched_bytes for toucher in self.touchers)

    @property
    def grown_bytes(self) -> int:
        """Allocated since the capture first saw it. For a region that is gone: as when it went."""
        return self.allocated_bytes - self.start_bytes

    @property
    def remaining_grown_bytes(self) -> int:
        """Growth up to the end of the capture, where a region that is gone has nothing allocated."""
        return (self.allocated_bytes if self.gone_ns is None else 0) - self.start_bytes

    @property
    def in_memory_bytes(self) -> int:
        """Allocated and not swapped. All that is allocated, if it is unknown how much is swapped."""
        return self.allocated_bytes - (self.swapped_bytes or 0)


def dev_text(dev: int) -> str:
    """A device number as /proc/PID/maps prints it."""
    return f"{os.major(dev):x}:{os.minor(dev):x}"


def charged(region: Region) -> list[tuple[Process | None, int]]:
    """Bytes of a region by the cgroup that is charged for them, most first. They add up to what is allocated.

    A process stands for its cgroup, and None for bytes whose cgroup is unknown: before, unseen, or touched outside the
    window.

    The kernel charges a page to the cgroup of its first toucher and leaves it there, whoever uses it later. A page
    made in another process's address space is charged to that process's cgroup: shmem_get_folio_gfp() in mm/shmem.c
    charges the mm that faults. If a toucher's pages were freed, it is unknown which of the two kinds they were; its
    pages in other address spaces then count as unknown. The cgroup of a process is the one it was last seen in.
    """
    found: Counter[str | None] = Counter()
    inside: dict[str | None, Process] = {}
    for toucher in region.touchers:
        own = toucher.process.cgroup
        inside[own] = toucher.process
        if not toucher.made_for:  # as for most, and there may be very many
            found[own] += toucher.touched_bytes
            continue
        elsewhere = [(process.cgroup, made_bytes) for process, made_bytes in toucher.made_for if process.cgroup != own]
        inside.update((process.cgroup, process) for process, _ in toucher.made_for)
        made_bytes = sum(made_bytes for _, made_bytes in elsewhere)
        if toucher.freed_bytes or made_bytes > toucher.touched_bytes:
            made_bytes = min(made_bytes, toucher.touched_bytes)
            elsewhere = [(None, made_bytes)]
        found[own] += toucher.touched_bytes - made_bytes
        for cgroup, size_bytes in elsewhere:
            found[cgroup] += size_bytes
    del found[None]
    found[None] = region.allocated_bytes - sum(found.values())
    inside.pop(None, None)
    return [(inside.get(cgroup), size_bytes) for cgroup, size_bytes in found.most_common() if size_bytes]


class Parent(NamedTuple):
    """A process with the regions that roll up to it: those it created, or those of an exited creator that it inherits.

    process None: the creator is unknown, and no traced process maps the regions.
    """

    process: Process | None
    regions: list[Region]

    @property
    def current(self) -> list[Region]:
        """The regions that still exist; if none does, those that are gone."""
        return [region for region in self.regions if region.gone_ns is None] or self.regions

    @property
    def allocated_bytes(self) -> int:
        """Of its current regions."""
        return sum(region.allocated_bytes for region in self.current)

    @property
    def grown_bytes(self) -> int:
        """Of its current regions."""
        return sum(region.grown_bytes for region in self.current)


class Session(NamedTuple):
    """The facts about the capture as a whole."""

    host: str
    kernel: str
    version: str
    """of the shmtrace that recorded it"""
    tier: str
    mechanism: str
    """how its probes were attached: kprobe, fentry or tracepoint; empty: no probes"""
    blind_to: list[str]
    page_bytes: int
    """of its kernel; of a fleet, what all its pages are counted in"""
    started_ns: int
    ended_ns: int
    complete: bool
    """the trace ended properly; otherwise it still runs, or was cut off at ended_ns"""
    sum_of_rss_bytes: int | None
    private_start_bytes: int | None
    private_end_bytes: int | None
    """private memory of the living processes of the tree, at the start and at the end of the trace"""
    private_how: str | None
    """memory.stat: exact; status: an upper bound, because pages that forked processes share count for each of them"""
    shmem_total_bytes: int | None
    lost_events: int
    lost_pages: int
    lost_probes: int
    """how often the kernel skipped a probe"""
    warnings: list[str]
    self_cpu_seconds: float | None
    self_rss_bytes: int | None
    attach_seconds: float | None
    label: str | None = None
    """the argument of --label"""
    tmpfs: str | None = None
    """the tmpfs whose files were looked at, if it was not processes"""
    private_peak_bytes: int | None = None
    """the most private memory that was measured in between"""
    nr_ooms: int | None = None
    """kills of the OOM killer on the host, whenever in the trace; None: unknown"""
    part: int | None = None
    """which part of a trace that was cut into parts, from 1 on; None: it was not"""
    part_started_ns: int | None = None

    @property
    def since_ns(self) -> int:
        """Since when it has samples and what has ended; what began before is known as far as there are pages of it."""
        return self.started_ns if self.part_started_ns is None else self.part_started_ns

    @property
    def has_days(self) -> bool:
        """It lasted for so long that a time of day may be of more than one of them."""
        return self.ended_ns - self.started_ns >= DAY_NS

    @property
    def private_is_exact(self) -> bool:
        """The private memory is exact; otherwise it is an upper bound."""
        return self.private_how == EXACT


class Window(NamedTuple):
    """A part of the capture's time: [since_ns, until_ns) in CLOCK_REALTIME. None: open on that side."""

    since_ns: int | None = None
    until_ns: int | None = None


class OomKill(NamedTuple):
    """A process of the host that the OOM killer chose, traced or not, and what was charged where a limit was reached.

    None: unknown, if nothing else is said.
    """

    time_ns: int
    """CLOCK_REALTIME"""
    process: Process | None
    """None: it is not of the capture"""
    tgid: int
    comm: str
    command: str | None
    cgroup: str | None
    limit_cgroup: str | None
    """whose limit was reached; "/": no cgroup's, the host was short of memory"""
    limit_bytes: int | None
    """None also for the host"""
    anon_bytes: int | None
    """private memory of the victim, which the kill frees, but for pages that forks share"""
    file_bytes: int | None
    shmem_bytes: int | None
    """shared memory that the victim mapped, which the kill does not free"""
    shmem_before_bytes: int | None
    """charged to the limit's cgroup, or of the host, as soon as the kill was heard of"""
    anon_before_bytes: int | None
    shmem_after_bytes: int | None
    """likewise, when the victim had gone"""
    anon_after_bytes: int | None
    host: str | None = None
    """None: that of the capture"""
    touched: Sequence[tuple[str, Process, int]] = ()
    """region id, first toucher, and bytes that are charged there, most first"""
    limit_pod: str | None = None
    """whose limit that is: namespace/pod/container, or namespace/pod; None: of no pod, or it is unknown"""

    @property
    def is_of_host(self) -> bool:
        """No cgroup had reached its limit."""
        return self.limit_cgroup == "/" and self.limit_bytes is None

    @property
    def unnamed_bytes(self) -> int | None:
        """Shared memory charged there whose first toucher is not known here."""
        if self.shmem_before_bytes is None:
            return None
        return max(self.shmem_before_bytes - sum(size_bytes for *_, size_bytes in self.touched), 0)


ALL_TIME = Window()


class Account(NamedTuple):
    """Everything that a report shows."""

    session: Session
    parents: list[Parent]
    """most allocated first"""
    window: Window = ALL_TIME
    """touched counts only pages touched in it; everything else is as of the capture's end"""
    unmapped: Sequence[UnmappedRow] = ()
    """what no process maps, or what of the tmpfs is in no region; empty: there is nothing, or it was not looked for"""

    ooms: Sequence[OomKill] = ()
    """in the order of time; of very many only some, while session.nr_ooms counts all"""
    hosts: Sequence[Session] = ()
    """of a fleet, one of each host; session is then what they have in common, or their sum. Empty: it is of one
    capture"""
    nr_older: int = 0
    """captures of these hosts that are in the fleet, and not counted"""

    @property
    def regions(self) -> list[Region]:
        """All regions, by parent."""
        return [region for parent in self.parents for region in parent.regions]

    def host_of(self, region: Region) -> str:
        """Whose it is."""
        return self.session.host if region.host is None else region.host

    @property
    def has_stacks(self) -> bool:
        """The trace recorded user stacks."""
        return any(toucher.made_by for region in self.regions for toucher in region.touchers)

    @property
    def private_grown_bytes(self) -> int | None:
        """Growth of the tree's private memory during the trace; None: unknown."""
        start_bytes, end_bytes = self.session.private_start_bytes, self.session.private_end_bytes
        return None if start_bytes is None or end_bytes is None else end_bytes - start_bytes

    @property
    def private_peak_grown_bytes(self) -> int | None:
        """Growth of the tree's private memory to its peak; None: unknown."""
        start_bytes, peak_bytes = self.session.private_start_bytes, self.session.private_peak_bytes
        return None if start_bytes is None or peak_bytes is None else peak_bytes - start_bytes

    @property
    def shmem_unexplained_bytes(self) -> int | None:
        """Bytes of the host's shared memory (Shmem of /proc/meminfo, without hugetlb) that belong to no region here.

        None: unknown.
        """
        if self.session.shmem_total_bytes is None:
            return None
        known = [region for region in self.regions if region.gone_ns is None and region.kind != "hugetlb"]
        return max(self.session.shmem_total_bytes - sum(region.in_memory_bytes for region in known), 0)

    @property
    def shmem_rest_bytes(self) -> int | None:
        """Of that, what nothing here has a name for; None: it was not looked for."""
        unexplained_bytes = self.shmem_unexplained_bytes
        if unexplained_bytes is None or not self.unmapped or self.session.tmpfs or self.hosts:
            return None
        return max(unexplained_bytes - sum(unmapped.sums(self.unmapped).values()), 0)


def booted_ns(processes: Iterable[Process]) -> float | None:
    """CLOCK_REALTIME of the boot, computed from processes whose start is known in both clocks; None: unknown."""
    booted = [one.started_ns - one.start_time_ns for one in processes if one.started_ns and one.start_time_ns]
    return statistics.median(booted) if booted else None

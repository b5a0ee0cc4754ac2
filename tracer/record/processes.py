"""The processes of the tree, dead and alive. A PID is no identity: it is reused, and time tells whose it was."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Iterable

from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.proc.bounded import CUT
from tracer.proc.procfs import TICK_NS


@dataclasses.dataclass(eq=False)
class TracedProcess:
    """One life of a PID."""

    row: int
    tgid: int
    start_time_ns: int
    parent: TracedProcess | None
    comm: str | None
    command: str
    began_us: int
    """since the capture began; -1: it was there before"""
    exited: bool = False
    outside_tree: bool = False
    """not of the tree: it touched a region of the tree's"""
    cgroup: str | None = None
    ns_tgid: int | None = None
    _heir: TracedProcess | None = None
    """an ancestor: none between was alive when that was last asked"""

    @property
    def key(self) -> tuple[int, int]:
        return self.tgid, self.start_time_ns

    def heir(self) -> TracedProcess | None:
        """The nearest ancestor that is alive."""
        passed: list[TracedProcess] = []
        process: TracedProcess | None = self
        while process and (process.exited or process is self):
            passed.append(process)
            process = process._heir or process.parent
        for below in passed[:-1]:  # the dead do not come back: who asks next has a short way
            below._heir = process or passed[-1]
        return process


class Processes:
    """All of them, entered into the capture as they come."""

    def __init__(self, capture: Capture, clock: Clock) -> None:
        self._capture = capture
        self._clock = clock
        self._of: dict[int, tuple[list[int], list[TracedProcess]]] = {}  # by tgid: since when, who; in order
        self._known: dict[tuple[int, int], TracedProcess] = {}  # by key
        self._alive: dict[int, TracedProcess] = {}  # by tgid

    def begin(
        self,
        tgid: int,
        start_time_ns: int,
        parent_tgid: int | None,
        comm: str | None,
        command: str,
        began_us: int,
        cgroup: str | None = None,
        outside_tree: bool = False,
        ns_tgid: int | None = None,
    ) -> TracedProcess:
        """cgroup: where it is not known, its parent's."""
        parent = self.alive(parent_tgid) if parent_tgid and not outside_tree else None
        if parent and parent.outside_tree:
            parent = None
        cgroup = cgroup or (parent.cgroup if parent else None)
        row = self._capture.insert(
            "process",
            tgid=tgid,
            start_time_ns=start_time_ns,
            ns_tgid=ns_tgid,
            parent=parent.row if parent else None,
            parent_tgid=parent_tgid,
            comm=comm,
            command=command,
            cgroup=cgroup,
            started_ns=self._clock.wall_of_boot(start_time_ns) if start_time_ns else None,
            outside_tree=outside_tree,
        )
        process = TracedProcess(
            row, tgid, start_time_ns, parent, comm, command, began_us, False, outside_tree, cgroup, ns_tgid
        )
        if tgid in self._alive:
            self._alive[tgid].exited = True  # its PID could not be given away before
        self._alive[tgid] = process
        self._known[process.key] = process
        since_us, processes = self._of.setdefault(tgid, ([], []))
        place = bisect_right(since_us, began_us)
        since_us.insert(place, began_us)
        processes.insert(place, process)
        return process

    def alive(self, tgid: int) -> TracedProcess | None:
        """The process that has this PID now, if it is known."""
        return self._alive.get(tgid)

    def all_alive(self) -> list[TracedProcess]:
        """Strangers too."""
        return list(self._alive.values())

    def tree(self) -> list[TracedProcess]:
        """Those of the tree that are alive."""
        return [process for process in self._alive.values() if not process.outside_tree]

    def last(self, tgid: int) -> TracedProcess | None:
        """The one that had this PID last, or has it."""
        _, processes = self._of.get(tgid, ([], []))
        return processes[-1] if processes else None

    def find(self, tgid: int, start_time_ns: int) -> TracedProcess | None:
        return self._known.get((tgid, start_time_ns))

    def at(self, tgid: int, when_us: int) -> TracedProcess:
        """Whose this PID was then; somebody unknown, if it was never heard of."""
        since_us, processes = self._of.get(tgid, ([], []))
        return processes[max(bisect_right(since_us, when_us) - 1, 0)] if processes else self._stranger(tgid)

    def during(self, tgid: int, first_us: int, last_us: int) -> TracedProcess | None:
        """Whose this PID was all that time; None: it was not one's."""
        process = self.at(tgid, first_us)
        if len(self._of[tgid][0]) == 1:
            return process
        return process if process is self.at(tgid, last_us) else None

    def _stranger(self, tgid: int) -> TracedProcess:
        process = self.begin(tgid, 0, None, None, "", began_us=-1)
        self._exited(process)  # for all that is known
        return process

    def last_dead(self, tgid: int) -> TracedProcess:
        """The last one that had this PID and has it no more."""
        _, processes = self._of.get(tgid, ([], []))
        return next((process for process in reversed(processes) if process.exited), None) or self.at(tgid, -1)

    def executed(self, process: TracedProcess, comm: str, command: str, time_ns: int) -> None:
        """It runs this now. time_ns: CLOCK_REALTIME."""
        self._capture.insert("exec", time_ns=time_ns, process=process.row, comm=comm, command=command)
        self.rename(process, comm, command)

    def move(self, process: TracedProcess, cgroup: str | None) -> None:
        if cgroup and cgroup != process.cgroup:
            process.cgroup = cgroup
            self._capture.update("process", process.row, cgroup=cgroup)

    def number(self, process: TracedProcess, ns_tgid: int | None) -> None:
        """Its PID in its own PID namespace."""
        if ns_tgid is not None and ns_tgid != process.ns_tgid:
            process.ns_tgid = ns_tgid
            self._capture.update("process", process.row, ns_tgid=ns_tgid)

    def rename(self, process: TracedProcess, comm: str, command: str) -> None:
        if command.endswith(CUT) and process.command.startswith(command[: -len(CUT)]):
            command = process.command  # more of the same was read before
        if command and (comm, command) != (process.comm, process.command):
            process.comm, process.command = comm, command
            self._capture.update("process", process.row, comm=comm, command=command)

    def end(self, process: TracedProcess, exited_ns: int | None) -> None:
        """exited_ns: CLOCK_REALTIME; None: it is not known when."""
        self._exited(process)
        self._capture.update("process", process.row, exited_ns=exited_ns)

    def _exited(self, process: TracedProcess) -> None:
        process.exited = True
        if self._alive.get(process.tgid) is process:
            del self._alive[process.tgid]


def top(processes: Iterable[TracedProcess]) -> TracedProcess | None:
    """The one that the most others descend from; the first of several."""
    found = list(processes)
    among = set(found)
    above: dict[TracedProcess, int] = {}  # how many of its ancestors are among them
    for process in found:
        line = [process]
        while line[-1].parent and line[-1] not in above:
            line.append(line[-1].parent)
        for child, parent in zip(line[-2::-1], line[:0:-1]):
            above[child] = above.get(parent, 0) + (parent in among)
    return min(found, key=lambda process: above.get(process, 0), default=None)


def infer_creator(mappers: Iterable[TracedProcess], created_ns: int | None, clock: Clock) -> TracedProcess | None:
    """Who made a region that was there before: those who map it have it from one ancestor, the top of them or one that
    has exited. created_ns: the inode's birth by the wall clock; a process that is younger did not make it.
    """
    found = top(mappers)
    if found and created_ns is not None and clock.wall_of_boot(found.start_time_ns) > created_ns + TICK_NS:
        return None
    return found


def stands_for(creator: TracedProcess | None, mappers: Iterable[TracedProcess]) -> TracedProcess | None:
    """Whom a region rolls up to: its creator, or for a dead one the top of those who map it, or its next of kin."""
    if creator and not creator.exited:
        return creator
    return top(mappers) or (creator and creator.heir()) or creator

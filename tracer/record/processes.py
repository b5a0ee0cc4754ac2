"""The processes of the trace, running and exited. PIDs are reused, so a process is a PID and a start time.

A process is one of three:

- of the tree: selected by -p, -a or a command, or descended from such a process;
- outside the tree: not selected, but it made or touched a region of the tree;
- a candidate: its exec was seen, and user space has not matched it with -p yet. The probes track it meanwhile (WATCHED
  in bpf/wire.h). It then joins the tree or is dropped. A candidate that -p did not match has no record here.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable

from tracer.capture.capture import Capture
from tracer.cgroup import NOWHERE, place
from tracer.clock import Clock
from tracer.proc.bounded import CUT
from tracer.proc.procfs import TICK_NS
from tracer.record.pods import Pods


@dataclasses.dataclass(eq=False)
class TracedProcess:
    """One process: one use of a PID."""

    row: int
    tgid: int
    start_time_ns: int
    parent: TracedProcess | None
    comm: str | None
    command: str
    began_us: int
    """Microseconds since the capture began. -1: it existed before."""
    exited: bool = False
    outside_tree: bool = False
    """Not of the tree, but it made or touched one of the tree's regions."""
    cgroup: str | None = None
    ns_tgid: int | None = None
    _heir: TracedProcess | None = None
    """An ancestor: those in between had exited when heir() last looked."""

    @property
    def key(self) -> tuple[int, int]:
        """What identifies a process: (tgid, start_time_ns)."""
        return self.tgid, self.start_time_ns

    def heir(self) -> TracedProcess | None:
        """The nearest ancestor that is still running, or None."""
        passed: list[TracedProcess] = []
        process: TracedProcess | None = self
        while process and (process.exited or process is self):
            passed.append(process)
            process = process._heir or process.parent
        for below in passed[:-1]:  # exited processes stay so: shorten the way for the next call
            below._heir = process or passed[-1]
        return process


class Processes:
    """All processes of the trace, written into the capture as they are added."""

    def __init__(self, capture: Capture, clock: Clock, hear: Callable[[], None] = lambda: None) -> None:
        """hear: adds the processes that have begun since; called where a PID is not known."""
        self.pods = Pods(capture)
        """The pods that they are in."""
        self._capture = capture
        self._clock = clock
        self._hear = hear
        self._is_hearing = False
        # by tgid: begin times and processes, both in order of time
        self._of: dict[int, tuple[list[int], list[TracedProcess]]] = {}
        self._known: dict[tuple[int, int], TracedProcess] = {}  # by (tgid, start_time_ns)
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
        """Add a process. cgroup: its parent's if it is not known."""
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
        self._enter(process)
        return process

    def _enter(self, process: TracedProcess) -> None:
        self.pods.see(process.cgroup)
        if process.tgid in self._alive:
            self._alive[process.tgid].exited = True  # the kernel reuses a PID only after the exit
        self._alive[process.tgid] = process
        self._known[process.key] = process
        since_us, processes = self._of.setdefault(process.tgid, ([], []))
        place = bisect_right(since_us, process.began_us)
        since_us.insert(place, process.began_us)
        processes.insert(place, process)

    def restore(self, rows: Iterable[sqlite3.Row]) -> dict[int, TracedProcess]:
        """Take in processes that the capture has already, and return them by row. rows: of the table, parents first."""
        found: dict[int, TracedProcess] = {}
        for row in rows:
            began_us = max((row["started_ns"] - self._clock.wall_ns) // 1000, -1) if row["started_ns"] else -1
            process = TracedProcess(
                row["id"],
                row["tgid"],
                row["start_time_ns"],
                found.get(row["parent"]),
                row["comm"],
                row["command"],
                began_us,
                outside_tree=bool(row["outside_tree"]),
                cgroup=row["cgroup"],
                ns_tgid=row["ns_tgid"],
            )
            found[process.row] = process
            self._enter(process)
            if row["exited_ns"] or not row["start_time_ns"]:
                self._exited(process)
        return found

    def alive(self, tgid: int) -> TracedProcess | None:
        """The process that has this PID now, or None if it is not known."""
        return self._alive.get(tgid)

    def all_alive(self) -> list[TracedProcess]:
        """All running processes, those outside the tree too."""
        return list(self._alive.values())

    def tree(self) -> list[TracedProcess]:
        """The running processes of the tree."""
        return [process for process in self._alive.values() if not process.outside_tree]

    def last(self, tgid: int) -> TracedProcess | None:
        """The process that has this PID, or had it last."""
        _, processes = self._of.get(tgid, ([], []))
        return processes[-1] if processes else None

    def find(self, tgid: int, start_time_ns: int) -> TracedProcess | None:
        """The process with this PID and start time, or None. /proc rounds the start time down to a clock tick."""
        found = self._known.get((tgid, start_time_ns))
        if not found and 0 <= start_time_ns - (alive.start_time_ns if (alive := self.alive(tgid)) else -1) < TICK_NS:
            found = alive
        return found

    def at(self, tgid: int, when_us: int) -> TracedProcess:
        """The process that had this PID at a time, in microseconds since the capture began.

        A PID never seen gets a placeholder, which is taken for exited.
        """
        if tgid not in self._of and not self._is_hearing:
            self._is_hearing = True
            self._hear()
            self._is_hearing = False
        since_us, processes = self._of.get(tgid, ([], []))
        return processes[max(bisect_right(since_us, when_us) - 1, 0)] if processes else self._stranger(tgid)

    def during(self, tgid: int, first_us: int, last_us: int) -> TracedProcess | None:
        """The process that had this PID throughout [first_us, last_us]. None: it was more than one."""
        process = self.at(tgid, first_us)
        if len(self._of[tgid][0]) == 1:
            return process
        return process if process is self.at(tgid, last_us) else None

    def _stranger(self, tgid: int) -> TracedProcess:
        process = self.begin(tgid, 0, None, None, "", began_us=-1)
        self._exited(process)  # nothing says that it still runs
        return process

    def last_dead(self, tgid: int) -> TracedProcess:
        """The last process with this PID that has exited."""
        _, processes = self._of.get(tgid, ([], []))
        return next((process for process in reversed(processes) if process.exited), None) or self.at(tgid, -1)

    def prune(self, rows: Collection[int]) -> None:
        """Forget the exited processes that the capture does not have any more. rows: those that it has."""
        over = [process for process in self._known.values() if process.exited and process.row not in rows]
        for process in over:
            del self._known[process.key]
            since_us, processes = self._of[process.tgid]
            place = processes.index(process)
            del since_us[place], processes[place]
            if not processes:
                del self._of[process.tgid]
        for process in self._known.values():
            if process.parent and process.parent.row not in rows:
                process.parent = None
            process._heir = None
        self.pods.prune({process.cgroup for process in self._known.values()})

    def tgids(self) -> Collection[int]:
        """The PIDs of all that are known, running or exited."""
        return self._of.keys()

    def has_dead(self, tgid: int) -> bool:
        """Whether a process with this PID is known that has exited."""
        _, processes = self._of.get(tgid, ([], []))
        return any(process.exited for process in processes)

    def executed(self, process: TracedProcess, comm: str, command: str, time_ns: int) -> None:
        """Record an exec. time_ns: CLOCK_REALTIME."""
        self._capture.insert("exec", time_ns=time_ns, process=process.row, comm=comm, command=command)
        self.rename(process, comm, command)

    def move(self, process: TracedProcess, cgroup: str | None) -> None:
        """Record that its cgroup has changed."""
        if cgroup and cgroup != process.cgroup:
            process.cgroup = cgroup
            self.pods.see(cgroup)
            self._capture.update("process", process.row, cgroup=cgroup)

    def number(self, process: TracedProcess, ns_tgid: int | None) -> None:
        """Record its PID in its own PID namespace."""
        if ns_tgid is not None and ns_tgid != process.ns_tgid:
            process.ns_tgid = ns_tgid
            self._capture.update("process", process.row, ns_tgid=ns_tgid)

    def rename(self, process: TracedProcess, comm: str, command: str) -> None:
        """Record its comm and command line if they have changed. command: empty if it could not be read."""
        if command.endswith(CUT) and process.command.startswith(command[: -len(CUT)]):
            command = process.command  # a longer part of the same command line was read before
        command = command or process.command
        if (comm, command) != (process.comm, process.command):
            process.comm, process.command = comm, command
            self._capture.update("process", process.row, comm=comm, command=command)

    def end(
        self, process: TracedProcess, exited_ns: int | None, status: int | None = None, oom_killed: bool = False
    ) -> None:
        """Record an exit. exited_ns: CLOCK_REALTIME. status: as wait(2) tells it. None: not known."""
        self._exited(process)
        self._capture.update(
            "process", process.row, exited_ns=exited_ns, exit_status=status, oom_killed=int(oom_killed)
        )

    def _exited(self, process: TracedProcess) -> None:
        process.exited = True
        if self._alive.get(process.tgid) is process:
            del self._alive[process.tgid]


def top(processes: Iterable[TracedProcess]) -> TracedProcess | None:
    """The process with the fewest ancestors among these; the first if there are several."""
    found = list(processes)
    among = set(found)
    above: dict[TracedProcess, int] = {}  # how many of its ancestors are among these
    for process in found:
        line = [process]
        while line[-1].parent and line[-1] not in above:
            line.append(line[-1].parent)
        for child, parent in zip(line[-2::-1], line[:0:-1]):
            above[child] = above.get(parent, 0) + (parent in among)
    return min(found, key=lambda process: above.get(process, 0), default=None)


def infer_creator(mappers: Iterable[TracedProcess], created_ns: int | None, clock: Clock) -> TracedProcess | None:
    """Infer who created a region that existed before the trace, or None.

    The processes that map it are taken to have inherited it from one ancestor: the topmost of them, or one that has
    exited. created_ns: the inode's birth time, CLOCK_REALTIME; a process that started later did not create it.
    """
    found = top(mappers)
    if found and created_ns is not None and clock.wall_of_boot(found.start_time_ns) > created_ns + TICK_NS:
        return None
    return found


def stands_for(creator: TracedProcess | None, mappers: Iterable[TracedProcess]) -> TracedProcess | None:
    """The process that a region is attributed to.

    That is the creator while it runs. Otherwise it is the topmost process that maps the region, or the creator's
    nearest running ancestor in the same unit or container: not systemd, nor what keeps a container.
    """
    if not creator or not creator.exited:
        return creator or top(mappers)
    heir = creator.heir()
    return top(mappers) or (heir if heir and _is_one_unit(heir.cgroup, creator.cgroup) else creator)


def _is_one_unit(a: str | None, b: str | None) -> bool:
    return a == b or place(a) == place(b) != NOWHERE

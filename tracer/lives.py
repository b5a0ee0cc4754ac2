"""The processes of the tree, dead and alive. A PID is no identity: it is reused, and time tells whose it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from tracer.bounded import CUT
from tracer.capture import Capture
from tracer.clock import Clock
from tracer.procfs import TICK_NS


@dataclasses.dataclass(eq=False)
class Process:
    """One life of a PID."""

    row: int
    tgid: int
    start_time_ns: int
    parent: Process | None
    comm: str | None
    command: str
    began_us: int
    """since the capture began; -1: it was there before"""
    exited: bool = False
    stranger: bool = False
    """not of the tree: it touched a region of the tree's"""
    cgroup: str | None = None
    ns_tgid: int | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.tgid, self.start_time_ns

    def ancestors(self) -> Iterator[Process]:
        """From the parent up, as far as the tree goes."""
        process = self.parent
        while process:
            yield process
            process = process.parent


class Lives:
    """All of them, entered into the capture as they come."""

    def __init__(self, capture: Capture, clock: Clock) -> None:
        self._capture = capture
        self._clock = clock
        self._of: dict[int, list[Process]] = {}

    def __iter__(self) -> Iterator[Process]:
        return (process for lives in self._of.values() for process in lives)

    def begin(
        self,
        tgid: int,
        start_time_ns: int,
        parent_tgid: int | None,
        comm: str | None,
        command: str,
        began_us: int,
        cgroup: str | None = None,
        stranger: bool = False,
        ns_tgid: int | None = None,
    ) -> Process:
        """cgroup: where it is not known, its parent's."""
        parent = self.alive(parent_tgid) if parent_tgid and not stranger else None
        if parent and parent.stranger:
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
            stranger=stranger,
        )
        process = Process(row, tgid, start_time_ns, parent, comm, command, began_us, False, stranger, cgroup, ns_tgid)
        for earlier in self._of.get(tgid, ()):
            earlier.exited = True  # its PID could not be given away before
        self._of.setdefault(tgid, []).append(process)
        return process

    def alive(self, tgid: int) -> Process | None:
        """The process that has this PID now, if it is of the tree."""
        last = self.last(tgid)
        return last if last and not last.exited else None

    def tree(self) -> list[Process]:
        """Those of the tree that are alive."""
        return [process for process in self if not process.exited and not process.stranger]

    def last(self, tgid: int) -> Process | None:
        """The one that had this PID last, or has it."""
        return self._of.get(tgid, [None])[-1]

    def find(self, tgid: int, start_time_ns: int) -> Process | None:
        return next((process for process in self._of.get(tgid, ()) if process.start_time_ns == start_time_ns), None)

    def at(self, tgid: int, when_us: int) -> Process:
        """Whose this PID was then; somebody unknown, if it was never heard of."""
        lives = self._of.get(tgid, [])
        earlier = [process for process in lives if process.began_us <= when_us]
        return earlier[-1] if earlier else lives[0] if lives else self._stranger(tgid)

    def _stranger(self, tgid: int) -> Process:
        process = self.begin(tgid, 0, None, None, "", began_us=-1)
        process.exited = True  # for all that is known
        return process

    def last_dead(self, tgid: int) -> Process:
        """The last one that had this PID and has it no more."""
        dead = [process for process in self._of.get(tgid, ()) if process.exited]
        return dead[-1] if dead else self.at(tgid, -1)

    def executed(self, process: Process, comm: str, command: str, time_ns: int) -> None:
        """It runs this now. time_ns: CLOCK_REALTIME."""
        self._capture.insert("exec", time_ns=time_ns, process=process.row, comm=comm, command=command)
        self.rename(process, comm, command)

    def move(self, process: Process, cgroup: str | None) -> None:
        if cgroup and cgroup != process.cgroup:
            process.cgroup = cgroup
            self._capture.update("process", process.row, cgroup=cgroup)

    def number(self, process: Process, ns_tgid: int | None) -> None:
        """Its PID in its own PID namespace."""
        if ns_tgid is not None and ns_tgid != process.ns_tgid:
            process.ns_tgid = ns_tgid
            self._capture.update("process", process.row, ns_tgid=ns_tgid)

    def rename(self, process: Process, comm: str, command: str) -> None:
        if command.endswith(CUT) and process.command.startswith(command[: -len(CUT)]):
            command = process.command  # more of the same was read before
        if command and (comm, command) != (process.comm, process.command):
            process.comm, process.command = comm, command
            self._capture.update("process", process.row, comm=comm, command=command)

    def end(self, process: Process, exited_ns: int) -> None:
        """exited_ns: CLOCK_REALTIME."""
        process.exited = True
        self._capture.update("process", process.row, exited_ns=exited_ns)


def top(processes: Iterable[Process]) -> Process | None:
    """The one that the most others descend from; the first of several."""
    found = list(processes)
    return min(found, key=lambda process: len(set(map(id, process.ancestors())) & set(map(id, found))), default=None)


def infer_creator(mappers: Iterable[Process], created_ns: int | None, clock: Clock) -> Process | None:
    """Who made a region that was there before: those who map it have it from one ancestor, the top of them or one that
    has exited. created_ns: the inode's birth by the wall clock; a process that is younger did not make it.
    """
    found = top(mappers)
    if found and created_ns is not None and clock.wall_of_boot(found.start_time_ns) > created_ns + TICK_NS:
        return None
    return found


def stands_for(creator: Process | None, mappers: Iterable[Process]) -> Process | None:
    """Whom a region rolls up to: its creator, or for a dead one the top of those who map it, or its next of kin."""
    if creator and not creator.exited:
        return creator
    kin = (process for process in (creator.ancestors() if creator else ()) if not process.exited)
    return top(mappers) or next(kin, creator)

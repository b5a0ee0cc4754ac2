"""The processes of the tree, dead and alive. A PID is no identity: it is reused, and time tells whose it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from tracer.capture import Capture


@dataclasses.dataclass
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

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
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
    ) -> Process:
        parent = self.alive(parent_tgid) if parent_tgid else None
        row = self._capture.insert(
            "process",
            tgid=tgid,
            start_time_ns=start_time_ns,
            parent=parent.row if parent else None,
            parent_tgid=parent_tgid,
            comm=comm,
            command=command,
        )
        process = Process(row, tgid, start_time_ns, parent, comm, command, began_us)
        for earlier in self._of.get(tgid, ()):
            earlier.exited = True  # its PID could not be given away before
        self._of.setdefault(tgid, []).append(process)
        return process

    def alive(self, tgid: int) -> Process | None:
        """The process that has this PID now, if it is of the tree."""
        last = self._of.get(tgid, [None])[-1]
        return last if last and not last.exited else None

    def find(self, tgid: int, start_time_ns: int) -> Process | None:
        return next((process for process in self._of.get(tgid, ()) if process.start_time_ns == start_time_ns), None)

    def at(self, tgid: int, when_us: int) -> Process:
        """Whose this PID was then. A process that was never heard of is entered as unknown."""
        lives = self._of.get(tgid, [])
        earlier = [process for process in lives if process.began_us <= when_us]
        if earlier:
            return earlier[-1]
        return lives[0] if lives else self.begin(tgid, 0, None, None, "", when_us)

    def rename(self, process: Process, comm: str, command: str) -> None:
        if command and (comm, command) != (process.comm, process.command):
            process.comm, process.command = comm, command
            self._capture.update("process", process.row, comm=comm, command=command)

    def end(self, process: Process, exited_ns: int) -> None:
        """exited_ns: CLOCK_REALTIME."""
        process.exited = True
        self._capture.update("process", process.row, exited_ns=exited_ns)

    def forget(self, process: Process) -> None:
        """It turned out not to be of the tree, and touched nothing."""
        self._of[process.tgid].remove(process)
        self._capture.delete("process", process.row)


def top(processes: Iterable[Process]) -> Process | None:
    """The one that the most others descend from; the first of several."""
    found = list(processes)
    return min(found, key=lambda process: len(set(map(id, process.ancestors())) & set(map(id, found))), default=None)

"""Turns the BPF maps' records of processes and regions into events for what changed. Pure: no I/O."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import NamedTuple

from tracer import wire
from tracer.kernel.events import Event, Exec, Exit, Fork, Head, OomKill, RegionGone, RegionMet
from tracer.proc.procfs import titles
from tracer.proc.shmem import RegionKey

NR_NUMBERS, NR_TEXTS = 13, 4  # fields of struct process that user space reads


class KernelProcess(NamedTuple):
    """struct process of bpf/wire.h. Start times are CLOCK_BOOTTIME, all other times CLOCK_MONOTONIC."""

    start_time_ns: int
    parent_start_time_ns: int
    """0: the parent is not known."""
    began_ns: int
    """0: user space added the process."""
    executed_ns: int
    ended_ns: int
    earlier_ns: int
    """The first exec that may not have been read yet, if a later one replaced it. 0: there is none."""
    read_ns: int
    number: int
    tgid: int
    parent_tgid: int
    kind: int
    """wire.OF_TREE, WATCHED (a candidate) or OUTSIDE_TREE."""
    title_bytes: int
    """Size of the whole command line; `title` holds only its beginning. 0: it was not read."""
    exit_status: int
    """As wait(2) tells it, with wire.EXITED and perhaps wire.OOM_KILLED. 0: unknown."""
    comm: bytes
    title: bytes
    earlier_comm: bytes
    earlier_title: bytes

    @classmethod
    def unpack(cls, raw: bytes) -> KernelProcess:
        """Decode a struct process."""
        fields = wire.PROCESS.unpack(raw)
        return cls(*fields[:NR_NUMBERS], *fields[-NR_TEXTS:])  # those between are recycle()'s

    @property
    def key(self) -> tuple[int, int]:
        """(tgid, start_time_ns)."""
        return self.tgid, self.start_time_ns

    def head(self, time_ns: int) -> Head:
        """The head of an event of this process at a time."""
        return Head(time_ns, self.start_time_ns, self.tgid)

    def titles(self) -> tuple[str, str]:
        """(title, command), as procfs.titles() returns them."""
        more = b" " if self.title_bytes > wire.TITLE_BYTES else b""
        return titles(self.title[: self.title_bytes] + more, wire.TITLE_BYTES)


class KernelRegion(NamedTuple):
    """struct region of bpf/wire.h. _us: microseconds since the capture began; _ns: CLOCK_MONOTONIC."""

    key: RegionKey
    id: int
    size_bytes: int
    """When last measured, or at its end; so are pages and swapped_pages."""
    pages: int
    swapped_pages: int
    peak_pages: int
    start_pages: int
    gone_us: int
    torn_pages: int
    made_ns: int
    """0: its creation was not seen."""
    maker: tuple[int, int]
    """(tgid, start_time_ns)."""
    used_ns: int
    """When the tree first created, mapped or wrote it. 0: not yet."""
    user: tuple[int, int]
    """Which process did so. (0, 0): user space added the region."""
    huge: bool
    order: int
    """Of hugetlbfs: its ledger counts pages of 1 << order."""
    deep: bool
    """It is not in the root directory of its file system."""
    user_kind: int
    """Of the user, as KernelProcess.kind."""
    name: str

    @classmethod
    def unpack(cls, raw: bytes) -> KernelRegion:
        """Decode a struct region."""
        ino, generation, dev, *numbers, name = wire.REGION.unpack(raw)
        _, *now, peak, start, gone_us = numbers[:7]
        *last, torn, _ = numbers[7:12]
        made_ns, maker_ns, used_ns, user_ns, *rest = numbers[12:]
        maker, user, number, huge, order, name_bytes, deep, user_kind = rest
        size_bytes, pages, swapped_pages = last if gone_us else now
        return cls(
            key=region_key(ino, generation, dev),
            id=number,
            size_bytes=size_bytes,
            pages=pages,
            swapped_pages=swapped_pages,
            peak_pages=peak,
            start_pages=start,
            gone_us=gone_us,
            torn_pages=torn,
            made_ns=made_ns,
            maker=(maker, maker_ns),
            used_ns=used_ns,
            user=(user, user_ns),
            huge=bool(huge),
            order=order,
            deep=bool(deep),
            user_kind=user_kind,
            name=text(name[:name_bytes]),
        )


def oom_kill(raw: bytes) -> OomKill:
    """Decode a struct oom."""
    time_ns, start_time_ns, number, cgroup, limit_cgroup, limit_pages, *rss_pages, tgid, _, comm = wire.OOM.unpack(raw)
    known = [None if pages == wire.UNKNOWN_PAGES else pages for pages in rss_pages]
    return OomKill(Head(time_ns, start_time_ns, tgid), text(comm), number, cgroup, limit_cgroup, limit_pages, *known)


def text(raw: bytes) -> str:
    """Decode a C string."""
    return raw.split(b"\0", 1)[0].decode(errors="backslashreplace")


def user_dev(dev: int) -> int:
    """Convert the kernel's dev_t (major << 20 | minor) to that of os.makedev()."""
    return os.makedev(dev >> 20, dev & 0xFFFFF)


def kernel_dev(dev: int) -> int:
    """Convert a device number of os.makedev() to the kernel's dev_t."""
    return os.major(dev) << 20 | os.minor(dev)


def region_key(ino: int, generation: int, dev: int) -> RegionKey:
    """The key of struct region of bpf/wire.h. hugetlbfs has no generation numbers."""
    return RegionKey(user_dev(dev), ino, generation or None)


class News:
    """Remembers which state of each process was already reported."""

    def __init__(self) -> None:
        self._told: dict[int, KernelProcess] = {}  # process number to the state last reported
        self._numbers: dict[tuple[int, int], int] = {}  # by (tgid, start_time_ns)

    def know(self, process: KernelProcess) -> None:
        """Record that the current state of a process has been reported."""
        self._told[process.number] = process
        self._numbers[process.key] = process.number

    def lacks_a_parent(self, processes: Collection[KernelProcess]) -> bool:
        """Whether one of these processes has a parent that is neither known nor among them."""
        keys = {process.key for process in processes}
        parents = {(each.parent_tgid, each.parent_start_time_ns) for each in processes if each.parent_start_time_ns}
        return any(parent not in self._numbers for parent in parents - keys)

    def begun(self, processes: Iterable[KernelProcess]) -> list[Fork | Exec]:
        """The forks and execs not yet reported, ordered by time."""
        found: list[Fork | Exec] = []
        for process in processes:
            known = self._told.get(process.number)
            if known and known.executed_ns == process.executed_ns:
                continue
            # A candidate since its exec, or a process outside the tree: reported by its exec, or when it touches a
            # region.
            if not known and process.began_ns and (process.parent_start_time_ns or process.kind == wire.OF_TREE):
                parent = process.parent_tgid, process.parent_start_time_ns
                watched = process.kind == wire.WATCHED
                head = process.head(process.began_ns)
                found.append(Fork(head, *parent, text(process.comm), process.number, watched))
            if process.earlier_ns > (known.executed_ns if known else 0):
                title = titles(process.earlier_title, wire.EARLIER_BYTES)
                found.append(Exec(process.head(process.earlier_ns), text(process.earlier_comm), *title, process.number))
            if process.executed_ns:
                head = process.head(process.executed_ns)
                found.append(Exec(head, text(process.comm), *process.titles(), process.number))
            self.know(process if process.executed_ns else process._replace(title=b""))  # a Fork tells no title
        return sorted(found, key=lambda event: event.head.time_ns)

    def ended(self, process: KernelProcess) -> Exit:
        """Forget a process that has ended, and return its Exit."""
        told = self._told.pop(process.number)
        self._numbers.pop(process.key, None)
        command = "" if told.title == process.title else process.titles()[1]
        status = process.exit_status & (wire.EXITED - 1) if process.exit_status else None
        oom_killed = bool(process.exit_status & wire.OOM_KILLED)
        return Exit(process.head(process.ended_ns), text(process.comm), command, status, oom_killed)

    def number(self, tgid: int, start_time_ns: int) -> int | None:
        """The number of a process that has not ended, or None."""
        return self._numbers.get((tgid, start_time_ns))


def met(region: KernelRegion) -> list[Event]:
    """The events of a region that changed."""
    found: list[Event] = []
    if region.used_ns:
        (tgid, start_time_ns), (maker, creator_start_ns) = region.user, region.maker
        made = Head(region.made_ns, creator_start_ns, maker) if region.made_ns else None
        found.append(
            RegionMet(
                Head(region.used_ns, start_time_ns, tgid),
                region.key,
                region.id,
                region.size_bytes,
                region.huge,
                region.deep,
                region.name,
                made,
                region.user_kind == wire.OF_TREE,
            )
        )
    return found + [RegionGone(region.id)] * bool(region.gone_us)

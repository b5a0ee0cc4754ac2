"""What the kernel side's maps say: processes and regions as they stand, and what of it is new. Pure."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import NamedTuple

from tracer import wire
from tracer.kernel.events import Event, Exec, Exit, Fork, Head, RegionGone, RegionMet
from tracer.proc.procfs import titles
from tracer.proc.shmem import RegionKey


class KernelProcess(NamedTuple):
    """struct process of bpf/wire.h. Times are CLOCK_MONOTONIC, but for the start times, which are CLOCK_BOOTTIME."""

    start_time_ns: int
    parent_start_time_ns: int
    """0: it is not known whose child it is"""
    began_ns: int
    """0: user space has entered it"""
    executed_ns: int
    ended_ns: int
    earlier_ns: int
    """an exec before the last, the first that may not have been read of; 0: there is none"""
    read_ns: int
    number: int
    tgid: int
    parent_tgid: int
    kind: int
    """wire.OF_TREE, WATCHED, OUTSIDE_TREE"""
    title_bytes: int
    """of the whole command line, of which title has the beginning; 0: it was not read"""
    reserved: int
    comm: bytes
    title: bytes
    earlier_comm: bytes
    earlier_title: bytes

    @classmethod
    def unpack(cls, raw: bytes) -> KernelProcess:
        return cls(*wire.PROCESS.unpack(raw))

    @property
    def key(self) -> tuple[int, int]:
        return self.tgid, self.start_time_ns

    def head(self, time_ns: int) -> Head:
        return Head(time_ns, self.start_time_ns, self.tgid)

    def titles(self) -> tuple[str, str]:
        """(title, command), as procfs.titles."""
        more = b" " if self.title_bytes > wire.TITLE_BYTES else b""
        return titles(self.title[: self.title_bytes] + more, wire.TITLE_BYTES)


class KernelRegion(NamedTuple):
    """struct region of bpf/wire.h. Pages are of 4 KiB; ..._us are microseconds since the capture began, ..._ns
    CLOCK_MONOTONIC."""

    key: RegionKey
    id: int
    size_bytes: int
    pages: int
    swapped_pages: int
    peak_pages: int
    start_pages: int
    gone_us: int
    torn_pages: int
    made_ns: int
    """0: nobody saw it made"""
    maker: tuple[int, int]
    """tgid, start_time_ns"""
    mapped_ns: int
    """made, or first mapped, by the tree; 0: not yet"""
    mapper: tuple[int, int]
    """who did that; no process: user space has entered the region"""
    huge: bool
    order: int
    """of the pages of a hugetlbfs, by which its ledger counts"""
    name: str

    @classmethod
    def unpack(cls, raw: bytes) -> KernelRegion:
        ino, generation, dev, *numbers, name = wire.REGION.unpack(raw)
        _, size_bytes, pages, swapped, peak, start, gone_us, torn, _, *rest = numbers
        made_ns, maker_ns, mapped_ns, mapper_ns, maker, mapper, number, huge, order, name_bytes = rest
        return cls(
            key=region_key(ino, generation, dev),
            id=number,
            size_bytes=size_bytes,
            pages=pages,
            swapped_pages=swapped,
            peak_pages=peak,
            start_pages=start,
            gone_us=gone_us,
            torn_pages=torn,
            made_ns=made_ns,
            maker=(maker, maker_ns),
            mapped_ns=mapped_ns,
            mapper=(mapper, mapper_ns),
            huge=bool(huge),
            order=order,
            name=text(name[:name_bytes]),
        )


def text(raw: bytes) -> str:
    """A C string."""
    return raw.split(b"\0", 1)[0].decode(errors="backslashreplace")


def user_dev(dev: int) -> int:
    """The kernel's dev_t (major << 20 | minor) as os.makedev would have it."""
    return os.makedev(dev >> 20, dev & 0xFFFFF)


def region_key(ino: int, generation: int, dev: int) -> RegionKey:
    """From bpf/wire.h's; hugetlbfs knows no generations."""
    return RegionKey(user_dev(dev), ino, generation or None)


class News:
    """What of the processes has been told already."""

    def __init__(self) -> None:
        self._told: dict[int, KernelProcess] = {}  # by number: as it was then
        self._numbers: dict[tuple[int, int], int] = {}  # by key

    def know(self, process: KernelProcess) -> None:
        """All that it is by now has been told."""
        self._told[process.number] = process
        self._numbers[process.key] = process.number

    def lacks_a_parent(self, processes: Collection[KernelProcess]) -> bool:
        """Whether some have one that is neither known nor among them."""
        keys = {process.key for process in processes}
        parents = {(each.parent_tgid, each.parent_start_time_ns) for each in processes if each.parent_start_time_ns}
        return any(parent not in self._numbers for parent in parents - keys)

    def begun(self, processes: Iterable[KernelProcess]) -> list[Fork | Exec]:
        """Forks and execs, in the order of time."""
        found: list[Fork | Exec] = []
        for process in processes:
            known = self._told.get(process.number)
            if known and known.executed_ns == process.executed_ns:
                continue
            # one that is watched since its exec, and a stranger, are told of when more is known
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
            self.know(process)
        return sorted(found, key=lambda event: event.head.time_ns)

    def ended(self, process: KernelProcess) -> Exit:
        """It is not known any more."""
        told = self._told.pop(process.number)
        self._numbers.pop(process.key, None)
        command = "" if told.title == process.title else process.titles()[1]
        return Exit(process.head(process.ended_ns), text(process.comm), command)

    def number(self, tgid: int, start_time_ns: int) -> int | None:
        """Of a process that has not ended."""
        return self._numbers.get((tgid, start_time_ns))


def met(region: KernelRegion) -> list[Event]:
    """What a region that has changed has come to."""
    found: list[Event] = []
    if region.mapped_ns:
        (tgid, start_time_ns), (maker, creator_start_ns) = region.mapper, region.maker
        made = Head(region.made_ns, creator_start_ns, maker) if region.made_ns else None
        head = Head(region.mapped_ns, start_time_ns, tgid)
        found.append(RegionMet(head, region.key, region.id, region.size_bytes, region.huge, region.name, made))
    return found + [RegionGone(region.id)] * bool(region.gone_us)

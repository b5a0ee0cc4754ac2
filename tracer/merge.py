"""Merge the captures of many hosts into a fleet: which of each host count, and what is there twice."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tracer import account, alike, model, sessions
from tracer.capture.capture import Capture, is_capture
from tracer.capture.fleet import MAX_HOST, Inode, More, NoRoomError, Writer
from tracer.errors import ShmtraceError
from tracer.model import SAME_BOOT_NS, Session

SUFFIX = ".capture"


class Merged(NamedTuple):
    """What has become of some files."""

    nr_captures: int
    hosts: Sequence[str]
    problems: Sequence[str]
    """a line for each file that is not in the fleet"""
    remarks: Sequence[str]
    """lines about the others: what is there twice, was read in part, or has the name of another machine"""


class Taken(NamedTuple):
    """A capture that is in the fleet."""

    row: int
    """in its table session"""
    path: Path
    host: str
    started_ns: int
    ended_ns: int
    part: int | None
    booted_ns: float | None
    """None: unknown"""

    @property
    def trace(self) -> tuple[str, int]:
        """The same of all parts of a trace."""
        return self.host, self.started_ns


class Looks(NamedTuple):
    """What regions are called by; in the order of LOOKS."""

    row: int
    parent: int | None
    kind: str
    name: str
    size_bytes: int | None
    address: int | None
    hint: str | None


LOOKS = "SELECT id, parent, kind, name, size_bytes, address, hint FROM region"


def merge(paths: Iterable[Path], into: Path) -> Merged:
    """Merge captures into a new fleet, in an empty file. What cannot be read is left out. Raises NoRoomError."""
    found: dict[bytes, Taken] = {}
    problems: list[str] = []
    remarks: list[str] = []
    with Writer(into) as writer:
        for path in paths:
            try:
                with Capture.open(path) as capture:
                    session = sessions.read(capture)
                    key = hashlib.sha256(repr(session).encode()).digest()
                    if key in found:
                        remarks.append(f"{path} is the capture that {found[key].path} is, too: it is merged once")
                        continue
                    found[key] = _take(writer, path, capture, session)
                    remarks += [f"{path}: {remark}" for remark in capture.remarks]
            except NoRoomError:
                raise
            except ShmtraceError as error:
                problems.append(str(error))
        renamed = machines(found.values())
        hosts: dict[str, list[Taken]] = {}
        for one in found.values():
            hosts.setdefault(renamed.get(one.row, one.host), []).append(one)
        lasting = [concurrent(some) for some in hosts.values()]
        regions = writer.regions([one.row for some in lasting if len(some) > 1 for one in some])
        writer.finish([one.row for some in lasting for one in counted(some, regions)], renamed)
    remarks += [
        f"{one.path} is of another machine of that name, for their captures overlap: here it is {renamed[one.row]}"
        for one in found.values()
        if one.row in renamed
    ]
    return Merged(len(found), list(hosts), problems, remarks)


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """The paths; of a directory the files in it that are called .capture or begin like one, by name.

    Raises ShmtraceError where a directory cannot be read.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        try:
            with os.scandir(path) as entries:
                inside = sorted(Path(entry.path) for entry in entries if _is_file(entry))
        except OSError as error:
            raise ShmtraceError(
                f"{path} cannot be read ({error.strerror})", "name its files, or another directory"
            ) from None
        yield from (each for each in inside if each.suffix == SUFFIX or _is_capture(each))


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link of which that cannot be said: opening it says more."""
    try:
        return entry.is_file()
    except OSError:  # it leads back to itself, or where this user may not look
        return True


def _is_capture(path: Path) -> bool:
    try:
        return is_capture(path)
    except OSError:
        return False


def _take(writer: Writer, path: Path, capture: Capture, session: Session) -> Taken:
    if len(session.host) > MAX_HOST:
        raise capture.damaged(f"session.host has {len(session.host)} characters")
    processes = account.read_processes(capture)
    regions = map(Looks._make, capture.each(LOOKS))
    more: More = {
        "process": {row: (alike.of_process(one), one.unit) for row, one in processes.items()},
        "region": {
            region.row: (alike.segment(region, processes[region.parent] if region.parent else None),)
            for region in regions
        },
    }
    host = session.host or "?"
    row, booted_ns = writer.add(capture, host, more), model.booted_ns(processes.values())
    return Taken(row, path, host, session.started_ns, session.ended_ns, session.part, booted_ns)


# ---- which is which ----


def concurrent(of_host: Iterable[Taken]) -> list[Taken]:
    """The one whose trace ended last, first; then those that had not ended when it began, as of another service. Of the
    parts of one trace the last.
    """
    last = {one.trace: one for one in sorted(of_host, key=lambda one: (one.part or 0, one.ended_ns, one.row))}
    newest, *others = sorted(last.values(), key=lambda one: (one.ended_ns, one.row), reverse=True)
    return [newest, *(one for one in others if one.ended_ns > newest.started_ns)]


def counted(lasting: Sequence[Taken], regions: Mapping[int, set[Inode]]) -> list[Taken]:
    """Of concurrent() those that can be added up: made at the same time, and of different regions. regions: by row, of
    all if there are several.
    """
    found: list[Taken] = []
    began_ns: float = -math.inf
    seen: set[Inode] = set()
    for one in lasting:
        its_own = regions.get(one.row, set())
        if one.ended_ns > began_ns and seen.isdisjoint(its_own):
            found.append(one)
            began_ns = max(began_ns, one.started_ns)
            seen |= its_own
    return found


def machines(taken: Iterable[Taken]) -> dict[int, str]:
    """New names of hosts, by row, where more than one machine has the name: web1 (2).

    A machine is in one boot at a time: captures of different boots whose times overlap are of different machines. Of
    these the one that booted first keeps the name. Where no boot is known, the name is believed.
    """
    traces: dict[tuple[str, int], list[Taken]] = {}
    for one in taken:
        traces.setdefault(one.trace, []).append(one)
    by_boot: dict[str, list[tuple[float, list[Taken]]]] = {}
    for (host, _), parts in traces.items():
        booted = [one.booted_ns for one in parts if one.booted_ns is not None]
        if booted:
            by_boot.setdefault(host, []).append((min(booted), parts))
    names = {host for host, _ in traces}
    renamed: dict[int, str] = {}
    for host, of_host in by_boot.items():
        _, *others = _apart(_boots(of_host))
        free = (name for number in itertools.count(2) for name in [f"{host} ({number})"] if name not in names)
        for of_machine, name in zip(others, free):
            renamed.update((one.row, name) for one in of_machine)
    return renamed


def _boots(traces: Iterable[tuple[float, list[Taken]]]) -> list[list[Taken]]:
    """The captures of each boot, in the order of boots. traces: each with when its host was booted."""
    boots: list[list[Taken]] = []
    last_ns = -math.inf
    for booted_ns, parts in sorted(traces, key=lambda trace: trace[0]):
        if booted_ns - last_ns >= SAME_BOOT_NS:
            boots.append([])
        boots[-1] += parts
        last_ns = booted_ns
    return boots


def _apart(boots: Iterable[list[Taken]]) -> list[list[Taken]]:
    """The captures of each machine: a boot is of one whose earlier boots are over, if there is one."""
    found: list[list[Taken]] = []
    over: list[tuple[int, int]] = []  # of each machine when its last capture ended, and its place: a heap
    for boot in boots:
        if over and over[0][0] <= min(one.started_ns for one in boot):
            _, place = heapq.heappop(over)
        else:
            place = len(found)
            found.append([])
        found[place] += boot
        heapq.heappush(over, (max(one.ended_ns for one in boot), place))
    return found

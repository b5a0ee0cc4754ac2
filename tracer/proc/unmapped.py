"""Shared memory that no process maps: unattached SysV segments, files held only by descriptors, and files in tmpfs
mounts.

Memory in flight over a socket and the kernel's own (GEM objects, zram) has no name. It is what Shmem of /proc/meminfo
has beyond all of these.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from tracer.proc import shmem, tmpfs
from tracer.proc.blocking import each, promptly
from tracer.proc.procfs import Proc
from tracer.proc.shmem import DELETED, HUGETLBFS_MAGIC, RegionKey

PATIENCE_S = 5.0
MOST_FILES = 5  # reported per tmpfs


class UnmappedMemory(NamedTuple):
    """Shared memory that no process maps."""

    kind: str
    """sysv: an unattached segment.

    held: only open descriptors refer to it. tmpfs: the files of one that are neither mapped nor held. file: one of its
    largest files, included in that sum.
    """
    name: str
    """Of the segment or the file, or the mount point of the tmpfs."""
    reach: str
    """How to access it from here: a shmid, /proc/PID/fd/N, or a path."""
    allocated_bytes: int
    swapped_bytes: int | None = None
    """Part of the allocated bytes; None: unknown."""
    size_bytes: int | None = None
    """For a tmpfs its limit; None: no limit."""
    creator: int | None = None
    """tgid, running or exited."""
    last_user: int | None = None
    """tgid, of a SysV segment."""
    used_ns: int | None = None
    """CLOCK_REALTIME of the last attach or detach of a SysV segment."""
    holders: tuple[int, ...] = ()
    """tgids of the processes that hold it."""
    files: int | None = None
    """For a tmpfs: number of inodes."""


class Found(NamedTuple):
    """What was found, and what could not be read."""

    unmapped: list[UnmappedMemory]
    """Largest first within a kind."""
    warnings: list[str]


def find(
    proc: Proc,
    mapped: Collection[RegionKey],
    segments: Collection[int],
    allocated_bytes: dict[int, int],
    only: tmpfs.Place | None = None,
    patience_s: float = PATIENCE_S,
) -> Found:
    """Search the whole host, except segments of other IPC namespaces.

    mapped: regions accounted for elsewhere. segments: shmids of the SysV segments among them. allocated_bytes: what
    these regions have allocated, by device. only: search this tmpfs alone; it is reported even with nothing in it.
    patience_s: what takes longer is left out, with a warning.
    """
    end_s = time.monotonic() + patience_s
    warnings: list[str] = []
    held, by_dev = _held(proc, set(mapped), only, end_s, warnings)
    elsewhere = {dev: allocated_bytes.get(dev, 0) + by_dev.get(dev, 0) for dev in {*allocated_bytes, *by_dev}}
    places = [only] if only else tmpfs.places(proc)
    files = _files(places, elsewhere, {(key.dev, key.ino) for key in mapped}, end_s, warnings)
    alone = sorted([*(() if only else _segments(proc, segments)), *held], key=lambda each: -each.allocated_bytes)
    return Found([*alone, *(row for row in files if row.allocated_bytes or only)], warnings)


def _segments(proc: Proc, known: Collection[int]) -> Iterator[UnmappedMemory]:
    for segment in proc.sysv_segments().values():
        if not segment.attached and segment.shmid not in known:
            yield UnmappedMemory(
                "sysv",
                f"SysV {segment.key:#010x}",
                str(segment.shmid),
                segment.allocated_bytes,
                segment.swapped_bytes,
                segment.size_bytes,
                segment.creator,
                segment.last_user or None,
                segment.used_ns or None,
            )


# ---- what only descriptors hold ----


def _held(
    proc: Proc, mapped: set[RegionKey], only: tmpfs.Place | None, end_s: float, warnings: list[str]
) -> tuple[list[UnmappedMemory], dict[int, int]]:
    """The held files, and their allocated bytes by device."""
    found: dict[RegionKey, tuple[Path, str, set[int]]] = {}
    tgids = proc.tgids()
    for nr_looked, (tgid, theirs) in enumerate(
        each(proc.folder, lambda tgid: list(_unnamed(proc, tgid, end_s)), tgids)
    ):
        if time.monotonic() > end_s:
            warnings.append(f"the open files of {len(tgids) - nr_looked} processes were not looked at")
            break
        for key, path, name in theirs or ():
            if key not in mapped and (not only or only.dev == key.dev):
                found.setdefault(key, (path, name, set()))[2].add(tgid)
    held: list[UnmappedMemory] = []
    by_dev: dict[int, int] = {}
    for key, (path, name, holders) in found.items():
        stat = shmem.region_stat(path)
        if stat and shmem.identify(path) == key:
            residency = shmem.residency(path, key)
            by_dev[key.dev] = by_dev.get(key.dev, 0) + stat.allocated_bytes
            held.append(
                UnmappedMemory(
                    "held",
                    name,
                    str(path),
                    stat.allocated_bytes,
                    residency.swapped_bytes,
                    stat.size_bytes,
                    holders=tuple(sorted(holders)),
                )
            )
    return held, by_dev


def _unnamed(proc: Proc, tgid: int, end_s: float) -> Iterator[tuple[RegionKey, Path, str]]:
    """The open tmpfs files of a process that have no name, or no longer have one."""
    for descriptor, name in proc.descriptors(tgid):
        if time.monotonic() > end_s:
            return
        if name.startswith("/") and name.endswith(DELETED):
            path = Path(descriptor)
            key = shmem.identify(path)
            if key and _is_shmem(proc, tgid, key, path):
                yield key, path, shmem.path_text(name).removesuffix(DELETED)


def _is_shmem(proc: Proc, tgid: int, key: RegionKey, path: Path) -> bool:
    """Whether Shmem counts the file. hugetlb is counted separately."""
    magic = shmem.internal_file_systems().get(key.dev)
    if magic or key.generation is None:
        return magic is not None and magic != HUGETLBFS_MAGIC
    return proc.mounts.kind(tgid, key.dev) in tmpfs.KINDS or shmem.is_tmpfs(path)


# ---- the files of each tmpfs ----


class _Files(NamedTuple):
    """What one tmpfs contains."""

    allocated_bytes: int
    limit_bytes: int | None
    nr_inodes: int
    found: tmpfs.Files


def _files(
    places: list[tmpfs.Place],
    elsewhere: dict[int, int],
    mapped: set[tuple[int, int]],
    end_s: float,
    warnings: list[str],
) -> list[UnmappedMemory]:
    """elsewhere: bytes by device that are accounted for elsewhere. mapped: (dev, ino) of mapped files."""
    found = []
    unreached = []
    for place in places:
        patience_s = min(tmpfs.WALK_S, max((end_s - time.monotonic()) / 2, 0))
        try:
            files = promptly(place.process, _look, place, mapped, patience_s)
        except OSError:  # hidden by another mount, gone, or in a place that does not answer
            unreached.append(place.name())
            continue
        allocated_bytes = max(files.allocated_bytes - elsewhere.get(place.dev, 0), 0)
        name, reach = place.name(), place.reach()
        found.append(
            UnmappedMemory("tmpfs", name, reach, allocated_bytes, None, files.limit_bytes, files=files.nr_inodes)
        )
        found += [
            UnmappedMemory("file", place.name(file.path), place.reach(file.path), file.allocated_bytes)
            for file in files.found.largest
        ]
        if not files.found.is_whole:
            warnings.append(f"{name} has more files than could be looked at: the largest may not be among them")
    if unreached:
        more = f" and {len(unreached) - 1} more" * (len(unreached) > 1)
        warnings.append(f"the tmpfs on {unreached[0]}{more} could not be reached: what it has is in the rest")
    return found


def _look(place: tmpfs.Place, mapped: set[tuple[int, int]], patience_s: float) -> _Files:
    """Raises OSError where the tmpfs is gone, or hidden by another mount."""
    with place.opened() as root:
        system = os.fstatvfs(root)
        found = tmpfs.largest(place, root, MOST_FILES, mapped, patience_s)
        limit_bytes = system.f_blocks * system.f_frsize or None
        used_bytes = (system.f_blocks - system.f_bfree) * system.f_frsize if limit_bytes else found.allocated_bytes
        nr_inodes = system.f_files - system.f_ffree if system.f_files else found.nr_files
        return _Files(used_bytes, limit_bytes, nr_inodes, found)

"""Shared memory that no process maps: unattached SysV segments, files held only by descriptors, and files in tmpfs
mounts.

Memory in flight over a socket and the kernel's own (GEM objects, zram) has no name. It is what Shmem of /proc/meminfo
has beyond all of these.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import heapq
import os
import struct
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from tracer.proc import bounded, shmem
from tracer.proc.blocking import each, promptly
from tracer.proc.mounts import mounts
from tracer.proc.procfs import Proc
from tracer.proc.shmem import DELETED, HUGETLBFS_MAGIC, PATH_BYTES, RegionKey

SYS_OPENAT2 = 437  # the same number on every architecture, v5.6
RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 4, 8, 16
OPEN_HOW = struct.Struct("=QQQ")
TMPFS = ("tmpfs", "devtmpfs")
MAX_NAMESPACES = 4096  # mount namespaces
MAX_TMPFS = 4096
MAX_FILES = 200_000  # and directories, looked at per tmpfs
PATIENCE_S = 5.0
WALK_S = 0.5  # per tmpfs
MOST_FILES = 5  # reported per tmpfs

_libc = ctypes.CDLL(None, use_errno=True)


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
    patience_s: float = PATIENCE_S,
) -> Found:
    """Search the whole host, except segments of other IPC namespaces.

    mapped: regions accounted for elsewhere. segments: shmids of the SysV segments among them. allocated_bytes: what
    these regions have allocated, by device. patience_s: what takes longer is left out, with a warning.
    """
    end_s = time.monotonic() + patience_s
    warnings: list[str] = []
    held, by_dev = _held(proc, set(mapped), end_s, warnings)
    elsewhere = {dev: allocated_bytes.get(dev, 0) + by_dev.get(dev, 0) for dev in {*allocated_bytes, *by_dev}}
    files = _files(proc, elsewhere, {(key.dev, key.ino) for key in mapped}, end_s, warnings)
    alone = sorted([*_segments(proc, segments), *held], key=lambda each: -each.allocated_bytes)
    return Found([*alone, *files], warnings)


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
    proc: Proc, mapped: set[RegionKey], end_s: float, warnings: list[str]
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
            if key not in mapped:
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
                yield key, path, _text(name).removesuffix(DELETED)


def _is_shmem(proc: Proc, tgid: int, key: RegionKey, path: Path) -> bool:
    """Whether Shmem counts the file. hugetlb is counted separately."""
    magic = shmem.internal_file_systems().get(key.dev)
    if magic or key.generation is None:
        return magic is not None and magic != HUGETLBFS_MAGIC
    return proc.mounts.kind(tgid, key.dev) in TMPFS or shmem.is_tmpfs(path)


# ---- the files of each tmpfs ----


class _Place(NamedTuple):
    """How to reach a tmpfs: the root of a process, and the path below it."""

    process: Path
    path: str
    is_here: bool
    """It is in this process's own mount namespace."""

    def reach(self, below: str = "") -> str:
        return "/".join(["" if self.is_here else f"{self.process}/root", *filter(None, [self.path.strip("/"), below])])


class _Files(NamedTuple):
    """What one tmpfs contains."""

    allocated_bytes: int
    limit_bytes: int | None
    nr_inodes: int
    largest: list[tuple[int, str]]
    """(bytes, path below its root) of files that no process maps."""
    is_whole: bool
    """All files were looked at."""


def _files(
    proc: Proc, elsewhere: dict[int, int], mapped: set[tuple[int, int]], end_s: float, warnings: list[str]
) -> list[UnmappedMemory]:
    """elsewhere: bytes by device that are accounted for elsewhere. mapped: (dev, ino) of mapped files."""
    found = []
    unreached = []
    for dev, place in sorted(_places(proc).items(), key=lambda item: not item[1].is_here):
        patience_s = min(WALK_S, max((end_s - time.monotonic()) / 2, 0))
        try:
            files = promptly(place.process, _look, place, dev, mapped, patience_s)
        except OSError:  # hidden by another mount, gone, or in a place that does not answer
            unreached.append(_text(place.path))
            continue
        allocated_bytes = max(files.allocated_bytes - elsewhere.get(dev, 0), 0)
        if not allocated_bytes:
            continue
        name, reach = _text(place.path), _text(place.reach())
        found.append(
            UnmappedMemory("tmpfs", name, reach, allocated_bytes, None, files.limit_bytes, files=files.nr_inodes)
        )
        for size_bytes, path in files.largest:
            below = f"{place.path.rstrip('/')}/{path}"
            found.append(UnmappedMemory("file", _text(below), _text(place.reach(path)), size_bytes))
        if not files.is_whole:
            warnings.append(f"{name} has more files than could be looked at: the largest may not be among them")
    if unreached:
        more = f" and {len(unreached) - 1} more" * (len(unreached) > 1)
        warnings.append(f"the tmpfs on {unreached[0]}{more} could not be reached: what it has is in the rest")
    return found


def _text(path: str) -> str:
    """A stranger may have called it anything, in any encoding."""
    return bounded.text(os.fsencode(path), PATH_BYTES)


def _places(proc: Proc) -> dict[int, _Place]:
    """Every tmpfs whose root is mounted in some process's namespace, by device; in this process's own if possible."""
    found: dict[int, _Place] = {}
    namespaces: set[int] = set()
    for number, tgid in enumerate(["self", *map(str, proc.tgids())]):
        process = proc.root / tgid
        try:
            namespace = (process / "ns" / "mnt").stat().st_ino
        except OSError as error:
            if not bounded.unreadable(error):
                raise
            continue
        if namespace in namespaces or len(namespaces) == MAX_NAMESPACES:
            continue
        namespaces.add(namespace)
        for mount in mounts(process):
            if mount.kind in TMPFS and mount.is_whole and len(found) < MAX_TMPFS:
                found.setdefault(mount.dev, _Place(process, mount.path, is_here=not number))
    return found


def _look(place: _Place, dev: int, mapped: set[tuple[int, int]], patience_s: float) -> _Files:
    """Raises OSError where the tmpfs is gone, or hidden by another mount."""
    path = place.path.lstrip("/") or "."
    with contextlib.ExitStack() as stack:
        process = os.open(place.process / "root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, process)
        there = stack.enter_context(_opened(process, path, os.O_PATH, RESOLVE_IN_ROOT))
        if shmem.stat_of(there).dev != dev:  # what is mounted over it is not opened, since it may be a FUSE
            raise FileNotFoundError(errno.ENOENT, "another file system is there", place.path)
        root = stack.enter_context(_opened(there, "."))
        system = os.fstatvfs(root)
        limit_bytes = system.f_blocks * system.f_frsize or None
        seen_bytes, nr_seen, largest, is_whole = _largest(root, mapped, dev, patience_s)
        used_bytes = (system.f_blocks - system.f_bfree) * system.f_frsize if limit_bytes else seen_bytes
        nr_inodes = system.f_files - system.f_ffree if system.f_files else nr_seen
        return _Files(used_bytes, limit_bytes, nr_inodes, largest, is_whole)


def _largest(
    root: int, mapped: set[tuple[int, int]], dev: int, patience_s: float
) -> tuple[int, int, list[tuple[int, str]], bool]:
    """(bytes seen, files seen, the largest unmapped files, whether all files were seen)."""
    largest: list[tuple[int, str]] = []
    seen: dict[int, int] = {}  # bytes by inode, since a file may have several names
    is_whole = True
    for path, stat in _walk(root, time.monotonic() + patience_s):
        if stat is None:
            is_whole = False
        elif stat.ino not in seen:
            seen[stat.ino] = stat.allocated_bytes
            if stat.allocated_bytes and (dev, stat.ino) not in mapped:
                heapq.heappush(largest, (stat.allocated_bytes, path))
                if len(largest) > MOST_FILES:
                    heapq.heappop(largest)
    return sum(seen.values()), len(seen), sorted(largest, reverse=True), is_whole


def _walk(root: int, end_s: float) -> Iterator[tuple[str, shmem.Stat | None]]:
    """Yield the regular files of a tmpfs, without those of file systems mounted in it, which may block.

    None stands for a directory that was not looked at to its end: there was no time, or its path is too long to open.
    """
    waiting = [""]
    nr_seen = 0
    while waiting:
        directory = waiting.pop()
        try:
            with _opened(root, directory or ".") as opened, os.scandir(opened) as entries:
                for entry in entries:
                    nr_seen += 1
                    if nr_seen > MAX_FILES or time.monotonic() > end_s:
                        yield directory, None
                        return
                    path = f"{directory}/{entry.name}".lstrip("/")
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        yield path, shmem.stat_at(opened, entry.name)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ELOOP, errno.ENOENT):  # a mount, a link, or gone
                yield directory, None


@contextlib.contextmanager
def _opened(
    base: int,
    path: str,
    flags: int = os.O_RDONLY | os.O_NOATIME,
    resolve: int = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS,
) -> Iterator[int]:
    """A directory's descriptor, by openat2(2). It cannot lead outside, whatever its owners do to the path meanwhile.

    Raises OSError.
    """
    how = OPEN_HOW.pack(flags | os.O_DIRECTORY | os.O_CLOEXEC, 0, resolve)
    opened = _libc.syscall(SYS_OPENAT2, base, os.fsencode(path), how, len(how))
    if opened < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    try:
        yield opened
    finally:
        os.close(opened)

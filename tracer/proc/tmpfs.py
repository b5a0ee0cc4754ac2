"""The tmpfs of every mount namespace, and their files.

What strangers do to their directories meanwhile cannot lead elsewhere: openat2(2) follows no link and enters no mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import heapq
import os
import shlex
import struct
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

from tracer.errors import ShmtraceError
from tracer.proc import bounded, shmem
from tracer.proc.blocking import promptly
from tracer.proc.mounts import mounts
from tracer.proc.procfs import Proc
from tracer.proc.shmem import RegionKey

SYS_OPENAT2 = 437  # the same number on every architecture, v5.6
RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 4, 8, 16
OPEN_HOW = struct.Struct("=QQQ")
KINDS = ("tmpfs", "devtmpfs")
MAX_NAMESPACES = 4096  # mount namespaces
MAX_TMPFS = 4096
MAX_FILES = 200_000  # and directories, looked at per tmpfs
MOST_FILES = 1000  # of a tmpfs, each as a region
WALK_S = 0.5  # per tmpfs

_libc = ctypes.CDLL(None, use_errno=True)


class Place(NamedTuple):
    """How to reach a tmpfs."""

    dev: int
    process: Path
    """/proc/PID of a process that has it mounted."""
    path: str
    """The mount point, below the root of that process."""
    is_here: bool
    """It is mounted in this process's own mount namespace."""

    def file(self, below: str = "") -> Path:
        """The path of a file from here."""
        return Path("/" if self.is_here else self.process / "root", self.path.strip("/"), below)

    def name(self, below: str = "") -> str:
        """The path of a file as that process sees it, as text: a stranger may have called it anything."""
        return shmem.path_text(Path("/", self.path.strip("/"), below))

    def reach(self, below: str = "") -> str:
        """file(), as text."""
        return shmem.path_text(self.file(below))

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of its root directory. Raises OSError where it is gone, or hidden by another mount."""
        with contextlib.ExitStack() as stack:
            process = os.open(self.process / "root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, process)
            path = self.path.lstrip("/") or "."
            there = stack.enter_context(_opened(process, path, os.O_PATH, RESOLVE_IN_ROOT))
            if shmem.stat_of(there).dev != self.dev:  # what is mounted over it is not opened, since it may be a FUSE
                raise FileNotFoundError(errno.ENOENT, "another file system is there", self.path)
            yield stack.enter_context(_opened(there, "."))


def places(proc: Proc) -> list[Place]:
    """Every tmpfs whose root is mounted in some process's namespace, this process's own first."""
    found: dict[int, Place] = {}
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
            if mount.kind in KINDS and mount.is_whole and len(found) < MAX_TMPFS:
                found.setdefault(mount.dev, Place(mount.dev, process, mount.path, is_here=not number))
    return sorted(found.values(), key=lambda place: not place.is_here)


def at(path: Path) -> Place | None:
    """The tmpfs whose root directory a path leads to. None: it leads to something else than a directory.

    Raises ShmtraceError for any other directory, and OSError.
    """
    directory = shmem.open_place(path)
    try:
        stat = shmem.stat_of(directory)
    finally:
        os.close(directory)
    if not S_ISDIR(stat.mode):
        return None
    place = next((place for place in places(Proc()) if place.dev == stat.dev), None)
    if not place:
        raise ShmtraceError(f"{path} is a directory, but not on a tmpfs", "name a process, a pidfile or a tmpfs")
    with place.opened() as root:
        if shmem.stat_of(root).ino == stat.ino:
            return place
    raise ShmtraceError(f"{path} is a directory in a tmpfs", f"take all of it: -p {shlex.quote(place.reach())}")


def used_bytes(place: Place) -> int | None:
    """What its files take, by fstatvfs(2). None: it has no limit, and so no count, or it is gone."""

    def ask() -> os.statvfs_result:
        with place.opened() as root:
            return os.fstatvfs(root)

    try:
        found = promptly(place.process, ask)
    except OSError:
        return None
    return (found.f_blocks - found.f_bfree) * found.f_frsize if found.f_blocks else None


class File(NamedTuple):
    """A regular file of a tmpfs."""

    allocated_bytes: int
    ino: int
    path: str
    """Below the root of the tmpfs; one of its names."""


class Files(NamedTuple):
    """The files of a tmpfs that a walk found."""

    largest: list[File]
    """Largest first."""
    allocated_bytes: int
    """Of all files."""
    nr_files: int
    is_whole: bool
    """All files were looked at."""


def files(place: Place) -> tuple[list[tuple[str, Path]], list[str]]:
    """(name, path from here) of its MOST_FILES largest files, and a warning if it has more."""

    def look() -> Files:
        with place.opened() as root:
            return largest(place, root, MOST_FILES, (), WALK_S)

    try:
        found = promptly(place.process, look)
    except OSError as error:
        return [], [f"the files of {place.name()} were not looked at ({error.strerror})"]
    named = [(place.name(file.path), place.file(file.path)) for file in found.largest]
    is_all = found.is_whole and len(named) < MOST_FILES
    return named, [] if is_all else [f"{place.name()} has many files: of those, the largest {len(named)} are shown"]


def largest(place: Place, root: int, most: int, without: Collection[tuple[int, int]], patience_s: float) -> Files:
    """The files with the most memory, at most `most` and none of `without`: (device, inode number)."""
    found: list[File] = []
    seen: dict[int, int] = {}  # bytes by inode, since a file may have several names
    is_whole = True
    for path, stat in walk(root, time.monotonic() + patience_s):
        if stat is None:
            is_whole = False
        elif stat.ino not in seen:
            seen[stat.ino] = stat.allocated_bytes
            if stat.allocated_bytes and (place.dev, stat.ino) not in without:
                heapq.heappush(found, File(stat.allocated_bytes, stat.ino, path))
                if len(found) > most:
                    heapq.heappop(found)
    return Files(sorted(found, reverse=True), sum(seen.values()), len(seen), is_whole)


def file(path: Path) -> RegionKey | None:
    """The file of a tmpfs that an absolute path leads to. None: it leads to nothing of that kind."""
    return shmem.identify(path) if path.is_absolute() and shmem.is_tmpfs(path) and path.is_file() else None


def find(proc: Proc, wanted: Collection[tuple[int, int]], patience_s: float) -> dict[tuple[int, int], tuple[str, Path]]:
    """(name, path from here) of files by (device, inode number), of those that are found in time."""
    end_s = time.monotonic() + patience_s
    found: dict[tuple[int, int], tuple[str, Path]] = {}
    devices = {dev for dev, _ in wanted}
    for place in places(proc) if devices else ():
        patience_s = min(WALK_S, end_s - time.monotonic())
        if place.dev in devices and patience_s > 0:
            with contextlib.suppress(OSError):
                found |= promptly(place.process, _find, place, wanted, patience_s)
    return found


def _find(
    place: Place, wanted: Collection[tuple[int, int]], patience_s: float
) -> dict[tuple[int, int], tuple[str, Path]]:
    with place.opened() as root:
        return {
            (place.dev, stat.ino): (place.name(path), place.file(path))
            for path, stat in walk(root, time.monotonic() + patience_s)
            if stat and (place.dev, stat.ino) in wanted
        }


def walk(root: int, end_s: float) -> Iterator[tuple[str, shmem.Stat | None]]:
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
    try:
        opened = _openat2(base, path, flags, resolve)
    except PermissionError:  # O_NOATIME needs ownership, or CAP_FOWNER; without it the access time shows
        opened = _openat2(base, path, flags & ~os.O_NOATIME, resolve)
    try:
        yield opened
    finally:
        os.close(opened)


def _openat2(base: int, path: str, flags: int, resolve: int) -> int:
    how = OPEN_HOW.pack(flags | os.O_DIRECTORY | os.O_CLOEXEC, 0, resolve)
    opened: int = _libc.syscall(SYS_OPENAT2, base, os.fsencode(path), how, len(how))
    if opened < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return opened

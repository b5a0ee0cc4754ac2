"""The file behind a mapping: which region it is, what it holds, and how to open it without blocking.

A region's true size is one stat of ``/proc/PID/map_files/START-END``. The file behind a shared anonymous mapping is on
a tmpfs that nobody can mount, and its blocks are what is allocated, swapped pages included. Nothing here touches a
region's memory, keeps a region open, or reads smaps, which stalls big processes for seconds.

A path is a map_files entry, /proc/PID/fd/N or a file. No call here makes a file system ask another host or a process.
Measured with a FUSE that does not answer: stat(2), fstat(2) of an O_PATH descriptor, statfs(2), and open(2) with
O_NONBLOCK block and cannot even be killed. statx(2) with AT_STATX_DONT_SYNC, name_to_handle_at(2), readlink(2), and
O_PATH itself return.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Callable, NamedTuple, TypeVar

from tracer.proc import bounded
from tracer.proc.blocking import PATIENCE_S, promptly, stream
from tracer.proc.leases import leased
from tracer.proc.mounts import Mounts

PAGE_BYTES = mmap.PAGESIZE
BLOCK_BYTES = 512  # the unit of st_blocks, on any file system
PATH_BYTES = 1024

TMPFS_MAGIC = 0x01021994
HUGETLBFS_MAGIC = 0x958458F6
TMPFS_HANDLE = 1, 12  # type and size, from shmem_encode_fh() in mm/shmem.c
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
AT_STATX_DONT_SYNC = 0x4000
STATX_BTIME = 0x800
STATX_MNT_ID = 0x1000  # v5.8
STATX_WANTED = 0x7FF | STATX_BTIME | STATX_MNT_ID
STATX = struct.Struct("=I24xH2xQQQ24xqI36x8xIIQ")
MFD_HUGETLB, MFD_HUGE_SHIFT = 4, 26
HUGE_ORDERS = range(16, 35)  # 64 KiB to 16 GiB
SYS_CACHESTAT = 451  # the same number on every architecture, v6.5

SURVEY_TRIES = 10
SIGN_OF_LIFE = 4096  # extents between two signs of life to whoever waits
LOOK_S = 2e-6  # at most so long per page; 0.2 µs were measured

DELETED = " (deleted)"  # appended to a path by the kernel
LEASED = "another process has a lease on it"

Result = TypeVar("Result")
_libc = ctypes.CDLL(None, use_errno=True)
_mounts = Mounts(Path("/proc"))

Pages = tuple[int, int]  # [first, end) page indexes


class FileKey(NamedTuple):
    """Identifies a file and its version."""

    dev: int
    ino: int
    mtime_ns: int
    size_bytes: int

    @classmethod
    def of(cls, fd: int) -> FileKey:
        """The key of an open file, by fstat(2)."""
        stat = os.fstat(fd)
        return cls(stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)


class RegionKey(NamedTuple):
    """Identifies a region. (dev, ino) is not unique: the inode number of a SysV segment is its shmid."""

    dev: int
    ino: int
    generation: int | None
    """A random number that the kernel gives each tmpfs inode; None where the file system has none."""


class RegionStat(NamedTuple):
    """Size and allocation of the file behind a mapping, by statx(2)."""

    size_bytes: int
    allocated_bytes: int
    """Resident and swapped."""


class Residency(NamedTuple):
    """The allocated bytes, split. None: not known."""

    resident_bytes: int | None
    swapped_bytes: int | None


class Stat(NamedTuple):
    """What statx(2) knows without asking another host or process. On tmpfs this is everything."""

    dev: int
    ino: int
    mode: int
    size_bytes: int
    allocated_bytes: int
    born_ns: int | None
    mount: int | None
    """The mount's id in mountinfo."""


class _Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("words", ctypes.c_uint32 * 32)]


def _process(path: Path) -> Path | None:
    """/proc/PID of the process that a path leads through, or None."""
    is_entry = path.parent.name in ("map_files", "fd") and path.parents[1].name.isdecimal()
    return path.parents[1] if is_entry else None


def whom(path: Path) -> Path:
    """What promptly() waits for on this path: the process, whose mmap_lock is taken for map_files, or else the file."""
    return _process(path) or path


def _asked(call: Callable[[Path], Result], path: Path) -> Result | None:
    """The result of a call, or None if the path is gone, may not be looked at, or does not answer."""
    try:
        return promptly(whom(path), call, path)
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return None


def stat_of(place: Path | int) -> Stat:
    """statx(2) of a path or a descriptor. Raises OSError."""
    if isinstance(place, int):
        return _statx(place, b"", AT_EMPTY_PATH)
    return _statx(AT_FDCWD, os.fsencode(place), 0)


def stat_at(directory: int, name: str) -> Stat:
    """statx(2) of a name in a directory, without following a symbolic link. Raises OSError."""
    return _statx(directory, os.fsencode(name), AT_SYMLINK_NOFOLLOW)


def _statx(directory: int, name: bytes, flags: int) -> Stat:
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(directory, name, flags | AT_STATX_DONT_SYNC, STATX_WANTED, buffer), os.fsdecode(name))
    mask, mode, ino, size_bytes, blocks, born_s, born_ns, major, minor, mount = STATX.unpack_from(buffer)
    return Stat(
        os.makedev(major, minor),
        ino,
        mode,
        size_bytes,
        blocks * BLOCK_BYTES,
        born_s * 1_000_000_000 + born_ns if mask & STATX_BTIME else None,
        mount if mask & STATX_MNT_ID else None,
    )


def _generation(place: Path | int) -> int | None:
    handle, mount = _Handle(bytes=128), ctypes.c_int()
    name = b"" if isinstance(place, int) else os.fsencode(place)
    flags = AT_SYMLINK_FOLLOW | AT_EMPTY_PATH
    directory = place if isinstance(place, int) else AT_FDCWD
    if _libc.name_to_handle_at(directory, name, ctypes.byref(handle), ctypes.byref(mount), flags):
        return None
    return int(handle.words[0]) if (handle.type, handle.bytes) == TMPFS_HANDLE else None


def _check(failed: int, place: Path | str) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


def generation(path: Path) -> int | None:
    """The inode's generation, by name_to_handle_at(2); None where the file system has no such handle.

    A tmpfs handle is (generation, inode low, inode high): shmem_encode_fh() in mm/shmem.c.
    """
    return _asked(_generation, path)


def identify(path: Path) -> RegionKey | None:
    """The key of the file that a path leads to; None if it is gone."""
    return _asked(_identify, path)


def _identify(place: Path | int) -> RegionKey:
    stat = stat_of(place)
    return RegionKey(stat.dev, stat.ino, _generation(place))


def birth_time_ns(path: Path) -> int | None:
    """The inode's birth time (CLOCK_REALTIME), by statx(2); None before v6.1."""
    stat = _asked(stat_of, path)
    return stat.born_ns if stat else None


def region_stat(path: Path) -> RegionStat | None:
    """Size and allocation; None if the path is gone."""
    stat = _asked(stat_of, path)
    return RegionStat(stat.size_bytes, stat.allocated_bytes) if stat else None


def region_stat_of(path: Path, key: RegionKey) -> RegionStat | None:
    """Like region_stat(); None also if the path now leads to another region."""

    def look(path: Path) -> RegionStat | None:
        place = _open_place(path).take()
        try:
            stat = stat_of(place)
            same = RegionKey(stat.dev, stat.ino, _generation(place)) == key
        finally:
            os.close(place)
        return RegionStat(stat.size_bytes, stat.allocated_bytes) if same else None

    return _asked(look, path)


def path_text(path: Path | str) -> str:
    """A path as text: a stranger may have called it anything, in any encoding."""
    return bounded.text(os.fsencode(path), PATH_BYTES)


def link_name(path: Path) -> str:
    """The target of a map_files entry, without the kernel's `` (deleted)``; empty if it is gone."""
    target = _asked(os.readlink, path)
    return path_text(target).removesuffix(DELETED) if target else ""


def magic(path: Path) -> int | None:
    """Magic number of the file system of a path, by statfs(2); None if the path is gone. May ask another host."""
    return _asked(_magic, path)


def _magic(path: Path) -> int:
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statfs(os.fsencode(path), buffer), path)
    return struct.unpack_from("l", buffer)[0] & 0xFFFFFFFF  # type: ignore[no-any-return]


def is_tmpfs(path: Path) -> bool:
    """Whether a path is on a tmpfs. Only local file systems are asked: no other's handle looks like that of a tmpfs."""
    return generation(path) is not None and magic(path) == TMPFS_MAGIC


def open_promptly(path: Path | str) -> int:
    """A descriptor to read a regular file by, without changing its access time if permitted.

    Raises OSError at once where opening would block, as for a lease, and for anything but a regular file, since opening
    a FIFO or a device has effects. Files on another host or on a FUSE are refused too, since they might block.
    """
    return promptly(whom(Path(path)), _open, Path(path)).take()


def open_region(path: Path, key: RegionKey) -> int:
    """Like open_promptly(), for a region. Raises FileNotFoundError where the path now leads to another one."""
    return promptly(whom(path), _open, path, key).take()


def open_place(path: Path) -> int:
    """An O_PATH descriptor: it identifies the file but cannot read it. No lease prevents it, and nobody notices.

    Raises OSError.
    """
    return promptly(whom(path), _open_place, path).take()


class _Opened:
    """A descriptor that closes itself if the caller gave up waiting and never took it."""

    def __init__(self, path: Path | str, flags: int) -> None:
        self._fd = -1
        self._fd = os.open(path, flags | os.O_CLOEXEC)

    def take(self) -> int:
        """The descriptor, which the caller has to close."""
        fd, self._fd = self._fd, -1
        return fd

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _open_place(path: Path) -> _Opened:
    return _Opened(path, os.O_PATH)


def _open(path: Path, key: RegionKey | None = None) -> _Opened:
    place = _open_place(path).take()  # O_PATH does not open the file itself, so it cannot block
    try:
        stat = stat_of(place)
        if key and _identify(place) != key:
            raise FileNotFoundError(errno.ENOENT, "another region is there", str(path))
        if not S_ISREG(stat.mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        problem = LEASED if leased(stat.dev, stat.ino) else None
        if not problem and stat.dev not in internal_file_systems() and _generation(place) is None:
            problem = _mounts.why_not(_process(path), stat.mount)
        if problem:
            raise BlockingIOError(errno.EWOULDBLOCK, problem, str(path))
        return _open_to_read(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(place)


def _open_to_read(path: str, flags: int) -> _Opened:
    try:
        return _Opened(path, flags | os.O_NOATIME)
    except PermissionError:  # O_NOATIME needs ownership; without it the access time shows
        return _Opened(path, flags)
    except BlockingIOError:  # a lease taken since leased() was asked
        raise BlockingIOError(errno.EWOULDBLOCK, LEASED, path) from None


@functools.lru_cache(maxsize=1)
def internal_file_systems() -> dict[int, int]:
    """Magic number by device of the kernel's internal mounts.

    These are a tmpfs for anonymous, memfd and SysV regions, and a hugetlbfs for each size of huge page. Found by
    creating memfds.
    """
    found = {}
    huge = ((MFD_HUGETLB | order << MFD_HUGE_SHIFT, HUGETLBFS_MAGIC) for order in HUGE_ORDERS)
    for flags, kind in [(0, TMPFS_MAGIC), *huge]:
        try:
            fd = os.memfd_create("", os.MFD_CLOEXEC | flags)
        except OSError:  # no huge pages of this size
            continue
        found[os.fstat(fd).st_dev] = kind
        os.close(fd)
    return found


def internal_dev() -> int:
    """Device of the kernel's internal tmpfs."""
    return next(dev for dev, kind in internal_file_systems().items() if kind == TMPFS_MAGIC)


class Survey(NamedTuple):
    """The pages of a region and its allocation. They agree if the region did not change during the survey."""

    pages: list[Pages]
    allocated_bytes: int
    size_bytes: int


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("bytes", ctypes.c_uint64)]


class _Cachestat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def survey(path: Path, key: RegionKey | None = None) -> Survey | None:
    """A region's pages, resident or swapped, sorted. Allocates nothing.

    Returns None where the region is gone or opening it would block. SEEK_DATA finds the pages with data. Pages that
    fallocate made and nobody touched count in st_blocks but look like holes; they are searched for with cachestat(2)
    (v6.5; not found before).
    """
    stat = region_stat(path)
    patience_s = PATIENCE_S + (stat.allocated_bytes // PAGE_BYTES * LOOK_S if stat else 0)
    try:
        return next(filter(None, stream(whom(path), _survey(path, key), patience_s)), None)
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return None


def _survey(path: Path, key: RegionKey | None) -> Iterator[Survey | None]:
    """Yields None now and then while there are many pages, and finally the survey."""
    fd = _open(path, key).take()
    try:
        for _ in range(SURVEY_TRIES):
            before = os.fstat(fd)
            pages: list[Pages] = []
            yield from _gather(data_pages(fd), pages)
            after = os.fstat(fd)
            if before.st_blocks == after.st_blocks:
                break
        hidden = after.st_blocks * BLOCK_BYTES // PAGE_BYTES - sum(end - start for start, end in pages)
        if hidden > 0 and before.st_blocks == after.st_blocks:
            yield from _gather(_cached_holes(fd, list(pages), -(-after.st_size // PAGE_BYTES)), pages)
        yield Survey(sorted(pages), after.st_blocks * BLOCK_BYTES, after.st_size)
    finally:
        os.close(fd)


def _gather(found: Iterator[Pages], pages: list[Pages]) -> Iterator[None]:
    """Collect extents into `pages`, yielding now and then as a sign of life."""
    for extent in found:
        pages.append(extent)
        if len(pages) % SIGN_OF_LIFE == 0:
            yield None


def data_pages(fd: int) -> Iterator[Pages]:
    end = 0
    try:
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            yield start // PAGE_BYTES, -(-end // PAGE_BYTES)
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data beyond here, or the file has shrunk
            raise


def _cached_holes(fd: int, pages: list[Pages], size_pages: int) -> Iterator[Pages]:
    """Extents of pages in the page cache among the holes between `pages`, found by halving."""
    edges = [0, *(edge for extent in pages for edge in extent), size_pages]
    waiting = [(start, end) for start, end in zip(edges[::2], edges[1::2]) if start < end]
    while waiting:
        start, end = waiting.pop()
        stat = cachestat(fd, start * PAGE_BYTES, (end - start) * PAGE_BYTES)
        if stat is None or not stat.cache:
            continue
        if stat.cache >= end - start:
            yield start, end
        else:
            middle = (start + end) // 2
            waiting += [(start, middle), (middle, end)]


def cachestat(fd: int, offset: int, size_bytes: int) -> _Cachestat | None:
    """cachestat(2) of a range; size_bytes 0: to the end of the file. None before v6.5, and for hugetlb."""
    stat = _Cachestat()
    failed = _libc.syscall(SYS_CACHESTAT, fd, ctypes.byref(_Range(offset, size_bytes)), ctypes.byref(stat), 0)
    return None if failed else stat


def residency(path: Path, key: RegionKey | None = None) -> Residency:
    """How much of a region is resident and how much is swapped out, by cachestat(2).

    Unknown before v6.5, for hugetlb, and where opening the region would block.
    """
    return _asked(functools.partial(_residency, key=key), path) or Residency(None, None)


def _residency(path: Path, key: RegionKey | None) -> Residency | None:
    fd = _open(path, key).take()
    try:
        stat = cachestat(fd, 0, 0)
        return Residency(stat.cache * PAGE_BYTES, stat.evicted * PAGE_BYTES) if stat else None
    finally:
        os.close(fd)


def kind_of(dev: int, file_system: int, name: str) -> str:
    """anon, memfd, sysv, posix, hugetlb or other. The device decides first, since a file may have any name."""
    if file_system == HUGETLBFS_MAGIC:
        return "hugetlb"
    if dev == internal_dev():
        known = (("dev/zero", "anon"), ("memfd:", "memfd"), ("SYSV", "sysv"))
        return next((kind for start, kind in known if name.lstrip("/").startswith(start)), "other")
    return "posix" if dev == _dev_shm() else "other"


@functools.lru_cache(maxsize=1)
def _dev_shm() -> int | None:
    try:
        return Path("/dev/shm").stat().st_dev
    except OSError:
        return None

"""What one file behind a mapping says: which region it is, what it holds, and how it is opened without waiting.

A region's true size is one stat of ``/proc/PID/map_files/START-END``: the file behind a shared anonymous mapping is on
a tmpfs that nobody can mount, and its blocks are what is really allocated, swapped pages included. Nothing here touches
a region's memory, keeps one open, or reads smaps, which stalls big processes for seconds.

A path is a map_files entry, /proc/PID/fd/N or a file. Nothing is asked of a file system that it would have to ask
another host for, or a process. Measured with a FUSE that does not answer: stat(2), fstat(2) of an O_PATH descriptor,
statfs(2), and open(2) with O_NONBLOCK wait for it and are not even killed; statx(2) with AT_STATX_DONT_SYNC,
name_to_handle_at(2), readlink(2), and O_PATH itself do not.
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
BLOCK_BYTES = 512  # of st_blocks, whatever the file system
PATH_BYTES = 1024

TMPFS_MAGIC = 0x01021994
HUGETLBFS_MAGIC = 0x958458F6
TMPFS_HANDLE = 1, 12  # its type and bytes, as shmem_encode_fh() in mm/shmem.c has them
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
SIGN_OF_LIFE = 4096  # extents
LOOK_S = 2e-6  # at a page, at most: 0.2 µs were measured

DELETED = " (deleted)"  # the kernel's, behind a path
LEASED = "somebody has a lease on it"

Result = TypeVar("Result")
_libc = ctypes.CDLL(None, use_errno=True)
_mounts = Mounts(Path("/proc"))

Pages = tuple[int, int]  # [first, end) page indexes


class FileKey(NamedTuple):
    """Which file, as it is now."""

    dev: int
    ino: int
    mtime_ns: int
    size_bytes: int

    @classmethod
    def of(cls, fd: int) -> FileKey:
        stat = os.fstat(fd)
        return cls(stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)


class RegionKey(NamedTuple):
    """Which region: (dev, ino) alone is not unique, for SysV numbers its inodes by shmid."""

    dev: int
    ino: int
    generation: int | None
    """a random number the kernel gives each tmpfs inode; None where the file system has none to tell"""


class RegionStat(NamedTuple):
    """One stat of the file behind a mapping."""

    size_bytes: int
    allocated_bytes: int
    """resident and swapped"""


class Residency(NamedTuple):
    """The split of what is allocated."""

    resident_bytes: int | None
    swapped_bytes: int | None


class Stat(NamedTuple):
    """What the kernel knows of a file without asking anybody; of a tmpfs that is all there is."""

    dev: int
    ino: int
    mode: int
    size_bytes: int
    allocated_bytes: int
    born_ns: int | None
    mount: int | None
    """its number in mountinfo"""


class _Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("words", ctypes.c_uint32 * 32)]


def _process(path: Path) -> Path | None:
    """By way of which a path leads: /proc/PID."""
    return path.parents[1] if path.parent.name in ("map_files", "fd") else None


def whom(path: Path) -> Path:
    """Who is waited for: the process, whose mmap_lock is taken on the way to what it maps, or the file itself."""
    return _process(path) or path


def _asked(call: Callable[[Path], Result], path: Path) -> Result | None:
    """None where that is gone, or may not be looked at, or does not answer."""
    try:
        return promptly(whom(path), call, path)
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return None


def stat_of(place: Path | int) -> Stat:
    """Raises OSError."""
    if isinstance(place, int):
        return _statx(place, b"", AT_EMPTY_PATH)
    return _statx(AT_FDCWD, os.fsencode(place), 0)


def stat_at(directory: int, name: str) -> Stat:
    """Of what a directory has under a name; a symbolic link is not followed. Raises OSError."""
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
    """The inode's generation, by name_to_handle_at; None where the file system gives no such handle.

    A tmpfs handle is (generation, inode low, inode high): shmem_encode_fh() in mm/shmem.c.
    """
    return _asked(_generation, path)


def identify(path: Path) -> RegionKey | None:
    """Which region a path leads to, if it leads to one; None if it is gone."""
    return _asked(_identify, path)


def _identify(place: Path | int) -> RegionKey:
    stat = stat_of(place)
    return RegionKey(stat.dev, stat.ino, _generation(place))


def birth_time_ns(path: Path) -> int | None:
    """When the inode was made (CLOCK_REALTIME), by statx; None before v6.1."""
    stat = _asked(stat_of, path)
    return stat.born_ns if stat else None


def region_stat(path: Path) -> RegionStat | None:
    """Size and allocation; None if the path is gone."""
    stat = _asked(stat_of, path)
    return RegionStat(stat.size_bytes, stat.allocated_bytes) if stat else None


def link_name(path: Path) -> str:
    """What a map_files entry points to, without the kernel's `` (deleted)``; empty if it is gone."""
    target = _asked(os.readlink, path)
    return bounded.text(os.fsencode(target), PATH_BYTES).removesuffix(DELETED) if target else ""


def magic(path: Path) -> int | None:
    """Magic number of the file system behind a path; None if the path is gone. It is asked itself."""
    return _asked(_magic, path)


def _magic(path: Path) -> int:
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statfs(os.fsencode(path), buffer), path)
    return struct.unpack_from("l", buffer)[0] & 0xFFFFFFFF  # type: ignore[no-any-return]


def is_tmpfs(path: Path) -> bool:
    """Without asking any but those that are on a disk here: of the others' handles none looks like a tmpfs's."""
    return generation(path) is not None and magic(path) == TMPFS_MAGIC


def open_promptly(path: Path | str) -> int:
    """A descriptor to read a regular file by, which is not to be seen in its time of last access.

    Raises OSError at once where that would have to wait, as for a lease, and for all but regular files: to open a FIFO
    or a device is to do something to it. What is on another host, or a FUSE, might keep us waiting and is not opened.
    """
    return promptly(whom(Path(path)), _open, Path(path)).take()


def open_region(path: Path, key: RegionKey) -> int:
    """The same, of a region. Raises FileNotFoundError where there is another by now."""
    return promptly(whom(path), _open, path, key).take()


def open_place(path: Path) -> int:
    """A descriptor that tells which file is meant and cannot read it: nobody notices, and no lease is in the way.

    Raises OSError.
    """
    return promptly(whom(path), _open_place, path).take()


class _Opened:
    """A descriptor, closed by itself where nobody has waited for it long enough to take it."""

    def __init__(self, path: Path | str, flags: int) -> None:
        self._fd = -1
        self._fd = os.open(path, flags | os.O_CLOEXEC)

    def take(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _open_place(path: Path) -> _Opened:
    return _Opened(path, os.O_PATH)


def _open(path: Path, key: RegionKey | None = None) -> _Opened:
    place = _open_place(path).take()  # it is not opened yet, so nobody notices, and nobody is waited for
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
    except PermissionError:  # where that is not allowed, it is to be seen
        return _Opened(path, flags)
    except BlockingIOError:  # since a moment ago
        raise BlockingIOError(errno.EWOULDBLOCK, LEASED, path) from None


@functools.lru_cache(maxsize=1)
def internal_file_systems() -> dict[int, int]:
    """Magic number by device, of what the kernel has mounted for itself: a tmpfs, where anonymous, memfd and SysV
    regions are, and a hugetlbfs for each size of huge page. By memfds of our own."""
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
    """Device of the kernel's own tmpfs."""
    return next(dev for dev, kind in internal_file_systems().items() if kind == TMPFS_MAGIC)


class Survey(NamedTuple):
    """Which pages a region has, and how much that is by its own account; the two taken at one moment if it holds
    still for as long as it takes to look."""

    pages: list[Pages]
    allocated_bytes: int
    size_bytes: int


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("bytes", ctypes.c_uint64)]


class _Cachestat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def survey(path: Path, key: RegionKey | None = None) -> Survey | None:
    """A region's pages, sorted: resident or swapped. Allocates nothing. None where it is not there, or cannot be opened
    without waiting.

    SEEK_DATA shows what has data; pages that fallocate made and nobody touched count in st_blocks but show as holes,
    and are searched for by cachestat(2) where there are any (v6.5; before, they stay unfound).
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
    """Of many pages None again and again, and then all of them."""
    fd = _open(path, key).take()
    try:
        for _ in range(SURVEY_TRIES):
            before = os.fstat(fd)
            pages: list[Pages] = []
            yield from _gather(_data_pages(fd), pages)
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
    """Into pages; now and then a sign of life."""
    for extent in found:
        pages.append(extent)
        if len(pages) % SIGN_OF_LIFE == 0:
            yield None


def _data_pages(fd: int) -> Iterator[Pages]:
    end = 0
    try:
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            yield start // PAGE_BYTES, -(-end // PAGE_BYTES)
    except OSError as error:
        if error.errno != errno.ENXIO:  # there is none beyond, or no more: it has shrunk
            raise


def _cached_holes(fd: int, pages: list[Pages], size_pages: int) -> Iterator[Pages]:
    """The pages between the given ones that are in the page cache all the same, by halving."""
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
    """None before v6.5, and for hugetlb; size_bytes 0 is all of the file."""
    stat = _Cachestat()
    failed = _libc.syscall(SYS_CACHESTAT, fd, ctypes.byref(_Range(offset, size_bytes)), ctypes.byref(stat), 0)
    return None if failed else stat


def residency(path: Path, key: RegionKey | None = None) -> Residency:
    """What of a region is in memory and what swapped out; unknown before v6.5, for hugetlb, and where it cannot be
    opened without waiting."""
    return _asked(functools.partial(_residency, key=key), path) or Residency(None, None)


def _residency(path: Path, key: RegionKey | None) -> Residency | None:
    fd = _open(path, key).take()
    try:
        stat = cachestat(fd, 0, 0)
        return Residency(stat.cache * PAGE_BYTES, stat.evicted * PAGE_BYTES) if stat else None
    finally:
        os.close(fd)


def kind_of(dev: int, file_system: int, name: str) -> str:
    """anon, memfd, sysv, posix, hugetlb or other; by device first, for a file may be called anything."""
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

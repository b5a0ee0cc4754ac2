"""What /proc and a few system calls say, as records: the only reader of /proc.

A region's true size is one stat of ``/proc/PID/map_files/START-END``: the file behind a shared anonymous mapping is on
a tmpfs that nobody can mount, and its blocks are what is really allocated, swapped pages included. Nothing here touches
a region's memory, keeps one open, or reads smaps, which stalls big processes for seconds.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import re
import socket
import struct
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

PAGE_BYTES = mmap.PAGESIZE
BLOCK_BYTES = 512  # of st_blocks, whatever the file system
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
TMPFS_MAGIC = 0x01021994
HUGETLBFS_MAGIC = 0x958458F6
AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
STATX_BTIME = 0x800
SYS_CACHESTAT = 451  # the same number on every architecture, v6.5
SURVEY_TRIES = 10

_libc = ctypes.CDLL(None, use_errno=True)

Pages = tuple[int, int]  # [first, end) page indexes


class ProcessStat(NamedTuple):
    """One process, from /proc/PID/stat and cmdline."""

    tgid: int
    parent: int
    """tgid of the parent"""
    comm: str
    start_time_ns: int
    """since boot, to the clock tick (10 ms): field 22 of stat"""
    title: str
    """its first argument, or all of what setproctitle wrote"""
    command: str
    """the whole command line"""


class Mapping(NamedTuple):
    """One VMA, from /proc/PID/maps."""

    start: int
    end: int
    shared: bool
    first_index: int
    """page of the file that start is"""
    dev: int
    """as os.makedev gives it"""
    ino: int
    path: str
    """as printed, `` (deleted)`` included"""


class Executable(NamedTuple):
    """A VMA that code may run in, from /proc/PID/maps."""

    start: int
    end: int
    shared: bool
    offset_bytes: int
    """in the file, of start"""
    dev: int
    ino: int
    """0: there is no file"""
    path: str


class RegionKey(NamedTuple):
    """Which region: (dev, ino) alone is not unique, for SysV numbers its inodes by shmid."""

    dev: int
    ino: int
    generation: int | None
    """a random number the kernel gives each tmpfs inode; None where the file system has none to tell"""


class RegionStat(NamedTuple):
    """One stat of the file behind a mapping."""

    vss_bytes: int
    allocated_bytes: int
    """resident and swapped"""


class Residency(NamedTuple):
    """The split of what is allocated."""

    resident_bytes: int | None
    swapped_bytes: int | None


class Memory(NamedTuple):
    """Of the host, from /proc/meminfo, in bytes."""

    total_bytes: int
    swap_bytes: int
    shmem_bytes: int


class SysvSegment(NamedTuple):
    """A line of /proc/sysvipc/shm."""

    shmid: int
    creator: int
    """tgid of the process that called shmget"""
    allocated_bytes: int
    """resident and swapped"""


class Proc:
    """A /proc, or a recorded tree that looks like one. Processes that vanish while they are read give None."""

    def __init__(self, root: str = "/proc") -> None:
        self.root = Path(root)

    # ---- processes ----

    def tgids(self) -> list[int]:
        return [int(entry.name) for entry in os.scandir(self.root) if entry.name.isdigit()]

    def process(self, tgid: int) -> ProcessStat | None:
        try:
            stat = _text(self.root / str(tgid) / "stat")
            cmdline = (self.root / str(tgid) / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # the name is between the first parenthesis and the last, and may hold anything but NUL
        comm = stat[stat.index("(") + 1 : stat.rindex(")")]
        fields = stat[stat.rindex(")") + 2 :].split()
        return ProcessStat(tgid, int(fields[1]), comm, int(fields[19]) * TICK_NS, *titles(cmdline))

    def processes(self, known: dict[int, ProcessStat] | None = None) -> dict[int, ProcessStat]:
        """All of them, by tgid; those that are known already are not read again."""
        found = ((known or {}).get(tgid) or self.process(tgid) for tgid in self.tgids())
        return {process.tgid: process for process in found if process}

    def cgroup(self, tgid: int) -> str | None:
        """Its path in the unified hierarchy, or where that is empty in the memory controller's."""
        try:
            lines = [line.split(":", 2) for line in _text(self.root / str(tgid) / "cgroup").split("\n") if line]
        except (FileNotFoundError, ProcessLookupError):
            return None
        paths = {name: path for _, controllers, path in lines for name in controllers.split(",")}
        return paths.get("memory", paths.get(""))

    def ns_tgid(self, tgid: int) -> int | None:
        """Its PID in its own PID namespace; None where that is the same, from NSpid of status."""
        (innermost,) = self._status(tgid).get("NSpid", [tgid])[-1:]
        return None if innermost == tgid else innermost

    def private_bytes(self, tgid: int) -> int:
        """Anonymous memory, in memory and swapped out: RssAnon and VmSwap of status. Of kernel threads none."""
        kib = self._status(tgid)
        return sum(sum(kib.get(name, ())) for name in ("RssAnon", "VmSwap")) * 1024

    def _status(self, tgid: int) -> dict[str, list[int]]:
        """The numbers of each line of /proc/PID/status; nothing of a process that is gone."""
        try:
            lines = _text(self.root / str(tgid) / "status").split("\n")
        except (FileNotFoundError, ProcessLookupError):
            return {}
        parts = (line.partition(":") for line in lines)
        return {name: [int(word) for word in words.split() if word.isdecimal()] for name, _, words in parts}

    def rss_bytes(self, tgid: int) -> int | None:
        """What ps calls RSS, from statm."""
        try:
            return int((self.root / str(tgid) / "statm").read_text().split()[1]) * PAGE_BYTES
        except (FileNotFoundError, ProcessLookupError):
            return None

    def mappings(self, tgid: int) -> list[Mapping]:
        """The mappings that have a file behind them; none when the process is gone."""
        found = []
        for span, flags, offset, device, ino, *path in self._maps(tgid):
            if device == "00:00":  # the inode tells nothing: the host's first SysV segment has number 0
                continue
            start, end = (int(address, 16) for address in span.split("-"))
            first_index = int(offset, 16) // PAGE_BYTES
            found.append(Mapping(start, end, flags[3] == "s", first_index, _dev(device), int(ino), "".join(path)))
        return found

    def executables(self, tgid: int) -> list[Executable]:
        """The mappings of a process that code may run in, by address; none when it is gone."""
        found = []
        for span, flags, offset, device, ino, *path in self._maps(tgid):
            if flags[2] == "x":
                start, end = (int(address, 16) for address in span.split("-"))
                offset_bytes = int(offset, 16)
                found.append(
                    Executable(start, end, flags[3] == "s", offset_bytes, _dev(device), int(ino), "".join(path))
                )
        return found

    def _maps(self, tgid: int) -> list[list[str]]:
        try:
            text = _text(self.root / str(tgid) / "maps")
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [line.split(maxsplit=5) for line in text.split("\n") if line]

    # ---- regions ----

    def map_file(self, tgid: int, mapping: Mapping | Executable) -> Path:
        return self.root / str(tgid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"

    def open_files(self, tgid: int) -> list[Path]:
        """Paths of a process's open files, /proc/PID/fd/N; none when it is gone."""
        try:
            return sorted((self.root / str(tgid) / "fd").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            return []

    def memory(self) -> Memory:
        kib = {}
        for line in (self.root / "meminfo").read_text().splitlines():
            name, value = line.split(":")
            kib[name] = int(value.split()[0]) * 1024
        return Memory(kib["MemTotal"], kib["SwapTotal"], kib["Shmem"])

    def memory_cgroups(self) -> Path | None:
        """Where the hierarchy of cgroup()'s paths is mounted; None where it is not."""
        found = {}
        for line in _text(self.root / "self" / "mounts").split("\n"):
            _, place, kind, options, *_ = [*line.split(" "), "", "", "", ""]
            if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
                found[kind] = Path(place)
        return found.get("cgroup", found.get("cgroup2"))

    def sysv_segments(self) -> dict[int, SysvSegment]:
        """By shmid, which is the inode's number too."""
        try:
            lines = (self.root / "sysvipc" / "shm").read_text().splitlines()
        except FileNotFoundError:
            return {}
        names, *rows = (line.split() for line in lines)
        found = {}
        for row in rows:
            field = dict(zip(names, row))
            shmid = int(field["shmid"])
            found[shmid] = SysvSegment(shmid, int(field["cpid"]), int(field["rss"]) + int(field["swap"]))
        return found


def _dev(device: str) -> int:
    """As os.makedev gives it, of major:minor as maps prints it."""
    major, minor = (int(number, 16) for number in device.split(":"))
    return os.makedev(major, minor)


def _text(path: Path) -> str:
    """A file with names in it that strangers chose: a newline is the kernel's, a carriage return their own."""
    return path.read_bytes().decode(errors="backslashreplace")


def titles(cmdline: bytes) -> tuple[str, str]:
    """(title, command) of a command line as the kernel keeps it: a NUL after each argument.

    What setproctitle wrote has blanks between words, and is one argument.
    """
    arguments = [part.decode(errors="backslashreplace").strip() for part in cmdline.split(b"\0")]
    arguments = [argument for argument in arguments if argument]
    return (arguments[0] if arguments else ""), " ".join(arguments)


# ---- one file behind a mapping: path is a map_files entry, /proc/PID/fd/N or a file ----


def open_promptly(path: Path | str) -> int:
    """A descriptor to read a regular file by, which is not to be seen in its time of last access.

    Raises OSError at once where that would have to wait, as for a lease, and for all but regular files: to open a FIFO
    or a device is to do something to it.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # opens nothing, so nobody notices and nobody is waited for
    try:
        if not S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        opened = f"/proc/self/fd/{place}"
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            return os.open(opened, flags | os.O_NOATIME)
        except PermissionError:  # where that is not allowed, it is to be seen
            return os.open(opened, flags)
    finally:
        os.close(place)


@functools.lru_cache(maxsize=1)
def internal_dev() -> int:
    """Device of the kernel's own tmpfs, where anonymous, memfd and SysV regions are: that of a mapping of our own."""
    with mmap.mmap(-1, PAGE_BYTES) as probe:
        address = ctypes.addressof(ctypes.c_char.from_buffer(probe))
        for mapping in Proc().mappings(os.getpid()):
            if mapping.start <= address < mapping.end:
                return mapping.dev
    raise OSError(errno.ENOENT, "this process's own shared mapping is not in /proc/self/maps")


def magic(path: Path) -> int | None:
    """Magic number of the file system behind a path; None if the path is gone."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer):
        return None
    return struct.unpack_from("l", buffer)[0] & 0xFFFFFFFF  # type: ignore[no-any-return]


def generation(path: Path) -> int | None:
    """The inode's generation, by name_to_handle_at; None where the file system gives no handle.

    A tmpfs handle is (generation, inode low, inode high): shmem_encode_fh() in mm/shmem.c.
    """

    class Handle(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("words", ctypes.c_uint32 * 32)]

    handle, mount = Handle(bytes=128), ctypes.c_int()
    if _libc.name_to_handle_at(
        AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), AT_SYMLINK_FOLLOW
    ):
        return None
    return int(handle.words[0]) if handle.bytes == 12 else None


def birth_time_ns(path: Path) -> int | None:
    """When the inode was made (CLOCK_REALTIME), by statx; None before v6.1."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(AT_FDCWD, os.fsencode(path), 0, STATX_BTIME, buffer):
        return None
    (mask,) = struct.unpack_from("I", buffer, 0)
    seconds, nanoseconds = struct.unpack_from("qI", buffer, 80)
    return seconds * 1_000_000_000 + nanoseconds if mask & STATX_BTIME else None


def stat(path: Path) -> os.stat_result | None:
    """None if the path is gone."""
    try:
        return path.stat()
    except OSError:
        return None


def region_stat(path: Path) -> RegionStat | None:
    """Size and allocation; None if the path is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return RegionStat(stat.st_size, stat.st_blocks * BLOCK_BYTES)


class Survey(NamedTuple):
    """Which pages a region has, and how much that is by its own account; the two taken at one moment if it holds
    still for as long as it takes to look."""

    pages: list[Pages]
    allocated_bytes: int
    vss_bytes: int


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("bytes", ctypes.c_uint64)]


class _Cachestat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def survey(path: Path) -> Survey | None:
    """A region's pages, sorted: resident or swapped. Allocates nothing. None where it cannot be opened.

    SEEK_DATA shows what has data; pages that fallocate made and nobody touched count in st_blocks but show as holes,
    and are searched for by cachestat(2) where there are any (v6.5; before, they stay unfound).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for _ in range(SURVEY_TRIES):
            before = os.fstat(fd)
            pages = _data_pages(fd)
            after = os.fstat(fd)
            if before.st_blocks == after.st_blocks:
                break
        hidden = after.st_blocks * BLOCK_BYTES // PAGE_BYTES - sum(end - start for start, end in pages)
        if hidden > 0 and before.st_blocks == after.st_blocks:
            pages = sorted(pages + _cached_holes(fd, pages, -(-after.st_size // PAGE_BYTES)))
        return Survey(pages, after.st_blocks * BLOCK_BYTES, after.st_size)
    finally:
        os.close(fd)


def _data_pages(fd: int) -> list[Pages]:
    found: list[Pages] = []
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return found
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start // PAGE_BYTES, -(-end // PAGE_BYTES)))


def _cached_holes(fd: int, pages: list[Pages], size_pages: int) -> list[Pages]:
    """The pages between the given ones that are in the page cache all the same, by halving."""
    edges = [0, *(edge for extent in pages for edge in extent), size_pages]
    waiting = [(start, end) for start, end in zip(edges[::2], edges[1::2]) if start < end]
    found = []
    while waiting:
        start, end = waiting.pop()
        stat = cachestat(fd, start * PAGE_BYTES, (end - start) * PAGE_BYTES)
        if stat is None or not stat.cache:
            continue
        if stat.cache >= end - start:
            found.append((start, end))
        else:
            middle = (start + end) // 2
            waiting += [(start, middle), (middle, end)]
    return found


def cachestat(fd: int, offset: int, size_bytes: int) -> _Cachestat | None:
    """None before v6.5, and for hugetlb; size_bytes 0 is all of the file."""
    stat = _Cachestat()
    failed = _libc.syscall(SYS_CACHESTAT, fd, ctypes.byref(_Range(offset, size_bytes)), ctypes.byref(stat), 0)
    return None if failed else stat


def residency(path: Path) -> Residency:
    """What of the file is in memory and what swapped out; unknown before v6.5, and for hugetlb."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return Residency(None, None)
    try:
        stat = cachestat(fd, 0, 0)
        return Residency(stat.cache * PAGE_BYTES, stat.evicted * PAGE_BYTES) if stat else Residency(None, None)
    finally:
        os.close(fd)


def identify(path: Path) -> RegionKey | None:
    """Which region a path leads to; None if it is gone, or on no file system that regions are on."""
    try:
        stat = path.stat()
    except OSError:
        return None
    if magic(path) not in (TMPFS_MAGIC, HUGETLBFS_MAGIC):
        return None
    return RegionKey(stat.st_dev, stat.st_ino, generation(path))


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


def link_name(path: Path) -> str:
    """What a map_files entry points to, without the kernel's `` (deleted)``; empty if it is gone."""
    try:
        return re.sub(r" \(deleted\)$", "", os.fsencode(path.readlink()).decode(errors="backslashreplace"))
    except OSError:
        return ""


def host() -> str:
    return socket.gethostname()

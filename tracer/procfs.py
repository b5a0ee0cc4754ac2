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
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Callable, NamedTuple, TypeVar

from tracer import bounded
from tracer.leases import leased
from tracer.mounts import Mounts
from tracer.promptly import PATIENCE_S, NoAnswerError, each, promptly, stream, stuck, unanswered
from tracer.wire import TITLE_BYTES

PAGE_BYTES = mmap.PAGESIZE
BLOCK_BYTES = 512  # of st_blocks, whatever the file system
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

COMMAND_BYTES = 4096  # of a command line: a process can make its own as long as it likes
PATH_BYTES = 1024
NAME_BYTES = 256
FIELDS_BYTES = 4096  # of stat and statm, which have fewer
MAPS_BLOCKS = 64  # of 1 MiB, which take about a second: 65530 mappings, as many as there may be, are 7 of common paths
MAX_OPEN_FILES = 1 << 16
MAX_TGID = 1 << 22
MAX_TICKS = 1 << 39  # since boot, some centuries
MAX_NAMESPACES = 33  # of PIDs, one within another

TMPFS_MAGIC = 0x01021994
HUGETLBFS_MAGIC = 0x958458F6
FILE_SYSTEMS = {"tmpfs": TMPFS_MAGIC, "devtmpfs": TMPFS_MAGIC, "hugetlbfs": HUGETLBFS_MAGIC}
TMPFS_HANDLE = 1, 12  # its type and bytes, as shmem_encode_fh() in mm/shmem.c has them
AT_FDCWD = -100
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

# 7f1000000000-7f1010000000 rw-s 00000000 00:01 1047                       /dev/zero (deleted)
MAPS_LINE = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) (\S{4}) ([0-9a-f]{1,16}) "
    rb"([0-9a-f]{1,8}):([0-9a-f]{1,8}) (\d{1,20})(?: +(.*))?",
    re.DOTALL,
)

DELETED = " (deleted)"  # the kernel's, behind a path
LEASED = "somebody has a lease on it"
NUMBER = re.compile(rb"\d{1,15}")
SEGMENT = (b"shmid", b"cpid", b"rss", b"swap")  # columns of sysvipc/shm

Result = TypeVar("Result")

_libc = ctypes.CDLL(None, use_errno=True)
_mounts = Mounts(Path("/proc"))

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
    """the command line, cut at COMMAND_BYTES"""


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
    """A /proc, or a recorded tree that looks like one.

    Processes that vanish while they are read, that may not be read or do not answer, and lines that are not as the
    kernel writes them, give None or nothing.
    """

    def __init__(self, root: str = "/proc") -> None:
        self.root = Path(root)
        self.mounts = _mounts if root == "/proc" else Mounts(self.root)
        self.crowded: set[int] = set()
        """tgids of processes whose maps is longer than MAPS_BLOCKS, of which the rest was not read"""

    # ---- processes ----

    def folder(self, tgid: int) -> Path:
        """Of a process: whom to wait for."""
        return self.root / str(tgid)

    def tgids(self) -> list[int]:
        with os.scandir(self.root) as entries:
            return [int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdigit()]

    def process(self, tgid: int) -> ProcessStat | None:
        stat = self._stat(tgid)
        if stat is None:
            return None
        try:
            cmdline = promptly(self.folder(tgid), self._beginning_of_cmdline, tgid, COMMAND_BYTES)
        except NoAnswerError:
            cmdline = b""
        return _named(stat, cmdline, COMMAND_BYTES)

    def processes(self, known: dict[int, ProcessStat] | None = None) -> dict[int, ProcessStat]:
        """All of them, by tgid; those that are known already are not read again. Of a command line that is longer than
        TITLE_BYTES only these are read."""
        found = {tgid: (known or {}).get(tgid) for tgid in self.tgids()}
        fresh = {tgid: stat for tgid, known_stat in found.items() if not known_stat and (stat := self._stat(tgid))}
        for tgid, cmdline in each(self.folder, lambda tgid: self._beginning_of_cmdline(tgid, TITLE_BYTES), list(fresh)):
            found[tgid] = _named(fresh[tgid], cmdline or b"", TITLE_BYTES)
        return {tgid: stat for tgid, stat in found.items() if stat}

    def answers(self, tgid: int) -> bool:
        """Whether what it maps and its command line can be read, for all that is known; else ask again later."""
        return not stuck(self.folder(tgid))

    def warnings(self) -> list[str]:
        """What of all that was asked for is not known."""
        silent = [folder.name for folder in unanswered if isinstance(folder, Path) and folder.parent == self.root]
        return [
            *([f"what {_some(silent)} is called and maps is not known: it did not answer"] if silent else []),
            *([f"not all of what {_some(self.crowded)} maps is known: it is too much"] if self.crowded else []),
        ]

    def parent(self, tgid: int) -> int | None:
        """Its parent's tgid; None when it is gone."""
        stat = self._stat(tgid)
        return stat.parent if stat else None

    def _stat(self, tgid: int) -> ProcessStat | None:
        """Without what only its own memory says: a title and a command line."""
        stat = self._beginning(tgid, "stat")
        # the name is between the first parenthesis and the last, and may hold anything but NUL
        name, end = stat.find(b"("), stat.rfind(b")")
        try:
            fields = stat[end + 2 :].split()
            parent, start_ticks = _number(fields[1]), _number(fields[19])
        except (ValueError, IndexError):
            return None
        if not 0 <= name < end or parent > MAX_TGID or start_ticks > MAX_TICKS:
            return None
        return ProcessStat(tgid, parent, bounded.text(stat[name + 1 : end], NAME_BYTES), start_ticks * TICK_NS, "", "")

    def _beginning_of_cmdline(self, tgid: int, size_bytes: int) -> bytes:
        """And one byte more, where there is more."""
        return self._beginning(tgid, "cmdline", size_bytes + 1)

    def _beginning(self, tgid: int, name: str, size_bytes: int = FIELDS_BYTES) -> bytes:
        """Of a file of a process; nothing of one that is gone."""
        try:
            return bounded.read(self.folder(tgid) / name, size_bytes)
        except OSError as error:
            if not bounded.unreadable(error):
                raise
            return b""

    def _lines(self, *names: str) -> Iterator[bytes]:
        """Of a file that is read without waiting for anybody; none if it is gone."""
        try:
            yield from bounded.lines(bounded.blocks(self.root.joinpath(*names)))
        except OSError as error:
            if not bounded.unreadable(error):
                raise

    def cgroup(self, tgid: int) -> str | None:
        """Its path in the unified hierarchy, or where that is empty in the memory controller's."""
        paths = {}
        for line in self._lines(str(tgid), "cgroup"):
            _, controllers, path = line.split(b":", 2) if line.count(b":") > 1 else (b"", b"none", b"")
            for name in controllers.split(b","):
                paths[name] = path
        found = paths.get(b"memory", paths.get(b""))
        return None if found is None else bounded.text(found, PATH_BYTES)

    def ns_tgid(self, tgid: int) -> int | None:
        """Its PID in its own PID namespace; None where that is the same, from NSpid of status."""
        (innermost,) = self._status(tgid).get(b"NSpid", [tgid])[-1:] or [tgid]
        return None if innermost == tgid or innermost > MAX_TGID else innermost

    def private_bytes(self, tgid: int) -> int:
        """Anonymous memory, in memory and swapped out: RssAnon and VmSwap of status. Of kernel threads none."""
        kib = self._status(tgid)
        return sum(sum(kib.get(name, ())) for name in (b"RssAnon", b"VmSwap")) * 1024

    def _status(self, tgid: int) -> dict[bytes, list[int]]:
        """The numbers of some lines of /proc/PID/status; nothing of a process that is gone."""
        parts = (line.partition(b":") for line in self._lines(str(tgid), "status"))
        return {
            name: [int(word) for word in words.split()[:MAX_NAMESPACES] if NUMBER.fullmatch(word)]
            for name, _, words in parts
            if name in (b"NSpid", b"RssAnon", b"VmSwap")
        }

    def rss_bytes(self, tgid: int) -> int | None:
        """What ps calls RSS, from statm."""
        try:
            return _number(self._beginning(tgid, "statm").split()[1]) * PAGE_BYTES
        except (ValueError, IndexError):
            return None

    def mappings(self, tgid: int) -> list[Mapping]:
        """The mappings that have a file behind them; none when the process is gone."""
        found = []
        for line in self._maps(tgid):
            start, end, flags, offset, major, minor, ino, path = line.groups(b"")
            dev = os.makedev(int(major, 16), int(minor, 16))
            if dev:  # else the inode tells nothing: the host's first SysV segment has number 0
                first_index = int(offset, 16) // PAGE_BYTES
                span = int(start, 16), int(end, 16)
                found.append(Mapping(*span, flags[3:] == b"s", first_index, dev, int(ino), _path(path)))
        return found

    def executables(self, tgid: int) -> list[Executable]:
        """The mappings of a process that code may run in, by address; none when it is gone."""
        found = []
        for line in self._maps(tgid):
            start, end, flags, offset, major, minor, ino, path = line.groups(b"")
            if flags[2:3] == b"x":
                span = int(start, 16), int(end, 16)
                dev = os.makedev(int(major, 16), int(minor, 16))
                found.append(Executable(*span, flags[3:] == b"s", int(offset, 16), dev, int(ino), _path(path)))
        return found

    def _maps(self, tgid: int) -> Iterator[re.Match[bytes]]:
        """Its lines, as MAPS_LINE matches them."""
        try:
            yield from filter(None, map(MAPS_LINE.fullmatch, bounded.lines(self._maps_blocks(tgid))))
        except OSError as error:
            if not bounded.unreadable(error):
                raise

    def _maps_blocks(self, tgid: int) -> Iterator[bytes]:
        blocks = bounded.blocks(self.folder(tgid) / "maps")
        for _ in range(MAPS_BLOCKS):
            block = promptly(self.folder(tgid), next, blocks, b"")
            yield block
            if len(block) < bounded.BLOCK_BYTES:  # it was the last
                return
        self.crowded.add(tgid)

    # ---- regions ----

    def map_file(self, tgid: int, mapping: Mapping | Executable) -> Path:
        return self.folder(tgid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"

    def identify(self, tgid: int, mappings: Sequence[Mapping]) -> list[RegionKey | None]:
        """Which files they are of; None of what is gone, and of all where the process does not answer."""
        try:
            return promptly(self.folder(tgid), self._identify, tgid, mappings)
        except NoAnswerError:
            return [None] * len(mappings)

    def _identify(self, tgid: int, mappings: Sequence[Mapping]) -> list[RegionKey | None]:
        return [identify(self.map_file(tgid, mapping)) for mapping in mappings]

    def open_mapped(self, tgid: int, mapping: Mapping | Executable) -> int:
        """A descriptor to read a mapped file by: by way of the process, whatever its root is, and if it is deleted.

        Raises OSError at once, as open_promptly does.
        """
        return open_promptly(self.map_file(tgid, mapping))

    def open_files(self, tgid: int) -> list[Path]:
        """/proc/PID/fd/N of a process's open files, pipes, sockets and the like left out; none when it is gone."""
        try:
            with os.scandir(self.folder(tgid) / "fd") as entries:
                return sorted(
                    Path(entry.path) for entry in islice(entries, MAX_OPEN_FILES) if _leads_to_a_file(entry.path)
                )
        except OSError as error:
            if not bounded.unreadable(error):
                raise
            return []

    def file_system(self, tgid: int, mapping: Mapping) -> int | None:
        """Magic number of the file system that a mapping is of, where that may be a region's; None: it is no such.

        By its device: no file system is asked that can keep us waiting.
        """
        known = internal_file_systems().get(mapping.dev)
        if known:
            return known
        kind = self.mounts.kind(tgid, mapping.dev)
        # one that is mounted nowhere, as /dev/shm after umount -l and a graphics driver's own; rootfs is tmpfs or ramfs
        if not kind or kind == "rootfs":
            return TMPFS_MAGIC if is_tmpfs(self.map_file(tgid, mapping)) else None
        return FILE_SYSTEMS.get(kind)

    def memory(self) -> Memory:
        kib = {}
        for line in self._lines("meminfo"):
            name, _, value = line.partition(b":")
            kib[name] = int(value.split()[0]) * 1024
        return Memory(kib[b"MemTotal"], kib[b"SwapTotal"], kib[b"Shmem"])

    def memory_cgroups(self) -> Path | None:
        """Where the hierarchy of cgroup()'s paths is mounted; None where it is not."""
        found = {}
        for line in self._lines("self", "mounts"):
            _, place, kind, options, *_ = [*line.split(b" "), b"", b"", b"", b""]
            if kind == b"cgroup2" or (kind == b"cgroup" and b"memory" in options.split(b",")):
                found[kind] = Path(os.fsdecode(place))
        return found.get(b"cgroup", found.get(b"cgroup2"))

    def sysv_segments(self) -> dict[int, SysvSegment]:
        """By shmid, which is the inode's number too."""
        lines = self._lines("sysvipc", "shm")
        names = next(lines, b"").split()
        found = {}
        for line in lines:
            field = dict(zip(names, line.split()))
            try:
                shmid, creator, resident, swapped = (_number(field[name]) for name in SEGMENT)
                found[shmid] = SysvSegment(shmid, creator, resident + swapped)
            except (KeyError, ValueError):
                continue
        return found


def _leads_to_a_file(descriptor: str) -> bool:
    """It has a name with a path, of whatever kind it is. To ask for that waits for nobody."""
    try:
        return os.readlink(descriptor).startswith("/")  # noqa: PTH115 - a Path of each takes as long as to look
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return False


@functools.lru_cache(maxsize=1024)  # of 65530 mappings of one file each has its path
def _path(raw: bytes) -> str:
    return bounded.text(raw, PATH_BYTES)


def _number(word: bytes) -> int:
    """Raises ValueError where it is no count that a kernel could have."""
    if not NUMBER.fullmatch(word):
        raise ValueError(word)
    return int(word)


def _some(tgids: Collection[object]) -> str:
    return f"process {next(iter(tgids))}{f' and {len(tgids) - 1} more' * (len(tgids) > 1)}"


def _named(stat: ProcessStat, cmdline: bytes, size_bytes: int) -> ProcessStat:
    title, command = titles(cmdline, size_bytes)
    return stat._replace(title=title, command=command)


def titles(cmdline: bytes, size_bytes: int) -> tuple[str, str]:
    """(title, command) of a command line as the kernel keeps it: a NUL after each argument.

    What setproctitle wrote has blanks between words, is one argument, and has NULs after it up to where the arguments
    once ended. Of one that is longer than size_bytes the beginning, and an ellipsis.
    """
    shown = cmdline[:size_bytes]
    if shown.endswith(b"\0\0"):
        cmdline = shown.rstrip(b"\0")
    arguments = [argument.strip() for argument in bounded.text(cmdline, size_bytes).split("\0")]
    arguments = [argument for argument in arguments if argument]
    return (arguments[0] if arguments else ""), " ".join(arguments)


# ---- one file behind a mapping: path is a map_files entry, /proc/PID/fd/N or a file ----
#
# Nothing is asked of a file system that it would have to ask another host for, or a process. Measured with a FUSE that
# does not answer: stat(2), fstat(2) of an O_PATH descriptor, statfs(2), and open(2) with O_NONBLOCK wait for it and are
# not even killed; statx(2) with AT_STATX_DONT_SYNC, name_to_handle_at(2), readlink(2), and O_PATH itself do not.


class _Stat(NamedTuple):
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


def _stat(place: Path | int) -> _Stat:
    """Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    name = b"" if isinstance(place, int) else os.fsencode(place)
    flags = AT_STATX_DONT_SYNC | AT_EMPTY_PATH
    _check(_libc.statx(place if isinstance(place, int) else AT_FDCWD, name, flags, STATX_WANTED, buffer), place)
    mask, mode, ino, size_bytes, blocks, born_s, born_ns, major, minor, mount = STATX.unpack_from(buffer)
    return _Stat(
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


def _check(failed: int, place: Path | int) -> None:
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
    stat = _stat(place)
    return RegionKey(stat.dev, stat.ino, _generation(place))


def birth_time_ns(path: Path) -> int | None:
    """When the inode was made (CLOCK_REALTIME), by statx; None before v6.1."""
    stat = _asked(_stat, path)
    return stat.born_ns if stat else None


def region_stat(path: Path) -> RegionStat | None:
    """Size and allocation; None if the path is gone."""
    stat = _asked(_stat, path)
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
        stat = _stat(place)
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
    vss_bytes: int


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


def host() -> str:
    return socket.gethostname()

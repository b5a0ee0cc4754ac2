"""Reads what /proc says about processes and the host, as records."""

from __future__ import annotations

import functools
import os
import re
import socket
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tracer.proc import bounded
from tracer.proc.blocking import NoAnswerError, each, forget, promptly, stuck, unanswered
from tracer.proc.mounts import Mounts
from tracer.proc.shmem import (
    HUGETLBFS_MAGIC,
    PAGE_BYTES,
    PATH_BYTES,
    TMPFS_MAGIC,
    RegionKey,
    _mounts,
    identify,
    internal_file_systems,
    is_tmpfs,
    open_promptly,
)
from tracer.wire import TITLE_BYTES

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

COMMAND_BYTES = 4096  # limit for a command line, which a process can make as long as it likes
NAME_BYTES = 256
FIELDS_BYTES = 4096  # limit for stat and statm, which are shorter
# limit for maps, in blocks of 1 MiB: reading takes about a second. 65530 mappings, the kernel's limit, of common paths
# take 7.
MAPS_BLOCKS = 64
MAX_OPEN_FILES = 1 << 16
MAX_TGID = 1 << 22
MAX_TICKS = 1 << 39  # since boot; some centuries
MAX_NAMESPACES = 33  # nested PID namespaces

FILE_SYSTEMS = {"tmpfs": TMPFS_MAGIC, "devtmpfs": TMPFS_MAGIC, "hugetlbfs": HUGETLBFS_MAGIC}


# 7f1000000000-7f1010000000 rw-s 00000000 00:01 1047                       /dev/zero (deleted)
MAPS_LINE = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) (\S{4}) ([0-9a-f]{1,16}) "
    rb"([0-9a-f]{1,8}):([0-9a-f]{1,8}) (\d{1,20})(?: +(.*))?",
    re.DOTALL,
)

NUMBER = re.compile(rb"\d{1,15}")
SEGMENT = b"shmid cpid lpid nattch atime dtime ctime size rss swap".split()  # columns of /proc/sysvipc/shm


FLAGS, PF_EXITING = 6, 0x4  # a field of /proc/PID/stat after the name, and a bit of it: include/linux/sched.h


class ProcessStat(NamedTuple):
    """A process, from /proc/PID/stat and /proc/PID/cmdline."""

    tgid: int
    parent: int
    """tgid of the parent."""
    comm: str
    start_time_ns: int
    """Since boot, field 22 of stat, to the clock tick (10 ms)."""
    title: str
    """Its first argument, or all of what setproctitle wrote."""
    command: str
    """The command line, cut at COMMAND_BYTES."""


class Mapping(NamedTuple):
    """A VMA with a file, from /proc/PID/maps."""

    start: int
    end: int
    shared: bool
    first_index: int
    """The page of the file that is mapped at `start`."""
    dev: int
    """As os.makedev() returns it."""
    ino: int
    path: str
    """As printed, including `` (deleted)``."""


class Executable(NamedTuple):
    """An executable VMA, from /proc/PID/maps."""

    start: int
    end: int
    shared: bool
    offset_bytes: int
    """Offset in the file that is mapped at `start`."""
    dev: int
    ino: int
    """0: there is no file."""
    path: str


class Memory(NamedTuple):
    """The host's memory, from /proc/meminfo."""

    total_bytes: int
    swap_bytes: int
    shmem_bytes: int
    anon_bytes: int


class SysvSegment(NamedTuple):
    """A line of /proc/sysvipc/shm: a segment of this process's IPC namespace."""

    shmid: int
    key: int
    """As from ftok(3); 0: IPC_PRIVATE."""
    creator: int
    """tgid of the process that created the segment."""
    last_user: int
    """tgid of the process that last attached or detached it; 0: none has."""
    attached: int
    """Number of attachments now."""
    used_ns: int
    """When it was last attached, detached or changed: CLOCK_REALTIME, to the second."""
    size_bytes: int
    allocated_bytes: int
    """Resident and swapped."""
    swapped_bytes: int


class Proc:
    """A /proc, or a recorded tree that looks like one.

    Methods return None or nothing for processes that exit meanwhile, may not be read or do not answer, and for
    malformed lines.
    """

    def __init__(self, root: str = "/proc") -> None:
        self.root = Path(root)
        self.mounts = _mounts if root == "/proc" else Mounts(self.root)
        self._threads: dict[int, int] = {}  # tgid to a TID, for processes whose first thread has ended
        self.crowded: set[int] = set()
        """tgids of processes with more than MAPS_BLOCKS of maps; the rest was not read."""

    # ---- processes ----

    def folder(self, tgid: int) -> Path:
        """/proc/PID, which also stands for the process in promptly() and stuck()."""
        return self.root / str(tgid)

    def tgids(self) -> list[int]:
        """All processes."""
        with os.scandir(self.root) as entries:
            return [int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdigit()]

    def process(self, tgid: int) -> ProcessStat | None:
        """One process, with its command line if it answers."""
        stat = self._stat(tgid)
        if stat is None:
            return None
        try:
            cmdline = promptly(self.folder(tgid), self._beginning_of_cmdline, tgid, COMMAND_BYTES)
        except NoAnswerError:
            cmdline = b""
        return _named(stat, cmdline, COMMAND_BYTES)

    def processes(self, known: dict[int, ProcessStat] | None = None) -> dict[int, ProcessStat]:
        """All processes, by tgid. Those in `known` are not read again.

        Only TITLE_BYTES of a command line are read.
        """
        found = {tgid: (known or {}).get(tgid) for tgid in self.tgids()}
        fresh = {tgid: stat for tgid, known_stat in found.items() if not known_stat and (stat := self._stat(tgid))}
        for tgid, cmdline in each(self.folder, lambda tgid: self._beginning_of_cmdline(tgid, TITLE_BYTES), list(fresh)):
            found[tgid] = _named(fresh[tgid], cmdline or b"", TITLE_BYTES)
        return {tgid: stat for tgid, stat in found.items() if stat}

    def answers(self, tgid: int) -> bool:
        """Whether the process has answered all reads so far.

        If not, its mappings and command line may be missing: ask later.
        """
        return not stuck(self.folder(tgid))

    def warnings(self) -> list[str]:
        """What could not be read so far."""
        silent = [folder.name for folder in unanswered if isinstance(folder, Path) and folder.parent == self.root]
        return [
            *([f"the name and mappings of {_some(silent)} are not known: it did not answer"] if silent else []),
            *([f"only some mappings of {_some(self.crowded)} are known: there are too many"] if self.crowded else []),
        ]

    def forget_others(self, tgids: Collection[int]) -> None:
        """Forget what could not be read of other processes than these."""
        self.crowded.intersection_update(tgids)
        folders = {self.folder(tgid) for tgid in tgids}
        forget(lambda whom: isinstance(whom, Path) and whom.parent == self.root and whom not in folders)

    def parent(self, tgid: int) -> int | None:
        """Its parent's tgid; None if the process is gone."""
        stat = self._stat(tgid)
        return stat.parent if stat else None

    def _stat(self, tgid: int) -> ProcessStat | None:
        """All but title and command line, which are in the process's own memory."""
        stat = self._beginning(tgid, "stat")
        # the name is between the first and the last parenthesis, and may contain anything but NUL
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
        """One byte more than asked for, if there is more."""
        found = self._beginning(tgid, "cmdline", size_bytes + 1)
        if not found and self._find_thread(tgid):
            found = self._beginning(tgid, "cmdline", size_bytes + 1)
        return found

    def _beginning(self, tgid: int, name: str, size_bytes: int = FIELDS_BYTES) -> bytes:
        """The beginning of a file of a process; empty if the process is gone."""
        try:
            return bounded.read(self.live_folder(tgid) / name, size_bytes)
        except OSError as error:
            if not bounded.unreadable(error):
                raise
            return b""

    def _lines(self, *names: str) -> Iterator[bytes]:
        """The lines of a file that no process can block; none if it is gone."""
        try:
            yield from bounded.lines(bounded.blocks(self.root.joinpath(*names)))
        except OSError as error:
            if not bounded.unreadable(error):
                raise

    def cgroup(self, tgid: int) -> str | None:
        """Its path in the unified hierarchy, or else in the memory controller's, from /proc/PID/cgroup."""
        paths = {}
        for line in self._lines(str(tgid), "cgroup"):
            _, controllers, path = line.split(b":", 2) if line.count(b":") > 1 else (b"", b"none", b"")
            for name in controllers.split(b","):
                paths[name] = path
        found = paths.get(b"memory", paths.get(b""))
        # of a process that exits, v1 says "/" (proc_cgroup_show() of kernel/cgroup/cgroup.c)
        if found is None or (found == b"/" and b"memory" in paths and self._is_exiting(tgid)):
            return None
        return bounded.text(found, PATH_BYTES)

    def _is_exiting(self, tgid: int) -> bool:
        fields = self._beginning(tgid, "stat").rpartition(b")")[2].split()
        return len(fields) <= FLAGS or not NUMBER.fullmatch(fields[FLAGS]) or bool(int(fields[FLAGS]) & PF_EXITING)

    def ns_tgid(self, tgid: int) -> int | None:
        """Its PID in its own PID namespace, from NSpid of /proc/PID/status; None if it is the same."""
        (innermost,) = self._status(self.folder(tgid)).get(b"NSpid", [tgid])[-1:] or [tgid]
        return None if innermost == tgid or innermost > MAX_TGID else innermost

    def private_bytes(self, tgid: int) -> int:
        """Anonymous memory, resident and swapped: RssAnon and VmSwap of /proc/PID/status. 0 for kernel threads."""
        kib = self._status(self.live_folder(tgid))
        return sum(sum(kib.get(name, ())) for name in (b"RssAnon", b"VmSwap")) * 1024

    def _status(self, folder: Path) -> dict[bytes, list[int]]:
        """The numbers of some lines of /proc/PID/status; empty if the process is gone."""
        parts = (line.partition(b":") for line in self._lines(folder.name, "status"))
        return {
            name: [int(word) for word in words.split()[:MAX_NAMESPACES] if NUMBER.fullmatch(word)]
            for name, _, words in parts
            if name in (b"NSpid", b"RssAnon", b"VmSwap")
        }

    def rss_bytes(self, tgid: int) -> int | None:
        """What ps calls RSS, from /proc/PID/statm."""
        try:
            return _number(self._beginning(tgid, "statm").split()[1]) * PAGE_BYTES
        except (ValueError, IndexError):
            return None

    def mappings(self, tgid: int) -> list[Mapping]:
        """The mappings that have a file, from /proc/PID/maps; none if the process is gone."""
        found = []
        for line in self._maps(tgid):
            start, end, flags, offset, major, minor, ino, path = line.groups(b"")
            dev = os.makedev(int(major, 16), int(minor, 16))
            if dev:  # else it has no file; the inode number does not tell, since the first SysV segment's is 0
                first_index = int(offset, 16) // PAGE_BYTES
                span = int(start, 16), int(end, 16)
                found.append(Mapping(*span, flags[3:] == b"s", first_index, dev, int(ino), _path(path)))
        return found

    def executables(self, tgid: int) -> list[Executable]:
        """The executable mappings, by address, from /proc/PID/maps; none if the process is gone."""
        found = []
        for line in self._maps(tgid):
            start, end, flags, offset, major, minor, ino, path = line.groups(b"")
            if flags[2:3] == b"x":
                span = int(start, 16), int(end, 16)
                dev = os.makedev(int(major, 16), int(minor, 16))
                found.append(Executable(*span, flags[3:] == b"s", int(offset, 16), dev, int(ino), _path(path)))
        return found

    def _maps(self, tgid: int) -> Iterator[re.Match[bytes]]:
        """The lines of /proc/PID/maps, matched by MAPS_LINE."""
        try:
            yield from filter(None, map(MAPS_LINE.fullmatch, bounded.lines(self._maps_blocks(tgid))))
        except OSError as error:
            if not bounded.unreadable(error):
                raise

    def _maps_blocks(self, tgid: int) -> Iterator[bytes]:
        blocks = bounded.blocks(self.live_folder(tgid) / "maps")
        block = promptly(self.folder(tgid), next, blocks, b"")
        if not block and self._find_thread(tgid):
            blocks = bounded.blocks(self.live_folder(tgid) / "maps")
            block = promptly(self.folder(tgid), next, blocks, b"")
        for _ in range(MAPS_BLOCKS):
            yield block
            if len(block) < bounded.BLOCK_BYTES:  # the last one
                return
            block = promptly(self.folder(tgid), next, blocks, b"")
        self.crowded.add(tgid)

    def live_folder(self, tgid: int) -> Path:
        """The folder with the memory and the open files of a process: /proc/PID, or /proc/TID.

        In /proc/PID they are empty once the first thread has ended, even if others run: exit_mm() in kernel/exit.c.
        """
        thread = self._threads.get(tgid)
        if thread is None:
            return self.folder(tgid)
        if (self.folder(tgid) / "task" / str(thread)).exists():
            return self.root / str(thread)
        del self._threads[tgid]
        return self.folder(tgid)

    def _find_thread(self, tgid: int) -> bool:
        """Find a thread other than the first, for live_folder(). Returns whether there is one."""
        try:
            with os.scandir(self.folder(tgid) / "task") as threads:
                found = next((int(thread.name) for thread in threads if thread.name != str(tgid)), None)
        except OSError as error:
            if not bounded.unreadable(error):
                raise
            return False
        if found is not None:
            self._threads[tgid] = found
        return found is not None

    # ---- regions ----

    def map_file(self, tgid: int, mapping: Mapping | Executable) -> Path:
        """The entry of a mapping in /proc/PID/map_files."""
        return self.live_folder(tgid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"

    def identify(self, tgid: int, mappings: Sequence[Mapping]) -> list[RegionKey | None]:
        """The files of mappings. None for a mapping that is gone; all None if the process does not answer."""
        try:
            return promptly(self.folder(tgid), self._identify, tgid, mappings)
        except NoAnswerError:
            return [None] * len(mappings)

    def _identify(self, tgid: int, mappings: Sequence[Mapping]) -> list[RegionKey | None]:
        return [identify(self.map_file(tgid, mapping)) for mapping in mappings]

    def open_mapped(self, tgid: int, mapping: Mapping | Executable) -> int:
        """A descriptor to read a mapped file by. It works in any root directory, and for deleted files.

        Raises OSError as open_promptly() does.
        """
        return open_promptly(self.map_file(tgid, mapping))

    def open_files(self, tgid: int) -> list[Path]:
        """/proc/PID/fd/N of open files, without pipes, sockets and the like; none if the process is gone."""
        return sorted(Path(path) for path, link in self.descriptors(tgid) if link.startswith("/"))

    def descriptors(self, tgid: int) -> Iterator[tuple[str, str]]:
        """(/proc/PID/fd/N, its link) of whatever is open, at most MAX_OPEN_FILES. It does not block."""
        try:
            with os.scandir(self.live_folder(tgid) / "fd") as entries:
                for entry in islice(entries, MAX_OPEN_FILES):
                    yield entry.path, _link(entry.path)
        except OSError as error:
            if not bounded.unreadable(error):
                raise

    def file_system(self, tgid: int, mapping: Mapping) -> int | None:
        """Magic number of a mapping's file system if it may hold regions (tmpfs or hugetlbfs), else None.

        It is found by device number, without asking a file system that might not answer.
        """
        known = internal_file_systems().get(mapping.dev)
        if known:
            return known
        kind = self.mounts.kind(tgid, mapping.dev)
        # Mounted nowhere, such as /dev/shm after umount -l or a graphics driver's tmpfs. rootfs is a tmpfs or ramfs.
        if not kind or kind == "rootfs":
            return TMPFS_MAGIC if is_tmpfs(self.map_file(tgid, mapping)) else None
        return FILE_SYSTEMS.get(kind)

    def memory(self) -> Memory:
        """The host's memory, from /proc/meminfo."""
        kib = {}
        for line in self._lines("meminfo"):
            name, _, value = line.partition(b":")
            kib[name] = int(value.split()[0]) * 1024
        return Memory(kib[b"MemTotal"], kib[b"SwapTotal"], kib[b"Shmem"], kib[b"AnonPages"])

    def memory_cgroups(self) -> Path | None:
        """Where the hierarchy of cgroup()'s paths is mounted, from /proc/self/mounts; None if it is not."""
        found = {}
        for line in self._lines("self", "mounts"):
            _, place, kind, options, *_ = [*line.split(b" "), b"", b"", b"", b""]
            if kind == b"cgroup2" or (kind == b"cgroup" and b"memory" in options.split(b",")):
                found[kind] = Path(os.fsdecode(place))
        return found.get(b"cgroup", found.get(b"cgroup2"))

    def sysv_segments(self) -> dict[int, SysvSegment]:
        """The segments of /proc/sysvipc/shm, by shmid, which is also the inode number."""
        lines = self._lines("sysvipc", "shm")
        names = next(lines, b"").split()
        found = {}
        for line in lines:
            field = dict(zip(names, line.split()))
            try:
                shmid, creator, last, attached, *times_s, size, resident, swapped = (
                    _number(field[name]) for name in SEGMENT
                )
                used_ns = max(times_s) * 1_000_000_000
                key = int(field[b"key"])
                found[shmid] = SysvSegment(
                    shmid, key & 0xFFFFFFFF, creator, last, attached, used_ns, size, resident + swapped, swapped
                )
            except (KeyError, ValueError):
                continue
        return found


def _link(descriptor: str) -> str:
    """A path, or what a pipe or socket has instead; "" if it is closed. readlink(2) does not block."""
    try:
        return os.readlink(descriptor)  # noqa: PTH115 - a Path for each would double the time
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return ""


@functools.lru_cache(maxsize=1024)  # cached: each of 65530 mappings of one file has the same path
def _path(raw: bytes) -> str:
    return bounded.text(raw, PATH_BYTES)


def _number(word: bytes) -> int:
    """Raises ValueError for what is no count that the kernel could have written."""
    if not NUMBER.fullmatch(word):
        raise ValueError(word)
    return int(word)


def _some(tgids: Collection[object]) -> str:
    return f"process {next(iter(tgids))}{f' and {len(tgids) - 1} more' * (len(tgids) > 1)}"


def _named(stat: ProcessStat, cmdline: bytes, size_bytes: int) -> ProcessStat:
    title, command = titles(cmdline, size_bytes)
    return stat._replace(title=title, command=command)


def titles(cmdline: bytes, size_bytes: int) -> tuple[str, str]:
    """(title, command) of a command line as the kernel stores it: each argument ends with a NUL.

    What setproctitle wrote is one argument with blanks between words, padded with NULs up to the end of the old
    arguments. A command line longer than size_bytes is cut, with an ellipsis.
    """
    shown = cmdline[:size_bytes]
    if shown.endswith(b"\0\0"):
        cmdline = shown.rstrip(b"\0")
    arguments = [argument.strip() for argument in bounded.text(cmdline, size_bytes).split("\0")]
    arguments = [argument for argument in arguments if argument]
    return (arguments[0] if arguments else ""), " ".join(arguments)


def host() -> str:
    """The host's name."""
    return socket.gethostname()

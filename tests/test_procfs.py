"""/proc: a made-up one for what a process may be called and may map, this process's own files for the system calls."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.proc_texts import MAPS, MEMINFO, SYSVIPC, put, stat_of
from tracer.proc import blocking, bounded, procfs, shmem
from tracer.proc.procfs import COMMAND_BYTES, TICK_NS, Executable, Mapping, Memory, Proc, ProcessStat, SysvSegment
from tracer.proc.shmem import PAGE_BYTES, RegionKey, RegionStat
from tracer.wire import TITLE_BYTES

MAPPED = [
    Mapping(0x55D0C0000000, 0x55D0C0010000, False, 2, os.makedev(0xFD, 1), 1234, "/usr/sbin/php-fpm8.2"),
    Mapping(0x7F1000000000, 0x7F1010000000, True, 0, os.makedev(0, 1), 1047, "/dev/zero (deleted)"),
    Mapping(0x7F1010000000, 0x7F1010400000, True, 0x10000, os.makedev(0, 1), 1047, "/dev/zero (deleted)"),
    Mapping(0x7F2000000000, 0x7F2000001000, True, 0, os.makedev(0, 1), 32769, "/SYSV00000000 (deleted)"),
    Mapping(0x7F3000000000, 0x7F3000002000, True, 0, os.makedev(0, 1), 1048, "[anon_shmem:a pool]"),
    Mapping(
        0x7F4000000000, 0x7F4000001000, True, 1, os.makedev(0x103, 0x10001), 99, "/dev/shm/with  spaces (deleted) "
    ),
    Mapping(0x7F5000000000, 0x7F5000001000, True, 0, os.makedev(0, 0x13), 7, ""),
    Mapping(0x7F6000000000, 0x7F6000001000, True, 0, os.makedev(0, 0x13), 8, "/dev/shm/a\\012b"),
]


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """A /proc without a process."""
    return Proc(str(tmp_path))


# ---- processes ----


@pytest.mark.parametrize(
    ("comm", "shown"),
    [
        (b"php-fpm8.2", "php-fpm8.2"),
        (b"", ""),
        (b"tmux: server", "tmux: server"),
        (b") S 7 (", ") S 7 ("),
        (b"((sd-pam))", "((sd-pam))"),
        (b"two\nlines", "two\nlines"),
        (b"carriage\rreturn", "carriage\rreturn"),
        (b"form\x0cfeed\x85", "form\x0cfeed\\x85"),
        (b"\xff\x1b[2J", "\\xff\x1b[2J"),
        ("größe".encode(), "größe"),
    ],
)
def test_names(comm: bytes, shown: str, proc: Proc) -> None:
    put(proc, 812, stat=stat_of(812, comm, parent=811, start_ticks=523), cmdline=b"x\0")
    assert proc.process(812) == ProcessStat(812, 811, shown, 523 * TICK_NS, "x", "x")


@pytest.mark.parametrize(
    ("cmdline", "title", "command"),
    [
        (b"", "", ""),
        (b"\0\0\0", "", ""),
        (b"/bin/sh\0-c\0exit 0\0", "/bin/sh", "/bin/sh -c exit 0"),
        (b"no\0end", "no", "no end"),
        # what setproctitle wrote, into the room of the arguments and the environment
        (b"php-fpm: pool www" + b" " * 40, "php-fpm: pool www", "php-fpm: pool www"),
        (b"postgres: main: writer \0\0\0\0", "postgres: main: writer", "postgres: main: writer"),
        (b"nginx: worker process\0\0\0PATH=/bin", "nginx: worker process", "nginx: worker process PATH=/bin"),
        (b"\xff\0\xfe\0", "\\xff", "\\xff \\xfe"),
    ],
)
def test_command_lines(cmdline: bytes, title: str, command: str, proc: Proc) -> None:
    put(proc, 812, stat=stat_of(812, b"x"), cmdline=cmdline)
    found = proc.process(812)
    assert found
    assert (found.title, found.command) == (title, command)


def test_processes(proc: Proc) -> None:
    put(proc, 1, stat=stat_of(1, b"init", parent=0, start_ticks=1), cmdline="/sbin/init\0")
    put(proc, 812, stat=stat_of(812, b"kworker/0:1", parent=2), cmdline="")
    put(proc, 4711)  # vanished
    (proc.root / "self").mkdir()
    assert sorted(proc.tgids()) == [1, 812, 4711]
    assert proc.processes() == {
        1: ProcessStat(1, 0, "init", TICK_NS, "/sbin/init", "/sbin/init"),
        812: ProcessStat(812, 2, "kworker/0:1", 521 * TICK_NS, "", ""),
    }


def test_resident_memory(proc: Proc) -> None:
    put(proc, 812, statm="52183 4821 1844 900 0 700 0\n")
    assert proc.rss_bytes(812) == 4821 * PAGE_BYTES


def test_a_process_that_has_vanished(proc: Proc) -> None:
    assert proc.process(812) is None
    assert proc.rss_bytes(812) is None


@pytest.mark.parametrize(
    ("line", "ns_tgid"),
    [
        ("NSpid:\t812\n", None),
        ("NSpid:\t812\t7\n", 7),
        ("NSpid:\t812\t31\t1\n", 1),
        ("NSpid:\t812\t812\n", None),
        ("", None),  # without CONFIG_PID_NS
    ],
)
def test_the_pid_that_it_has_itself(line: str, ns_tgid: int | None, proc: Proc) -> None:
    folder = proc.root / "812"
    folder.mkdir(exist_ok=True)
    (folder / "status").write_bytes(b"Name:\tNSpid:\\n\xff\nTgid:\t812\n" + line.encode() + b"VmSwap:\t0 kB\n")
    assert proc.ns_tgid(812) == ns_tgid
    assert proc.ns_tgid(813) is None
    assert proc.mappings(812) == []
    assert proc.open_files(812) == []
    mapping = Mapping(0x1000, 0x2000, True, 0, 1, 1, "")
    assert shmem.identify(proc.map_file(812, mapping)) is None


GONE = [
    errno.ENOENT,
    errno.ESRCH,  # the kernel lets its files be opened, and then says so
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
]


@pytest.mark.parametrize("number", GONE)
@pytest.mark.parametrize("call", ["open", "read"])
def test_a_process_that_vanishes_while_it_is_read(
    number: int, call: str, proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(
        proc,
        812,
        stat=stat_of(812, b"x"),
        cmdline="",
        maps=MAPS,
        statm="1 1 1\n",
        status="VmSwap: 7 kB\n",
        cgroup="0::/\n",
    )
    assert proc.process(812)
    fail(monkeypatch, call, number)
    assert (proc.process(812), proc.rss_bytes(812), proc.mappings(812), proc.executables(812)) == (None, None, [], [])
    assert (proc.cgroup(812), proc.ns_tgid(812), proc.private_bytes(812)) == (None, None, 0)
    assert (proc.processes(), proc.open_files(812), proc.sysv_segments(), proc.parent(812)) == ({}, [], {}, None)
    assert proc.answers(812)


@pytest.mark.parametrize("call", ["open", "read"])
def test_a_fault_of_ours_is_none_of_theirs(call: str, proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes do not vanish because this one has too many files open."""
    put(proc, 812, stat=stat_of(812, b"x"), cmdline="", maps=MAPS, statm="1 1 1\n", status="", cgroup="")
    fail(monkeypatch, call, errno.EMFILE)
    for look in (proc.process, proc.mappings, proc.cgroup, proc.rss_bytes, proc.private_bytes):
        with pytest.raises(OSError, match="Too many open files"):
            look(812)


def fail(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def failing(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, failing)


def test_this_process() -> None:
    found = Proc().process(os.getpid())
    assert found
    assert (found.tgid, found.parent) == (os.getpid(), os.getppid())
    assert 0 < found.start_time_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert found.command.startswith(found.title)
    assert found.title in Path("/proc/self/cmdline").read_text()
    assert os.getpid() in Proc().tgids()


# ---- mappings ----


def test_mappings(proc: Proc) -> None:
    put(proc, 812, maps=MAPS)
    assert proc.mappings(812) == MAPPED


def test_executables(proc: Proc) -> None:
    put(proc, 812, maps=f"{MAPS}ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n")
    assert proc.executables(812) == [
        Executable(0x55D0C0000000, 0x55D0C0010000, False, 0x2000, MAPPED[0].dev, 1234, "/usr/sbin/php-fpm8.2"),
        Executable(0x7F1010000000, 0x7F1010400000, True, 0x10000000, MAPPED[2].dev, 1047, "/dev/zero (deleted)"),
        Executable(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, False, 0, 0, 0, "[vsyscall]"),
    ]
    assert proc.executables(813) == []


@pytest.mark.parametrize("name", [b"a\rb", b"a\x0bb\x0cc", b"a\x1cb\x85c", "a\u2028b\u2029".encode(), b"\xff\xfe"])
def test_only_a_newline_ends_a_mapping(name: bytes, proc: Proc) -> None:
    """A file may be called anything, and the kernel writes only its newlines otherwise."""
    line = b"7f4000000000-7f4000001000 rw-s 00000000 00:13 99                     /dev/shm/%s\n" % name
    put(proc, 812, maps=line * 2)
    shown = name.decode(errors="backslashreplace")
    assert [mapping.path for mapping in proc.mappings(812)] == [f"/dev/shm/{shown}"] * 2


def test_the_first_sysv_segment_of_a_host(proc: Proc) -> None:
    """Its shmid is 0, and so is its inode."""
    put(
        proc,
        812,
        maps=b"7f4000000000-7f4000001000 rw-s 00000000 00:01 0 /SYSV00000000 (deleted)\n",
    )
    [mapping] = proc.mappings(812)
    assert (mapping.dev, mapping.ino, mapping.path) == (1, 0, "/SYSV00000000 (deleted)")


def test_a_kernel_thread_maps_nothing(proc: Proc) -> None:
    put(proc, 812, maps="")
    assert proc.mappings(812) == []


def test_the_entry_of_a_mapping(proc: Proc) -> None:
    path = proc.map_file(812, MAPPED[1])
    assert path == proc.root / "812" / "map_files" / "7f1000000000-7f1010000000"


def test_open_files(proc: Proc) -> None:
    (proc.root / "812" / "fd").mkdir(parents=True)
    for number in "10", "2":
        (proc.root / "812" / "fd" / number).symlink_to("/dev/null")
    assert [path.name for path in proc.open_files(812)] == ["10", "2"]


# ---- the host ----


def test_memory(proc: Proc) -> None:
    (proc.root / "meminfo").write_text(MEMINFO)
    assert proc.memory() == Memory(24684524 << 10, 1048576 << 10, 46380 << 10, 811724 << 10)


def test_sysv_segments(proc: Proc) -> None:
    (proc.root / "sysvipc").mkdir()
    (proc.root / "sysvipc" / "shm").write_text(SYSVIPC)
    assert proc.sysv_segments() == {
        3: SysvSegment(3, 5432001, 811, 812, 7, 1732400001 * 10**9, 56, 4096, 0),
        32769: SysvSegment(32769, 0xDEADBEEF, 1201, 0, 1, 1732400000 * 10**9, 2097152000, 86016, 4096),
    }


def test_a_kernel_without_sysv(proc: Proc) -> None:
    assert proc.sysv_segments() == {}


# ---- as strangers would have it ----

STAT = stat_of(812, b"x", parent=811, start_ticks=523)


@pytest.mark.parametrize(
    "stat",
    [
        b"",
        b"\0" * 100,
        b"812",
        b"812 (x",
        b"812 x) S 811",
        b"812 )x( S 811 811 0 -1 4194560 1203 0 0 0 3 5 0 0 20 0 1 0 523 213700608",
        STAT[:40],
        STAT.replace(b" 811 ", b" parent ", 1),
        STAT.replace(b" 811 ", b" -811 ", 1),
        STAT.replace(b" 811 ", b" 99999999999 ", 1),
        STAT.replace(b" 523 ", b" \xb9 "),
        STAT.replace(b" 523 ", b" 5\x0023 "),
        STAT.replace(b" 523 ", b" -523 "),
        STAT.replace(b" 523 ", b" " + b"9" * 19 + b" "),
        STAT.replace(b" 523 ", b" " + b"9" * 5000 + b" "),
        b"812 (" + b"x" * (10 << 20) + STAT[5:],
    ],
)
def test_no_stat_of_a_process(stat: bytes, proc: Proc) -> None:
    put(proc, 812, stat=stat, cmdline=b"x\0")
    assert proc.process(812) is None
    assert proc.processes() == {}


def test_a_name_that_looks_like_the_rest(proc: Proc) -> None:
    name = b") R 1 ("
    put(proc, 812, stat=stat_of(812, name, parent=811, start_ticks=523), cmdline=b"")
    assert proc.process(812) == ProcessStat(812, 811, ") R 1 (", 523 * TICK_NS, "", "")


def test_a_long_command_line_is_cut_and_says_so(proc: Proc) -> None:
    put(proc, 811, stat=stat_of(811, b"x"), cmdline=b"x\0" + b"y" * (COMMAND_BYTES - 3) + b"\0")
    put(proc, 812, stat=stat_of(812, b"x"), cmdline=b"x\0" + b"y" * (COMMAND_BYTES - 2) + b"\0")
    put(proc, 813, stat=stat_of(813, b"x"), cmdline="é".encode() * 5_000_000)
    commands = [stat.command for stat in map(proc.process, (811, 812, 813)) if stat]
    assert commands == ["x " + "y" * (COMMAND_BYTES - 3), "x " + "y" * (COMMAND_BYTES - 2) + "…", "é" * 2048 + "…"]


def test_of_all_processes_no_more_is_read_than_their_titles(proc: Proc) -> None:
    put(proc, 811, stat=stat_of(811, b"x"), cmdline=b"x" * TITLE_BYTES)
    put(proc, 812, stat=stat_of(812, b"x"), cmdline=b"php-fpm: pool www\0" + b"y" * 1000)
    put(proc, 813, stat=stat_of(813, b"x"), cmdline=b"\0" * 20_000_000)
    put(proc, 814, stat=stat_of(814, b"x"), cmdline=b"php-fpm: pool www" + b"\0" * 1000)  # by setproctitle
    found = proc.processes()
    assert (found[811].title, found[811].command) == ("x" * TITLE_BYTES,) * 2
    assert found[812].title == "php-fpm: pool www"
    assert found[812].command == "php-fpm: pool www " + "y" * (TITLE_BYTES - 18) + "…"
    assert found[813].command == ""
    assert (found[814].title, found[814].command) == ("php-fpm: pool www",) * 2


def test_files_without_end_take_no_memory(proc: Proc) -> None:
    """64 MB of each that others can make as long as they like."""
    size_bytes = 64 << 20
    put(proc, 812, stat=STAT)
    files = ("cmdline", "maps", "status", "cgroup", "statm", "mountinfo")
    for name in (*files, "stat"):
        with open(proc.root / "812" / name, "ab") as file:
            file.truncate(size_bytes)
    (proc.root / "sysvipc").mkdir()
    with open(proc.root / "sysvipc" / "shm", "wb") as file:
        file.truncate(size_bytes)
    tracemalloc.start()
    try:
        assert proc.processes()[812].command == ""
        assert (proc.mappings(812), proc.cgroup(812), proc.ns_tgid(812)) == ([], None, None)
        assert (proc.rss_bytes(812), proc.sysv_segments(), proc.mounts.kind(812, 1)) == (None, {}, None)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\0" * 70,
        "7f1000000000-7f1010000000 rw-s 00000000 00:01",
        "7f1000000000-7f1010000000 rw-s 00000000 1047 /dev/zero",
        "7f1000000000 rw-s 00000000 00:01 1047 /dev/zero",
        "7f1000000000-7f1010000000 rw-s 00000000 00 1047 /dev/zero",
        "7f1000000000-7f1010000000 rw-s 0000000g 00:01 1047 /dev/zero",
        "7f1000000000-7f1010000000 rw-s 00000000 00:01 -1047 /dev/zero",
        "7f1000000000-7f1010000000 rw 00000000 00:01 1047 /dev/zero",
        "7f1000000000-7f101000000000000 rw-s 00000000 00:01 1047 /dev/zero",
        "7f1000000000-7f1010000000 rw-s 00000000 00:01 " + "9" * 5000,
        "7f1000000000-7f1010000000 rw-s 00000000 00:01 1047 /" + "x" * (10 << 20),
    ],
)
def test_no_line_of_maps(line: str, proc: Proc) -> None:
    """Only that one is left out."""
    put(proc, 812, maps=f"{MAPS}{line}\n{MAPS}")
    assert proc.mappings(812) == MAPPED * 2
    put(proc, 812, maps=f"{MAPS}{line}")
    assert proc.mappings(812) == MAPPED


def test_a_long_path_is_cut(proc: Proc) -> None:
    put(proc, 812, maps=f"7f4000000000-7f4000001000 rw-s 00000000 00:13 99 /{'x' * 5000}\n")
    assert [mapping.path for mapping in proc.mappings(812)] == ["/" + "x" * (shmem.PATH_BYTES - 1) + "…"]


def test_more_mappings_than_are_read(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out is told."""
    monkeypatch.setattr(procfs, "MAPS_BLOCKS", 2)
    number = bounded.BLOCK_BYTES // len(MAPS)
    put(proc, 811, maps=MAPS * number)
    assert proc.mappings(811) == MAPPED * number
    assert proc.warnings() == []
    put(proc, 812, maps=MAPS * 3 * number)
    put(proc, 813, maps=MAPS * 3 * number)
    assert len(MAPPED) * number < len(proc.mappings(812)) == len(proc.mappings(813)) < 3 * len(MAPPED) * number
    assert proc.warnings() == ["only some mappings of process 812 and 1 more are known: there are too many"]


def test_large_maps_are_read_to_the_end(proc: Proc) -> None:
    """Of several MB, by blocks that end within a line."""
    number = 3 * bounded.BLOCK_BYTES // len(MAPS)
    put(proc, 812, maps=MAPS * number)
    assert proc.mappings(812) == MAPPED * number


@pytest.mark.parametrize(
    ("status", "ns_tgid", "private_bytes"),
    [
        ("NSpid:\nRssAnon:\nVmSwap:\n", None, 0),
        ("NSpid:\t812\t-7\nRssAnon:\tlots\n", None, 0),
        ("NSpid:\t812\t99999999\nRssAnon:\t" + "9" * 5000 + " kB\nVmSwap:\t3 kB\n", None, 3072),
        ("NSpid\nGroups:\t" + "1000 " * 65536 + "\nNSpid:\t812\t7\n", 7, 0),
    ],
)
def test_no_lines_of_status(status: str, ns_tgid: int | None, private_bytes: int, proc: Proc) -> None:
    put(proc, 812, status=status)
    assert (proc.ns_tgid(812), proc.private_bytes(812)) == (ns_tgid, private_bytes)


@pytest.mark.parametrize(
    ("cgroup", "path"),
    [
        ("", None),
        ("0\n", None),
        (":\n::\n", ""),
        ("1:cpu:/a\n0::/b:c\n", "/b:c"),
        ("0::/b\n2:cpu,memory:/a\n", "/a"),
        ("0::/" + "x" * 2000 + "\n", "/" + "x" * (shmem.PATH_BYTES - 1) + "…"),
        ("0::/b\n2:memory:/" + "x" * (10 << 20) + "\n", "/b"),
    ],
)
def test_cgroups(cgroup: str, path: str | None, proc: Proc) -> None:
    put(proc, 812, cgroup=cgroup)
    assert proc.cgroup(812) == path


@pytest.mark.parametrize(
    ("cgroup", "flags", "path"),
    [
        ("5:memory:/\n0::/x\n", 4194560, "/"),
        ("5:memory:/\n0::/x\n", 4194560 | 4, None),
        ("5:memory:/web\n0::/x\n", 4194560 | 4, "/web"),
        ("0::/\n", 4194560 | 4, "/"),
        ("5:memory:/\n", 10**30, None),
    ],
)
def test_the_cgroup_of_one_that_exits(cgroup: str, flags: int, path: str | None, proc: Proc) -> None:
    """Of v1's hierarchies it is in the root, whatever it was in."""
    stat = stat_of(812, b"php) (fpm").replace(b" 4194560 ", b" %d " % flags)
    put(proc, 812, cgroup=cgroup, stat=stat)
    assert proc.cgroup(812) == path


@pytest.mark.parametrize("statm", ["", "1", "1 x", "\0", "1 " + "9" * 5000])
def test_no_statm(statm: str, proc: Proc) -> None:
    put(proc, 812, statm=statm)
    assert proc.rss_bytes(812) is None


def test_no_lines_of_segments(proc: Proc) -> None:
    (proc.root / "sysvipc").mkdir()
    (proc.root / "sysvipc" / "shm").write_text(f"{SYSVIPC}7 x\n\n7 7 600 x\n")
    assert proc.sysv_segments().keys() == {3, 32769}
    (proc.root / "sysvipc" / "shm").write_text("\n7 7\n")
    assert proc.sysv_segments() == {}


def test_only_files_among_open_files(proc: Proc) -> None:
    """A pipe, a socket and an epoll have nothing to look at, and to ask them may be to wait."""
    targets = ["/dev/shm/x (deleted)", "pipe:[4711]", "socket:[4712]", "anon_inode:[eventpoll]", "/memfd:x (deleted)"]
    (proc.root / "812" / "fd").mkdir(parents=True)
    for number, target in enumerate(targets):
        (proc.root / "812" / "fd" / str(number)).symlink_to(target)
    assert [path.name for path in proc.open_files(812)] == ["0", "4"]


def test_a_process_that_does_not_answer(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does of which a thread holds the mmap_lock: its name is known, and that it is not asked any more."""
    put(proc, 811, stat=stat_of(811, b"one"), cmdline="one\0", maps=MAPS)
    put(proc, 812, stat=stat_of(812, b"other"), cmdline="other\0", maps=MAPS)
    read, answer = bounded.read, threading.Event()

    def held(path: Path, size_bytes: int) -> bytes:
        if path == proc.root / "812" / "cmdline":
            answer.wait()
        return read(path, size_bytes)

    monkeypatch.setattr(bounded, "read", held)
    monkeypatch.setattr(blocking, "PATIENCE_S", 0.2)
    found = proc.processes()
    assert {tgid: (stat.comm, stat.title) for tgid, stat in found.items()} == {811: ("one", "one"), 812: ("other", "")}
    assert (proc.answers(811), proc.answers(812)) == (True, False)
    assert (len(proc.mappings(811)), proc.mappings(812)) == (len(MAPPED), [])
    assert shmem.identify(proc.map_file(812, MAPPED[1])) is None
    told = ["the name and mappings of process 812 are not known: it did not answer"]
    assert proc.warnings() == told
    proc.forget_others([811])  # it is still waited for
    assert proc.warnings() == told
    answer.set()
    end = time.monotonic() + 30
    while not proc.answers(812) and time.monotonic() < end:
        time.sleep(0.01)
    assert proc.mappings(812) == MAPPED
    proc.forget_others([811, 812])
    assert proc.warnings() == told
    proc.forget_others([811])
    assert proc.warnings() == []


# ---- files that strangers chose ----


def test_a_fifo_and_a_device_are_not_opened(tmp_path: Path) -> None:
    """Nobody reads the FIFO: to open it would wait, and with a reader whoever writes to it would go on."""
    os.mkfifo(tmp_path / "fifo")
    for path in tmp_path / "fifo", tmp_path, Path("/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            shmem.open_promptly(path)


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[Path]:
    """A file of 2 pages that this process has a lease on, and does not give back."""
    path = tmp_path / "leased"
    path.write_bytes(b"x" * 2 * PAGE_BYTES)
    handler = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    yield path
    os.close(fd)
    signal.signal(signal.SIGIO, handler)


def test_a_leased_file_is_not_waited_for(leased: Path) -> None:
    """An open that waits would, for /proc/sys/fs/lease-break-time: 45 s."""
    began_s = time.monotonic()
    with pytest.raises(BlockingIOError):
        shmem.open_promptly(leased)
    assert time.monotonic() - began_s < 20


def test_a_file_is_opened_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    os.utime(path, (1000, 2000))
    fd = shmem.open_promptly(path)
    assert os.read(fd, 9) == b"text"
    os.close(fd)
    assert path.stat().st_atime == 1000


# ---- one region: files of this process ----


@pytest.fixture
def memfd() -> Iterator[Callable[..., int]]:
    """Makes memfds; closed at the end."""
    made = []

    def make(pages: int = 0, name: str | bytes = "test") -> int:
        made.append(os.memfd_create(os.fsdecode(name)))
        os.ftruncate(made[-1], pages * PAGE_BYTES)
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


def path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")


def write(fd: int, *pages: int) -> None:
    for page in pages:
        os.pwrite(fd, b"x", page * PAGE_BYTES + 17)


def test_survey_sees_holes(memfd: Callable[..., int]) -> None:
    fd = memfd(1000)
    write(fd, 0, 7, 8, 9, 511, 512, 999)
    survey = shmem.survey(path_of(fd))
    assert survey == shmem.Survey([(0, 1), (7, 10), (511, 513), (999, 1000)], 7 * PAGE_BYTES, 1000 * PAGE_BYTES)
    assert shmem.region_stat(path_of(fd)) == RegionStat(1000 * PAGE_BYTES, 7 * PAGE_BYTES)


def test_survey_of_an_odd_size(memfd: Callable[..., int]) -> None:
    fd = memfd()
    os.write(fd, b"x" * (2 * PAGE_BYTES + 1))
    assert shmem.survey(path_of(fd)) == shmem.Survey([(0, 3)], 3 * PAGE_BYTES, 2 * PAGE_BYTES + 1)


@pytest.mark.parametrize("pages", [0, 1000])
def test_survey_of_nothing(pages: int, memfd: Callable[..., int]) -> None:
    assert shmem.survey(path_of(memfd(pages))) == shmem.Survey([], 0, pages * PAGE_BYTES)


def test_survey_finds_what_fallocate_made(memfd: Callable[..., int]) -> None:
    """Nobody touched them, and SEEK_DATA does not show them; they are allocated all the same."""
    fd = memfd(1000)
    if shmem.residency(path_of(fd)).resident_bytes is None:
        pytest.skip("cachestat(2) is since v6.5")
    os.posix_fallocate(fd, 100 * PAGE_BYTES, 57 * PAGE_BYTES)
    write(fd, 3, 120)
    survey = shmem.survey(path_of(fd))
    assert survey
    found = {page for start, end in survey.pages for page in range(start, end)}
    assert found == {3, *range(100, 157)}
    assert survey.allocated_bytes == 58 * PAGE_BYTES == sum(end - start for start, end in survey.pages) * PAGE_BYTES


def test_survey_of_what_was_given_back(memfd: Callable[..., int]) -> None:
    fd = memfd(100)
    write(fd, *range(100))
    with mmap.mmap(fd, 100 * PAGE_BYTES) as memory:
        memory.madvise(mmap.MADV_REMOVE, 10 * PAGE_BYTES, 80 * PAGE_BYTES)
        assert shmem.survey(path_of(fd)) == shmem.Survey([(0, 10), (90, 100)], 20 * PAGE_BYTES, 100 * PAGE_BYTES)
        memory.madvise(mmap.MADV_REMOVE)
    assert shmem.survey(path_of(fd)) == shmem.Survey([], 0, 100 * PAGE_BYTES)


def test_looking_allocates_nothing(memfd: Callable[..., int]) -> None:
    fd = memfd(1000)
    write(fd, 500)
    for look in shmem.survey, shmem.residency, shmem.identify, shmem.region_stat, shmem.birth_time_ns:
        look(path_of(fd))
        assert os.fstat(fd).st_blocks * shmem.BLOCK_BYTES == PAGE_BYTES, look.__name__


def test_residency(memfd: Callable[..., int]) -> None:
    fd = memfd(1000)
    write(fd, 1, 2, 999)
    found = shmem.residency(path_of(fd))
    if found.resident_bytes is None or found.swapped_bytes is None:
        pytest.skip("cachestat(2) is since v6.5")
    assert found.resident_bytes + found.swapped_bytes == 3 * PAGE_BYTES


def test_what_is_gone_is_unknown(memfd: Callable[..., int]) -> None:
    gone = path_of(memfd()).with_name("99999")
    assert shmem.survey(gone) is None
    assert shmem.region_stat(gone) is None
    assert shmem.residency(gone) == shmem.Residency(None, None)
    assert shmem.identify(gone) is None
    assert shmem.magic(gone) is None
    assert shmem.generation(gone) is None
    assert shmem.birth_time_ns(gone) is None
    assert shmem.link_name(gone) == ""


def test_birth(memfd: Callable[..., int]) -> None:
    began_ns = time.time_ns()
    fd = memfd()
    ended_ns = time.time_ns()
    time.sleep(2 * TICK_NS / 1e9)
    os.utime(fd, (0, 0))  # its other times are others now
    born_ns = shmem.birth_time_ns(path_of(fd))
    if born_ns is None:
        pytest.skip("tmpfs keeps its files' birth since v6.1")
    # the kernel stamps inodes with the time of the last tick
    assert began_ns - TICK_NS <= born_ns <= ended_ns


def test_identity(memfd: Callable[..., int]) -> None:
    one, other = memfd(), memfd()
    key = shmem.identify(path_of(one))
    assert key
    assert (key.dev, key.ino) == (os.fstat(one).st_dev, os.fstat(one).st_ino)
    assert key.generation == shmem.generation(path_of(one))
    again = os.dup(one)
    assert shmem.identify(path_of(again)) == key
    os.close(again)
    assert shmem.identify(path_of(other)) != key
    # a random number of 32 bits, beside the inode's number in the handle
    assert shmem.generation(path_of(other)) != key.generation != key.ino & 0xFFFFFFFF


def test_a_file_that_is_no_region() -> None:
    """It has a device and a number, and no generation as those of a tmpfs have it."""
    stat = Path("/proc/self/stat").stat()
    assert shmem.identify(Path("/proc/self/stat")) == RegionKey(stat.st_dev, stat.st_ino, None)
    assert shmem.generation(Path("/proc/self/stat")) is None
    assert not shmem.is_tmpfs(Path("/proc/self/stat"))


def test_file_systems(memfd: Callable[..., int]) -> None:
    assert shmem.magic(path_of(memfd())) == shmem.TMPFS_MAGIC
    assert shmem.is_tmpfs(path_of(memfd()))
    assert shmem.magic(Path("/proc/self/stat")) == 0x9FA0
    try:
        huge = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no huge pages here ({error.strerror})")
    assert shmem.magic(path_of(huge)) == shmem.HUGETLBFS_MAGIC
    assert shmem.internal_file_systems()[os.fstat(huge).st_dev] == shmem.HUGETLBFS_MAGIC
    os.close(huge)


def test_kinds(memfd: Callable[..., int]) -> None:
    internal = shmem.internal_dev()
    assert internal == os.fstat(memfd()).st_dev
    posix = Path("/dev/shm").stat().st_dev
    kinds = {
        (internal, "/dev/zero"): "anon",
        (internal, "dev/zero"): "anon",  # as the kernel side gives it, which sees no more than the dentry
        (internal, "/memfd:a name"): "memfd",
        (internal, "/memfd:dev/zero"): "memfd",
        (internal, "/SYSV0052e2c1"): "sysv",
        (internal, "/i915"): "other",
        (posix, "/dev/shm/PostgreSQL.1"): "posix",
        (posix, "/dev/zero"): "posix",  # a file may be called anything
        (posix, "/memfd:x"): "posix",
        (os.makedev(0, 99999), "/run/lock/x"): "other",
        (os.makedev(0, 99999), "/dev/zero"): "other",
    }
    assert {place: shmem.kind_of(place[0], shmem.TMPFS_MAGIC, place[1]) for place in kinds} == kinds
    assert shmem.kind_of(internal, shmem.HUGETLBFS_MAGIC, "/anon_hugepage") == "hugetlb"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"test", "test"),
        (b"a (deleted)", "a (deleted)"),
        (b"two\nlines\x1b[2J", "two\nlines\x1b[2J"),
        (b"\xff", "\\xff"),
        ("größe".encode(), "größe"),
    ],
)
def test_names_of_files(name: bytes, shown: str, memfd: Callable[..., int]) -> None:
    assert shmem.link_name(path_of(memfd(name=name))) == f"/memfd:{shown}"


@pytest.mark.parametrize("name", [b"plain", b"a\rb\x0cc\x1c\x85", "a\u2028b".encode(), b"\xff\xfe"])
def test_own_mappings_of_hostile_names(name: bytes, memfd: Callable[..., int]) -> None:
    fd = memfd(3, name)
    with mmap.mmap(fd, PAGE_BYTES, offset=2 * PAGE_BYTES) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        (found,) = [mapping for mapping in Proc().mappings(os.getpid()) if mapping.start <= address < mapping.end]
    stat = os.fstat(fd)
    path = f"/memfd:{name.decode(errors='backslashreplace')} (deleted)"
    assert found == Mapping(address, address + PAGE_BYTES, True, 2, stat.st_dev, stat.st_ino, path)

"""A live region's content: what is read is what was written, and the region is as it was, whichever way it is read.

None of it loads BPF.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live import holder
from tests.live.fpm import OPCACHE_BYTES, running_fpm, script_names
from tests.live.holder import page
from tests.live.reports import ROOT, SHMTRACE, patched
from tests.live.running import running
from tests.live.shmem import PAGE_BYTES, SECTOR_BYTES, libc, read_regions
from tests.live.terminal import on_terminal

PATIENCE_S = 120.0
SIZE_PAGES = 97
PUT = "0-23,41-48"
CONTENT = b"".join(page(n) if n < 23 or 41 <= n < 48 else bytes(PAGE_BYTES) for n in range(SIZE_PAGES))
KINDS = ["anon", "memfd", "sysv", "posix"]
LEFT_OUT = 3

# As before v6.5.
BY_SMAPS = patched("import tracer.proc.shmem", "tracer.proc.shmem.cachestat = lambda *_: None")
WAYS = {"cachestat": SHMTRACE, "smaps": BY_SMAPS}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="map_files needs root")


class State(NamedTuple):
    """What must be the same before and after."""

    blocks: int
    resident: frozenset[int]
    """pages, by mincore of a mapping that is not touched"""
    swapped_pages: int
    """by smaps of who holds it"""
    accessed_ns: int


class Held(NamedTuple):
    process: subprocess.Popen[str]
    address: int

    @property
    def tgid(self) -> int:
        return self.process.pid

    @property
    def place(self) -> str:
        return f"{self.tgid}:{self.address:x}"

    @property
    def path(self) -> Path:
        return next(Path(f"/proc/{self.tgid}/map_files").glob(f"{self.address:x}-*"))

    def state(self) -> State:
        stat = self.path.stat()
        smaps = Path(f"/proc/{self.tgid}/smaps").read_text()
        swap = re.search(rf"^{self.address:x}-.*\n(?:[A-Z].*\n)*?Swap: +(\d+) kB$", smaps, re.MULTILINE)
        swapped_pages = int(swap[1]) * 1024 // PAGE_BYTES if swap else 0
        return State(stat.st_blocks, resident_pages(self.path), swapped_pages, stat.st_atime_ns)

    def end(self) -> None:
        self.process.communicate(timeout=PATIENCE_S)


def changed(before: State, after: State) -> dict[str, object]:
    """What is not as it was, and of pages which: pytest would compare thousands of them one by one."""
    names = {name for name in State._fields if getattr(before, name) != getattr(after, name)}
    found = {name: (getattr(before, name), getattr(after, name)) for name in names - {"resident"}}
    return {**found, **({"resident": sorted(before.resident ^ after.resident)} if "resident" in names else {})}


def settled(region: Held) -> State:
    """Its state once that holds still: what was just swapped out leaves memory a little later."""
    deadline = time.monotonic() + PATIENCE_S
    state = region.state()
    while True:
        time.sleep(2)
        last, state = state, region.state()
        if not changed(last, state):
            return state
        assert time.monotonic() < deadline


def resident_pages(path: Path) -> frozenset[int]:
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    size_bytes = os.fstat(fd).st_size
    address = libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    states = ctypes.create_string_buffer(-(-size_bytes // PAGE_BYTES))
    assert not libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), states)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes))
    return frozenset(number for number, state in enumerate(states.raw) if state & 1)


@contextmanager
def held(kind: str = "anon", pages: int = SIZE_PAGES, put: str = PUT, group: Path | None = None) -> Iterator[Held]:
    """group: a control group to do it in."""
    command = [sys.executable, holder.__file__, kind, str(pages), put]
    if group:
        command = ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh", *command]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield Held(process, int(process.stdout.readline(), 16))


def run(*arguments: object, shmtrace: Sequence[str] = SHMTRACE, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    line = [*shmtrace, "read", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == status, done.stderr.decode()
    if status == 0:
        assert not done.stderr
    return done


def fails(*arguments: object, status: int = 1) -> str:
    """The line that it ends with."""
    done = run(*arguments, status=status)
    assert not done.stdout
    return done.stderr.decode().splitlines()[-1]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> list[str]:
    """How it learns what is swapped out."""
    return WAYS[request.param]


@contextmanager
def unchanged(region: Held) -> Iterator[None]:
    before = region.state()
    assert before.blocks * SECTOR_BYTES == 30 * PAGE_BYTES
    assert before.resident == {*range(23), *range(41, 48)}
    yield
    assert not changed(before, region.state())


# ---- every way out, every kind ----


@pytest.mark.parametrize("kind", KINDS)
def test_into_a_file(kind: str, way: list[str], tmp_path: Path) -> None:
    with held(kind) as region, unchanged(region):
        run(region.place, "-o", tmp_path / "dump", shmtrace=way)
    assert (tmp_path / "dump").read_bytes() == CONTENT
    stat = (tmp_path / "dump").stat()
    assert stat.st_mode & 0o7777 == 0o600
    assert stat.st_blocks * SECTOR_BYTES <= 32 * PAGE_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_through_a_pipe(kind: str, way: list[str]) -> None:
    with held(kind) as region, unchanged(region):
        assert run(region.place, shmtrace=way).stdout == CONTENT


def test_into_what_a_shell_opened(way: list[str], tmp_path: Path) -> None:
    with held() as region, unchanged(region), (tmp_path / "dump").open("wb") as file:
        subprocess.run([*way, "read", region.place], cwd=ROOT, stdout=file, check=True, timeout=PATIENCE_S)
    assert (tmp_path / "dump").read_bytes() == CONTENT


def test_as_hexadecimal(way: list[str]) -> None:
    with held() as region, unchanged(region):
        lines = run(region.place, "--hex", shmtrace=way).stdout.decode().splitlines()
    assert lines[0] == "00000000  70 61 67 65 20 20 20 20  20 30 0a a5 a5 a5 a5 a5  |page     0......|"
    assert [line for line in lines if line.startswith("* ")] == ["* hole, 18 pages", "* hole, 49 pages"]
    assert sum("|page " in line for line in lines) == 30
    assert lines[-1] == "00061000"


def test_the_text_in_it(way: list[str]) -> None:
    with held() as region, unchanged(region):
        lines = run(region.place, "--strings", shmtrace=way).stdout.decode().splitlines()
    expected = []
    for n in [*range(23), *range(41, 48)]:
        expected += [f"{n * PAGE_BYTES:8x}  page {n:5}", f"{(n + 1) * PAGE_BYTES - 8:8x}  the end"]
    assert [line for line in lines if "page" not in line] == expected[1::2]
    assert [line.rstrip() for line in lines if "page" in line] == expected[::2]


@pytest.mark.parametrize(
    ("bounds", "start", "end"),
    [
        ("p41-p48", 41 * 4096, 48 * 4096),
        ("p22-p42", 22 * 4096, 42 * 4096),
        ("5-4099", 5, 4099),
        ("88K-0x17001", 88 << 10, 0x17001),
        ("p30-p31", 30 * 4096, 31 * 4096),
    ],
)
def test_a_part(bounds: str, start: int, end: int, way: list[str], tmp_path: Path) -> None:
    with held() as region, unchanged(region):
        assert run(region.place, "--range", bounds, shmtrace=way).stdout == CONTENT[start:end]
        run(region.place, "--range", bounds, "-o", tmp_path / "dump", shmtrace=way)
    assert (tmp_path / "dump").read_bytes() == CONTENT[start:end]


def test_swapped_too_where_nothing_is(way: list[str]) -> None:
    with held() as region, unchanged(region):
        assert run(region.place, "--swapped", shmtrace=way).stdout == CONTENT


def test_nothing_in_it(way: list[str]) -> None:
    with held("memfd", 31, "0-0") as region:
        before = region.state()
        assert run(region.place, shmtrace=way).stdout == bytes(31 * PAGE_BYTES)
        assert run(region.place, "--hex", shmtrace=way).stdout == b"* hole, 31 pages\n0001f000\n"
        assert region.state() == before == (0, frozenset(), 0, before.accessed_ns)


def free_huge_pages() -> int:
    found = re.search(r"^HugePages_Free: +(\d+)$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.mark.usefixtures("huge_pages")
def test_hugetlb(tmp_path: Path) -> None:
    """Which has no swap, and tells no holes: a huge page of zeros is one."""
    if free_huge_pages() < 3:
        pytest.skip("no three huge pages are free")
    put = "0-5,1024-1031"
    content = b"".join(page(n) if n < 5 or 1024 <= n < 1031 else bytes(PAGE_BYTES) for n in range(3 * 512))
    with held("hugetlb", 3 * 512, put) as region:
        before = (region.path.stat().st_blocks, free_huge_pages())
        assert before[0] * SECTOR_BYTES == 2 << 21
        assert run(region.place).stdout == content
        run(region.place, "-o", tmp_path / "dump")
        assert b"* hole, 512 pages\n" in run(region.place, "--hex").stdout
        assert (region.path.stat().st_blocks, free_huge_pages()) == before
    assert (tmp_path / "dump").read_bytes() == content


# ---- swapped out ----


@contextmanager
def little_room(size_bytes: int) -> Iterator[Path]:
    """A control group that may have so much memory."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)
    if not root:
        pytest.skip("no cgroup2 is mounted")
    group = root / f"shmtrace-test-{os.getpid()}"
    group.mkdir()
    enabled = "memory" in (root / "cgroup.subtree_control").read_text()
    try:
        if not enabled:
            with suppress(OSError):
                (root / "cgroup.subtree_control").write_text("+memory")
        if not (group / "memory.max").exists():
            pytest.skip("no memory controller in cgroup2")
        (group / "memory.max").write_text(str(size_bytes))
        yield group
    finally:
        deadline = time.monotonic() + PATIENCE_S
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        group.rmdir()
        if not enabled:
            with suppress(OSError):
                (root / "cgroup.subtree_control").write_text("-memory")


@pytest.mark.skipif(len(Path("/proc/swaps").read_text().splitlines()) < 2, reason="there is no swap")
def test_what_is_swapped_out_stays_out(way: list[str], tmp_path: Path) -> None:
    size_pages, put_pages = 9_973, 9_001
    put = b"".join(page(n) for n in range(put_pages))
    with little_room(24 << 20) as group, held("anon", size_pages, f"0-{put_pages}", group) as region:
        before = settled(region)
        absent = sorted(set(range(put_pages)) - before.resident)
        assert before.blocks * SECTOR_BYTES == put_pages * PAGE_BYTES
        assert len(absent) > 1000

        done = run(region.place, "-o", tmp_path / "dump", shmtrace=way, status=LEFT_OUT)
        assert not changed(before, region.state())
        said = re.fullmatch(rb"shmtrace: (\d+) swapped-out pages are left out: --swapped reads them too\n", done.stderr)
        assert said
        left_out = int(said[1])
        assert left_out == before.swapped_pages >= len(absent)  # mincore takes for resident what is in memory still
        dump = (tmp_path / "dump").read_bytes()
        assert len(dump) == size_pages * PAGE_BYTES
        gone = 0
        for number in range(put_pages):
            found = dump[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            if found != page(number):
                assert found == bytes(PAGE_BYTES)
                gone += 1
        assert gone == left_out

        done = run(region.place, "--hex", shmtrace=way, status=LEFT_OUT)
        ranges = re.findall(rb"^\* swapped, (\d+) pages?$", done.stdout, re.MULTILINE)
        assert sum(map(int, ranges)) == left_out
        run(region.place, "--strings", shmtrace=way, status=LEFT_OUT)
        assert not changed(before, region.state())

        last = f"p{absent[-1]}-p{absent[-1] + 1}"
        assert run(region.place, "--range", last, shmtrace=way, status=LEFT_OUT).stdout == bytes(PAGE_BYTES)
        assert not changed(before, region.state())
        (group / "memory.max").write_text("max")  # or what comes back drives out the rest, page by page
        whole = run(region.place, "--swapped", shmtrace=way).stdout
        assert (
            hashlib.sha256(whole).digest()
            == hashlib.sha256(put + bytes((size_pages - put_pages) * PAGE_BYTES)).digest()
        )
        assert region.state().blocks == before.blocks


# ---- php-fpm ----


@pytest.mark.needs("php-fpm*")
def test_an_opcache(tmp_path: Path) -> None:
    """By what it probably is: it names the scripts that it holds, and its dump takes the room that it takes."""
    with running_fpm(scripts=53) as fpm:
        fpm.ask_for(script_names(53))
        before = read_regions(fpm.tgid)
        lines = run("opcache", "-p", fpm.tgid, "--strings").stdout.decode().splitlines()
        run("opcache?", "-p", fpm.tgid, "-o", tmp_path / "dump")
        assert read_regions(fpm.tgid) == before
    assert {name for name in script_names(53) if not any(line.endswith(name) for line in lines)} == set()
    stat = (tmp_path / "dump").stat()
    assert stat.st_size == OPCACHE_BYTES
    [pages] = [region.pages for region in before.values() if region.size_bytes == OPCACHE_BYTES]
    assert 0 < stat.st_blocks * SECTOR_BYTES <= (pages + 3) * PAGE_BYTES  # and what the file system notes of it


# ---- the region's life is its own ----


def test_the_region_can_die_while_its_content_is_taken_slowly(tmp_path: Path) -> None:
    """And the line says so; what was read by then is kept."""
    size_pages = 16_384
    with held("memfd", size_pages, f"0-{size_pages}") as region:
        line = [*SHMTRACE, "read", region.place]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            first = process.stdout.read(PAGE_BYTES)  # and the pipe is full from here on
            assert first == page(0)
            inode = region.path.stat().st_ino
            assert not any(inode == ino for ino in open_inodes(process.pid))
            region.end()
            rest, errors = process.communicate(timeout=PATIENCE_S)
    said = re.fullmatch(
        rf"shmtrace: the region is gone, after (\d+) of {size_pages * PAGE_BYTES} bytes: no process maps it any more\n",
        errors.decode(),
    )
    assert said, errors
    assert process.returncode == 1
    assert first + rest == b"".join(map(page, range(int(said[1]) // PAGE_BYTES)))


def open_inodes(tgid: int) -> list[int]:
    return [path.stat().st_ino for path in Path(f"/proc/{tgid}/fd").iterdir() if path.exists()]


def test_what_was_read_of_one_that_died_is_kept(tmp_path: Path) -> None:
    """A worker lives on for the first chunk alone."""
    slow = patched(
        "import os, time, tracer.proc.contents",
        "tracer.proc.contents.CHUNK_BYTES = 5 * 4096",
        "look = tracer.proc.contents.Contents._look",
        "def slowly(self, *rest):",
        f"    while os.path.exists({str(tmp_path / 'wait')!r}) and self.read_bytes:",
        "        time.sleep(0.01)",
        "    return look(self, *rest)",
        "tracer.proc.contents.Contents._look = slowly",
        "find = tracer.proc.contents.Contents._open",
        "def again(self):",
        f"    while os.path.exists({str(tmp_path / 'wait')!r}) and self.read_bytes:",
        "        time.sleep(0.01)",
        "    return find(self)",
        "tracer.proc.contents.Contents._open = again",
    )
    (tmp_path / "wait").touch()
    dump = tmp_path / "dump"
    with held() as region:
        line = [*slow, "read", region.place, "-o", str(dump)]
        with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + PATIENCE_S
            while not dump.exists() or dump.stat().st_size < 5 * PAGE_BYTES:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            region.end()
            (tmp_path / "wait").unlink()
            errors = process.communicate(timeout=PATIENCE_S)[1]
    assert errors == f"shmtrace: the region is gone, after 20480 of {len(CONTENT)} bytes: {dump} holds what was read\n"
    assert process.returncode == 1
    assert dump.read_bytes() == CONTENT[: 5 * PAGE_BYTES]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_half_is_removed_when_it_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    slow = patched(
        "import time, tracer.cli.sparse_file",
        "write = tracer.cli.sparse_file.Sink.write",
        "tracer.cli.sparse_file.Sink.write = lambda *rest: (write(*rest), time.sleep(30))",
    )
    dump = tmp_path / "dump"
    with held() as region:
        line = [*slow, "read", region.place, "-o", str(dump)]
        with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + PATIENCE_S
            while not dump.exists() or not dump.stat().st_size:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
            process.communicate(timeout=PATIENCE_S)
    assert process.returncode
    assert not dump.exists()


def test_a_reader_who_has_seen_enough() -> None:
    with held("memfd", 4096, "0-4096") as region:
        line = [*SHMTRACE, "read", region.place]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.read(100)
            process.stdout.close()
            assert process.stderr
            assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


# ---- words and mistakes ----


def region_id(region: Held) -> str:
    [(key, _)] = read_regions(region.tgid).items()
    return f"{key.dev}/{key.ino}/{key.generation:08x}"


@pytest.mark.parametrize("kind", KINDS)
def test_by_id(kind: str) -> None:
    with held(kind) as region:
        assert run(region_id(region)).stdout == CONTENT
        assert run(region_id(region), "-p", region.tgid).stdout == CONTENT


def test_by_name_when_there_is_only_one() -> None:
    with held("memfd") as one, held("memfd") as other:
        assert run("/memfd:pool", "-p", one.tgid).stdout == CONTENT
        done = run("/memfd:pool", status=1)
        lines = done.stderr.decode().splitlines()
        assert {region_id(one), region_id(other)} <= {line.split()[0] for line in lines}
        assert lines[-1] == "shmtrace: /memfd:pool names 2 regions: give the id of one, or narrow them with -p"
        assert not done.stdout


def test_words_that_mean_nothing(tmp_path: Path) -> None:
    with held("memfd") as region:
        line = fails("/memfd:poll", "-p", region.tgid)
        assert line == "shmtrace: no region is called /memfd:poll: did you mean /memfd:pool?"
        line = fails(f"{region.tgid}:{region.address - 1:x}")
        assert line.endswith("lies in none of its regions: give the id of one of these")
        assert (
            fails("999999999:7f10")
            == "shmtrace: there is no process 999999999: `shmtrace snapshot` lists processes with regions"
        )
        line = fails(region.place, "--range", "0-4G")
        assert line == f"shmtrace: the region ends at byte {len(CONTENT)}: give a --range that ends there or before"
        (tmp_path / "dump").write_text("mine")
        line = fails(region.place, "-o", tmp_path / "dump")
        assert line == f"shmtrace: {tmp_path}/dump exists: give another name, or remove it"
        assert (tmp_path / "dump").read_text() == "mine"


def test_a_full_disk() -> None:
    with held() as region, open("/dev/full", "wb") as full:
        line = [*SHMTRACE, "read", region.place]
        done = subprocess.run(line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert (
        done.stderr
        == "shmtrace: the output cannot be written (No space left on device): redirect it to another place\n"
    )


# ---- on a terminal ----


def test_bytes_are_not_sent_to_a_terminal() -> None:
    with held() as region, on_terminal([*SHMTRACE, "read", region.place]) as terminal:
        assert terminal.finish() == 2
    assert "a terminal cannot show raw bytes: give --hex, --strings or -o FILE" in terminal.seen


def test_a_bar_once_it_takes_a_second(tmp_path: Path) -> None:
    slow = patched(
        "import time, tracer.proc.contents, tracer.cli.sparse_file",
        "tracer.proc.contents.CHUNK_BYTES = 5 * 4096",
        "write = tracer.cli.sparse_file.Sink.write",
        "tracer.cli.sparse_file.Sink.write = lambda *rest: (time.sleep(0.4), write(*rest))",
    )
    with held() as region:
        with on_terminal([*slow, "read", region.place, "-o", str(tmp_path / "slow")]) as terminal:
            assert terminal.finish() == 0
        assert "100%" in terminal.seen
        with on_terminal([*SHMTRACE, "read", region.place, "-o", str(tmp_path / "quick")]) as terminal:
            assert terminal.finish() == 0
        assert terminal.seen == ""
    assert (tmp_path / "slow").read_bytes() == (tmp_path / "quick").read_bytes() == CONTENT


# ---- size ----


def test_a_gigabyte_in_bounded_memory(tmp_path: Path) -> None:
    """Of holes, with 64 MiB of data at its end."""
    first, end = 245_760, 262_144
    with held("memfd", end, f"{first}-{end}") as region:
        peak_kib = 0
        with (tmp_path / "dump").open("wb") as file:
            process = subprocess.Popen([*SHMTRACE, "read", region.place], cwd=ROOT, stdout=file)
            while process.poll() is None:  # what wait4 tells counts the program that it was forked from, too
                mark = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
                peak_kib = max(peak_kib, int(mark[1]) if mark else 0)
                time.sleep(0.002)
        assert region.path.stat().st_blocks * SECTOR_BYTES == (end - first) * PAGE_BYTES
    assert process.returncode == 0
    assert 0 < peak_kib < 64 << 10
    assert (tmp_path / "dump").stat().st_size == end * PAGE_BYTES
    with (tmp_path / "dump").open("rb") as file:
        file.seek(first * PAGE_BYTES)
        for number in range(first, end):
            assert file.read(PAGE_BYTES) == page(number)

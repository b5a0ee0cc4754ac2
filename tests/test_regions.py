"""Regions found through a made-up /proc, whose map_files lead to files of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.proc import shmem
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES
from tracer.record.processes import Processes, TracedProcess
from tracer.record.regions import Finder, Mapped, TracedRegion

START = 0x7F0000000000
ELSEWHERE = os.makedev(0xFD, 1)
UNMOUNTED = os.makedev(0, 99999)


class Host:
    """A /proc in which mappings are put one by one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.finder = Finder(Proc(str(root)))

    def map(self, tgid: int, target: Path, dev: int, start: int = START, path: str = "x", ino: int = 1) -> None:
        end = start + PAGE_BYTES
        (self.root / str(tgid) / "map_files").mkdir(parents=True, exist_ok=True)
        (self.root / str(tgid) / "map_files" / f"{start:x}-{end:x}").symlink_to(target)
        with open(self.root / str(tgid) / "maps", "a") as maps:
            maps.write(f"{start:x}-{end:x} rw-s 00000000 {os.major(dev):02x}:{os.minor(dev):02x} {ino} {path}\n")

    def map_region(self, tgid: int, region: TracedRegion, target: Path, start: int = START) -> None:
        """By the numbers of the region; the target says whether it is the one."""
        self.map(tgid, target, region.key.dev, start, ino=region.key.ino)

    def map_file(self, tgid: int, start: int = START) -> Path:
        return self.root / str(tgid) / "map_files" / f"{start:x}-{start + PAGE_BYTES:x}"

    def unmap(self, tgid: int) -> None:
        (self.root / str(tgid) / "maps").write_text("")

    def open(self, tgid: int, *targets: Path) -> None:
        (self.root / str(tgid) / "fd").mkdir(parents=True)
        for number, target in enumerate(targets):
            (self.root / str(tgid) / "fd" / str(number)).symlink_to(target)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def memfd() -> Iterator[Callable[..., Path]]:
    """Makes memfds of 100 pages with some of them written; the path of each."""
    made = []

    def make(*pages: int) -> Path:
        made.append(os.memfd_create("test"))
        os.ftruncate(made[-1], 100 * PAGE_BYTES)
        for page in pages:
            os.pwrite(made[-1], b"x", page * PAGE_BYTES)
        return Path(f"/proc/{os.getpid()}/fd/{made[-1]}")

    yield make
    for fd in made:
        os.close(fd)


def region_of(path: Path, kind: str = "memfd", number: int = 7) -> TracedRegion:
    key = shmem.identify(path)
    assert key
    return TracedRegion(row=1, id=number, key=key, kind=kind, path=path)


def process(tgid: int, parent: TracedProcess | None = None, start_time_ns: int = 0) -> TracedProcess:
    return TracedProcess(tgid, tgid, start_time_ns, parent, "x", "x", -1)


# ---- mappings ----


def test_only_mappings_of_regions(host: Host, memfd: Callable[..., Path]) -> None:
    host.map(812, Path("/proc/self/stat"), ELSEWHERE, path="/usr/lib/libc.so.6")
    host.map(812, memfd(), shmem.internal_dev(), START + 0x10000)
    assert [mapping.start for mapping in host.finder.mappings(812)] == [START + 0x10000]
    assert host.finder.mappings(99999) == []


def test_a_mapping_that_vanishes_says_nothing_of_its_device(host: Host, memfd: Callable[..., Path]) -> None:
    """Whoever was first to show a device may be gone before it is looked at."""
    host.map(812, Path("/proc/self/fd/99999"), UNMOUNTED)
    assert host.finder.mappings(812) == []
    host.map(813, memfd(), UNMOUNTED)
    assert [mapping.start for mapping in host.finder.mappings(813)] == [START]


@pytest.mark.parametrize(
    ("path", "name"),
    [("/memfd:test (deleted)", "/memfd:test"), ("[anon_shmem:a pool]", "[anon_shmem:a pool]"), ("", "/memfd:test")],
)
def test_descriptions(path: str, name: str, host: Host, memfd: Callable[..., Path]) -> None:
    host.map(811, memfd(), shmem.internal_dev())
    assert host.finder.mappings(811)  # knows the device from now on
    host.map(812, memfd().readlink(), shmem.internal_dev(), path=path)
    (mapping,) = host.finder.mappings(812)
    assert host.finder.describe(812, mapping) == ("memfd", name)


# ---- who maps it ----


def addresses(mapped: Mapped) -> dict[int, dict[int, list[int]]]:
    return {
        number: {tgid: [mapping.start for mapping in mappings] for tgid, mappings in theirs.items()}
        for number, theirs in mapped.items()
    }


def test_who_maps_what(host: Host, memfd: Callable[..., Path]) -> None:
    one, other = memfd(), memfd()
    first, second = region_of(one), region_of(other, number=8)
    host.map_region(811, first, one)
    host.map(812, Path("/proc/self/stat"), ELSEWHERE, path="/usr/lib/libc.so.6")
    host.map_region(812, second, other, START + 0x10000)
    host.map_region(812, first, one, START + 0x20000)
    host.map_region(812, first, one, START + 0x30000)
    host.map_region(814, first, one)  # nobody asked for
    processes = [process(811), process(812), process(813)]
    assert addresses(host.finder.mapped(processes, [first, second])) == {
        7: {811: [START], 812: [START + 0x20000, START + 0x30000]},
        8: {812: [START + 0x10000]},
    }
    assert host.finder.mapped(processes, [second]).keys() == {8}
    assert host.finder.mapped([], [first, second]) == host.finder.mapped(processes, []) == {}


def test_a_number_is_no_identity(host: Host, memfd: Callable[..., Path]) -> None:
    """SysV gives the same one again, and its numbers are those of others too."""
    region = region_of(memfd())
    host.map_region(811, region, memfd())
    host.map_region(811, region, Path("/proc/self/fd/99999"), START + 0x10000)
    host.map_region(811, region, Path("/proc/self/stat"), START + 0x20000)
    assert host.finder.mapped([process(811)], [region]) == {}


def test_a_second_life_of_a_number(host: Host, memfd: Callable[..., Path]) -> None:
    """Two regions of one number are told apart by their generation."""
    path = memfd()
    alive = region_of(path)
    gone = TracedRegion(
        row=2, id=8, key=alive.key._replace(generation=(alive.key.generation or 0) ^ 1), kind="sysv", path=None
    )
    host.map_region(811, alive, path)
    assert addresses(host.finder.mapped([process(811)], [gone, alive])) == {7: {811: [START]}}


def test_where_a_process_maps_it(host: Host, memfd: Callable[..., Path]) -> None:
    path = memfd()
    region = region_of(path)
    host.map_region(812, region, memfd())
    host.map_region(812, region, path, START + 0x10000)
    host.finder.locate(region, host.finder.mapped([process(812)], [region]), {})
    assert (region.path, region.address) == (host.map_file(812, START + 0x10000), START + 0x10000)
    host.finder.locate(region, host.finder.mapped([process(811)], [region]), {})  # who does not
    assert (region.path, region.address) == (None, START + 0x10000)  # where it was last seen mapped


# ---- who has it open ----


def test_open_files(host: Host, memfd: Callable[..., Path]) -> None:
    """One walk of all descriptors, however many regions are looked for."""
    targets = [memfd(), memfd(), memfd()]
    regions = [region_of(target, number=number) for number, target in enumerate(targets)]
    host.open(812, memfd(), Path("/proc/self/stat"), targets[2])
    host.open(813, targets[2], Path("/proc/self/fd/99999"), targets[0])
    processes = [process(811), process(812), process(813)]
    assert host.finder.open_files(processes, regions) == {
        2: host.root / "812" / "fd" / "2",
        0: host.root / "813" / "fd" / "2",
    }
    assert host.finder.open_files(processes, []) == host.finder.open_files([], regions) == {}


def test_an_open_file_of_the_same_number(host: Host, memfd: Callable[..., Path]) -> None:
    path = memfd()
    region = region_of(path)
    region.key = region.key._replace(generation=(region.key.generation or 0) ^ 1)
    host.open(812, path)
    assert host.finder.open_files([process(812)], [region]) == {}


# ---- what was there before ----


def test_baseline(memfd: Callable[..., Path]) -> None:
    region = region_of(memfd(3, 4, 70))
    region.take_baseline()
    assert region.baseline.extents == [(3, 5), (70, 71)]
    assert region.size_bytes == 100 * PAGE_BYTES
    assert region.start_bytes == region.allocated_bytes == region.peak_bytes == 3 * PAGE_BYTES


def test_baseline_of_huge_pages_is_their_sum(memfd: Callable[..., Path]) -> None:
    region = region_of(memfd(3), kind="hugetlb")
    region.take_baseline()
    assert region.baseline.extents == []
    assert region.start_bytes == PAGE_BYTES


def test_no_baseline_of_what_is_gone(memfd: Callable[..., Path]) -> None:
    region = region_of(memfd(3))
    region.path = None
    region.take_baseline()
    assert (region.baseline.extents, region.start_bytes, region.size_bytes) == ([], 0, 0)


# ---- who made it ----


def test_sysv_knows_who_made_it(host: Host, memfd: Callable[..., Path]) -> None:
    region = region_of(memfd(), kind="sysv")
    (host.root / "sysvipc").mkdir()
    (host.root / "sysvipc" / "shm").write_text(
        "key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap\n"
        "0 5 600 4096 9 0 0 0 0 0 0 0 0 1 0 0\n"
        f"0 {region.key.ino} 600 4096 811 0 0 0 0 0 0 0 0 1 4096 0\n"
    )
    with Capture() as capture:
        lives = Processes(capture, Clock.start())
        master = lives.begin(811, 10, None, "x", "x", began_us=-1)
        worker = lives.begin(812, 20, 811, "x", "x", began_us=-1)
        assert host.finder.creator(region, [worker], lives, Clock.start()) == (master, "shmget")


def test_else_it_is_inferred(host: Host, memfd: Callable[..., Path]) -> None:
    region = region_of(memfd())
    master = process(811, start_time_ns=1)
    worker = process(812, master, start_time_ns=2)
    with Capture() as capture:
        clock = Clock.start()
        lives = Processes(capture, clock)
        assert host.finder.creator(region, [worker, master], lives, clock) == (master, "inferred")
        region.first_user = worker
        assert host.finder.creator(region, [worker, master], lives, clock) == (worker, "inferred")


def test_who_came_later_is_not_suspected(host: Host, memfd: Callable[..., Path]) -> None:
    region = region_of(memfd())
    if region.path is None or shmem.birth_time_ns(region.path) is None:
        pytest.skip("tmpfs keeps its files' birth since v6.1")
    late = process(812, start_time_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**9)
    with Capture() as capture:
        assert host.finder.creator(region, [late], Processes(capture, Clock.start()), Clock.start()) == (
            None,
            "inferred",
        )

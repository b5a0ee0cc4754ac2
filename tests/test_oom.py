"""What is recorded of the OOM killer's kills, of a /proc and of cgroups that are made up, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_views import account, at, make_region, process, toucher
from tracer import wire
from tracer.account import read as read_account
from tracer.answer import answer, headline
from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.kernel import events
from tracer.kernel.events import Head
from tracer.kernel.updates import oom_kill
from tracer.model import OomKill, Parent, Process, Window
from tracer.proc import memory_cgroups
from tracer.proc.memory_cgroups import Charged
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES
from tracer.record import oom
from tracer.record.oom import MOST, MOST_OF_OTHERS, OomKills, is_within
from tracer.record.processes import Processes, TracedProcess

CLOCK = Clock(monotonic_ns=500, boot_ns=1_000_000_000_000, wall_ns=1_700_000_000_000_000_000)
V1 = "cache 1\nrss 2\nshmem 3\ntotal_cache 40960\ntotal_rss {}\ntotal_shmem {}\n"
V2 = "anon {}\nfile 40960\nshmem {}\n"
SESSION = {"version": "0", "host": "web1", "kernel": "6", "tier": "faults", "mechanism": "tracepoint", "blind_to": ""}
MEMINFO = "MemTotal: 900 kB\nSwapTotal: 0 kB\nShmem: 92 kB\nAnonPages: 28 kB\n"
POOL, WORKER, OTHER = 11, 12, 13
"""Inode numbers of cgroups."""


class Host:
    """With a memory controller of a version."""

    def __init__(self, root: Path, version: int, capture: Capture) -> None:
        self.proc = Proc(str(root / "proc"))
        self.cgroups, self.version = root / "cgroups", version
        (root / "proc" / "self").mkdir(parents=True)
        kind = f"cgroup {self.cgroups} cgroup rw,memory" if version == 1 else f"cgroup2 {self.cgroups} cgroup2 rw"
        (root / "proc" / "self" / "mounts").write_text(f"{kind} 0 0\n")
        (root / "proc" / "meminfo").write_text(MEMINFO)
        self.places = {POOL: "/pool", WORKER: "/pool/worker", OTHER: "/pool-2"}
        for path in self.places.values():
            (self.cgroups / path[1:]).mkdir(parents=True)
            self.charge(path, 7, 23)
        self.capture, self.lives = capture, Processes(capture, CLOCK)
        self.kills = OomKills(capture, self.proc, self.lives, CLOCK)

    def find(self, root: Path, ino: int) -> Path | None:
        assert root == self.cgroups
        return root / self.places[ino][1:] if ino in self.places else None

    def charge(self, path: str, anon_pages: int, shmem_pages: int) -> None:
        stat = (V1 if self.version == 1 else V2).format(anon_pages * PAGE_BYTES, shmem_pages * PAGE_BYTES)
        (self.cgroups / path[1:] / "memory.stat").write_text(stat)

    def lives_on(self, tgid: int, rss_pages: int) -> None:
        (self.proc.root / str(tgid)).mkdir(exist_ok=True)
        (self.proc.root / str(tgid) / "statm").write_text(f"99 {rss_pages} 0 0 0 0 0\n")

    def put(self, tgid: int, cgroup: str, **fields: Any) -> TracedProcess:
        return self.lives.begin(tgid, tgid * 10**7, 1, f"worker-{tgid}", f"pool {tgid}", -1, cgroup=cgroup, **fields)

    def region(self, ino: int, *touched: tuple[TracedProcess, int], **fields: Any) -> int:
        region = self.capture.insert("region", **{"dev": 1, "ino": ino, "kind": "anon", "name": "/dev/zero", **fields})
        start = 0
        for who, pages in touched:
            times = {"first_ns": 1, "last_ns": 2}
            self.capture.insert("extent", region=region, start=start, end=start + pages, process=who.row, **times)
            start += pages
        return region

    def extent(self, region: int, start: int, who: TracedProcess, pages: int, first_ns: int) -> None:
        times = {"first_ns": first_ns, "last_ns": first_ns}
        self.capture.insert("extent", region=region, start=start, end=start + pages, process=who.row, **times)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.capture.rows(query)]


@pytest.fixture
def capture() -> Iterator[Capture]:
    with Capture() as capture:
        capture.insert("session", **SESSION, started_ns=0, ended_ns=2**62)
        yield capture


@pytest.fixture(params=[1, 2])
def host(request: pytest.FixtureRequest, tmp_path: Path, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path, request.param, capture)
    monkeypatch.setattr(memory_cgroups, "find", host.find)
    monkeypatch.setattr("tracer.record.oom.LATE_S", math.inf)
    return host


def event(tgid: int, number: int = 1, **fields: Any) -> events.OomKill:
    values = {"cgroup": WORKER, "limit_cgroup": POOL, "limit_pages": 64, "anon_pages": 31, "file_pages": 5}
    head = Head(700, tgid * 10**7, tgid)
    return events.OomKill(head, f"worker-{tgid}", number, **{**values, "shmem_pages": None, **fields})


# ---- recorded ----


def test_who_had_filled_it(host: Host) -> None:
    """Those of the limit's cgroup and below: another whose name begins so is not, nor is a region that is gone."""
    victim, other = host.put(812, "/pool/worker"), host.put(813, "/pool-2")
    first, nowhere = host.put(814, "/pool"), host.lives.at(815, 0)
    pool = host.region(1, (first, 11), (other, 17), (victim, 2), (first, 1), (nowhere, 3))
    second = host.region(2, (victim, 4))
    host.region(3, (victim, 100), gone_ns=9)
    host.region(4, (victim, 512), kind="hugetlb")
    host.kills.heard(event(812))
    host.kills.sample()
    assert host.rows("SELECT * FROM oom_touched ORDER BY region, pages") == [
        (1, pool, victim.row, 2),
        (1, pool, first.row, 12),
        (1, second, victim.row, 4),
    ]
    [(row, time_ns, whose, tgid, comm, command, cgroup, limit, limit_bytes, *rest)] = host.rows("SELECT * FROM oom")
    assert (row, time_ns, whose, tgid, comm, command) == (
        1,
        CLOCK.wall_ns + 200,
        victim.row,
        812,
        "worker-812",
        "pool 812",
    )
    assert (cgroup, limit, limit_bytes) == ("/pool/worker", "/pool", 64 * PAGE_BYTES)
    assert rest[:3] == [31 * PAGE_BYTES, 5 * PAGE_BYTES, None]


def test_a_kill_that_is_heard_of_late(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an armed trace. What the kernel counts now is of another time; the pages are those of that time."""
    monkeypatch.setattr("tracer.record.oom.LATE_S", 5.0)
    killed_ns = CLOCK.wall_ns + 200
    victim = host.put(812, "/pool/worker")
    there = host.region(1)
    host.extent(there, 0, victim, 11, killed_ns)
    host.extent(there, 11, victim, 100, killed_ns + 1)
    gone_since = host.region(2, gone_ns=killed_ns + 1)
    host.extent(gone_since, 0, victim, 7, killed_ns - 1)
    gone_before = host.region(3, gone_ns=killed_ns - 1)
    host.extent(gone_before, 0, victim, 5, killed_ns - 2)
    host.kills.heard(event(812))
    host.kills.sample()
    assert host.rows("SELECT region, pages FROM oom_touched ORDER BY region") == [(there, 11), (gone_since, 7)]
    assert host.rows("SELECT shmem_before_bytes, shmem_after_bytes, anon_bytes FROM oom") == [
        (None, None, 31 * PAGE_BYTES)
    ]


def test_what_the_kill_freed_and_what_stays(host: Host) -> None:
    """It is read at once, and when the victim is gone: then once more, for its memory goes a little later."""
    host.put(812, "/pool/worker")
    host.lives_on(812, rss_pages=7)
    host.kills.heard(event(812))
    host.charge("/pool", 6, 23)
    figures = "SELECT anon_before_bytes, shmem_before_bytes, anon_after_bytes, shmem_after_bytes FROM oom"
    found = []
    for rss_pages, anon_pages, shmem_pages in ((7, 5, 23), (0, 4, 23), (0, 2, 22), (0, 1, 21)):
        host.lives_on(812, rss_pages)
        host.charge("/pool", anon_pages, shmem_pages)
        host.kills.sample()
        found += host.rows(figures)
    pages = [tuple(value and value // PAGE_BYTES for value in row) for row in found]
    assert pages == [(7, 23, None, None), (7, 23, 4, 23), (7, 23, 2, 22), (7, 23, 2, 22)]


def test_a_host_that_is_short_of_memory(host: Host) -> None:
    """All of it counts, wherever its touchers are."""
    nowhere, other = host.lives.at(815, 0), host.put(813, "/pool-2")
    host.region(1, (nowhere, 3), (other, 4))
    host.kills.heard(event(899, limit_cgroup=0, limit_pages=0))
    host.kills.sample()
    query = (
        "SELECT process, limit_cgroup, limit_bytes, shmem_before_bytes, anon_before_bytes, anon_after_bytes FROM oom"
    )
    assert host.rows(query) == [(None, "/", None, 92 << 10, 28 << 10, 28 << 10)]
    assert host.rows("SELECT sum(pages) FROM oom_touched") == [(7,)]
    [kill] = read_account(host.capture).ooms
    assert kill.is_of_host
    assert kill.unnamed_bytes == 16 * PAGE_BYTES


def test_a_kernel_that_tells_no_cgroup(host: Host) -> None:
    """Then it is not said that the host was short of memory, nor who is charged."""
    worker = host.put(812, "/pool/worker")
    host.region(1, (worker, 3))
    host.kills.heard(event(812, cgroup=0, limit_cgroup=0, limit_pages=0, anon_pages=None))
    host.kills.sample()
    [kill] = read_account(host.capture).ooms
    assert (kill.cgroup, kill.limit_cgroup, kill.limit_bytes) == ("/pool/worker", None, None)
    assert (kill.anon_bytes, kill.shmem_before_bytes, kill.unnamed_bytes, kill.touched) == (None, None, None, ())
    assert not kill.is_of_host


def test_a_cgroup_that_is_gone(host: Host) -> None:
    host.kills.heard(event(899, cgroup=77, limit_cgroup=78))
    host.kills.sample()
    [kill] = read_account(host.capture).ooms
    assert (kill.cgroup, kill.limit_cgroup, kill.limit_bytes) == (None, None, 64 * PAGE_BYTES)
    assert not kill.is_of_host
    (host.cgroups / "pool" / "memory.stat").unlink()
    assert memory_cgroups.charged(host.cgroups / "pool") == Charged(None, None)


def test_each_victim_counts_once(host: Host) -> None:
    """The kernel may tell of each of its threads; a PID that is used again is another victim."""
    host.put(812, "/pool")
    for number in (1, 2, 3):
        host.kills.heard(event(812, number))
    again = event(812, 4)
    host.kills.heard(again._replace(head=again.head._replace(start_time_ns=5)))
    host.kills.sample()
    assert host.kills.nr == 2
    assert host.rows("SELECT tgid FROM oom") == [(812,), (812,)]


def test_very_many_kills(host: Host) -> None:
    """Those of strangers leave room for those of the tree; what the map had no more is counted."""
    for number in range(1, 1001):
        host.kills.heard(event(1000 + number, number))
    for number in range(100):
        host.put(5000 + number, "/pool")
        host.kills.heard(event(5000 + number, 1011 + number))
    host.kills.sample()
    assert host.kills.nr == 1110
    assert host.rows("SELECT count(*), sum(process IS NULL) FROM oom") == [(MOST, MOST_OF_OTHERS)]


def test_of_very_many_touchers_the_first_are_kept(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "MOST_TOUCHED", 3)
    workers = [host.put(1000 + number, "/pool") for number in range(9)]
    host.region(1, *[(worker, 1 + number) for number, worker in enumerate(workers)])
    host.kills.heard(event(1000))
    host.kills.sample()
    assert host.rows("SELECT pages FROM oom_touched ORDER BY pages") == [(7,), (8,), (9,)]


@pytest.mark.parametrize(
    ("cgroup", "place", "within"),
    [
        ("/pool", "/pool", True),
        ("/pool/a/b", "/pool", True),
        ("/pool (deleted)", "/pool", True),
        ("/pool-2", "/pool", False),
        ("/", "/pool", False),
        (None, "/pool", False),
        ("/pool", None, False),
        (None, None, False),
        ("/pool", "/", True),
        (None, "/", True),
    ],
)
def test_within(cgroup: str | None, place: str | None, within: bool) -> None:
    assert is_within(cgroup, place) is within


@pytest.mark.parametrize(
    ("path", "name"), [("", "/"), ("a/.b", "/a/.b"), ("\x1b[31m\udcff", "/\x1b[31m\\xff"), ("x" * 255, "/" + "x" * 255)]
)
def test_a_cgroups_name(path: str, name: str) -> None:
    assert memory_cgroups.name(Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup", path)) == name


def test_a_kill_as_the_kernel_side_keeps_it() -> None:
    raw = wire.OOM.pack(1, 2, 3, 4, 5, 6, 7, wire.UNKNOWN_PAGES, 9, 10, 0, b"a\xff\0beyond")
    assert oom_kill(raw) == events.OomKill(Head(1, 2, 10), "a\\xff", 3, 4, 5, 6, 7, None, 9)


# ---- said ----


def kill(tgid: int = 4711, second: float = 7, who: Process | None = None, **fields: Any) -> OomKill:
    values = {
        "process": who,
        "comm": f"worker-{tgid % 10}",
        "command": None,
        "cgroup": "/system.slice/pool.service/w",
        "limit_cgroup": "/system.slice/pool.service",
        "limit_bytes": 64 << 20,
        "anon_bytes": 20 << 20,
        "file_bytes": 0,
        "shmem_bytes": 0,
        "shmem_before_bytes": 41 << 20,
        "anon_before_bytes": None,
        "shmem_after_bytes": 41 << 20,
        "anon_after_bytes": None,
    }
    return OomKill(at(second), tgid=tgid, **{**values, **fields})


def said(*kills: OomKill, nr_ooms: int | None = None, window: Window | None = None) -> str:
    found = account(Parent(process(811), [make_region(1, toucher(process(812), 7))]), nr_ooms=nr_ooms or len(kills))
    found = found._replace(ooms=kills, window=window or found.window)
    text = answer(found).text
    assert headline(found) == text
    return text.partition(" apcu?")[0]


def test_a_kill_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    workers = [process(tgid, f"worker-{tgid}", comm=f"worker-{tgid}") for tgid in (1, 2)]
    touched = [
        ("0:1/1/7", workers[0], 12 << 20),
        ("0:1/2/7", workers[1], 11 << 20),
        ("0:1/1/7", process(3, "warmer"), 9 << 20),
    ]
    text = said(kill(touched=touched))
    assert text.startswith("OOM kill at ")
    assert text.partition(": ")[2] == (
        "worker-1 (PID 4711) in /system.slice/pool.service, limit 64.0 MiB. Shared memory charged there: 41.0 MiB, "
        "first touched by worker-# 23.0 MiB, warmer 9.0 MiB, unknown processes 9.0 MiB. The kill freed at most "
        "20.0 MiB of private memory; the shared pages stay."
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"limit_cgroup": "/", "limit_bytes": None},
            "worker-1 (PID 4711), the host was short of memory. Shared memory of the host: 41.0 MiB",
        ),
        ({"limit_cgroup": None, "limit_bytes": None}, "in /system.slice/pool.service/w, limit ?."),
        ({"limit_cgroup": None, "limit_bytes": None, "cgroup": None}, "in ?, limit ?."),
        ({"shmem_before_bytes": 0, "shmem_after_bytes": 0}, "charged there: none. The kill freed at most 20.0 MiB of"),
        ({"shmem_after_bytes": 40 << 20}, "private memory; of the shared pages 40.0 MiB stay."),
        ({"shmem_after_bytes": None}, "The kill freed at most 20.0 MiB of private memory."),
        ({"shmem_before_bytes": None, "anon_bytes": None}, "limit 64.0 MiB."),
        ({"comm": "a\x1b[31m\nb"}, "a\\x1b[31m\\x0ab (PID 4711)"),
        ({"comm": "python3", "command": "/usr/bin/python3 /srv/many.py 17"}, "python3 /srv/many.py 17 (PID 4711)"),
    ],
)
def test_what_is_not_so_or_not_known(fields: dict[str, Any], words: str) -> None:
    text = said(kill(**fields))
    assert words in text
    assert text.isprintable()


def test_many_kills_are_one_sentence() -> None:
    """The tree's before those of others; what has no sentence is counted."""
    own = [kill(100 + number, 5 + number, who=process(100 + number)) for number in range(3)]
    others = [kill(900, 30, limit_cgroup="/b", comm="x"), kill(901, 31, limit_cgroup="/c", comm="y")]
    text = said(*own, *others, nr_ooms=77)
    first, at_last, freed, second, *_ = text.split(". ")
    assert first.startswith("3 OOM kills from ")
    assert first.endswith(": worker-# in /system.slice/pool.service, limit 64.0 MiB")
    assert at_last.startswith("Shared memory charged there at the last: 41.0 MiB")
    assert freed == "The kills freed at most 60.0 MiB of private memory; the shared pages stay"
    assert ": y (PID 901) in /c, limit" in second
    assert text.endswith(" 73 more OOM kills.")
    assert "more OOM" not in said(*own, nr_ooms=3)
    in_window = said(*own, nr_ooms=77, window=Window(at(4), at(9)))
    assert "more OOM" not in in_window


def test_without_shared_memory_it_is_said_too() -> None:
    found = account(nr_ooms=1)._replace(ooms=[kill()])
    assert headline(found).startswith("OOM kill at ")
    assert headline(found).endswith(" No shared memory: none of these processes maps any, or has mapped any.")


def test_a_window_has_its_own(host: Host) -> None:
    """And a capture that was narrowed to some regions has none."""
    for tgid, time_ns in ((812, 700), (813, 10**9)):
        found = event(tgid, tgid)
        host.kills.heard(found._replace(head=found.head._replace(time_ns=time_ns)))
    host.kills.sample()
    since_ns = CLOCK.wall_ns + 10**8
    assert [each.tgid for each in read_account(host.capture).ooms] == [812, 813]
    assert [each.tgid for each in read_account(host.capture, Window(since_ns)).ooms] == [813]
    assert [each.tgid for each in read_account(host.capture, Window(None, since_ns)).ooms] == [812]
    host.capture.narrow([])
    assert read_account(host.capture).ooms == ()

"""An armed trace: no process of ours runs, the kernel keeps the record, and whoever asks gets the whole account."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.cgroups import groups, limit
from tests.live.reports import PATIENCE_SECONDS, ROOT, Report, assert_balanced, read_report
from tests.live.shmem import PAGE_BYTES, read_regions
from tests.live.test_oom import LIMIT_BYTES, TOUCHED, pool
from tests.live.tiers import shmtrace
from tracer.errors import ShmtraceError
from tracer.formatting import format_bytes
from tracer.kernel import bpf_syscall, pins

pytestmark = pytest.mark.bpf

BPFFS = pins.BPFFS
PINS = BPFFS / "shmtrace-tests"
NOBODY = 65534
HAS_PERF_LINKS = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (5, 15)
GET_FD_BY_ID = {"prog_id": 13, "map_id": 14}  # BPF_PROG_GET_FD_BY_ID, BPF_MAP_GET_FD_BY_ID

IMPORTS = """
import ctypes, mmap, os, sys, time
PAGE = mmap.PAGESIZE

def become(name):
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)

def touch(region, first, count):
    for page in range(first, first + count):
        region[page * PAGE] = 1

def child(name, region, first, count):
    tgid = os.fork()
    if tgid == 0:
        become(name)
        touch(region, first, count)
        os._exit(0)
    os.waitpid(tgid, 0)

def step():
    print(flush=True)
    if not sys.stdin.readline():
        sys.exit()

"""


class Workload:
    """A Python program that goes on to its next step() when told to."""

    def __init__(self, source: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", IMPORTS + source, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.tgid = self._process.pid
        self._wait()

    def _wait(self) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == b"\n"

    def go(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._wait()

    def end(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def workload(source: str, *arguments: str) -> Iterator[Workload]:
    running = Workload(source, *arguments)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(autouse=True)
def bpffs() -> Iterator[None]:
    """Mounted, as systemd does it."""
    try:
        pins.need_bpffs()
        mounted = False
    except ShmtraceError:
        subprocess.run(["mount", "-t", "bpf", "-o", "mode=700", "bpf", BPFFS], check=True)
        mounted = True
    yield
    if mounted:
        subprocess.run(["umount", BPFFS], check=True)


class Armed:
    """shmtrace, with a place of its own for what it pins and notes."""

    def __init__(self, tier: str, state: Path, *statements: str) -> None:
        self.state = state / "state"
        self.patches = [
            "from pathlib import Path",
            "from tracer.kernel import pins",
            f"pins.PINS = Path({str(PINS)!r})",
            "from tracer.record import armed",
            f"armed.STATE = Path({str(self.state)!r})",
            *statements,
        ]
        self.tier = tier

    def run(self, *arguments: str, status: int = 0, patches: tuple[str, ...] = (), **how: Any) -> str:
        command = [*shmtrace(self.tier, *self.patches, *patches), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_SECONDS, text=True, **how)
        if "cannot keep" in done.stderr and not HAS_PERF_LINKS and self.tier != "fentry":
            pytest.skip(f"no links of perf events in {os.uname().release}")
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    def report_of(self, source: str) -> Report:
        """Armed at the first step of a workload, and asked at its second."""
        with workload(source) as running:
            self.run("arm", "-p", str(running.tgid))
            running.go()
            return self.report()

    def report(self) -> Report:
        report = read_report(self.run("report", "--armed", "--json").encode())
        assert_balanced(report)
        assert report["lost"]["pages"] == report["lost"]["events"] == 0, report["warnings"]
        return report


@pytest.fixture
def arming(tier: str, tmp_path: Path) -> Iterator[Armed]:
    yield from _arming(tier, tmp_path)


@pytest.fixture
def little_room(tier: str, tmp_path: Path) -> Iterator[Armed]:
    """For 127 processes and as many regions, and 63 blocks of 64 pages."""
    sizes = "blocks=63, processes=127, regions=127, usages=511, alive=127"
    yield from _arming(
        tier,
        tmp_path,
        "from tracer.kernel.loader import Sizes",
        "from tracer.record.trace import Trace",
        f"Trace._room = lambda self, processes: Sizes({sizes})",
    )


def _arming(tier: str, tmp_path: Path, *statements: str) -> Iterator[Armed]:
    armed = Armed(tier, tmp_path, *statements)
    yield armed
    armed.run("disarm")
    assert not PINS.exists()
    assert not list(armed.state.glob("*"))


def touched(report: Report, gone: bool | None = None) -> Counter[str]:
    """Pages by comm; only of regions that are gone, or that are not."""
    found: Counter[str] = Counter()
    for region in report["regions"]:
        if gone is None or bool(region["gone"]) == gone:
            for toucher in region["touchers"]:
                found[toucher["process"]["comm"]] += toucher["touched_bytes"] // PAGE_BYTES
    return +found


def touchers(report: Report) -> Iterator[dict[str, Any]]:
    return (toucher["process"] for region in report["regions"] for toucher in region["touchers"])


def total(report: Report, column: str) -> int:
    return sum(region[f"{column}_bytes"] for region in report["regions"]) // PAGE_BYTES


FIRST = """
become("master")
region = mmap.mmap(-1, 1000 * PAGE)
touch(region, 0, 11)
step()
child("first", region, 100, 23)
child("second", region, 200, 7)
passing = mmap.mmap(-1, 50 * PAGE)
touch(passing, 0, 41)
passing.close()
step()
child("third", region, 300, 5)
step()
"""


def test_known_answer(arming: Armed) -> None:
    """Asked twice, it says the same; what it says grows with what happens; the dead are named, and the gone told."""
    with workload(FIRST) as running:
        assert "armed -p" in arming.run("arm", "-p", str(running.tgid))
        running.go()
        report = arming.report()
        assert touched(report) == {"first": 23, "second": 7, "master": 41}
        assert (total(report, "before"), total(report, "unseen")) == (11, 0)
        (pages,) = (region.pages for region in read_regions(running.tgid).values())
        assert [region["allocated_bytes"] // PAGE_BYTES for region in report["regions"] if not region["gone"]] == [
            pages
        ]
        assert {process["comm"] for process in touchers(report) if process["exited"]} == {"first", "second"}
        again = arming.report()
        assert again["regions"] == report["regions"]
        running.go()
        report = arming.report()
        assert touched(report, gone=False) == {"first": 23, "second": 7, "third": 5}
        assert touched(report, gone=True) == {"master": 41}
    report = arming.report()
    assert touched(report) == {"first": 23, "second": 7, "third": 5, "master": 41}
    assert all(region["gone"] for region in report["regions"])
    assert all(process["exited"] for process in touchers(report))


FILL = """
region = mmap.mmap(-1, 99 * PAGE)
touch(region, 3, 3)
step()
child("worker", region, 50, 17)
step()
"""


def test_who_comes_later(arming: Armed, tmp_path: Path) -> None:
    """Nothing of that name runs when it is armed; what another program does is not told."""
    program = tmp_path / "late-server"
    program.symlink_to(sys.executable)
    arming.run("arm", "-p", "late-server")
    serve = "region = mmap.mmap(-1, 99 * PAGE); touch(region, 3, 17); step(); step()"
    come = f"""
region = mmap.mmap(-1, 100 * PAGE)
touch(region, 0, 13)
if len(sys.argv) == 1:
    os.execv({str(program)!r}, ["late-server", "-c", {IMPORTS + serve!r}])
step()
"""
    with workload(come), workload(come, "another"):
        report = arming.report()
        assert touched(report) == {"late-server": 17}
        assert total(report, "unseen") == 0


def test_what_strangers_run_takes_no_room(little_room: Armed, tmp_path: Path) -> None:
    """Any user may execute any number of programs that fill shared memory. They are not what was asked for."""
    program = tmp_path / "late-server"
    program.symlink_to(sys.executable)
    serve = f"os.execv({str(program)!r}, ['late-server', '-c', {IMPORTS + FILL!r}])"
    spam = "import mmap; region = mmap.mmap(-1, 1000 * 4096); region[0] = region[4096 * 500] = 1"
    little_room.run("arm", "-p", "late-server")
    with workload(serve) as running:
        for _ in range(200):
            subprocess.run([sys.executable, "-S", "-E", "-c", spam], check=True)
        running.go()
        report = little_room.report()
    assert touched(report) == {"late-server": 3, "worker": 17}
    assert not any("room" in warning for warning in report["warnings"]), report["warnings"]


def test_who_touched_nothing_leaves_room(little_room: Armed, tmp_path: Path) -> None:
    """Ten times as many processes as there is room for. All who touched pages are there, with their parents."""
    many = """
become("master")
region = mmap.mmap(-1, 2000 * PAGE)
step()
for i in range(1270):
    child("idle", region, 0, 0)
    if i % 100 == 50:
        child(f"worker-{i}", region, i, 3)
    if i % 100 == 60 and os.fork() == 0:  # a child whose parent exits before it touches
        become(f"gone-{i}")
        if os.fork() == 0:
            become(f"orphan-{i}")
            time.sleep(1.5)
            touch(region, i, 2)
        os._exit(0)
time.sleep(2)
step()
"""
    with workload(many) as running:
        little_room.run("arm", "-p", str(running.tgid))
        running.go()
        report = little_room.report()
        path = tmp_path / "x.capture"
        little_room.run("record", "--armed", "-o", str(path), "-d", "0.1")
    workers = {f"worker-{i}": 3 for i in range(50, 1270, 100)}
    assert touched(report) == workers | {f"orphan-{i}": 2 for i in range(60, 1270, 100)}
    assert total(report, "unseen") == 0
    assert not any("processes" in warning for warning in report["warnings"]), report["warnings"]
    with contextlib.closing(sqlite3.connect(path)) as db:
        parents = db.execute(
            "SELECT parent.comm FROM process JOIN process AS parent ON parent.id = process.parent "
            "WHERE process.comm LIKE 'orphan-%' ORDER BY process.id"
        ).fetchall()
    assert parents == [(f"gone-{i}",) for i in range(60, 1270, 100)]


def test_more_touch_than_there_is_room_for(little_room: Armed) -> None:
    """The oldest are forgotten, but not what they touched, nor their names; and a report says how many."""
    many = """
become("master")
region = mmap.mmap(-1, 1000 * PAGE)
step()
for i in range(300):
    child("worker", region, i, 1)
    if i % 10 == 0:
        time.sleep(0.15)
step()
"""
    report = little_room.report_of(many)
    assert touched(report) == {"worker": 300}
    assert total(report, "unseen") == 0
    (warning,) = [warning for warning in report["warnings"] if "to make room" in warning]
    number = int(re.findall(r"of (\d+) processes", warning)[0])
    assert 300 - 127 <= number <= 300
    assert len(list(touchers(report))) == 300


def test_more_regions_than_there_is_room_for(little_room: Armed) -> None:
    """Of those that came and went, the oldest are forgotten and summed up. The others' accounts are as ever."""
    many = """
become("master")
region = mmap.mmap(-1, 200 * PAGE)
touch(region, 0, 5)
step()
child("keeper", region, 10, 19)
for i in range(400):
    passing = mmap.mmap(-1, 10 * PAGE)
    touch(passing, 0, 3)
    passing.close()
    empty = mmap.mmap(-1, 10 * PAGE)
    empty.close()
    child("idle", region, 0, 0)
    if i % 10 == 0:
        time.sleep(0.15)
touch(region, 100, 7)
step()
"""
    report = little_room.report_of(many)
    assert touched(report, gone=False) == {"keeper": 19, "master": 7}
    assert (total(report, "before"), total(report, "unseen")) == (5, 0)
    (warning,) = [warning for warning in report["warnings"] if "to make room" in warning]
    left = [region for region in report["regions"] if region["gone"]]
    pages = sum(region["allocated_bytes"] for region in left) // PAGE_BYTES
    assert pages == touched(report, gone=True)["master"]
    size, unit = re.findall(r"with ([\d.]+) (\w+) in all", warning)[0]
    assert float(size) * {"KiB": 1 << 10, "MiB": 1 << 20}[unit] == pytest.approx((1200 - pages) * PAGE_BYTES, rel=0.06)


def test_more_pages_than_there_is_room_for(little_room: Armed) -> None:
    """The blocks of what went are used again."""
    many = """
become("master")
region = mmap.mmap(-1, 20 * 64 * PAGE)
step()
for i in range(12):
    passing = mmap.mmap(-1, 10 * 64 * PAGE)
    touch(passing, 0, 10 * 64)
    passing.close()
    child(f"worker-{i}", region, i * 64 + 1, 17)
    time.sleep(1.1)
    for _ in range(40):
        child("idle", region, 0, 0)
step()
"""
    report = little_room.report_of(many)
    assert touched(report, gone=False) == {f"worker-{i}": 17 for i in range(12)}
    assert total(report, "unseen") == 0


def test_longer_than_a_word_has_room_for(tier: str, tmp_path: Path) -> None:
    """A word has 42 bits for microseconds, 50 days. To the programs a beginning in the future is as long ago."""
    later = "Beginning.state = lambda self, sizes: state(self._replace(monotonic_ns=self.monotonic_ns + 10**13), sizes)"
    patches = "from tracer.kernel.loader import Beginning", "state = Beginning.state", later
    lasting = """
become("master")
region = mmap.mmap(-1, 1000 * PAGE)
step()
child("first", region, 100, 23)
child("second", region, 200, 7)
step()
"""
    for long_ago in _arming(tier, tmp_path, *patches):
        with workload(lasting) as running:
            long_ago.run("arm", "-p", str(running.tgid))
            running.go()
            report = long_ago.report()
        assert touched(report) == {"first": 23, "second": 7}
        assert total(report, "unseen") == 0


def test_whose_first_user_is_forgotten(little_room: Armed) -> None:
    """The region exists: all of its pages are told, though who made it has no place any more."""
    many = """
become("master")
region = mmap.mmap(-1, 2000 * PAGE)
step()
memfd = os.memfd_create("lasting")
os.truncate(memfd, 100 * PAGE)
def user(name, first, count):
    tgid = os.fork()
    if tgid == 0:
        become(name)
        shared = mmap.mmap(memfd, 100 * PAGE)
        touch(shared, first, count)
        os._exit(0)
    os.waitpid(tgid, 0)
user("mapper", 0, 0)
user("filler", 0, 37)
for i in range(400):
    child("worker", region, i, 1)
    if i % 10 == 0:
        time.sleep(0.06)
step()
"""
    report = little_room.report_of(many)
    assert touched(report) == {"worker": 400, "filler": 37}
    assert total(report, "unseen") == 0


def test_what_executes_it_is_not_it(arming: Armed, tmp_path: Path) -> None:
    """A launcher has the name among its arguments, and the program itself executes another."""
    program = tmp_path / "late-server"
    program.symlink_to(sys.executable)
    last = "become('other'); region = mmap.mmap(-1, 99 * PAGE); touch(region, 3, 17); step(); step()"
    inner = f"os.execv({sys.executable!r}, ['other', '-c', {IMPORTS + last!r}])"
    arming.run("arm", "-p", "late-server")
    launch = f"os.execvp('env', ['env', {str(program)!r}, '-c', {IMPORTS + inner!r}])"
    with workload(launch):
        assert touched(arming.report()) == {"other": 17}


def test_disarmed_while_it_is_read(arming: Armed, tmp_path: Path) -> None:
    with workload(FIRST) as running:
        arming.run("arm", "-p", str(running.tgid))
        path = tmp_path / "x.capture"
        command = [*shmtrace(arming.tier, *arming.patches), "record", "--armed", "-o", str(path)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as recording:
            assert recording.stderr
            assert b"tracing" in recording.stderr.readline()
            arming.run("disarm")
            recording.communicate(timeout=PATIENCE_SECONDS)  # it ends by itself
    report = read_report(arming.run("report", str(path), "--json").encode())
    assert any("disarmed meanwhile" in warning for warning in report["warnings"])


def test_one_arms_at_a_time(arming: Armed) -> None:
    with workload("step()") as running:
        command = [*shmtrace(arming.tier, *arming.patches), "arm", "-p", str(running.tgid)]
        both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
        said = [each.communicate(timeout=PATIENCE_SECONDS) for each in both]
        assert sorted(each.returncode for each in both) == [0, 1]
        assert any(b"it is armed already" in error for _, error in said)
        arming.report()


def test_others_go_on_from_there(arming: Armed, tmp_path: Path) -> None:
    """record --armed: from the beginning. And it is armed still."""
    with workload(FIRST) as running:
        arming.run("arm", "-p", str(running.tgid))
        running.go()
        path = tmp_path / "x.capture"
        arming.run("record", "--armed", "-o", str(path), "-d", "0.5")
        report = read_report(arming.run("report", str(path), "--json").encode())
        assert_balanced(report)
        assert touched(report) == {"first": 23, "second": 7, "master": 41}
        running.go()
        assert touched(arming.report()) == {"first": 23, "second": 7, "third": 5, "master": 41}


def test_a_kill_that_nobody_saw(arming: Armed, tmp_path: Path) -> None:
    """The OOM killer's, long ago: who had filled what it killed for is told as it was then."""
    with groups(f"shmtrace-armed-{os.getpid()}") as [group], pool(group, tmp_path / "pool.py") as running:
        limit(group, LIMIT_BYTES)
        assert running.says() == "ready"
        arming.run("arm", "-p", str(running.tgid))
        victim = int(running.go())
        assert running.go() == "9"
        long_ago = "from tracer.record import oom; oom.LATE_S = 0.0"
        report = read_report(arming.run("report", "--armed", "--json", patches=(long_ago,)).encode())
    [kill] = report["ooms"]
    assert (kill["tgid"], kill["comm"], kill["limit_cgroup"]) == (victim, "victim", group.path)
    found: Counter[str] = Counter()
    for row in kill["touched"]:
        found[row["process"]["comm"]] += row["touched_bytes"] // PAGE_BYTES
    assert found == TOUCHED
    assert kill["shmem_before_bytes"] is None
    said = report["answer"]["text"]
    assert said.startswith("OOM kill at ")
    _, *fillers, _, victims = (nr_pages * PAGE_BYTES for nr_pages in TOUCHED.values())
    told = f"filler-# {format_bytes(sum(fillers))}, victim {format_bytes(victims)}"
    assert f"charged there, as far as it is known: first touched by {told}" in said


def prog_and_map_ids() -> list[tuple[str, int]]:
    """Of what is pinned."""
    found = []
    for path in PINS.glob("*/*"):
        descriptor = bpf_syscall.pinned(path)
        told = dict(re.findall(r"(\w+_id):\s+(\d+)", Path(f"/proc/self/fdinfo/{descriptor}").read_text()))
        os.close(descriptor)
        found += [(name, int(number)) for name, number in told.items() if name in ("prog_id", "map_id")]
    return found


def exists(kind: str, number: int) -> bool:
    try:
        os.close(bpf_syscall._call(GET_FD_BY_ID[kind], bpf_syscall._attributes("=I", number)))
    except FileNotFoundError:
        return False
    return True


def test_nothing_stays(arming: Armed) -> None:
    with workload("step()") as running:
        arming.run("arm", "-p", str(running.tgid))
        ids = prog_and_map_ids()
        assert len(ids) > 40
        assert all(exists(*each) for each in ids)
        assert "disarmed" in arming.run("disarm")
    end_s = time.monotonic() + 60
    while any(exists(*each) for each in ids):  # the kernel frees them when no CPU can be in them
        assert time.monotonic() < end_s
        time.sleep(0.1)
    assert "nothing was armed" in arming.run("disarm")


def test_a_stranger_gets_nothing(arming: Armed) -> None:
    with workload("step()") as running:
        arming.run("arm", "-p", str(running.tgid))
        paths = [*PINS.glob("*/*"), *arming.state.iterdir()]
        assert len(paths) > 60
        code = f"""
import os
from pathlib import Path
from tracer.kernel import bpf_syscall
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
for text in {[str(path) for path in paths]!r}:
    for do in (bpf_syscall.pinned, lambda path: path.read_bytes(), lambda path: path.unlink()):
        try:
            do(Path(text))
        except PermissionError:
            pass
        else:
            raise SystemExit(text)
"""
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_cannot_be_read_is_said_in_a_line(arming: Armed) -> None:
    assert "nothing is armed" in arming.run("report", "--armed", status=1)
    with workload("step()") as running:
        arming.run("arm", "-p", str(running.tgid))
        assert "it is armed already: `shmtrace doctor`" in arming.run("arm", "-a", status=1)
        note = arming.state / "armed.json"
        told = json.loads(note.read_text())
        for column, value, says in (
            ("boot_id", "another", "the host was booted since"),
            ("wire", "0" * 16, "its maps are not as"),
            ("unheard_of", 1, "shmtrace 0.1.0 has armed this"),
        ):
            note.write_text(json.dumps({**told, column: value}))
            (line,) = arming.run("report", "--armed", status=1).splitlines()
            assert says in line
            assert "disarm" in line
        note.write_text("[")
        assert "arming was cut off" in arming.run("report", "--armed", status=1)
        note.write_text(json.dumps({**told, "version": "0.0.7"}))  # whose structures are the same
        arming.run("report", "--armed")
        pins_gone = f"pins.PINS = Path({str(BPFFS / 'no')!r})"
        (line,) = arming.run("report", "--armed", status=1, patches=(pins_gone,)).splitlines()
        assert "lacks some of what was armed" in line


def test_what_another_arms_at_the_same_place(arming: Armed) -> None:
    """Anybody may have made the directory where the bpffs may be written by all."""
    PINS.mkdir()
    os.chown(PINS, NOBODY, NOBODY)
    try:
        (line,) = arming.run("arm", "-a", status=1).splitlines()
        assert "belongs to another user" in line
    finally:
        PINS.rmdir()


def test_cut_off_while_it_arms(arming: Armed) -> None:
    """By kill -9, with some of it pinned. It can be armed all the same."""
    dies = (
        "import os, signal",
        "from tracer.kernel.probes import Probes",
        "pin = Probes.pin",
        "Probes.pin = lambda self, directory: (pin(self, directory), os.kill(os.getpid(), signal.SIGKILL))",
    )
    with workload(FIRST) as running:
        arming.run("arm", "-p", str(running.tgid), status=-9, patches=dies)
        assert PINS.exists()
        arming.run("arm", "-p", str(running.tgid))
        running.go()
        assert touched(arming.report()) == {"first": 23, "second": 7, "master": 41}


def test_one_reads_at_a_time(arming: Armed) -> None:
    with workload("step()") as running:
        arming.run("arm", "-p", str(running.tgid))
        with open(arming.state / "armed.json") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            (line,) = arming.run("report", "--armed", status=1, patches=("armed.LOCK_S = 0.5",)).splitlines()
        assert "another shmtrace is reading" in line

"""Captures of traces that were cut off, and reports from a capture, which equal those of the live trace."""

from __future__ import annotations

import mmap
import os
import random
import signal
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live.fpm import running_fpm, script_names
from tests.live.parent import recording
from tests.live.reports import ATTACH_SECONDS, PATIENCE_SECONDS, ROOT, SHMTRACE
from tests.live.shmem import PAGE_BYTES
from tracer import account
from tracer.capture.capture import Capture
from tracer.tables import by_time

pytestmark = pytest.mark.bpf

CHILDREN = 3
ROOM_PAGES = 1 << 18
READS = 200
KILLS = 20
LOSS_NS = 1_000_000_000
AT_ONCE_NS = 100_000_000


class Growth(NamedTuple):
    """A parent whose children make pages without end and log when: one line per page."""

    tgid: int
    log: Path

    def pages_until(self, time_ns: int) -> int:
        """How many pages had been made by then."""
        lines = self.log.read_text().splitlines()[:-1]  # the last line may be incomplete
        return sum(int(line.split()[1]) for line in lines if int(line.split()[0]) <= time_ns)


def grow(memory: mmap.mmap, first: int, log: int) -> None:
    """Seven pages at a time."""
    for page in range(first, ROOM_PAGES - 7 * CHILDREN, 7 * CHILDREN):
        for each in range(page, page + 7):
            memory[each * PAGE_BYTES] = 1
        os.write(log, b"%d 7\n" % time.time_ns())
        time.sleep(0.002)


@contextmanager
def growing(log_path: Path) -> Iterator[Growth]:
    memory = mmap.mmap(-1, ROOM_PAGES * PAGE_BYTES)
    parent = os.fork()
    if not parent:
        os.setpgid(0, 0)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        children = []
        for number in range(CHILDREN):
            children.append(os.fork())
            if not children[-1]:
                grow(memory, 7 * number, log)
                os._exit(0)
        for child in children:
            os.waitpid(child, 0)
        os._exit(0)
    memory.close()
    try:
        while not log_path.exists() or not log_path.stat().st_size:
            time.sleep(0.01)
        yield Growth(parent, log_path)
    finally:
        os.killpg(parent, signal.SIGKILL)
        os.waitpid(parent, 0)


def sampled(path: Path) -> bool:
    database = sqlite3.connect(path, timeout=10)
    try:
        return bool(database.execute("SELECT count(*) FROM sample").fetchone()[0])
    finally:
        database.close()


def kept_waiting_ns(tgid: int) -> int:
    """How long a process was runnable but waited for a CPU."""
    return int(Path(f"/proc/{tgid}/schedstat").read_text().split()[1])


@pytest.mark.parametrize("number", range(KILLS))
def test_killed(number: int, tmp_path: Path) -> None:
    """At a random moment under load: the file opens, balances, and lacks no more than the last second.

    Nor what more the recorder was kept waiting for a CPU: the host may have other work.
    """
    path = tmp_path / "killed.capture"
    with growing(tmp_path / "log") as growth, recording(path, growth.tgid) as process:
        end = time.monotonic() + ATTACH_SECONDS
        while not sampled(path):
            assert time.monotonic() < end
        waited_ns = kept_waiting_ns(process.pid)
        time.sleep(random.Random(number).uniform(0.7, 3))
        killed_ns = time.time_ns()
        loss_ns = LOSS_NS + kept_waiting_ns(process.pid) - waited_ns
        process.kill()
        process.wait()
    with Capture.open(path) as capture:
        assert [tuple(row) for row in capture.rows("PRAGMA integrity_check")] == [("ok",)]
        capture.verify_sums()
        found = account.read(capture)
    [region] = found.regions
    assert not found.session.complete
    assert killed_ns - loss_ns < found.session.ended_ns < killed_ns
    has = (region.touched_bytes + region.before_bytes) // PAGE_BYTES
    assert growth.pages_until(killed_ns - loss_ns) <= has <= growth.pages_until(killed_ns) + 7 * CHILDREN
    assert region.touched_bytes
    # those that were made between the last look at the ledger and the one at the inode
    late = growth.pages_until(found.session.ended_ns) - growth.pages_until(found.session.ended_ns - AT_ONCE_NS)
    assert 0 <= region.unseen_bytes // PAGE_BYTES <= late


@pytest.fixture
def forker() -> Iterator[int]:
    """Children without end; each touches one page more of one region after another, and exits."""
    parent = os.fork()
    if not parent:
        while True:
            with mmap.mmap(-1, 401 * PAGE_BYTES) as memory:
                for page in range(401):
                    child = os.fork()
                    if not child:
                        memory[page * PAGE_BYTES] = 1
                        os._exit(0)
                    os.waitpid(child, 0)
    yield parent
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)


def test_it_is_read_while_it_is_written(forker: int, tmp_path: Path) -> None:
    """Each report shows one moment: every process in it is known, and no region has more pages than its parts."""
    path = tmp_path / "growing.capture"
    counts = []
    with recording(path, forker) as process:
        end = time.monotonic() + ATTACH_SECONDS
        while not sampled(path):
            assert time.monotonic() < end
        for _ in range(READS):
            with Capture.open(path) as capture:
                capture.verify_sums()
                found = account.read(capture)
                table = by_time.by_time(found, capture)
                touched = sum(row.touched_bytes for row in table.rows)
            assert capture.remarks == []
            assert touched == sum(region.touched_bytes for region in found.regions)
            assert not found.session.complete
            counts.append(sum(len(region.touchers) for region in found.regions))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert sorted(counts) == counts
    assert counts[-1] > counts[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """One line reports it, and what was written until then remains."""
    path = small_disk / "full.capture"
    with growing(tmp_path / "log") as growth:
        command = [*SHMTRACE, "record", "-p", str(growth.tgid), "-i", "0.1", "-o", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1
    [_, said] = done.stderr.decode().splitlines()
    assert said.startswith("shmtrace: the capture cannot be written (database or disk is full): free disk space for ")
    assert said.endswith(f"{path}, which holds all that was traced before")
    with Capture.open(path) as capture:
        found = account.read(capture)
    assert not found.session.complete
    [region] = found.regions
    assert region.touched_bytes
    assert 0 <= region.unseen_bytes // PAGE_BYTES <= 7 * CHILDREN


@pytest.mark.needs("php-fpm*")
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_replay_reads_as_what_was_seen_live(form: str, tmp_path: Path) -> None:
    """Byte for byte, for a real php-fpm whose workers are replaced meanwhile. Its sums are those of its pages."""
    path = tmp_path / "pool.capture"
    options = ["--json"] if form == "json" else []
    with running_fpm(300, max_requests=50) as fpm:
        command = [*SHMTRACE, "trace", "-p", str(fpm.tgid), "-o", str(path), *options]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stderr
            assert b"tracing" in process.stderr.readline()
            fpm.ask_for(script_names(300))
            process.send_signal(signal.SIGINT)
            live, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    report = [*SHMTRACE, "report", "--verify", str(path), *options]
    replay = subprocess.run(report, cwd=ROOT, capture_output=True, check=True)
    assert replay.stdout == live
    with Capture.open(path) as capture:
        assert capture.is_summed()
    assert b"php-fpm: pool www" in live
    assert form == "json" or b" 0 unseen" in live


def test_recording_a_command(tmp_path: Path) -> None:
    """It ends with the command's status, prints nothing of its own on stdout, and only the owner may read the file."""
    path = tmp_path / "x.capture"
    command = [*SHMTRACE, "record", "-o", str(path), "--", "sh", "-c", "echo said; exit 7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stdout) == (7, b"said\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Capture.open(path) as capture:
        assert account.read(capture).session.complete
    again = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_SECONDS)
    assert (again.returncode, again.stdout) == (1, b"")
    assert again.stderr.decode() == f"shmtrace: {path} is there already: name another, or remove it\n"

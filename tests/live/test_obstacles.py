"""Processes and files that would keep a reader waiting: it does not wait, and says what it could not see."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live.parent import recording
from tests.live.reports import ROOT, SHMTRACE, Report, assert_balanced, read_report, trace
from tests.live.running import running
from tests.live.shmem import PAGE_BYTES

ENOUGH_S = 60.0  # what was waited for took minutes, or was for ever

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="map_files needs root")
needs_fuse = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs FUSE")


class Obstacle:
    """A process that is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.tgid = process.pid

    def do(self, line: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")


@contextmanager
def obstacle(kind: str, argument: object, by: Sequence[str] = ()) -> Iterator[Obstacle]:
    line = [*by, sys.executable, "-m", "tests.live.obstacle", kind, str(argument)]
    with running(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield Obstacle(process)


@contextmanager
def held(tmp_path: Path) -> Iterator[Obstacle]:
    (tmp_path / "fuse").mkdir()
    with obstacle("held", tmp_path / "fuse", by=["unshare", "--mount"]) as found:
        yield found


def snapshot(*arguments: object) -> Report:
    line = [*SHMTRACE, "snapshot", "--json", *map(str, arguments)]
    return read_report(subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=ENOUGH_S).stdout)


def regions(report: Report, vss_pages: int) -> list[dict[str, Any]]:
    return [region for region in report["regions"] if region["size_bytes"] == vss_pages * PAGE_BYTES]


def pages(region: dict[str, Any], *columns: str) -> list[int]:
    return [region[f"{column}_bytes"] // PAGE_BYTES for column in columns]


def touched(region: dict[str, Any]) -> int:
    return sum(int(toucher["touched_bytes"]) for toucher in region["touchers"]) // PAGE_BYTES


class Recording:
    """A shmtrace that records, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self._process = process
        self._path = path

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=ENOUGH_S)) as db:
            return db.execute(query).fetchall()

    def until(self, query: str) -> None:
        """Its one value is true."""
        end = time.monotonic() + ENOUGH_S
        while not self.rows(query)[0][0]:
            assert time.monotonic() < end, query
            time.sleep(0.1)

    def stop(self) -> Report:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(ENOUGH_S) == 0
        line = [*SHMTRACE, "report", self._path, "--json"]
        return read_report(subprocess.run(line, cwd=ROOT, check=True, capture_output=True).stdout)


@contextmanager
def recorded(tmp_path: Path, tgid: int) -> Iterator[Recording]:
    path = tmp_path / "obstacle.capture"
    with recording(path, tgid) as process:
        yield Recording(process, path)


def warned(report: Report, part: str) -> bool:
    return any(part in warning for warning in report["warnings"])


# ---- leases ----


@pytest.mark.bpf
def test_leases_are_neither_waited_for_nor_broken() -> None:
    """An open that waits takes 45 s for each; what there was is known in size, and not which pages."""
    with obstacle("leased", 20) as found, trace("-p", found.tgid) as running:
        found.do("touch")
        report = running.stop()
        assert found.do("give") == "20 0 20"
    assert_balanced(report)
    leased, [pool] = regions(report, 29), regions(report, 31)
    assert [pages(region, "allocated", "before", "unseen") for region in leased] == [[29, 0, 29]] * 20
    assert [touched(region) for region in leased] == [0] * 20
    assert (pages(pool, "allocated", "before", "unseen"), touched(pool)) == ([18, 13, 0], 5)
    assert warned(report, "and 19 more from before the trace are unseen: there is a lease on it")


@pytest.mark.bpf
def test_a_lease_that_is_given_back_meanwhile(tmp_path: Path) -> None:
    """It is asked again, and then known what there was."""
    with obstacle("leased", 2) as found, recorded(tmp_path, found.tgid) as recording:
        recording.until("SELECT count(*) >= 3 FROM region WHERE allocated_bytes > 0")
        assert found.do("give") == "2 0 2"
        recording.until('SELECT count(*) = 2 FROM extent WHERE process IS NULL AND "end" - start = 29')
        found.do("touch")
        report = recording.stop()
    assert_balanced(report)
    assert [pages(region, "allocated", "before", "unseen") for region in regions(report, 29)] == [[29, 29, 0]] * 2
    assert not report["warnings"]


@needs_root
def test_a_snapshot_of_leases() -> None:
    with obstacle("leased", 20) as found:
        report = snapshot("-p", found.tgid)
        assert found.do("give") == "20 0 20"
    leased = regions(report, 29)
    assert [pages(region, "allocated", "before") for region in leased] == [[29, 29]] * 20
    assert {region["resident_bytes"] for region in leased} == {None}
    assert warned(report, "and 19 more is not known: there is a lease on it")


@needs_root
def test_to_read_a_leased_region() -> None:
    with obstacle("leased", 1) as found:
        name = regions(snapshot("-p", found.tgid), 29)[0]["id"]
        line = [*SHMTRACE, "read", name, "--hex"]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=ENOUGH_S)
        assert found.do("give") == "1 0 1"
    assert (
        done.stderr == "shmtrace: the region cannot be read now: another process has a lease on it: try again later\n"
    )
    assert done.returncode == 1


# ---- command lines ----


@needs_root
def test_a_command_line_of_a_gigabyte() -> None:
    """Of a stranger 256 bytes are read, and of whoever is asked for 4096."""
    with obstacle("leased", 0) as found:
        alone = snapshot("-p", found.tgid)
        with obstacle("long", 1024) as other:
            beside, itself = snapshot("-p", found.tgid), snapshot("-p", other.tgid)
    assert pages(regions(beside, 31)[0], "allocated") == pages(regions(itself, 31)[0], "allocated") == [13]
    assert regions(itself, 31)[0]["creator"]["command"] == ""  # it is all NULs
    for report in beside, itself:
        assert report["self"]["rss_bytes"] < 1.2 * alone["self"]["rss_bytes"]
        # what was read took 150 s; the rest is for a machine that is busy
        assert report["self"]["cpu_seconds"] < 3 * alone["self"]["cpu_seconds"] + 1


# ---- a process that does not answer ----


@needs_root
@needs_fuse
@pytest.mark.needs("unshare")
def test_a_snapshot_beside_a_process_that_does_not_answer(tmp_path: Path) -> None:
    """It is shown by its name, and that nothing else is known of it."""
    with held(tmp_path) as found:
        report = snapshot("-p", found.tgid)
        [pool] = regions(report, 31)
        assert pages(pool, "allocated") == [13]
        assert not regions(report, 23)
        [child] = [int(name) for name in children(found.tgid) if not readable(name)]
        assert report["warnings"] == [f"the name and mappings of process {child} are not known: it did not answer"]
        assert found.do("give") == "given"
        again = snapshot("-p", found.tgid)
        assert pages(regions(again, 23)[0], "allocated") == [7]
        assert again["warnings"] == []


@needs_root
@needs_fuse
@pytest.mark.needs("unshare")
def test_a_file_system_that_does_not_answer(tmp_path: Path) -> None:
    """Whoever asked it for anything could not even be killed."""
    (tmp_path / "mnt").mkdir()
    server = [sys.executable, "tests/unanswering.py", str(tmp_path / "mnt"), "/bin/true"]
    with subprocess.Popen(["unshare", "--mount", *server], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            child = int(process.stdout.readline())
            assert "/mnt/file" in Path(f"/proc/{child}/maps").read_text()
            report = snapshot("-p", child)
            assert report["regions"] == report["warnings"] == []
        finally:
            process.kill()


@needs_fuse
@pytest.mark.bpf
@pytest.mark.needs("unshare")
def test_a_process_that_answers_later(tmp_path: Path) -> None:
    """What it maps is taken in then."""
    with held(tmp_path) as found, recorded(tmp_path, found.tgid) as recording:
        recording.until("SELECT count(*) = 1 FROM region WHERE size_bytes = 31 * 4096")
        assert recording.rows("SELECT count(*) FROM region WHERE size_bytes = 23 * 4096") == [(0,)]
        assert found.do("give") == "given"
        recording.until("SELECT count(*) = 1 FROM region WHERE size_bytes = 23 * 4096")
        found.do("touch")
        report = recording.stop()
    assert_balanced(report)
    [pool], [its] = regions(report, 31), regions(report, 23)
    assert (pages(pool, "allocated", "before", "unseen"), touched(pool)) == ([18, 13, 0], 5)
    assert (pages(its, "allocated", "before", "unseen"), touched(its)) == ([10, 7, 0], 3)
    assert warned(report, "it did not answer")


def children(tgid: int) -> list[str]:
    return Path(f"/proc/{tgid}/task/{tgid}/children").read_text().split()


def readable(tgid: str) -> bool:
    """By somebody who can be ended, and who is not waited for."""
    with subprocess.Popen(["cat", f"/proc/{tgid}/cmdline"], stdout=subprocess.DEVNULL) as reader:
        try:
            reader.wait(1)
        except subprocess.TimeoutExpired:
            reader.kill()
            return False
    return True

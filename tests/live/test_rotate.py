"""A trace that is cut into captures: each tells all, none lacks a page, and what is over is told once."""

from __future__ import annotations

import mmap
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.reports import ATTACH_SECONDS, PATIENCE_SECONDS, ROOT, SHMTRACE
from tests.live.shmem import PAGE_BYTES, read_regions
from tracer import account
from tracer.account import Account, Region
from tracer.capture import parts
from tracer.capture.capture import Capture

pytestmark = pytest.mark.bpf

OF_REGION = 401  # pages; no other region here is as large
BY_PARENT, BY_FIRST, BY_SECOND, BY_LATER = 3, 23, 7, 11
OF_PASSING = 13


class Parent:
    """A process with a region, that does as it is told in lines: touch PAGE NUMBER, in a child that ends; pass NUMBER,
    which makes another region, touches it and unmaps it."""

    def __init__(self) -> None:
        told, telling = os.pipe()
        done, doing = os.pipe()
        self.tgid = os.fork()
        if not self.tgid:
            os.close(telling)
            os.close(done)
            self._work(told, doing)
        os.close(told)
        os.close(doing)
        self._telling, self._done = os.fdopen(telling, "w"), os.fdopen(done)
        assert self._done.readline() == "0\n"

    def _work(self, told: int, doing: int) -> None:
        memory = mmap.mmap(-1, OF_REGION * PAGE_BYTES)
        for page in range(BY_PARENT):
            memory[page * PAGE_BYTES] = 1
        os.write(doing, b"0\n")
        for line in os.fdopen(told):
            what, *numbers = line.split()
            child = 0
            if what == "pass":
                passing = mmap.mmap(-1, int(numbers[0]) * PAGE_BYTES)
                for page in range(int(numbers[0])):
                    passing[page * PAGE_BYTES] = 1
                passing.close()
            else:
                child = os.fork()
                if not child:
                    first, number = map(int, numbers)
                    for page in range(first, first + number):
                        memory[page * PAGE_BYTES] = 1
                    os._exit(0)
                os.waitpid(child, 0)
            os.write(doing, b"%d\n" % child)
        os._exit(0)

    def tell(self, *words: object) -> int:
        """Have something done; returns the PID of the child that did it."""
        print(*words, file=self._telling, flush=True)
        return int(self._done.readline())

    def end(self) -> None:
        self._telling.close()
        os.waitpid(self.tgid, 0)


@pytest.fixture
def parent() -> Iterator[Parent]:
    made = Parent()
    yield made
    made.end()


@contextmanager
def recording(
    path: Path, tgid: int, *options: str, shmtrace: list[str] = SHMTRACE
) -> Iterator[subprocess.Popen[bytes]]:
    command = [*shmtrace, "record", "-p", str(tgid), "-o", str(path), *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            while b"tracing" not in (line := process.stderr.readline()):
                assert line, "it ended"
            yield process
        finally:
            process.kill()


def rotate(process: subprocess.Popen[bytes], path: Path, number: int) -> list[Path]:
    """Returns the parts that are over, once there are so many."""
    process.send_signal(signal.SIGHUP)
    end_s = time.monotonic() + ATTACH_SECONDS
    while len(found := parts.over(path)) < number:
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.01)
    return [part.path for part in found]


def stop(process: subprocess.Popen[bytes]) -> str:
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said
    return said.decode()


def read(path: Path) -> Account:
    with Capture.open(path) as capture:
        capture.verify_sums()
        assert capture.is_summed()
        found = account.read(capture)
    assert found.session.complete
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return found


def the_region(found: Account) -> Region:
    [region] = [region for region in found.regions if region.size_bytes == OF_REGION * PAGE_BYTES]
    return region


def pages(region: Region) -> dict[int, int]:
    return {row.process.tgid: row.touched_bytes // PAGE_BYTES for row in region.touchers if row.touched_bytes}


def st_blocks(tgid: int) -> int:
    [region] = [region for region in read_regions(tgid).values() if region.size_bytes == OF_REGION * PAGE_BYTES]
    return region.pages


def test_each_part_tells_all(parent: Parent, tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    with recording(path, parent.tgid, "--rotate", "1h") as process:
        first = parent.tell("touch", 20, BY_FIRST)
        parent.tell("pass", OF_PASSING)
        allocated = [st_blocks(parent.tgid)]
        rotate(process, path, 1)
        second = parent.tell("touch", 100, BY_SECOND)
        allocated.append(st_blocks(parent.tgid))
        rotate(process, path, 2)
        later = parent.tell("touch", 200, BY_LATER)
        idle = parent.tell("touch", 20, BY_FIRST)  # finds them there
        allocated.append(st_blocks(parent.tgid))
        over = rotate(process, path, 3)
        said = stop(process)
    assert f"recorded into {path}" in said
    found = [read(each) for each in [*over, path]]
    assert [each.session.part for each in found] == [1, 2, 3, 4]
    assert allocated == [BY_PARENT + BY_FIRST, BY_PARENT + BY_FIRST + BY_SECOND, 44]
    touched = [{first: BY_FIRST}, {first: BY_FIRST, second: BY_SECOND}]
    touched += [{first: BY_FIRST, second: BY_SECOND, later: BY_LATER}] * 2
    for each, number, expected in zip(found, [*allocated, allocated[-1]], touched):
        region = the_region(each)
        assert region.allocated_bytes == number * PAGE_BYTES
        assert pages(region) == expected
        assert region.before_bytes == BY_PARENT * PAGE_BYTES
        assert region.unseen_bytes == 0
        assert all(row.process.parent == parent.tgid for row in region.touchers)
        assert all(row.process.exited_ns for row in region.touchers if row.process.tgid != parent.tgid)
    # the one that came and went is told once; of who only looked nothing is carried over
    gone = [[region.size_bytes for region in each.regions if region.gone_ns] for each in found]
    assert gone == [[OF_PASSING * PAGE_BYTES], [], [], []]
    with_idle = [idle in {row.process.tgid for row in the_region(each).touchers} for each in found]
    assert with_idle[:2] == [False, False]
    assert not with_idle[3]
    # the parts follow each other without a gap
    for before, after in zip(found, found[1:]):
        assert after.session.started_ns == before.session.started_ns
        assert after.session.part_started_ns
        assert 0 <= before.session.ended_ns - after.session.part_started_ns < 10**9 or (
            0 <= after.session.part_started_ns - before.session.ended_ns < 10**9
        )

"""Leases as /proc/locks has them, and one of this process's own, which must outlive being looked at."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.proc import leases, shmem
from tracer.proc.leases import find, leased
from tracer.proc.shmem import PAGE_BYTES, Residency

LOCKS = """\
1: POSIX  ADVISORY  WRITE 811 00:17:5 0 EOF
2: FLOCK  ADVISORY  WRITE 811 fd:01:6 0 EOF
2: -> FLOCK  ADVISORY  WRITE 812 fd:01:6 0 EOF
3: LEASE  ACTIVE    WRITE 811 00:17:7 0 EOF
4: LEASE  ACTIVE    READ  811 00:17:8 0 EOF
5: LEASE  BREAKING  READ  811 fd:01:9 0 EOF
6: LEASE  BREAKING  UNLCK -1 103:10001:18446744073709551615 0 EOF
7: DELEG  ACTIVE    WRITE 811 fd:01:10 0 EOF
8: LEASE  ACTIVE    WRITE
9: LEASE  ACTIVE    WRITE 811 00:zz:7 0 EOF
LEASE
"""
FOUND = {
    (os.makedev(0, 0x17), 7),
    (os.makedev(0xFD, 1), 9),
    (os.makedev(0x103, 0x10001), 18446744073709551615),
    (os.makedev(0xFD, 1), 10),
}


def test_leases_that_are_in_the_way(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    locks.write_text(LOCKS)
    assert find(locks) == FOUND
    assert find(tmp_path / "none") == set()


def test_more_locks_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = tmp_path / "locks"
    locks.write_text("1: POSIX  ADVISORY  WRITE 811 00:17:5 0 EOF\n" * 20 + LOCKS)
    monkeypatch.setattr(leases, "MAX_LOCKS", 10)
    assert find(locks) == set()


@pytest.fixture
def lease(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A region of 9 pages, 4 of them written; this process has a lease on it, and keeps it."""
    monkeypatch.setattr(leases, "FRESH_S", 0.0)
    handler = signal.signal(signal.SIGIO, lambda *_: broken.append(True))
    broken: list[bool] = []
    with tempfile.TemporaryFile(dir="/dev/shm", buffering=0) as file:  # the kernel gives none on a memfd
        fd = os.dup(file.fileno())
    os.ftruncate(fd, 9 * PAGE_BYTES)
    os.pwrite(fd, b"x" * 4 * PAGE_BYTES, 2 * PAGE_BYTES)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    yield fd
    assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK
    assert not broken
    os.close(fd)
    signal.signal(signal.SIGIO, handler)


def test_what_can_be_seen_of_a_leased_region(lease: int) -> None:
    """How large it is and which one, and not what it has where; and nobody is told to give the lease back."""
    path, stat = Path(f"/proc/self/fd/{lease}"), os.fstat(lease)
    assert leased(stat.st_dev, stat.st_ino)
    assert shmem.region_stat(path) == shmem.RegionStat(9 * PAGE_BYTES, 4 * PAGE_BYTES)
    key = shmem.identify(path)
    assert key
    assert key[:2] == (stat.st_dev, stat.st_ino)
    place = shmem.open_place(path)
    assert os.path.samestat(os.fstat(place), stat)
    os.close(place)
    assert shmem.survey(path, key) is None
    assert shmem.residency(path, key) == Residency(None, None)
    for look in (shmem.open_promptly, lambda path: shmem.open_region(path, key)):
        with pytest.raises(BlockingIOError, match="another process has a lease on it"):
            look(path)


def test_once_it_is_given_back(lease: int) -> None:
    path = Path(f"/proc/self/fd/{lease}")
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert shmem.survey(path) == shmem.Survey([(2, 6)], 4 * PAGE_BYTES, 9 * PAGE_BYTES)
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)

"""Shared memory that no process has mapped: each kind is told with its figure, and the host's sum is the kernel's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.reports import ROOT, SHMTRACE
from tests.live.shmem import PAGE_BYTES
from tracer.proc import unmapped
from tracer.proc.procfs import Proc

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="others' descriptors are root's to see")

PAGES = {"sysv": 1031, "held": 2063, "deleted": 3079, "file": 4111, "flight": 1543}
SLACK_PAGES = 512
"""What others may have made or freed meanwhile, and the kernel's counters by CPU be off."""
HOLD = f"""
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
names = "/dev/shm/unmapped-deleted-%d" % os.getpid(), "/dev/shm/unmapped-file-%d" % os.getpid()

def filled(fd, pages):
    for _ in range(pages):
        os.write(fd, b"x" * {PAGE_BYTES})
    return fd

def made(name, pages):
    return filled(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), pages)

shmid = libc.shmget(0, {PAGES["sysv"]} * {PAGE_BYTES}, 0o1600)
try:
    if not os.fork():
        ctypes.memset(ctypes.c_void_p(libc.shmat(shmid, None, 0)), 1, {PAGES["sysv"]} * {PAGE_BYTES})
        os._exit(0)
    os.wait()
    memfd = filled(os.memfd_create("unmapped"), {PAGES["held"]})
    deleted = made(names[0], {PAGES["deleted"]})
    os.unlink(names[0])
    os.close(made(names[1], {PAGES["file"]}))
    ends = socket.socketpair()
    passed = filled(os.memfd_create("flight"), {PAGES["flight"]})
    socket.send_fds(ends[0], [b"x"], [passed])
    os.close(passed)
    print("ready", shmid, flush=True)
    sys.stdin.read()
finally:
    libc.shmctl(shmid, 0, None)
    os.unlink(names[1])
"""


@pytest.fixture
def holder() -> Iterator[tuple[int, int]]:
    """PID and shmid of a process that has some of each kind."""
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        said = process.stdout.readline().split()
        assert said[:1] == [b"ready"]
        yield process.pid, int(said[1])
        process.stdin.close()
        process.wait(60)


def looked(*arguments: str) -> Any:
    line = [*SHMTRACE, *arguments, "--json"]
    done = subprocess.run(line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("arguments", [["snapshot"], pytest.param(["-a", "-d", "0.5"], marks=pytest.mark.bpf)])
def test_each_kind_is_told(arguments: list[str], holder: tuple[int, int]) -> None:
    tgid, shmid = holder
    rows = looked(*arguments)["unmapped"]
    found = {(row["kind"], row["name"]): row for row in rows}
    segment = next(row for row in rows if row["kind"] == "sysv" and row["reach"] == str(shmid))
    memfd, deleted = found["held", "/memfd:unmapped"], found["held", f"/dev/shm/unmapped-deleted-{tgid}"]
    file, tmpfs = found["file", f"/dev/shm/unmapped-file-{tgid}"], found["tmpfs", "/dev/shm"]
    pages = {"sysv": segment, "held": memfd, "deleted": deleted, "file": file}
    assert {kind: row["allocated_bytes"] // PAGE_BYTES for kind, row in pages.items()} == {
        kind: pages for kind, pages in PAGES.items() if kind != "flight"
    }
    assert segment["creator"] == tgid
    assert segment["remedy"] == f"ipcrm -m {shmid}"
    assert (memfd["holder"], memfd["holders"]) == (deleted["holder"], deleted["holders"]) == (tgid, 1)
    assert Path(memfd["reach"]).stat().st_blocks * 512 == memfd["allocated_bytes"]
    assert tmpfs["allocated_bytes"] >= file["allocated_bytes"]
    assert not [row for row in rows if row["name"] == "/memfd:flight"]


def test_what_is_in_flight_is_the_rest(holder: tuple[int, int]) -> None:
    """The parts add up to the kernel's Shmem; what nothing has a name for is what was sent and not received."""
    with_flight = looked("snapshot")
    unmapped = [row for row in with_flight["unmapped"] if row["kind"] != "file"]
    assert with_flight["shmem_rest_bytes"] >= (PAGES["flight"] - SLACK_PAGES) * PAGE_BYTES
    told = sum(row["allocated_bytes"] - (row["swapped_bytes"] or 0) for row in unmapped)
    assert with_flight["shmem_unexplained_bytes"] - told == with_flight["shmem_rest_bytes"]


def test_a_tmpfs_of_another_mount_namespace(tmp_path: Path) -> None:
    """By way of the process that has it: how much of its limit is used, and the largest file."""
    fill = "mount -t tmpfs -o size=16M,nr_inodes=99 mine $1 && head -c 2850816 /dev/zero > $1/a && mkdir $1/sub && \
        head -c 69632 /dev/zero > $1/sub/b && echo ready && read line"
    line = ["unshare", "--mount", "sh", "-c", fill, "sh", str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        rows = looked("snapshot")["unmapped"]
        (place,) = (number for number, row in enumerate(rows) if (row["kind"], row["name"]) == ("tmpfs", str(tmp_path)))
        tmpfs, first, second = rows[place : place + 3]
        assert (tmpfs["allocated_bytes"], tmpfs["size_bytes"]) == ((696 + 17) * PAGE_BYTES, 16 << 20)
        assert tmpfs["files"] == 4  # its root, the directory, and two files
        assert [(row["name"], row["allocated_bytes"]) for row in (first, second)] == [
            (f"{tmp_path}/a", 696 * PAGE_BYTES),
            (f"{tmp_path}/sub/b", 17 * PAGE_BYTES),
        ]
        assert Path(first["reach"]).stat().st_size == 2850816
        process.stdin.close()


def test_the_text_names_what_frees_it(holder: tuple[int, int]) -> None:
    tgid, shmid = holder
    text = subprocess.check_output([*SHMTRACE, "snapshot"], cwd=ROOT, text=True)
    assert "mapped by no process\n" in text
    assert f"ipcrm -m {shmid}\n" in text
    assert f"/memfd:unmapped, held by {tgid} " in text
    assert "host shmem" in text
    assert " rest\n" in text
    assert max(map(len, text.splitlines())) <= 80 or "warning: " in text


# ---- strangers ----


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """One of 16 MiB, of this test alone."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M", "mine", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def filled(directory: Path, name: bytes, pages: int) -> None:
    fd = os.open(os.fsencode(directory) + b"/" + name, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"x" * (pages * PAGE_BYTES))
    os.close(fd)


def test_files_that_are_called_anything(tmpfs: Path) -> None:
    for pages, name in enumerate([b"\xff\xfe\x80", b"line\nbreak", b"\x1b[2J", b"x; touch pwned", b"n" * 255], 3):
        filled(tmpfs, name, pages)
    (tmpfs / "link").symlink_to("/")
    os.mkfifo(tmpfs / "fifo")
    rows = looked("snapshot")["unmapped"]
    found = {row["name"].removeprefix(f"{tmpfs}/"): row for row in rows if row["reach"].startswith(f"{tmpfs}/")}
    assert {name: row["allocated_bytes"] // PAGE_BYTES for name, row in found.items()} == {
        "\\xff\\xfe\\x80": 3,
        "line\nbreak": 4,
        "\x1b[2J": 5,
        "x; touch pwned": 6,
        "n" * 255: 7,
    }
    assert found["x; touch pwned"]["remedy"] == f"ls -l '{tmpfs}/x; touch pwned'"
    text = subprocess.check_output([*SHMTRACE, "snapshot"], cwd=ROOT, text=True)
    assert "\x1b" not in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("warning: "))


def test_directories_without_end(tmpfs: Path) -> None:
    """Deeper than a path may be long: what is there is in the sum, and a warning says that not all was looked at."""
    filled(tmpfs, b"top", 23)
    at = os.open(tmpfs, os.O_PATH)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=at)
        below = os.open("d" * 250, os.O_PATH, dir_fd=at)
        os.close(at)
        at = below
    deep = os.open("deep", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=at)
    os.write(deep, b"x" * (7 * PAGE_BYTES))
    os.close(deep)
    os.close(at)
    report = looked("snapshot")
    (sums,) = (row for row in report["unmapped"] if row["kind"] == "tmpfs" and row["name"] == str(tmpfs))
    assert sums["allocated_bytes"] == 30 * PAGE_BYTES
    assert any(warning.startswith(f"{tmpfs} has more files than could be looked at") for warning in report["warnings"])


def test_files_without_end(tmpfs: Path) -> None:
    """The sum is statfs's, however many there are; the walk ends in time."""
    for number in range(3001):
        (tmpfs / f"{number}").touch()
    filled(tmpfs, b"one", 11)
    found = unmapped.find(Proc(), [], [], {}, patience_s=0.01)
    assert [row.allocated_bytes for row in found.unmapped if row.name == str(tmpfs)] == [11 * PAGE_BYTES]
    assert [text for text in found.warnings if str(tmpfs) in text]

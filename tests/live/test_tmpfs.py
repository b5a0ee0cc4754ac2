"""Files of a tmpfs: who wrote them, whether anybody maps them or not, and how full a tmpfs is that -p names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.reports import ROOT, SHMTRACE, trace
from tests.live.shmem import PAGE_BYTES
from tracer.proc import shmem, tmpfs
from tracer.proc.procfs import Proc

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting is root's")

FILL = f"""
import os, sys
directory = sys.argv[1]
os.makedirs(directory + "/deep")

def put(name, pages, *flags):
    fd = os.open(directory + "/" + name, os.O_RDWR | os.O_CREAT | sum(flags), 0o600)
    for _ in range(pages):
        os.write(fd, b"x" * {PAGE_BYTES})
    return fd

def child(run):
    tgid = os.fork()
    if not tgid:
        run()
        os._exit(0)
    os.waitpid(tgid, 0)
    return tgid

os.close(put("old", 1223))
print("ready", flush=True)
sys.stdin.readline()
writer = child(lambda: put("deep/written", 1277))
reserver = child(lambda: os.posix_fallocate(put("reserved", 0), 0, 511 * {PAGE_BYTES}))
appender = child(lambda: put("old", 3, os.O_APPEND))
deleted = put("deep/deleted", 77)
os.unlink(directory + "/deep/deleted")
print(os.getpid(), writer, reserver, appender, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def filler(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is about to fill a tmpfs of 16 MiB in its own mount namespace."""
    mount = 'mount -t tmpfs -o size=16M mine "$1" && exec "$2" -c "$3" "$1"'
    line = ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FILL]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()


def fill(process: subprocess.Popen[bytes]) -> list[int]:
    """PIDs: itself, and who wrote, who reserved, who appended."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"go\n")
    process.stdin.flush()
    return [int(word) for word in process.stdout.readline().split()]


def touched(report: Any) -> dict[str, dict[int, int]]:
    """By the region's name: pages by tgid."""
    return {
        row["name"]: {toucher["process"]["tgid"]: toucher["touched_bytes"] // PAGE_BYTES for toucher in row["touchers"]}
        for row in report["regions"]
    }


@pytest.mark.bpf
def test_who_filled_a_tmpfs_of_another_mount_namespace(filler: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with trace("-p", f"/proc/{filler.pid}/root{tmp_path}") as tracing:
        main, writer, reserver, appender = fill(filler)
        report = tracing.stop()
    assert report["tmpfs"] == str(tmp_path)
    assert touched(report) == {
        f"{tmp_path}/deep/written": {writer: 1277},
        f"{tmp_path}/reserved": {reserver: 511},
        f"{tmp_path}/old": {appender: 3},
        f"{tmp_path}/deep/deleted": {main: 77},
    }
    before = {row["name"]: row["before_bytes"] // PAGE_BYTES for row in report["regions"]}
    assert {name: pages for name, pages in before.items() if pages} == {f"{tmp_path}/old": 1223}
    assert not any(row["unseen_bytes"] for row in report["regions"])
    [row] = report["unmapped"]
    assert (row["kind"], row["allocated_bytes"], row["size_bytes"]) == ("tmpfs", 0, 16 << 20)


@pytest.mark.bpf
def test_the_text_says_how_full_it_is(filler: subprocess.Popen[bytes], tmp_path: Path) -> None:
    line = [*SHMTRACE, "-p", f"/proc/{filler.pid}/root{tmp_path}", "-d", "0.2"]
    text = subprocess.check_output(line, cwd=ROOT, text=True)
    assert re.match(r"4\.8 MiB of 16\.0 MiB \(30%\), \+0 B in \d+ s, 3 inodes, of the tmpfs /", text)
    assert re.search(r"^  /tmp/.*….*/old  other 4\.8 MiB", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80
    assert "host shmem" not in text


def test_a_snapshot_of_it(filler: subprocess.Popen[bytes], tmp_path: Path) -> None:
    fill(filler)
    line = [*SHMTRACE, "snapshot", "--json", "-p", f"/proc/{filler.pid}/root{tmp_path}"]
    report = json.loads(subprocess.check_output(line, cwd=ROOT))
    found = {row["name"]: row["allocated_bytes"] // PAGE_BYTES for row in report["regions"]}
    assert found == {f"{tmp_path}/old": 1226, f"{tmp_path}/deep/written": 1277, f"{tmp_path}/reserved": 511}
    held = {row["name"]: row["allocated_bytes"] // PAGE_BYTES for row in report["unmapped"] if row["kind"] == "held"}
    assert held == {f"{tmp_path}/deep/deleted": 77}


@pytest.mark.bpf
def test_files_of_the_tree_by_their_paths(filler: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """The writer may be gone before anybody looks, and its file: then the directory is not known."""
    with trace("-p", str(filler.pid)) as tracing:
        main, writer, reserver, appender = fill(filler)
        found = touched(tracing.stop())
    assert found[f"{tmp_path}/deep/written"] == {writer: 1277}
    assert found[f"{tmp_path}/reserved"] == {reserver: 511}
    assert found[f"{tmp_path}/old"] == {appender: 3}
    assert found[f"{tmp_path}/deep/deleted"] == {main: 77}


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: path.mkdir(), "{} is a directory, but not on a tmpfs: name a process, a pidfile or a tmpfs"),
        (lambda path: None, "pidfile {}: No such file or directory: is the service running?"),
        (lambda path: path.write_text("x"), "pidfile {} holds no PID, but 'x': name the process or its PID"),
    ],
)
def test_what_is_no_tmpfs(make: Any, error: str, tmp_path: Path) -> None:
    if shmem.is_tmpfs(tmp_path):
        pytest.skip("the tests' directory is on a tmpfs")
    make(tmp_path / "x")
    done = subprocess.run([*SHMTRACE, "-p", f"{tmp_path}/x"], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr.decode()) == (1, f"shmtrace: {error.format(tmp_path / 'x')}\n")


def test_a_directory_in_a_tmpfs(filler: subprocess.Popen[bytes], tmp_path: Path) -> None:
    place = f"/proc/{filler.pid}/root{tmp_path}"
    for names, error in [
        ([f"{place}/deep"], f"{place}/deep is a directory in a tmpfs: take all of it: -p {place}"),
        ([place, "init"], f"-p {place} is a tmpfs, which is looked at for every process: give it alone"),
    ]:
        line = [*SHMTRACE, "snapshot", *(word for name in names for word in ("-p", name))]
        done = subprocess.run(line, cwd=ROOT, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr.decode()) == (1, f"shmtrace: {error}\n")


def test_a_file_is_read_by_its_path(filler: subprocess.Popen[bytes], tmp_path: Path) -> None:
    path = f"/proc/{filler.pid}/root{tmp_path}/old"
    assert subprocess.check_output([*SHMTRACE, "read", path], cwd=ROOT) == b"x" * 1223 * PAGE_BYTES
    done = subprocess.run([*SHMTRACE, "read", f"{path}er"], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr.startswith(b"shmtrace: no region is called")) == (1, True)


def test_a_file_is_found_in_its_tmpfs(filler: subprocess.Popen[bytes], tmp_path: Path) -> None:
    fill(filler)
    path = Path(f"/proc/{filler.pid}/root{tmp_path}/deep/written")
    place = path.stat().st_dev, path.stat().st_ino
    found = tmpfs.find(Proc(), {place, (place[0], 99999)}, 5.0)
    assert {key: name for key, (name, _) in found.items()} == {place: f"{tmp_path}/deep/written"}
    assert found[place][1].samefile(path)
    assert tmpfs.find(Proc(), {place}, 0.0) == {}


@pytest.mark.bpf
def test_files_that_are_called_anything(tmp_path: Path) -> None:
    """Names in no encoding, with what moves a cursor, as long as they may be."""
    directory = Path(f"/dev/shm/named-{os.getpid()}")
    names = [b"\xff\xfe", b"\x1b[2J", b"line\nbreak", b"n" * 255]
    write = "import os, sys\nos.mkdir(sys.argv[1])\nfor n, name in enumerate(eval(sys.argv[2])):\n"
    write += "    fd = os.open(os.fsencode(sys.argv[1]) + b'/' + name, os.O_CREAT | os.O_WRONLY)\n"
    write += "    os.write(fd, b'x' * 4096 * (3 + 30 * n)); os.close(fd)"
    line = [*SHMTRACE, "-o", tmp_path / "capture", "--", sys.executable, "-c", write, directory, repr(names)]
    try:
        text = subprocess.check_output(line, cwd=ROOT, text=True, stdin=subprocess.DEVNULL)
        report = json.loads(subprocess.check_output([*SHMTRACE, "report", "--json", tmp_path / "capture"], cwd=ROOT))
    finally:
        shutil.rmtree(directory)
    pages = {row["name"].rpartition("/")[2]: row["allocated_bytes"] // PAGE_BYTES for row in report["regions"]}
    assert pages == {"\\xff\\xfe": 3, "\x1b[2J": 33, "line\nbreak": 63, "n" * 255: 93}
    assert not {"\x1b", "\r"} & set(text)
    assert max(map(len, text.splitlines())) <= 80

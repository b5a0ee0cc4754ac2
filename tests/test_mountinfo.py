"""What is mounted, from a made-up /proc, and from this process's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracer import mountinfo
from tracer.mountinfo import Mount, Mounts, mounts, why_not

MOUNTINFO = """\
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
22 27 0:21 / /proc rw,nosuid shared:12 master:3 - proc proc rw
30 27 0:27 / /dev/shm rw - tmpfs tmp\\040fs rw,size=24683656k
31 27 0:40 /a\\040-\\040b /mnt/a\\040-\\040b rw master:1 propagate_from:2 unbindable - nfs4 host:/a rw,vers=4.2
32 27 0:41 / /mnt/x rw - fuse.sshfs x@y:/ rw,user_id=0
33 27 259:5 / /mnt/ntfs rw - fuseblk /dev/sdb1 rw
34 27 0:42 / /merged rw - overlay overlay rw,lowerdir=/mnt/x
"""
KINDS = {27: "ext4", 22: "proc", 30: "tmpfs", 31: "nfs4", 32: "fuse.sshfs", 33: "fuseblk", 34: "overlay"}


@pytest.fixture
def process(tmp_path: Path) -> Path:
    folder = tmp_path / "812"
    folder.mkdir()
    (folder / "mountinfo").write_text(MOUNTINFO)
    return folder


def test_mounts(process: Path) -> None:
    found = list(mounts(process))
    assert {mount.id: mount.kind for mount in found} == KINDS
    assert found[0] == Mount(27, os.makedev(254, 1), "ext4")


@pytest.mark.parametrize(
    "line", ["", "27", "x" * 100_000, "27 1 254:1 / / rw - ", "27 1 254 / / rw - ext4 x rw", "\0" * 99]
)
def test_no_mount(line: str, process: Path) -> None:
    (process / "mountinfo").write_text(f"{line}\n{MOUNTINFO}{line}")
    assert {mount.id: mount.kind for mount in mounts(process)} == KINDS


def test_a_process_that_is_gone(process: Path) -> None:
    assert list(mounts(process.with_name("813"))) == []


def test_kinds_by_device(process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who has it mounted, else by what this process has; and soon by what is mounted then."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text("40 27 0:50 / /x rw - tmpfs tmpfs rw\n")
    known = Mounts(tmp_path)
    assert known.kind(812, os.makedev(0, 27)) == "tmpfs"
    assert known.kind(812, os.makedev(0, 40)) == "nfs4"
    assert known.kind(812, os.makedev(0, 50)) == known.kind(813, os.makedev(0, 50)) == "tmpfs"
    assert known.kind(813, os.makedev(0, 27)) is None
    (process / "mountinfo").write_text("40 27 0:27 / /x rw - fuse.x x rw\n")
    monkeypatch.setattr(mountinfo, "FRESH_S", 0.0)
    assert known.kind(812, os.makedev(0, 27)) == "fuse.x"


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (27, None),
        (30, None),
        (31, "it is on nfs4"),
        (32, "it is on fuse.sshfs"),
        (33, "it is on fuseblk"),
        (34, "it is on overlay"),  # whose namespace is not known to be of our own users
        (99, "it is on what is mounted nowhere"),
        (None, "it is on what is mounted nowhere"),
    ],
)
def test_what_might_keep_us_waiting(
    number: int | None, problem: str | None, process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mountinfo, "OURS", tmp_path / "self")
    assert why_not(process, number) == problem


def test_an_overlay_of_our_own_users(process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker mounts it, in a namespace that is root's."""
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "user").symlink_to("/proc/self/ns/user")
    (process / "ns").mkdir()
    (process / "ns" / "mnt").symlink_to("/proc/self/ns/mnt")
    monkeypatch.setattr(mountinfo, "OURS", tmp_path / "self")
    assert why_not(process, 34) is None


def test_this_program_is_on_a_disk() -> None:
    with open(__file__) as file:
        text = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text()
    (number,) = (int(line.split()[1]) for line in text.splitlines() if line.startswith("mnt_id:"))
    assert why_not(None, number) is None
    assert number in {mount.id for mount in mounts(Path("/proc/self"))}

"""What is mounted, and what of it is opened: in a made-up /proc, and on a FUSE whose server answers no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracer.proc import mounts as module
from tracer.proc.mounts import Mount, Mounts, mounts
from tracer.proc.procfs import Proc

MOUNTINFO = """\
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
22 27 0:21 / /proc rw,nosuid shared:12 master:3 - proc proc rw
30 27 0:27 / /dev/shm rw - tmpfs tmp\\040fs rw,size=24683656k
31 27 0:40 / /a\\040-\\040b rw master:1 propagate_from:2 unbindable - nfs4 host:/a rw,vers=4.2
32 27 0:41 / /mnt/x rw - fuse.sshfs x@y:/ rw,user_id=0
33 27 259:5 / /mnt/ntfs rw - fuseblk /dev/sdb1 rw
34 27 0:42 / /merged rw - overlay overlay rw,lowerdir=/mnt/x
35 27 0:33 /sub /var/lib/a\\040-\\040b rw - btrfs /dev/sdb rw
36 27 0:44 / /mnt/t rw master:7 - fuse - tmpfs rw
"""
LOCAL = {27: "ext4", 30: "tmpfs", 34: "overlay", 35: "btrfs"}
OTHERS = {22: "proc", 31: "nfs4", 32: "fuse.sshfs", 33: "fuseblk", 36: "fuse"}
KINDS = {**LOCAL, **OTHERS}
"""By number of the mount: those that answer by themselves, and those that need not."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A /proc with a process 812, of which it is still to come what is mounted."""
    for process in ("self", "812"):
        (tmp_path / process).mkdir()
        (tmp_path / process / "mountinfo").write_text("")
    return tmp_path


def test_mounts(root: Path) -> None:
    (root / "812" / "mountinfo").write_text(MOUNTINFO)
    found = list(mounts(root / "812"))
    assert {mount.id: mount.kind for mount in found} == KINDS
    assert found[0] == Mount(27, os.makedev(254, 1), "ext4", True, "/")


@pytest.mark.parametrize(
    "line", ["", "27", "x" * 100_000, "27 1 254:1 / / rw - ", "27 1 254 / / rw - ext4 x rw", "\0" * 99]
)
def test_no_mount(line: str, root: Path) -> None:
    (root / "812" / "mountinfo").write_text(f"{line}\n{MOUNTINFO}{line}")
    assert {mount.id: mount.kind for mount in mounts(root / "812")} == KINDS


def test_a_process_that_is_gone(root: Path) -> None:
    assert list(mounts(root / "813")) == []
    assert Mounts(root / "none").kind(812, 1) is None


@pytest.mark.parametrize("number", KINDS)
def test_what_answers_by_itself(number: int, root: Path) -> None:
    (root / "self" / "mountinfo").write_text(MOUNTINFO)
    problem = None if number in LOCAL else f"it is on {KINDS[number]}, which might not answer"
    assert Mounts(root).why_not(None, number) == Mounts(root).why_not(root / "812", number) == problem


@pytest.mark.parametrize("number", KINDS)
def test_what_is_mounted_where_the_process_is(number: int, root: Path) -> None:
    """There anybody may have an overlay, on a FUSE for one; unless it is root's, as a container's is."""
    (root / "812" / "mountinfo").write_text(MOUNTINFO)
    known = Mounts(root)
    assert (known.why_not(root / "812", number) is None) == (number in LOCAL and KINDS[number] != "overlay")
    (root / "812" / "ns").symlink_to("/proc/self/ns")
    assert (known.why_not(root / "812", number) is None) == (number in LOCAL)


@pytest.mark.parametrize("number", [99, None])
def test_what_is_mounted_nowhere(number: int | None, root: Path) -> None:
    (root / "self" / "mountinfo").write_text(MOUNTINFO)
    assert Mounts(root).why_not(root / "812", number) == "its file system is not mounted"


def test_kinds_by_device(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what this process has mounted, else that one; and soon by what is mounted there then."""
    (root / "812" / "mountinfo").write_text(MOUNTINFO)
    (root / "self" / "mountinfo").write_text("40 27 0:50 / /x rw - tmpfs tmpfs rw\n")
    known = Mounts(root)
    assert known.kind(812, os.makedev(0, 27)) == "tmpfs"
    assert known.kind(812, os.makedev(0, 40)) == "nfs4"
    assert known.kind(812, os.makedev(0, 50)) == known.kind(813, os.makedev(0, 50)) == "tmpfs"
    assert known.kind(813, os.makedev(0, 27)) is None
    (root / "812" / "mountinfo").write_text("40 27 0:27 / /x rw - fuse.x x rw\n")
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    assert known.kind(812, os.makedev(0, 27)) == "fuse.x"


def test_this_program_is_on_a_disk() -> None:
    with open(__file__) as file:
        text = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text()
    (number,) = (int(line.split()[1]) for line in text.splitlines() if line.startswith("mnt_id:"))
    assert Mounts(Path("/proc")).why_not(None, number) is None


@pytest.mark.needs("unshare", "mount")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_is_mounted_meanwhile(tmp_path: Path) -> None:
    """And what is no more."""
    script = (
        "import os, subprocess, sys\n"
        "from pathlib import Path\n"
        "from tracer.proc.mounts import Mounts\n"
        "found = Mounts(Path('/proc'))\n"
        "assert found.why_not(None, None)\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[1]], check=True)\n"
        "place = os.open(sys.argv[1], os.O_PATH)\n"
        "number = int(Path(f'/proc/self/fdinfo/{place}').read_text().split('mnt_id:')[1].split()[0])\n"
        "print(found.why_not(None, number))\n"
        "subprocess.run(['umount', '-l', sys.argv[1]], check=True)\n"
        "print(found.why_not(None, number))\n"
    )
    command = ["unshare", "--mount", sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "None\nits file system is not mounted\n"


@pytest.mark.needs("unshare")
def test_who_made_a_namespace(tmp_path: Path) -> None:
    assert module._is_of_root(Path("/proc/self"))
    assert not module._is_of_root(tmp_path)
    with subprocess.Popen(["unshare", "-rm", "sh", "-c", "echo in; exec sleep 60"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        if process.stdout.readline() == b"in\n":
            assert not module._is_of_root(Path(f"/proc/{process.pid}"))
        else:
            pytest.skip("no user namespace is to be had here")
        process.kill()


@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and FUSE")
def test_a_server_that_answers_no_more(tmp_path: Path) -> None:
    """To open its file waits for it, and cannot be ended; what has been mapped of it is seen all the same."""
    (tmp_path / "mnt").mkdir()
    server = Path(__file__).with_name("unanswering.py")
    command = ["unshare", "--mount", sys.executable, server, tmp_path / "mnt", shutil.which("sleep") or "/bin/sleep"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            tgid = int(process.stdout.readline())
            [mapping] = [each for each in Proc().mappings(tgid) if each.path == f"{tmp_path}/mnt/file"]
            began_s = time.monotonic()
            with pytest.raises(BlockingIOError, match="it is on fuse, which might not answer"):
                Proc().open_mapped(tgid, mapping)
            assert time.monotonic() - began_s < 20
            opening = subprocess.Popen(["cat", Proc().map_file(tgid, mapping)], stdout=subprocess.DEVNULL)
            with pytest.raises(subprocess.TimeoutExpired):
                opening.wait(0.5)
        finally:
            process.kill()
        opening.wait(20)

"""Which mapped files are opened: in a made-up /proc, and on a FUSE whose server answers no more."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracer import mounts
from tracer.mounts import FileKey, Mounts
from tracer.procfs import Mapping, Proc

KINDS = {
    "254:1 / / rw,relatime shared:1 - ext4 /dev/vda1": True,
    "0:33 / /var/lib/a\\040-\\040b rw - btrfs /dev/sdb": True,
    "0:43 / /run rw - tmpfs tmpfs": True,
    "0:42 / /merged rw - overlay overlay": True,
    "8:17 / /mnt/windows rw - fuseblk /dev/sdb1": False,
    "0:40 / /home rw - nfs4 server:/home": False,
    "0:41 / /mnt/s rw - fuse.sshfs me@there:/": False,
    "0:44 / /mnt/t rw master:7 - fuse - tmpfs": False,
}
"""What a file may be on, and whether that answers by itself."""
MAPPING = Mapping(0x1000, 0x2000, False, 0, 1, 7, "/bin/x")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """812 has a file mapped; what is mounted is still to come."""
    found = Proc(str(tmp_path / "proc"))
    (found.root / "self").mkdir(parents=True)
    (tmp_path / "x").write_text("x")
    links = found.root / "812" / "map_files"
    links.mkdir(parents=True)
    (links / "1000-2000").symlink_to(tmp_path / "x")
    for process in ("self", "812"):
        (found.root / process / "mountinfo").write_text("")
    return found


def mount_number(path: Path) -> int:
    with path.open() as file:
        return int(Path(f"/proc/self/fdinfo/{file.fileno()}").read_text().split("mnt_id:")[1].split()[0])


def opens(proc: Proc) -> bool:
    try:
        os.close(Mounts(proc).open(812, MAPPING))
    except OSError as error:
        return error.errno != errno.EREMOTE
    return True


def mounted(proc: Proc, where: str, kind: str) -> None:
    """The file is on this, as one sees there."""
    number = mount_number(proc.root.parent / "x")
    others = f"{number}1 1 254:1 / /other rw - ext4 /dev/vda2 rw\n", f"{number}2 1 0:9 / /o rw - fuse x rw\n"
    (proc.root / where / "mountinfo").write_text(f"{others[0]}{number} 27 {kind} rw\n{others[1]}")


@pytest.mark.parametrize(("kind", "local"), KINDS.items())
def test_what_answers_by_itself(kind: str, local: bool, proc: Proc) -> None:
    mounted(proc, "self", kind)
    assert opens(proc) == local


@pytest.mark.parametrize(("kind", "local"), KINDS.items())
def test_what_is_mounted_where_the_process_is(kind: str, local: bool, proc: Proc) -> None:
    """There anybody may have an overlay, on a FUSE for one; unless it is root's, as a container's is."""
    mounted(proc, "812", kind)
    assert opens(proc) == (local and "overlay" not in kind)
    (proc.root / "812" / "ns").symlink_to("/proc/self/ns")
    assert opens(proc) == local


def test_what_is_mounted_nowhere(proc: Proc) -> None:
    """Or was, and is no more."""
    assert not opens(proc)


def test_a_file_is_opened_by_way_of_its_process(proc: Proc, tmp_path: Path) -> None:
    mounted(proc, "self", next(iter(KINDS)))
    fd = Mounts(proc).open(812, MAPPING)
    stat = (tmp_path / "x").stat()
    assert FileKey.of(fd) == (stat.st_dev, stat.st_ino, stat.st_mtime_ns, 1)
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        Mounts(proc).open(812, MAPPING._replace(start=0))


@pytest.mark.needs("unshare", "mount")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_is_mounted_meanwhile(tmp_path: Path) -> None:
    """And what is no more."""
    script = (
        "import os, subprocess, sys\n"
        "from tracer.mounts import Mounts\n"
        "from tracer.procfs import Proc\n"
        "found = Mounts(Proc())\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[1]], check=True)\n"
        "place = os.open(sys.argv[1], os.O_PATH)\n"
        "mounted = found._is_local(0, place)\n"
        "subprocess.run(['umount', '-l', sys.argv[1]], check=True)\n"
        "print(mounted, found._is_local(0, place))\n"
    )
    command = ["unshare", "--mount", sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "True False\n"


@pytest.mark.needs("unshare")
def test_who_made_a_namespace(tmp_path: Path) -> None:
    assert mounts._is_of_root(Path("/proc/self"))
    assert not mounts._is_of_root(tmp_path)
    with subprocess.Popen(["unshare", "-rm", "sh", "-c", "echo in; exec sleep 60"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        if process.stdout.readline() == b"in\n":
            assert not mounts._is_of_root(Path(f"/proc/{process.pid}"))
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
            with pytest.raises(OSError, match="it is on a file system that need not answer"):
                Mounts(Proc()).open(tgid, mapping)
            assert time.monotonic() - began_s < 20
            opening = subprocess.Popen(["cat", Proc().map_file(tgid, mapping)], stdout=subprocess.DEVNULL)
            with pytest.raises(subprocess.TimeoutExpired):
                opening.wait(0.5)
        finally:
            process.kill()
        opening.wait(20)

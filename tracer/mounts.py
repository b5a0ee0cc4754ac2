"""Which mapped files can be opened and read without waiting for somebody.

A file on NFS is another host's, one on FUSE is of a process that need not answer, and who waits for it cannot even be
killed: fuse_dev_do_read() has taken the request, and request_wait_answer() in fs/fuse/dev.c waits for its end. So a
descriptor of the place comes first, which asks nobody, and mountinfo says what that is on.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import select
from pathlib import Path
from typing import NamedTuple

from tracer.procfs import Executable, Mapping, Proc, open_promptly

NS_GET_USERNS = 0xB701
MAX_MOUNTINFO_BYTES = 4 << 20
LOCAL = (b"tmpfs", b"ramfs", b"btrfs", b"zfs", b"bcachefs", b"ubifs", b"virtiofs")
"""Of those without a block device: the ones that answer by themselves, or that the hypervisor answers for."""


class FileKey(NamedTuple):
    """Which file, as it is now."""

    dev: int
    ino: int
    mtime_ns: int
    size_bytes: int

    @classmethod
    def of(cls, fd: int) -> FileKey:
        stat = os.fstat(fd)
        return cls(stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)


class _Mount(NamedTuple):
    kind: bytes
    has_device: bool


class Mounts:
    """What is mounted here, and where others are."""

    def __init__(self, proc: Proc) -> None:
        self._proc = proc
        self._here = (proc.root / "self" / "mountinfo").open("rb", buffering=0)
        self._changed = select.poll()
        self._changed.register(self._here, select.POLLPRI | select.POLLERR)
        self._mounts = _read(self._here)

    def open(self, tgid: int, mapping: Mapping | Executable) -> int:
        """A descriptor to read a mapped file by: by way of the process, whatever its root is, and if it is deleted.

        Raises OSError at once: it is gone, or it might keep us waiting.
        """
        place = os.open(self._proc.map_file(tgid, mapping), os.O_PATH | os.O_CLOEXEC)
        try:
            if not self._is_local(tgid, place):
                raise OSError(errno.EREMOTE, "it is on a file system that need not answer", mapping.path)
            return open_promptly(f"/proc/self/fd/{place}")
        finally:
            os.close(place)

    def _is_local(self, tgid: int, place: int) -> bool:
        """Its descriptor keeps the mount from being another's meanwhile."""
        number = int(Path(f"/proc/self/fdinfo/{place}").read_text().partition("mnt_id:")[2].split()[0])
        if self._changed.poll(0):
            self._here.seek(0)
            self._mounts = _read(self._here)
        process = self._proc.root / str(tgid)
        mount, by_root = self._mounts.get(number), True
        if not mount:
            mount, by_root = _seen_by(process).get(number), _is_of_root(process)
        if not mount:
            return False
        if mount.has_device:
            return mount.kind != b"fuseblk"
        # anybody may put an overlay on a FUSE, in a namespace of their own
        return mount.kind in LOCAL or (mount.kind == b"overlay" and by_root)


def _seen_by(process: Path) -> dict[int, _Mount]:
    try:
        with (process / "mountinfo").open("rb", buffering=0) as file:
            return _read(file)
    except OSError:
        return {}


def _read(mountinfo: io.FileIO) -> dict[int, _Mount]:
    """By number."""
    text = bytearray()
    while len(text) < MAX_MOUNTINFO_BYTES and (more := mountinfo.read(MAX_MOUNTINFO_BYTES - len(text))):
        text += more
    found = re.findall(rb"^(\d+) \d+ (\d+):\d+ .*? - (\S+)", text, re.MULTILINE)
    return {int(number): _Mount(bytes(kind), major != b"0") for number, major, kind in found}


def _is_of_root(process: Path) -> bool:
    """Whether what it sees is mounted in our own user namespace, and so by nobody but root."""
    try:
        with (process / "ns" / "mnt").open("rb") as mounts:
            owner = fcntl.ioctl(mounts, NS_GET_USERNS)
    except OSError:
        return False
    try:
        return os.path.samestat(os.fstat(owner), Path("/proc/self/ns/user").stat())
    finally:
        os.close(owner)

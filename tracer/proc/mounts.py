"""What is mounted where, and which of it can be opened without waiting for somebody.

A file on NFS is another host's, one on FUSE is of a process that need not answer, and who waits for it cannot even be
killed: fuse_dev_do_read() has taken the request, and request_wait_answer() in fs/fuse/dev.c waits for its end. So it is
not the file system that is asked what it is, but mountinfo.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import select
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tracer.proc import bounded

NS_GET_USERNS = 0xB701
MAX_MOUNTS = 100_000  # fs.mount-max
FRESH_S = 1.0
MAX_NAMESPACES = 64  # remembered
# 36 27 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
LINE = re.compile(rb"(\d{1,18}) \d+ (\d{1,8}):(\d{1,8}) (\S+) (\S+) \S+ (?:[^- ]\S* )*- (\S{1,255}) ")
ESCAPED = re.compile(rb"\\([0-7]{3})")
LOCAL = {"tmpfs", "devtmpfs", "ramfs", "rootfs", "hugetlbfs", "btrfs", "zfs", "bcachefs", "ubifs", "virtiofs"}
"""Of those without a block device: the ones that answer by themselves, or that the hypervisor answers for."""


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo."""

    id: int
    dev: int
    """as os.makedev gives it"""
    kind: str
    """of file system: tmpfs, nfs4, fuse.sshfs"""
    is_whole: bool
    """its root, and not a directory of it, is what is mounted"""
    path: str
    """where, below the root of the process"""


class Mounts:
    """What is mounted here, and where others are."""

    def __init__(self, root: Path) -> None:
        """root: a /proc."""
        self._root = root
        self._mountinfo: io.FileIO | None = None
        self._changed = select.poll()
        self._ours: list[Mount] = []
        self._kinds: dict[object, tuple[float, dict[int, str]]] = {}  # by mount namespace: when, and kind by device

    def kind(self, tgid: int, dev: int) -> str | None:
        """Of the file system on a device; None where neither this process nor that one has it mounted.

        The number of a device that is mounted no more is soon another's.
        """
        ours = next((mount.kind for mount in self._here() if mount.dev == dev), None)
        return ours or self._kinds_of(self._root / str(tgid)).get(dev)

    def why_not(self, process: Path | None, number: int | None) -> str | None:
        """Why to open a file on the mount of this number might be to wait; None: it is not.

        process: /proc/PID of who has it. Whoever holds a descriptor of the file keeps the number from being another's.
        """
        for whose in (None, process):
            for mount in self._here() if whose is None else mounts(whose):
                if mount.id == number:
                    return None if _is_local(mount, whose) else f"it is on {mount.kind}, which need not answer"
        return "it is on what is mounted nowhere"

    def _here(self) -> list[Mount]:
        if not self._mountinfo:
            try:
                self._mountinfo = (self._root / "self" / "mountinfo").open("rb", buffering=0)
            except OSError:
                return []
            self._changed.register(self._mountinfo, select.POLLPRI | select.POLLERR)
            self._ours = list(mounts(self._root / "self"))
        if self._changed.poll(0):
            self._ours = list(mounts(self._root / "self"))
        return self._ours

    def _kinds_of(self, process: Path) -> dict[int, str]:
        try:
            namespace: object = (process / "ns" / "mnt").stat().st_ino
        except OSError:
            namespace = process
        read_s, kinds = self._kinds.get(namespace, (float("-inf"), {}))
        if time.monotonic() - read_s > FRESH_S:
            kinds = {mount.dev: mount.kind for mount in mounts(process)}
            if len(self._kinds) >= MAX_NAMESPACES:
                self._kinds.clear()
            self._kinds[namespace] = time.monotonic(), kinds
        return kinds


def mounts(process: Path) -> Iterator[Mount]:
    """What a process, /proc/PID, has mounted. Nothing where that is not to be read."""
    try:
        for line in islice(bounded.lines(bounded.blocks(process / "mountinfo")), MAX_MOUNTS):
            field = LINE.match(line)
            if field:
                number, major, minor = map(int, field.group(1, 2, 3))
                kind = field[6].decode(errors="backslashreplace")
                path = ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field[5])
                yield Mount(number, os.makedev(major, minor), kind, field[4] == b"/", os.fsdecode(path))
    except OSError as error:
        if not bounded.unreadable(error):
            raise


def _is_local(mount: Mount, process: Path | None) -> bool:
    """process: who alone has it mounted; None: it is mounted here."""
    if os.major(mount.dev):
        return mount.kind != "fuseblk"
    if mount.kind == "overlay":  # anybody may put one on a FUSE, in a namespace of their own
        return process is None or _is_of_root(process)
    return mount.kind in LOCAL


def _is_of_root(process: Path) -> bool:
    """Whether what it sees is mounted in our own user namespace, and so by nobody but root."""
    try:
        with (process / "ns" / "mnt").open("rb") as namespace:
            owner = fcntl.ioctl(namespace, NS_GET_USERNS)
    except OSError:
        return False
    try:
        return os.path.samestat(os.fstat(owner), Path("/proc/self/ns/user").stat())
    finally:
        os.close(owner)

"""What is mounted where, and which files can be opened without blocking.

A file on NFS depends on another host, one on FUSE on a process that need not answer. A task that waits for FUSE cannot
even be killed once fuse_dev_do_read() has taken its request: request_wait_answer() in fs/fuse/dev.c waits for the end.
So the type of a file system is read from mountinfo, not asked of the file system.
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
MAX_NAMESPACES = 64  # cached
# 36 27 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
LINE = re.compile(rb"(\d{1,18}) \d+ (\d{1,8}):(\d{1,8}) (\S+) (\S+) \S+ (?:[^- ]\S* )*- (\S{1,255}) ")
ESCAPED = re.compile(rb"\\([0-7]{3})")
LOCAL = {"tmpfs", "devtmpfs", "ramfs", "rootfs", "hugetlbfs", "btrfs", "zfs", "bcachefs", "ubifs", "virtiofs"}
"""File systems without a block device that answer locally, or that the hypervisor answers for."""


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo."""

    id: int
    dev: int
    """As os.makedev() returns it."""
    kind: str
    """File system type, such as tmpfs, nfs4 or fuse.sshfs."""
    is_whole: bool
    """The root of the file system is mounted, rather than a directory of it."""
    path: str
    """The mount point, relative to the root of the process."""


class Mounts:
    """The mounts of this process and of others."""

    def __init__(self, root: Path) -> None:
        """root: a /proc."""
        self._root = root
        self._mountinfo: io.FileIO | None = None
        self._changed = select.poll()
        self._ours: list[Mount] = []
        # by mount namespace: time read, and type by device
        self._kinds: dict[object, tuple[float, dict[int, str]]] = {}

    def kind(self, tgid: int, dev: int) -> str | None:
        """Type of the file system on a device; None if neither this process nor `tgid` has it mounted.

        Ask soon: the device number is reused after an unmount.
        """
        ours = next((mount.kind for mount in self._here() if mount.dev == dev), None)
        return ours or self._kinds_of(self._root / str(tgid)).get(dev)

    def path(self, dev: int) -> str | None:
        """Where this process has the root of a file system mounted; None: nowhere."""
        return next((mount.path for mount in self._here() if mount.dev == dev and mount.is_whole), None)

    def why_not(self, process: Path | None, number: int | None) -> str | None:
        """Why opening a file on this mount might block. None: it does not.

        process: /proc/PID of the process that has the file; None: this one. The caller holds a descriptor of the file,
        so that the mount id is not reused.
        """
        for whose in (None, process):
            for mount in self._here() if whose is None else mounts(whose):
                if mount.id == number:
                    return None if _is_local(mount, whose) else f"it is on {mount.kind}, which might not answer"
        return "its file system is not mounted"

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
    """The mounts of a process (/proc/PID), from its mountinfo. Empty where that cannot be read."""
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
    """process: the process that has this mount, if this one has not."""
    if os.major(mount.dev):
        return mount.kind != "fuseblk"
    if mount.kind == "overlay":  # in its own user namespace, any user can put one on a FUSE
        return process is None or _is_of_root(process)
    return mount.kind in LOCAL


def _is_of_root(process: Path) -> bool:
    """Whether a process's mount namespace is of this user namespace, so that only root can have mounted there."""
    try:
        with (process / "ns" / "mnt").open("rb") as namespace:
            owner = fcntl.ioctl(namespace, NS_GET_USERNS)
    except OSError:
        return False
    try:
        return os.path.samestat(os.fstat(owner), Path("/proc/self/ns/user").stat())
    finally:
        os.close(owner)

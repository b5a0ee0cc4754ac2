"""Which file system is mounted from a device: itself is not asked, for it may be dead, or hostile.

A file on NFS is another host's, one on FUSE is of a process that need not answer, and who waits for that cannot even be
killed once the request was taken: request_wait_answer() in fs/fuse/dev.c.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tracer import bounded

MAX_MOUNTS = 100_000  # fs.mount-max
FRESH_S = 1.0
MAX_NAMESPACES = 64  # remembered
NS_GET_USERNS = 0xB701
OURS = Path("/proc/self")
# 36 27 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
LINE = re.compile(rb"(\d{1,18}) \d+ (\d{1,8}):(\d{1,8}) (?:\S+ ){3}(?:[^- ]\S* )*- (\S{1,255}) ")
# Of those without a block device, what answers by itself, or what the hypervisor answers for.
LOCAL = {"tmpfs", "devtmpfs", "ramfs", "rootfs", "hugetlbfs", "btrfs", "zfs", "bcachefs", "ubifs", "virtiofs"}


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo."""

    id: int
    dev: int
    """as os.makedev gives it"""
    kind: str
    """of file system: tmpfs, nfs4, fuse.sshfs"""


class Mounts:
    """Those of the processes of a /proc. The number of a device that is mounted no more is another's soon."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[object, tuple[float, dict[int, str]]] = {}  # by mount namespace: when, and kind by device

    def kind(self, tgid: int, dev: int) -> str | None:
        """Of file system; None where neither the process nor this one has it mounted."""
        return self._kinds(str(tgid)).get(dev) or self._kinds("self").get(dev)

    def _kinds(self, process: str) -> dict[int, str]:
        try:
            namespace: object = (self._root / process / "ns" / "mnt").stat().st_ino
        except OSError:
            namespace = process
        read_s, kinds = self._known.get(namespace, (float("-inf"), {}))
        if time.monotonic() - read_s > FRESH_S:
            kinds = {mount.dev: mount.kind for mount in mounts(self._root / process)}
            if len(self._known) >= MAX_NAMESPACES:
                self._known.clear()
            self._known[namespace] = time.monotonic(), kinds
        return kinds


def why_not(process: Path | None, number: int | None) -> str | None:
    """Why a file on the mount of this number may keep waiting who opens it; None: it will not. process: /proc/PID of
    who has it, if it is not ourselves."""
    for whose in filter(None, (OURS, process)):
        for mount in mounts(whose):
            if mount.id == number:
                return None if _is_local(mount, whose) else f"it is on {mount.kind}"
    return "it is on what is mounted nowhere"


def _is_local(mount: Mount, whose: Path) -> bool:
    if mount.kind == "overlay":  # anybody may put one on a FUSE, in a namespace of their own
        return whose == OURS or _has_our_users(whose)
    return mount.kind in LOCAL or bool(os.major(mount.dev) and mount.kind != "fuseblk")


def _has_our_users(process: Path) -> bool:
    """Whether what it has mounted belongs to our own user namespace: only root can have mounted that."""
    try:
        with (process / "ns" / "mnt").open("rb") as namespace:
            owner = fcntl.ioctl(namespace, NS_GET_USERNS)
    except OSError:
        return False
    try:
        return os.path.samestat(os.fstat(owner), (OURS / "ns" / "user").stat())
    finally:
        os.close(owner)


def mounts(process: Path) -> Iterator[Mount]:
    """What a process, /proc/PID, has mounted. Nothing where that is not to be read."""
    try:
        for line in islice(bounded.lines(bounded.blocks(process / "mountinfo")), MAX_MOUNTS):
            field = LINE.match(line)
            if field:
                number, major, minor = map(int, field.group(1, 2, 3))
                yield Mount(number, os.makedev(major, minor), field[4].decode(errors="backslashreplace"))
    except OSError as error:
        if not bounded.unreadable(error):
            raise

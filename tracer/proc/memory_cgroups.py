"""What the kernel accounts to the cgroups of the memory controller, v1 or v2. None of these reads can block."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tracer.proc import bounded
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PATH_BYTES

STAT_BYTES = 1 << 16
HANDLE = struct.Struct("=IiQ")  # struct file_handle: bytes of the handle, its kind, and what it consists of here
HANDLE_BYTES, KERNFS_HANDLE = 8, 0xFE  # FILEID_KERNFS of include/linux/exportfs.h

_libc = ctypes.CDLL(None, use_errno=True)


class Charged(NamedTuple):
    """What a cgroup is charged for, with those below it. None: unknown."""

    shmem_bytes: int | None
    anon_bytes: int | None


UNKNOWN = Charged(None, None)


def read_stat(directory: Path) -> dict[bytes, int]:
    """memory.stat of a cgroup, in bytes and counts. Raises OSError.

    Up to 64 pages per CPU may not be added up yet.
    """
    words = (line.split() for line in bounded.read(directory / "memory.stat", STAT_BYTES).splitlines())
    return {name: int(value) for name, value in words}


def anon_bytes(stat: Mapping[bytes, int]) -> int:
    """Private memory, with the cgroups below it. v2 calls it anon; v1 has total_rss, without those below it rss."""
    return stat[b"anon"] if b"anon" in stat else stat[b"total_rss"]


def charged(directory: Path) -> Charged:
    """What a cgroup is charged for now."""
    try:
        stat = read_stat(directory)
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return UNKNOWN  # it is gone
    return Charged(stat.get(b"total_shmem", stat.get(b"shmem")), anon_bytes(stat))


def charged_host(proc: Proc) -> Charged:
    """What the whole host has of each."""
    memory = proc.memory()
    return Charged(memory.shmem_bytes, memory.anon_bytes)


def find(root: Path, ino: int) -> Path | None:
    """The directory of a cgroup in a hierarchy, by its inode number. None: it is gone, or cannot be had."""
    if not ino:
        return None
    try:
        mount = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return None
    try:
        # Linux kernel commit 33c5ac9175195 ("kernfs: implement custom exportfs ops and fid type") (in v5.5)
        handle = ctypes.create_string_buffer(HANDLE.pack(HANDLE_BYTES, KERNFS_HANDLE, ino), HANDLE.size)
        found = _libc.open_by_handle_at(mount, handle, os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(mount)
    if found < 0:
        return None
    try:
        directory = Path(os.readlink(f"/proc/self/fd/{found}"))  # noqa: PTH115
    finally:
        os.close(found)
    return directory if directory == root or root in directory.parents else None


def name(root: Path, directory: Path) -> str:
    """The path of a cgroup in its hierarchy, as /proc/PID/cgroup has it."""
    return bounded.text(os.fsencode("/".join(["", *directory.relative_to(root).parts]) or "/"), PATH_BYTES)

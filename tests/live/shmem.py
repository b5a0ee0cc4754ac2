"""What the kernel says of a process's shared memory, read independently of shmtrace: every figure is compared with
it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = mmap.PAGESIZE
SECTOR_BYTES = 512
SHARED_MEMORY = ("/dev/zero", "/SYSV", "/memfd:", "/dev/shm/")
SYS_CACHESTAT = 451
AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400

libc = ctypes.CDLL(None, use_errno=True)


class RegionId(NamedTuple):
    """One shmem inode. The generation distinguishes regions with the same inode number."""

    dev: str
    """Major and minor number, in hexadecimal as in maps."""
    ino: int
    generation: int


class Region(NamedTuple):
    """A region at this moment."""

    name: str
    size_bytes: int
    """Its size."""
    pages: int
    """Its allocation, by st_blocks."""


def generation_of(path: str) -> int:
    handle = ctypes.create_string_buffer(struct.pack("=Ii128x", 128, 0))
    mount = ctypes.c_int()
    if libc.name_to_handle_at(AT_FDCWD, path.encode(), handle, ctypes.byref(mount), AT_SYMLINK_FOLLOW):
        return 0  # hugetlbfs has no generations
    (generation,) = struct.unpack_from("=I", handle.raw, 8)
    return int(generation)


def data_pages(path: str) -> int:
    """By SEEK_DATA, which does not show pages that fallocate made and nobody touched."""
    pages = end = 0
    with open(path, "rb", buffering=0) as file:
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return pages
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            pages += -(-end // PAGE_BYTES) - start // PAGE_BYTES


def nowhere_pages(tgid: int) -> int:
    """Pages of a process's regions that cannot be found before cachestat(2) (v6.5): they only count in st_blocks."""
    if libc.syscall(SYS_CACHESTAT, -1, None, None, 0) and ctypes.get_errno() != errno.ENOSYS:
        return 0
    found: dict[RegionId, int] = {}
    for path in Path(f"/proc/{tgid}/map_files").iterdir():
        if str(path.readlink()).startswith(SHARED_MEMORY):
            inode = path.stat()
            identity = RegionId(str(inode.st_dev), inode.st_ino, generation_of(str(path)))
            found[identity] = inode.st_blocks * SECTOR_BYTES // PAGE_BYTES - data_pages(str(path))
    return sum(found.values())


def read_regions(tgid: int) -> dict[RegionId, Region]:
    """The shared memory that a process maps now, from /proc/TGID/map_files alone."""
    regions = {}
    with open(f"/proc/{tgid}/maps") as maps:
        lines = [line.rstrip("\n").split(maxsplit=5) for line in maps]
    for bounds, permissions, _, _, _, *name in lines:
        if permissions[3] != "s" or not name or not name[0].startswith(SHARED_MEMORY):
            continue
        path = f"/proc/{tgid}/map_files/" + "-".join(f"{int(bound, 16):x}" for bound in bounds.split("-"))
        try:
            inode = Path(path).stat()
        except FileNotFoundError:
            continue  # unmapped since
        device = f"{os.major(inode.st_dev):x}:{os.minor(inode.st_dev):x}"
        pages = inode.st_blocks * SECTOR_BYTES // PAGE_BYTES
        regions[RegionId(device, inode.st_ino, generation_of(path))] = Region(name[0], inode.st_size, pages)
    return regions

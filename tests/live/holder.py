"""Holds a region of a kind, with content that is known, until its standard input ends: python holder.py KIND PAGES PUT.

PUT is FIRST-END of the pages it writes, several with commas between them. Says the address where the region is mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

PAGE_BYTES = mmap.PAGESIZE
IPC_CREAT, IPC_RMID = 0o1000, 0
MAP_HUGETLB = 0x40000


def page(number: int) -> bytes:
    """What its pages hold."""
    return f"page {number:5}\n".encode().ljust(PAGE_BYTES - 9, b"\xa5") + b"\0the end\0"


def map_sysv(size_bytes: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    number = libc.shmget(0, ctypes.c_size_t(size_bytes), IPC_CREAT | 0o600)
    address = libc.shmat(number, None, 0)
    libc.shmctl(number, IPC_RMID, None)  # it goes with this process
    return int(address)


def map_region(kind: str, size_bytes: int) -> int:
    """Its address. It stays mapped for good."""
    fd, flags = -1, mmap.MAP_SHARED
    if kind == "sysv":
        return map_sysv(size_bytes)
    if kind == "memfd":
        fd = os.memfd_create("pool")
        os.ftruncate(fd, size_bytes)
    elif kind == "posix":
        path = Path(f"/dev/shm/shmtrace-test-{os.getpid()}")
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        path.unlink()
        os.ftruncate(fd, size_bytes)
    elif kind == "hugetlb":
        flags |= MAP_HUGETLB
    global kept
    kept = mmap.mmap(fd, size_bytes, flags)
    return ctypes.addressof(ctypes.c_char.from_buffer(kept))


def main() -> None:
    kind, pages, put = sys.argv[1:]
    address = map_region(kind, int(pages) * PAGE_BYTES)
    for extent in put.split(","):
        first, end = map(int, extent.split("-"))
        for number in range(first, end):
            ctypes.memmove(address + number * PAGE_BYTES, page(number), PAGE_BYTES)
    print(f"{address:x}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

"""A BPF ring buffer, read where it lies: there is no callback, in which the exception of a signal would be lost."""

from __future__ import annotations

import mmap

HEADER_BYTES = 8
BUSY, DISCARDED = 1 << 31, 1 << 30  # BPF_RINGBUF_BUSY_BIT, _DISCARD_BIT: the length's highest bits


class Ring:
    """Of some pages, a power of two, by the map's descriptor.

    Its memory: a page with how far user space has read, one with how far the kernel has written, and the data, which is
    mapped twice, one after the other, so that no record is cut (kernel/bpf/ringbuf.c).
    """

    def __init__(self, map_fd: int, pages: int) -> None:
        self.fd = map_fd
        """readable once there is something to read"""
        self._mask = pages * mmap.PAGESIZE - 1
        own = mmap.mmap(map_fd, mmap.PAGESIZE)
        theirs = mmap.mmap(map_fd, mmap.PAGESIZE * (1 + 2 * pages), prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        # as numbers of the machine's own width: each is read, and written, at once
        self._read_to = memoryview(own).cast("Q")
        self._written_to = memoryview(theirs).cast("Q")
        self._lengths = memoryview(theirs)[mmap.PAGESIZE :].cast("I")
        self._data = memoryview(theirs)[mmap.PAGESIZE :]

    def read(self) -> list[bytes]:
        """The records that are there; the kernel has their place back."""
        found: list[bytes] = []
        at, end = self._read_to[0], self._written_to[0]
        while at < end:
            start = at & self._mask
            length = self._lengths[start // 4]
            if length & BUSY:  # it is being written, and so may be all that come after it
                break
            size = length & ~DISCARDED
            if size == length:
                found.append(bytes(self._data[start + HEADER_BYTES : start + HEADER_BYTES + size]))
            at += HEADER_BYTES + -(-size // 8) * 8
        self._read_to[0] = at
        return found

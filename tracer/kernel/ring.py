"""Reads a BPF ring buffer through mmap(2). libbpf's callbacks would lose an exception that a signal handler raises."""

from __future__ import annotations

import mmap

from tracer.kernel.fence import fence

HEADER_BYTES = 8
BUSY, DISCARDED = 1 << 31, 1 << 30  # BPF_RINGBUF_BUSY_BIT, _DISCARD_BIT: the length's highest bits


class Ring:
    """A ring buffer, by its map's descriptor.

    Its memory (kernel/bpf/ringbuf.c): one page with the consumer position, one with the producer position, then the
    data. The data is mapped twice in a row, so that no record is split. size_bytes: of the data, a power of two.
    """

    def __init__(self, map_fd: int, size_bytes: int, keeps: bool = False) -> None:
        """keeps: what was read stays in the buffer."""
        self.fd = map_fd
        """Readable as soon as there is a record."""
        self._mask = size_bytes - 1
        own = mmap.mmap(map_fd, mmap.PAGESIZE)
        theirs = mmap.mmap(map_fd, mmap.PAGESIZE + 2 * size_bytes, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        # cast to the exact width, so that each position is read or written in one access
        self._read_to = memoryview(own).cast("Q")
        self._written_to = memoryview(theirs).cast("Q")
        self._lengths = memoryview(theirs)[mmap.PAGESIZE :].cast("I")
        self._data = memoryview(theirs)[mmap.PAGESIZE :]
        self._at, self._keeps = self._read_to[0], keeps

    def read(self) -> list[bytes]:
        """All complete records since the last call. Their space is returned to the kernel, unless they are kept."""
        found: list[bytes] = []
        at, end = self._at, self._written_to[0]
        while at < end:
            fence()  # what the position tells of is read after it
            start = at & self._mask
            length = self._lengths[start // 4]
            if length & BUSY:  # still being written, and later records may be too
                break
            fence()  # and a record after its length, which is written last
            size = length & ~DISCARDED
            if size == length:
                found.append(bytes(self._data[start + HEADER_BYTES : start + HEADER_BYTES + size]))
            at += HEADER_BYTES + -(-size // 8) * 8
        self._at = at
        fence()
        if not self._keeps:
            self._read_to[0] = at
        return found

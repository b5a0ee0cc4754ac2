"""A ring buffer as the kernel would write it, in a file that stands for the map."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from tracer.kernel.ring import BUSY, DISCARDED, Ring

PAGES = 2
BYTES = PAGES * mmap.PAGESIZE


class Kernel:
    """Its side: the two places, and the data that lies in the file twice."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, mmap.PAGESIZE * 2 + 2 * BYTES)
        self.at = 0

    def write(self, record: bytes, flags: int = 0) -> None:
        laid = struct.pack("=II", len(record) | flags, 0) + record.ljust(-(-len(record) // 8) * 8, b"\0")
        for place in range(self.at, self.at + len(laid)):
            for copy in (place % BYTES, place % BYTES + BYTES):
                os.pwrite(self.fd, laid[place - self.at : place - self.at + 1], 2 * mmap.PAGESIZE + copy)
        self.at += len(laid)
        os.pwrite(self.fd, struct.pack("=Q", self.at), mmap.PAGESIZE)

    @property
    def read_to(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    side = Kernel()
    yield side
    os.close(side.fd)


def test_records_in_their_order(kernel: Kernel) -> None:
    ring = Ring(kernel.fd, PAGES * mmap.PAGESIZE)
    assert ring.read() == []
    for record in (b"one", b"", b"and another", bytes(range(200))):
        kernel.write(record)
    assert ring.read() == [b"one", b"", b"and another", bytes(range(200))]
    assert kernel.read_to == kernel.at
    assert ring.read() == []


def test_what_was_given_up_is_left_out_and_what_is_being_written_waits(kernel: Kernel) -> None:
    ring = Ring(kernel.fd, PAGES * mmap.PAGESIZE)
    kernel.write(b"first")
    kernel.write(b"given up", DISCARDED)
    busy_at = kernel.at
    kernel.write(b"being written", BUSY)
    kernel.write(b"last")
    assert ring.read() == [b"first"]
    assert kernel.read_to == busy_at
    os.pwrite(kernel.fd, struct.pack("=I", len(b"being written")), 2 * mmap.PAGESIZE + busy_at)
    assert ring.read() == [b"being written", b"last"]


def test_round_and_round(kernel: Kernel) -> None:
    """A record that reaches beyond the end goes on in the second copy."""
    ring = Ring(kernel.fd, PAGES * mmap.PAGESIZE)
    for number in range(200):
        record = bytes([number]) * (1 + number * 7 % 513)
        kernel.write(record)
        assert ring.read() == [record]
    assert kernel.at > 3 * BYTES

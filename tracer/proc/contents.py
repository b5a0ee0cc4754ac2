"""Reads a region's content as a file. This allocates no pages and swaps nothing in.

Only what SEEK_DATA shows is read, by preadv(2) into a buffer. A mapping would allocate a page for each hole that is
touched, and so does sendfile(2) before v6.1. Reading a swapped page would swap it in, so swapped pages are looked up
first.

The region is opened for a few MiB at a time, and closed before they are passed on. However slow the consumer is, the
region can go away meanwhile; then GoneError is raised. So the content is not of a single moment.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tracer.errors import ShmtraceError
from tracer.proc import bounded, shmem
from tracer.proc.blocking import promptly, unanswered
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES, Pages, RegionKey

CHUNK_BYTES = 8 << 20
MAX_PIECES = 4096  # of one opening, about 40 ms
SILENCE_S = 5.0  # how long to wait for mappers that do not answer
OPEN_TRIES = 3
HUGE_BYTES = 2 << 20

DATA, HOLE, SWAPPED = "data", "hole", "swapped"

MAP_SHARED, PROT_NONE, PROT_READ = 1, 0, 1
MAP_FAILED = ctypes.c_void_p(-1).value
SWAP_OF_MAPPING = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ .*\n(?:[A-Z].*\n)*?Swap: +(\d+) kB$", re.MULTILINE)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class GoneError(ShmtraceError):
    """No process maps the region any more, or it has shrunk."""


class Piece(NamedTuple):
    """Bytes [start, end) of a region in one state."""

    start: int
    end: int
    state: str
    """DATA, HOLE or SWAPPED."""
    data: memoryview
    """Empty unless the state is DATA. Valid until the next piece is taken."""


class Contents:
    """The content of one region. Keeps nothing of it open."""

    def __init__(self, proc: Proc, key: RegionKey, kind: str, mappers: Iterable[int], path: Path | None = None) -> None:
        """mappers: tgids of processes that were seen to map it. path: where it was found, if no process need map it.

        Raises GoneError where it is not there, and no process maps it now.
        """
        self._proc = proc
        self._key = key
        self._kind = kind
        self._mappers = tuple(mappers)
        self._path = path
        self._data_end = 0
        """End of the data extent being read."""
        self.read_bytes = 0
        """So far, including holes and what was left out."""
        self.left_out_pages = 0
        """Swapped pages not read so far."""
        fd = self._open()
        self.size_bytes = os.fstat(fd).st_size
        os.close(fd)

    def read(self, start: int, end: int, swapped: bool = False) -> Iterator[Piece]:
        """Yield bytes [start, end) without gaps. swapped: also read swapped pages, which swaps them in.

        For hugetlb the kernel does not report holes, so a huge page of zeros is taken for one. Raises GoneError, and
        ShmtraceError where the region cannot be read.
        """
        buffer = memoryview(bytearray(CHUNK_BYTES))
        self._data_end = 0
        while start < end:
            fd = self._open()
            try:
                pieces = list(self._look(fd, start, end, buffer, swapped))
            except OSError as error:
                wrong = f"the region cannot be read from byte 0x{start:x} on ({error.strerror})"
                raise ShmtraceError(wrong, "--range reads other parts") from None
            finally:
                os.close(fd)
            for piece in pieces:
                yield piece
                self.read_bytes += piece.end - piece.start
            start = pieces[-1].end

    def _open(self) -> int:
        """Open the region by its path, or through a process that maps it now.

        Raises GoneError where there is none, and ShmtraceError where opening would block or no mapper answers.
        """
        for _ in range(OPEN_TRIES):
            self._path = self._path or self._find_patiently()
            if self._path is None:
                break
            try:
                return shmem.open_region(self._path, self._key)
            except BlockingIOError as error:
                raise ShmtraceError(f"the region cannot be read now: {error.strerror}", "try again later") from None
            except OSError as error:  # the process is gone, or maps something else there
                if not bounded.unreadable(error):
                    raise
                self._path = None
        raise GoneError("the region is gone", "no process maps it any more")

    def _find_patiently(self) -> Path | None:
        """Like _find(), but wait for mappers that have not answered, as on a busy host: they may still map it."""
        end_s = time.monotonic() + SILENCE_S
        while True:
            path = self._find()
            silent = next((tgid for tgid in self._mappers if self._proc.folder(tgid) in unanswered), None)
            if path or silent is None:
                return path
            if time.monotonic() > end_s:
                raise ShmtraceError(f"process {silent}, which maps the region, does not answer", "try again later")
            time.sleep(0.05)

    def _find(self) -> Path | None:
        for tgid in dict.fromkeys((*self._mappers, *self._proc.tgids())):
            for mapping in self._proc.mappings(tgid):
                path = self._proc.map_file(tgid, mapping)
                if (mapping.dev, mapping.ino) == self._key[:2] and shmem.identify(path) == self._key:
                    return path
        return None

    def _look(self, fd: int, start: int, end: int, buffer: memoryview, swapped: bool) -> Iterator[Piece]:
        """The pieces from `start` on that fit into the buffer; at least one."""
        used, pieces = 0, 0
        while start < end and pieces < MAX_PIECES:
            data, stop = self._next_data(fd, start, end)
            if start < data:
                yield Piece(start, data, HOLE, buffer[:0])
                pieces += 1
            if len(buffer) - used < stop - data:  # up to the end of a page, like every piece
                stop = max(data, (data + len(buffer) - used) // PAGE_BYTES * PAGE_BYTES)
            for first, last, absent in _split(fd, data, stop, swapped or self._kind == "hugetlb"):
                if absent:
                    yield Piece(first, last, SWAPPED, buffer[:0])
                    self.left_out_pages += -(-last // PAGE_BYTES) - first // PAGE_BYTES
                else:
                    view = buffer[used : used + last - first]
                    used += last - first
                    self._fill(fd, first, view)
                    yield from _huge_pages(first, view) if self._kind == "hugetlb" else [Piece(first, last, DATA, view)]
                pieces += 1
            if stop == data < end:
                return
            start = stop

    def _next_data(self, fd: int, start: int, end: int) -> tuple[int, int]:
        """Where data begins and ends, at or after `start`; (end, end) if there is none before `end`."""
        if self._data_end <= start:  # otherwise SEEK_HOLE would walk the rest of this extent for each chunk
            try:
                start = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return end, end  # only a hole is left
            if start >= end:
                return end, end
            self._data_end = os.lseek(fd, start, os.SEEK_HOLE)
        return start, min(end, self._data_end)

    def _fill(self, fd: int, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            got = os.preadv(fd, [view[done:]], offset + done)
            if not got:
                raise GoneError(f"the region has shrunk to {os.fstat(fd).st_size} bytes", "read it again")
            done += got


def beginning(path: Path, key: RegionKey, nr_pages: int) -> bytes:
    """The first pages of a region that have data, without those that are swapped out. Allocates nothing.

    Raises OSError.
    """
    return promptly(shmem.whom(path), _beginning, path, key, nr_pages)


def _beginning(path: Path, key: RegionKey, nr_pages: int) -> bytes:
    fd = shmem.open_region(path, key)
    try:
        pages: list[int] = []
        for first, end in islice(shmem.data_pages(fd), nr_pages):
            some = range(first, min(end, first + nr_pages - len(pages)))
            swapped = {page for start, stop in swapped_pages(fd, some.start, some.stop) for page in range(start, stop)}
            pages += [page for page in some if page not in swapped]
            if len(pages) == nr_pages:
                break
        return b"".join(os.pread(fd, PAGE_BYTES, page * PAGE_BYTES) for page in pages)
    finally:
        os.close(fd)


def _split(fd: int, start: int, end: int, whole: bool) -> Iterator[tuple[int, int, bool]]:
    """(start, end, swapped out) of the parts of a data extent. whole: do not look for swapped pages."""
    at = start
    for first, last in [] if whole or start == end else swapped_pages(fd, start // PAGE_BYTES, -(-end // PAGE_BYTES)):
        gap, stop = max(start, first * PAGE_BYTES), min(end, last * PAGE_BYTES)
        if at < gap:
            yield at, gap, False
        yield gap, stop, True
        at = stop
    if at < end:
        yield at, end, False


def _huge_pages(start: int, view: memoryview) -> Iterator[Piece]:
    at = 0
    while at < len(view):
        stop = min(len(view), at + HUGE_BYTES - (start + at) % HUGE_BYTES)
        block = view[at:stop]
        empty = block.tobytes() == bytes(len(block))
        yield Piece(start + at, start + stop, HOLE if empty else DATA, view[:0] if empty else block)
        at = stop


def swapped_pages(fd: int, start: int, end: int) -> list[Pages]:
    """The swapped pages among pages that all have data, sorted.

    A page in the swap cache, on its way out or back, counts as swapped out. Found by cachestat(2) and halving; before
    v6.5 from smaps.
    """
    found: list[Pages] = []
    waiting = [(start, end)]
    while waiting:
        first, last = waiting.pop()
        stat = shmem.cachestat(fd, first * PAGE_BYTES, (last - first) * PAGE_BYTES)
        if stat is None:
            return _swapped_by_smaps(fd, start, end)
        if stat.evicted == last - first:
            _add(found, first, last)
        elif stat.evicted:
            middle = (first + last) // 2
            waiting += [(middle, last), (first, middle)]
    return found


def _add(found: list[Pages], first: int, last: int) -> None:
    if found and found[-1][1] == first:
        first = found.pop()[0]
    found.append((first, last))


def _swapped_by_smaps(fd: int, start: int, end: int) -> list[Pages]:
    """The same from smaps of this process, for a mapping that is never touched and so allocates nothing.

    For shared memory, Swap in smaps counts the region's own entries. mincore(2) would report a page in the swap cache
    as resident, and reading that page also swaps it in.
    """
    size_bytes = (end - start) * PAGE_BYTES
    address = _libc.mmap(None, size_bytes, PROT_NONE, MAP_SHARED, fd, start * PAGE_BYTES)
    if address == MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        swapped_bytes = sum(size for _, size in _swap_of_mappings(address, address + size_bytes))
        if swapped_bytes in (0, size_bytes):
            return [(start, end)] if swapped_bytes else []
        for odd in range(address + PAGE_BYTES, address + size_bytes, 2 * PAGE_BYTES):
            # every second page gets another protection, so each page becomes a VMA of its own with its own Swap
            _libc.mprotect(odd, PAGE_BYTES, PROT_READ)
        found: list[Pages] = []
        for place, size in _swap_of_mappings(address, address + size_bytes):
            if size:
                first = start + (place - address) // PAGE_BYTES
                _add(found, first, first + size // PAGE_BYTES)
        return found
    finally:
        _libc.munmap(address, size_bytes)


def _swap_of_mappings(start: int, end: int) -> Iterator[tuple[int, int]]:
    """(address, bytes swapped) of this process's mappings in [start, end), from /proc/self/smaps."""
    for address, kilobytes in SWAP_OF_MAPPING.findall(_own_smaps()):
        if start <= int(address, 16) < end:
            yield int(address, 16), int(kilobytes) << 10


def _own_smaps() -> bytes:
    return Path("/proc/self/smaps").read_bytes()

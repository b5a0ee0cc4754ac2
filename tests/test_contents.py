"""What is read of a region, and that reading changes nothing of it: on files in /dev/shm, which is a tmpfs as any."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.proc import contents, shmem
from tracer.proc.contents import DATA, HOLE, SWAPPED, Contents, GoneError
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES

TGID, OTHER = 4021, 4077
START = 0x7F1000000000
SIZE_PAGES = 97


def nr_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def page(number: int) -> bytes:
    return f"page {number:5}\n".encode().ljust(PAGE_BYTES, b"\xa5")


class Region:
    """A file that is mapped by processes of a /proc of its own."""

    def __init__(self, path: Path, root: Path, size_bytes: int = SIZE_PAGES * PAGE_BYTES) -> None:
        self.path, self.root = path, root
        with path.open("wb") as file:
            file.truncate(size_bytes)

    def put(self, first: int, end: int) -> None:
        with self.path.open("r+b") as file:
            for number in range(first, end):
                file.seek(number * PAGE_BYTES)
                file.write(page(number))

    def map_by(self, tgid: int, address: int = START) -> None:
        stat = self.path.stat()
        bounds = f"{address:x}-{address + stat.st_size:x}"
        folder = self.root / str(tgid)
        (folder / "map_files").mkdir(parents=True)
        (folder / "map_files" / bounds).symlink_to(self.path)
        dev = f"{os.major(stat.st_dev):x}:{os.minor(stat.st_dev):x}"
        (folder / "maps").write_text(f"{bounds} rw-s 00000000 {dev} {stat.st_ino} {self.path}\n")

    def unmap_by(self, tgid: int) -> None:
        (self.root / str(tgid) / "maps").write_text("")
        for path in (self.root / str(tgid) / "map_files").iterdir():
            path.unlink()

    def contents(self, kind: str = "posix") -> Contents:
        key = shmem.identify(self.path)
        assert key
        return Contents(Proc(str(self.root)), key, kind, [TGID])

    def state(self) -> tuple[int, list[shmem.Pages], shmem.Residency, int]:
        """What must not change: blocks, pages with data, residency, the time of last access."""
        survey = shmem.survey(self.path)
        assert survey
        stat = self.path.stat()
        return stat.st_blocks, survey.pages, shmem.residency(self.path), stat.st_atime_ns


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmtrace-test-") as folder:
        made = Region(Path(folder, "region"), tmp_path / "proc")
        made.put(0, 23)
        made.put(41, 48)
        made.map_by(TGID)
        yield made


@pytest.fixture(params=["cachestat", "smaps"])
def _by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before v6.5 too."""
    if request.param == "smaps":
        monkeypatch.setattr(shmem, "cachestat", lambda *_: None)


def read(region: Contents, start: int, end: int, **options: bool) -> list[tuple[int, int, str, bytes]]:
    """With what contiguous pieces of one state hold put together."""
    found: list[tuple[int, int, str, bytes]] = []
    for piece in region.read(start, end, **options):
        data = bytes(piece.data)
        if found and found[-1][1:3] == (piece.start, piece.state):
            data, start = found[-1][3] + data, found.pop()[0]
        else:
            start = piece.start
        found.append((start, piece.end, piece.state, data))
    return found


def pages(first: int, end: int, state: str) -> tuple[int, int, str, bytes]:
    data = b"".join(map(page, range(first, end))) if state == DATA else b""
    return first * PAGE_BYTES, end * PAGE_BYTES, state, data


@pytest.mark.usefixtures("_by")
def test_data_and_holes(region: Region) -> None:
    before = region.state()
    assert before[0] * 512 == 30 * PAGE_BYTES
    found = region.contents()
    assert found.size_bytes == SIZE_PAGES * PAGE_BYTES
    assert read(found, 0, found.size_bytes) == [
        pages(0, 23, DATA),
        pages(23, 41, HOLE),
        pages(41, 48, DATA),
        pages(48, 97, HOLE),
    ]
    assert (found.read_bytes, found.left_out_pages) == (found.size_bytes, 0)
    assert region.state() == before


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("chunk_pages", [1, 2, 5, 23])
def test_whatever_is_read_at_a_time(region: Region, chunk_pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", chunk_pages * PAGE_BYTES)
    monkeypatch.setattr(contents, "MAX_PIECES", 2)
    for number in range(50, 90, 2):
        region.put(number, number + 1)
    before = region.state()
    whole = b"".join(data.ljust(end - start, b"\0") for start, end, _, data in read(region.contents(), 0, 97 * 4096))
    assert whole == region.path.read_bytes()
    assert region.state()[:3] == before[:3]


def test_data_is_walked_once(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is read from: SEEK_HOLE takes as long as there is data before the hole."""
    calls: list[tuple[int, int]] = []

    def lseek(fd: int, offset: int, whence: int, seek: object = os.lseek) -> int:
        calls.append((whence, offset // PAGE_BYTES))
        return seek(fd, offset, whence)  # type: ignore[operator, no-any-return]

    monkeypatch.setattr(contents, "CHUNK_BYTES", PAGE_BYTES)
    monkeypatch.setattr(os, "lseek", lseek)
    found = region.contents()
    for _ in range(2):
        calls.clear()
        read(found, 0, found.size_bytes)
        assert calls == [
            (os.SEEK_DATA, 0),
            (os.SEEK_HOLE, 0),
            (os.SEEK_DATA, 23),
            (os.SEEK_HOLE, 41),
            (os.SEEK_DATA, 48),
        ]


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (4095, 4097), (5, 23 * 4096 + 7), (23 * 4096 - 1, 23 * 4096 + 1), (30 * 4096 + 3, 42 * 4096 - 11)],
)
def test_a_range_is_read_to_the_byte(region: Region, start: int, end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", 3 * PAGE_BYTES)
    found = read(region.contents(), start, end)
    assert [found[0][0], *(piece[1] for piece in found)] == [*(piece[0] for piece in found), end]
    assert found[0][0] == start
    whole = b"".join(data.ljust(last - first, b"\0") for first, last, _, data in found)
    assert whole == region.path.read_bytes()[start:end]


def test_a_size_that_is_no_pages(tmp_path: Path, region: Region) -> None:
    odd = Region(region.path.with_name("odd"), tmp_path / "other", 3 * PAGE_BYTES + 77)
    odd.put(2, 3)
    with odd.path.open("r+b") as file:
        file.seek(3 * PAGE_BYTES)
        file.write(b"end" + b"." * 74)
    odd.map_by(TGID)
    found = odd.contents()
    assert found.size_bytes == 3 * PAGE_BYTES + 77
    assert read(found, 0, found.size_bytes) == [
        pages(0, 2, HOLE),
        (2 * PAGE_BYTES, found.size_bytes, DATA, page(2) + b"end" + b"." * 74),
    ]


def test_what_fallocate_reserved_is_a_hole(region: Region) -> None:
    with region.path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 60 * PAGE_BYTES, 11 * PAGE_BYTES)
    before = region.state()
    assert before[0] * 512 == 41 * PAGE_BYTES
    assert read(region.contents(), 48 * PAGE_BYTES, 97 * PAGE_BYTES) == [pages(48, 97, HOLE)]
    assert region.state() == before


# ---- swapped out, as far as that can be had without swap ----


def test_what_is_swapped_out_is_left_out(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {3, 4, 5, 17, 41, 47}

    def cachestat(_fd: int, offset: int, size_bytes: int) -> shmem._Cachestat:
        asked = range(offset // PAGE_BYTES, (offset + size_bytes) // PAGE_BYTES)
        return shmem._Cachestat(cache=len(set(asked) - gone), evicted=len(gone.intersection(asked)))

    monkeypatch.setattr(shmem, "cachestat", cachestat)
    monkeypatch.setattr(os, "preadv", lambda fd, views, at, read=os.preadv: unswapped(read(fd, views, at), at))

    def unswapped(done: int, at: int) -> int:
        assert not gone.intersection(range(at // PAGE_BYTES, -(-(at + done) // PAGE_BYTES)))
        return done

    expected = [(0, 3, DATA), (3, 6, SWAPPED), (6, 17, DATA), (17, 18, SWAPPED), (18, 23, DATA), (23, 41, HOLE)]
    expected += [(41, 42, SWAPPED), (42, 47, DATA), (47, 48, SWAPPED), (48, 97, HOLE)]
    found = region.contents()
    assert read(found, 0, found.size_bytes) == [pages(*each) for each in expected]
    assert found.left_out_pages == len(gone)

    part = region.contents()
    inside = [
        (4 * PAGE_BYTES + 9, 6 * PAGE_BYTES, SWAPPED, b""),
        (*pages(6, 7, DATA)[:1], 6 * PAGE_BYTES + 2, DATA, b"pa"),
    ]
    assert read(part, 4 * PAGE_BYTES + 9, 6 * PAGE_BYTES + 2) == inside
    assert part.left_out_pages == 2


def test_all_of_it_when_that_is_asked_for(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "swapped_pages", lambda *_: pytest.fail("it does not matter"))
    found = region.contents()
    assert [piece[2] for piece in read(found, 0, found.size_bytes, swapped=True)] == [DATA, HOLE, DATA, HOLE]


@pytest.mark.usefixtures("_by")
def test_nothing_is_swapped_out_where_there_is_no_swap(region: Region) -> None:
    before = region.state()
    with region.path.open("rb") as file:
        assert contents.swapped_pages(file.fileno(), 0, 23) == []
    assert region.state()[:3] == before[:3]


@pytest.mark.parametrize("gone", [set(), {0}, {22}, {3, 4, 5, 17}, {0, 2, 4, 21, 22}, set(range(23))])
def test_what_smaps_says_is_swapped_out(region: Region, gone: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page where some are; the kernel's own text but for the figure."""
    texts: list[bytes] = []

    def own_smaps() -> bytes:
        def swap(match: re.Match[bytes]) -> bytes:
            start, end, offset = (int(number, 16) for number in match.groups()[1:4])
            pages = range(offset // PAGE_BYTES, (offset + end - start) // PAGE_BYTES)
            return match[1] + b"Swap: %18d kB\n" % (4 * len(gone.intersection(pages)))

        name = re.escape(str(region.path).encode())
        head = rb"^((\w+)-(\w+) ...s (\w+) .* %s\n(?:[A-Z].*\n)*?)Swap: +0 kB\n" % name
        texts.append(re.sub(head, swap, Path("/proc/self/smaps").read_bytes(), flags=re.MULTILINE))
        return texts[-1]

    monkeypatch.setattr(shmem, "cachestat", lambda *_: None)
    monkeypatch.setattr(contents, "_own_smaps", own_smaps)
    before = region.state()
    with region.path.open("rb") as file:
        found = contents.swapped_pages(file.fileno(), 0, 23)
    assert [number for first, end in found for number in range(first, end)] == sorted(gone)
    assert all(one[1] < other[0] for one, other in zip(found, found[1:]))
    assert len(texts) == (1 if len(gone) in (0, 23) else 2)
    assert str(region.path) not in Path("/proc/self/maps").read_text()
    assert region.state()[:3] == before[:3]


# ---- regions that go away ----


def test_it_is_held_by_nobody_meanwhile(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", PAGE_BYTES)
    descriptors = nr_open()
    for _ in region.contents().read(0, 48 * PAGE_BYTES):
        assert nr_open() == descriptors
        assert str(region.path) not in Path("/proc/self/maps").read_text()


def test_another_who_maps_it_does_as_well(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", 4 * PAGE_BYTES)
    region.map_by(OTHER, START + (1 << 30))
    found = region.contents()
    whole = b""
    for piece in found.read(0, 23 * PAGE_BYTES):
        if not whole:
            region.unmap_by(TGID)
        whole += piece.data
    assert whole == region.path.read_bytes()[: 23 * PAGE_BYTES]


def test_it_goes_away(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", 4 * PAGE_BYTES)
    found = region.contents()
    pieces = found.read(0, 23 * PAGE_BYTES)
    next(pieces)
    region.unmap_by(TGID)
    with pytest.raises(GoneError, match=r"^the region is gone: no process maps it any more$"):
        list(pieces)
    assert found.read_bytes == 4 * PAGE_BYTES
    with pytest.raises(GoneError):
        region.contents()


def test_the_address_is_another_regions_now(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    """The PID and the address are the same: it is not read for that."""
    monkeypatch.setattr(contents, "CHUNK_BYTES", 4 * PAGE_BYTES)
    pieces = region.contents().read(0, 23 * PAGE_BYTES)
    next(pieces)
    other = Region(region.path.with_name("other"), region.root)
    other.put(0, 97)
    [link] = (region.root / str(TGID) / "map_files").iterdir()
    link.unlink()
    link.symlink_to(other.path)
    with pytest.raises(GoneError):
        list(pieces)


def test_it_shrinks(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    found = region.contents()

    def shrink(fd: int, views: list[memoryview], offset: int, read: object = os.preadv) -> int:
        os.truncate(region.path, 5 * PAGE_BYTES)
        return read(fd, views, offset)  # type: ignore[operator, no-any-return]

    monkeypatch.setattr(os, "preadv", shrink)
    with pytest.raises(GoneError, match=r"^the region has shrunk to 20480 bytes: read it again$"):
        read(found, 0, found.size_bytes)


def test_what_cannot_be_read(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", poisoned)
    found = region.contents()
    line = r"^the region cannot be read from byte 0x3000 on \(Input/output error\): --range reads other parts$"
    descriptors = nr_open()
    with pytest.raises(contents.ShmtraceError, match=line):
        read(found, 3 * PAGE_BYTES, found.size_bytes)
    assert nr_open() == descriptors


# ---- huge pages, of which SEEK_DATA shows all ----


def test_a_huge_page_of_zeros_is_a_hole(tmp_path: Path, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "HUGE_BYTES", 4 * PAGE_BYTES)
    monkeypatch.setattr(Contents, "_next_data", lambda _self, _fd, start, end: (start, end))
    monkeypatch.setattr(contents, "swapped_pages", lambda *_: pytest.fail("they are never swapped out"))
    found = region.contents("hugetlb")
    zeros = (23 * PAGE_BYTES, 24 * PAGE_BYTES, DATA, bytes(PAGE_BYTES))
    assert read(found, 0, found.size_bytes) == [
        (0, zeros[1], DATA, pages(0, 23, DATA)[3] + zeros[3]),
        pages(24, 40, HOLE),
        (40 * PAGE_BYTES, 48 * PAGE_BYTES, DATA, bytes(PAGE_BYTES) + pages(41, 48, DATA)[3]),
        pages(48, 97, HOLE),
    ]

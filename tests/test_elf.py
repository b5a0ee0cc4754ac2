"""ELF files: as compilers make them, beside what nm and readelf say, and as somebody would who means harm."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tracer.record import elf
from tracer.record.elf import MAX_SYMBOLS, Elf, Symbol, SymbolTable

pytestmark = pytest.mark.needs("cc", "nm", "readelf", "strip")

SOURCE = """
__thread int of_a_thread = 7;
int data = 5;
extern int absent(int) __attribute__((weak));
__attribute__((noinline, used)) static int hidden(int a) { return a * 7; }
__attribute__((noinline)) int shown(int a) { return hidden(a) + data + of_a_thread + (absent ? absent(a) : 0); }
"""
CLASSES = {
    "64 bits": ["-O1"],
    "32 bits": ["-O1", "-m32"],
    "old hash table": ["-O1", "-Wl,--hash-style=sysv"],
    "one segment": ["-O1", "-Wl,-z,noseparate-code"],
}
BIG = [0, 1, 24, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, 2**63 - 1, 2**63, 2**64 - 24, 2**64 - 1]


@pytest.fixture(scope="module", params=CLASSES.values(), ids=CLASSES)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elf")
    (folder / "x.c").write_text(SOURCE)
    flags = ["-fPIC", "-shared", "-nostdlib", "-Wl,--build-id", *request.param]
    done = subprocess.run(["cc", *flags, "-o", folder / "x.so", folder / "x.c"], capture_output=True, text=True)
    if done.returncode and "-m32" in flags:
        pytest.skip(f"this compiler makes no programs of 32 bits: {done.stderr[:80]}")
    assert not done.returncode, done.stderr
    return folder / "x.so"


def read(content: bytes | Path) -> Elf | None:
    """Of a file with this content."""
    fd = os.memfd_create("elf") if isinstance(content, bytes) else os.open(content, os.O_RDONLY)
    try:
        if isinstance(content, bytes):
            os.write(fd, content)
        return elf.read(fd)
    finally:
        os.close(fd)


def known(content: bytes | Path) -> Elf:
    found = read(content)
    assert found
    return found


def output(*command: str | Path) -> list[list[str]]:
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [line.split() for line in text.splitlines()]


def test_symbols(library: Path) -> None:
    """Each where nm has it; what is undefined, or of a thread, is nowhere."""
    at = {row[2]: int(row[0], 16) for row in output("nm", library) if len(row) == 3}
    found = known(library).find(["data", "hidden", "shown", "of_a_thread", "absent", "sho", "hown", ""])
    assert found == {
        "data": Symbol(at["data"], is_function=False),
        "hidden": Symbol(at["hidden"], is_function=True),
        "shown": Symbol(at["shown"], is_function=True),
    }


def test_what_is_left_of_a_stripped_one(library: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped.so"
    subprocess.run(["strip", "-o", stripped, library], check=True)
    found = known(stripped)
    assert found.full is None
    assert found.find(["hidden", "shown"]) == known(library).find(["shown"])


def test_without_section_headers(library: Path) -> None:
    """The loader needs none, and finds the same."""
    raw = bytearray(library.read_bytes())
    wide = raw[4] == 2
    struct.pack_into("=Q" if wide else "=I", raw, 40 if wide else 32, 0)  # e_shoff
    struct.pack_into("=HHH", raw, 58 if wide else 46, 0, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
    whole, found = known(library), known(bytes(raw))
    assert whole.exported
    assert found == whole._replace(full=None)


def test_places_in_the_file(library: Path) -> None:
    """As the program headers have them; code is in what may be executed, and nowhere else."""
    rows = [row for row in output("readelf", "-lW", library) if row[:1] == ["LOAD"]]
    found = known(library)
    assert [load.executable for load in found.loads] == ["E" in row[-2] for row in rows]
    for offset, address, size, executable in (
        (*(int(row[column], 16) for column in (1, 2, 4)), "E" in row[-2]) for row in rows
    ):
        assert found.address(offset + 3) == address + 3
        assert found.code_offset_bytes(address + size - 1) == (offset + size - 1 if executable else None)
        assert found.code_offset_bytes(address + size) is None
    assert found.address(1 << 40) == 1 << 40
    assert found.code_offset_bytes(2**64 - 1) is None


def test_build_id(library: Path) -> None:
    [row] = [row for row in output("readelf", "-n", library) if row[:2] == ["Build", "ID:"]]
    assert known(library).build_id == row[2]


def test_one_of_this_machine(library: Path) -> None:
    wide = library.read_bytes()[4] == 2
    assert known(library).is_native == wide
    raw = bytearray(library.read_bytes())
    raw[18] ^= 0x40  # e_machine
    assert not known(bytes(raw)).is_native


def test_a_global_symbol_comes_before_a_local_one() -> None:
    rows = [(1, 0x01, 0x1000), (1, 0x11, 0x2000), (1, 0x11, 0x3000), (5, 0x01, 0x4000)]
    symbols = b"".join(struct.pack("=IBBHQQ", name, info, 0, 1, value, 8) for name, info, value in rows)
    table = SymbolTable(elf._LAYOUTS[2], symbols, b"\0one\0two\0")
    assert table.find(["one", "two"]) == {"one": Symbol(0x2000, False), "two": Symbol(0x4000, False)}


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF", b"#!/bin/sh\n", bytes(4096), b"\x7fELF" + b"\x02\x01\x01" + b"\xff" * 4096],
    ids=["empty", "magic alone", "sh", "zeros", "ones"],
)
def test_what_is_no_program(content: bytes) -> None:
    assert read(content) is None


def test_the_other_byte_order(library: Path) -> None:
    raw = bytearray(library.read_bytes())
    raw[5] ^= 3  # EI_DATA
    assert read(bytes(raw)) is None


def test_what_cannot_be_read(tmp_path: Path) -> None:
    inlet, outlet = os.pipe()
    assert elf.read(inlet) is None
    os.close(inlet)
    os.close(outlet)
    fd = os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
    os.write(fd, bytes(64))
    with pytest.raises(OSError, match="Bad file descriptor"):
        elf.read(fd)
    os.close(fd)


def test_one_that_takes_too_long(library: Path) -> None:
    with library.open("rb") as file, pytest.raises(TimeoutError):
        elf.read(file.fileno(), patience_s=-1)


def made_up(*loads: tuple[int, int, int], **sections: tuple[int, int, int, int]) -> bytes:
    """Headers: of loads, which are executable, offset, size and address; of sections type, offset, size and link."""
    segments = b"".join(struct.pack("=IIQQQQQQ", 1, 5, at, address, 0, size, size, 4096) for at, size, address in loads)
    rows = b"".join(
        struct.pack("=IIQQQQIIQQ", 0, kind, 0, 0, at, size, link, 0, 8, 24)
        for kind, at, size, link in sections.values()
    )
    counts = 64, 56, len(loads), 64, len(sections), 0
    header = struct.pack("=HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 64 + len(segments), 0, *counts)
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + header + segments + rows


def with_functions(offset_bytes: int, address: int, **functions: tuple[int, int]) -> bytes:
    """A library with a page of code, and functions by address and size."""
    names = b"\0".join([b"", *(name.encode() for name in functions), b""])
    symbols = b"".join(
        struct.pack("=IBBHQQ", names.index(f"\0{name}\0".encode()) + 1, 0x12, 0, 1, at, size)
        for name, (at, size) in functions.items()
    )
    headers = made_up(
        (offset_bytes, 4096, address),
        null=(0, 0, 0, 0),
        symbols=(2, 1024, len(symbols), 2),
        strings=(3, 1024 + len(symbols), len(names), 0),
    )
    return headers.ljust(1024, b"\0") + symbols + names


def test_more_symbols_than_a_program_has(tmp_path: Path) -> None:
    """In a hole of the file: so many are read as may be, and it is soon done with."""
    path = tmp_path / "large"
    path.write_bytes(made_up(null=(0, 0, 0, 0), symbols=(2, 4096, 1 << 40, 2), strings=(3, 4096, 1 << 40, 0)))
    os.truncate(path, 1 << 41)
    began_s = time.process_time()
    found = known(path)
    assert found.full
    assert len(found.full.symbols) == 24 * MAX_SYMBOLS
    assert len(found.full.strings) == elf.MAX_STRINGS_BYTES
    assert found.find(["main"]) == {}
    assert time.process_time() - began_s < 5  # 0.2 s


@pytest.mark.parametrize(
    "section",
    [(2, 2**64 - 1, 48, 2), (2, 64, 2**64 - 1, 2), (2, 64, 48, 7), (2, 64, 48, 2**32 - 1), (2, 1 << 20, 48, 2)],
)
def test_a_table_that_cannot_be(section: tuple[int, int, int, int]) -> None:
    content = made_up(null=(0, 0, 0, 0), symbols=section, strings=(3, 0, 64, 0))
    assert known(content).full is None
    assert known(made_up(null=(0, 0, 0, 0), symbols=(2, 64, 48, 2), strings=(3, 0, 64, 0))).full


def mutants(raw: bytes, dice: random.Random, count: int) -> list[bytes]:
    """Of one file: headers, tables and what the loader reads, each changed for what is not expected there."""
    wide = raw[4] == 2
    word, word_bytes = ("=Q", 8) if wide else ("=I", 4)
    segments_at, sections_at = struct.unpack_from("=QQ" if wide else "=II", raw, 32 if wide else 28)
    segment_bytes, segments, section_bytes, sections = struct.unpack_from("=HHHH", raw, 54 if wide else 42)

    def anywhere() -> int:
        return dice.randrange(len(raw) - 8)

    places: list[Callable[[], int]] = [
        lambda: dice.randrange(64),
        lambda: segments_at + word_bytes * dice.randrange(segments * segment_bytes // word_bytes),
        lambda: sections_at + word_bytes * dice.randrange(sections * section_bytes // word_bytes),
        lambda: sections_at + 4 * dice.randrange(sections * section_bytes // 4),
        anywhere,
    ]
    found = []
    for _ in range(count):
        broken = bytearray(raw)
        for _ in range(dice.choice([1, 1, 2, 4, 16])):
            value = dice.choice([*BIG, dice.randrange(2**64), dice.randrange(len(raw))])
            place = min(dice.choice(places)(), len(raw) - word_bytes)
            struct.pack_into(word, broken, place, value % (1 << 8 * word_bytes))
        found.append(bytes(broken[: dice.choice([len(raw), len(raw), len(raw), anywhere()])]))
    return found


def test_files_made_up_to_do_harm(library: Path) -> None:
    """Whatever their headers say: it takes no more time, and raises nothing."""
    began_s, read_at_all = time.process_time(), 0
    for mutant in mutants(library.read_bytes(), random.Random(7), 300):
        found = read(mutant)
        if found:
            read_at_all += 1
            assert len(found.loads) <= elf.MAX_LOADS
            for symbol in found.find(["shown", "hidden", "data"]).values():
                offset_bytes = found.code_offset_bytes(symbol.address)
                assert offset_bytes is None or 0 <= offset_bytes < 2**64
            for address in (0, 0x1139, 2**63, 2**64 - 1):
                assert 0 <= found.address(address) < 2**64
    assert 100 < read_at_all < 300
    assert time.process_time() - began_s < 20  # 0.3 s

"""The names of a program's functions: as a compiler and strip leave them, and as somebody would who means harm."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tracer.symbols import MAX_NAME_BYTES, Symbols

pytestmark = pytest.mark.needs("cc", "nm", "strip", "objcopy")

SOURCE = """
__attribute__((noinline, used)) static int hidden(int a) { return a * 7; }
__attribute__((noinline)) int shown(int a) { return hidden(a) + 1; }
int also_shown(int a) __attribute__((alias("shown")));
int data = 5;
int main(int argc, char **argv) { (void)argv; return shown(argc); }
"""
HOME = Path("/nonexistent")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("symbols")
    (folder / "x.c").write_text(SOURCE)
    flags = ["-O1", "-pie", "-fPIE", "-rdynamic", "-Wl,--build-id"]
    subprocess.run(["cc", *flags, "-o", folder / "program", folder / "x.c"], check=True)
    subprocess.run(["strip", "-o", folder / "stripped", folder / "program"], check=True)
    return folder / "program"


def addresses(program: Path) -> dict[str, int]:
    lines = subprocess.run(["nm", program], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {name: int(address, 16) for address, _, name in (line.split() for line in lines if line[0] != " ")}


def read(path: Path, debug_files: Path = HOME) -> Symbols:
    with path.open("rb") as file:
        return Symbols(file, debug_files)


def test_functions(program: Path) -> None:
    at, symbols = addresses(program), read(program)
    for name in ("hidden", "main", "_start"):
        assert {symbols.name(at[name]), symbols.name(at[name] + 1)} == {name}
    assert symbols.name(at["shown"]) in ("shown", "also_shown")
    assert symbols.name(at["data"]) is None
    assert symbols.name(0) is symbols.name(2**64 - 1) is None


def test_a_function_ends_where_it_ends(program: Path) -> None:
    """Of a stripped program, what is exported; the function behind it has no name, and does not get its neighbour's."""
    at, symbols = addresses(program), read(program.with_name("stripped"))
    assert symbols.name(at["main"]) == "main"
    assert symbols.name(at["hidden"]) is None


def test_an_offset_in_the_file_is_where_it_is_in_memory(program: Path) -> None:
    """Whatever the linker has put between the two."""
    listing = subprocess.run(["readelf", "-lW", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    loads = [line.split()[1:3] for line in listing.splitlines() if line.split()[:1] == ["LOAD"]]
    assert len(loads) > 2
    symbols = read(program)
    for offset, address in ((int(a, 16), int(b, 16)) for a, b in loads):
        assert symbols.address(offset + 3) == address + 3
    assert symbols.address(1 << 40) == 1 << 40


def test_symbols_that_were_stripped_off(program: Path, tmp_path: Path) -> None:
    notes = subprocess.run(["readelf", "-n", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    build_id = notes.partition("Build ID: ")[2].split()[0]
    debug_file = tmp_path / build_id[:2] / f"{build_id[2:]}.debug"
    debug_file.parent.mkdir()
    subprocess.run(["objcopy", "--only-keep-debug", program, debug_file], check=True)
    at, symbols = addresses(program), read(program.with_name("stripped"), tmp_path)
    assert (symbols.name(at["hidden"]), symbols.name(at["main"])) == ("hidden", "main")
    debug_file.write_bytes(b"\x7fELF")
    assert read(program.with_name("stripped"), tmp_path).name(at["main"]) == "main"


def test_a_long_name_is_cut(program: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    subprocess.run(["objcopy", f"--redefine-sym=hidden={'x' * 5000}", program, renamed], check=True)
    assert read(renamed).name(addresses(program)["hidden"]) == "x" * MAX_NAME_BYTES


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n", bytes(4096)], ids=["empty", "ELF", "sh", "zeros"])
def test_what_is_no_program_has_no_symbols(content: bytes) -> None:
    symbols = Symbols(io.BytesIO(content))
    assert symbols.name(0x1000) is None
    assert symbols.address(0x1234) == 0x1234


def test_a_program_made_up_to_do_harm(program: Path) -> None:
    """Its headers say anything: it takes no more time, and raises nothing."""
    raw, dice = program.read_bytes(), random.Random(7)
    sections, count = struct.unpack_from("<Q", raw, 0x28)[0], struct.unpack_from("<H", raw, 0x3C)[0]
    began_s = time.process_time()
    for _ in range(60):
        broken = bytearray(raw)
        for _ in range(dice.randint(1, 4)):
            at = dice.choice([dice.randrange(64), sections + dice.randrange(64 * count)])
            size = dice.choice([1, 8])
            broken[at : at + size] = dice.choice([b"\xff", b"\0", bytes([dice.randrange(256)])]) * size
        symbols = Symbols(io.BytesIO(bytes(broken)))
        for address in (0, 0x1139, 0x4000, 2**63):
            symbols.name(symbols.address(address))
    assert time.process_time() - began_s < 20

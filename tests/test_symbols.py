"""The names of a program's functions: as a compiler and strip leave them, and as somebody would who means harm."""

from __future__ import annotations

import random
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.test_elf import made_up, mutants
from tests.test_elf import read as read_elf
from tracer.record.elf import MAX_SYMBOLS
from tracer.record.symbols import MAX_NAME_BYTES, Symbols

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


def read(content: bytes | Path, debug_files: Path = HOME) -> Symbols:
    found = read_elf(content)
    assert found
    return Symbols(found, debug_files)


def name_at(symbols: Symbols, address: int) -> str | None:
    function = symbols.function(address)
    return function.name if function else None


def test_functions(program: Path) -> None:
    at, symbols = addresses(program), read(program)
    for name in ("hidden", "main", "_start"):
        assert {symbols.function(at[name]), symbols.function(at[name] + 1)} == {(name, at[name])}
    assert name_at(symbols, at["shown"]) in ("shown", "also_shown")
    assert name_at(symbols, at["data"]) is None
    assert name_at(symbols, 0) is name_at(symbols, 2**64 - 1) is None


def test_a_function_ends_where_it_ends(program: Path) -> None:
    """Of a stripped program, what is exported; the function behind it has no name, and does not get its neighbour's."""
    at, symbols = addresses(program), read(program.with_name("stripped"))
    assert name_at(symbols, at["main"]) == "main"
    assert name_at(symbols, at["hidden"]) is None


def test_symbols_that_were_stripped_off(program: Path, tmp_path: Path) -> None:
    notes = subprocess.run(["readelf", "-n", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    build_id = notes.partition("Build ID: ")[2].split()[0]
    debug_file = tmp_path / build_id[:2] / f"{build_id[2:]}.debug"
    debug_file.parent.mkdir()
    subprocess.run(["objcopy", "--only-keep-debug", program, debug_file], check=True)
    at, symbols = addresses(program), read(program.with_name("stripped"), tmp_path)
    assert (name_at(symbols, at["hidden"]), name_at(symbols, at["main"])) == ("hidden", "main")
    debug_file.write_bytes(b"\x7fELF")
    assert name_at(read(program.with_name("stripped"), tmp_path), at["main"]) == "main"


def test_a_long_name_is_cut(program: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    subprocess.run(["objcopy", f"--redefine-sym=hidden={'x' * 5000}", program, renamed], check=True)
    assert name_at(read(renamed), addresses(program)["hidden"]) == "x" * MAX_NAME_BYTES


def test_a_program_made_up_to_do_harm(program: Path) -> None:
    """Its headers say anything: it takes no more time, and raises nothing."""
    began_s, named = time.process_time(), 0
    at = addresses(program)
    for mutant in mutants(program.read_bytes(), random.Random(11), 300):
        found = read_elf(mutant)
        if found:
            symbols = Symbols(found, HOME)
            for address in (0, at["main"], 0x4000, 2**63, 2**64 - 1):
                name = name_at(symbols, found.address(address))
                named += name == "main"
                assert name is None or 0 < len(name) <= 4 * MAX_NAME_BYTES
    assert 50 < named < 300
    assert time.process_time() - began_s < 20  # 0.5 s


def test_as_many_functions_as_are_read() -> None:
    """All of one size, in no order, each with a name of its own."""
    numbers = list(range(MAX_SYMBOLS + 10))
    random.Random(3).shuffle(numbers)
    symbols = b"".join(struct.pack("=IBBHQQ", 8 * n, 0x12, 0, 1, 16 * n, 16) for n in numbers)
    strings = b"".join(b"%07d\0" % n for n in range(len(numbers)))
    headers = made_up(
        null=(0, 0, 0, 0), symbols=(2, 4096, len(symbols), 2), strings=(3, 4096 + len(symbols), len(strings), 0)
    )
    began_s = time.process_time()
    found = read(headers.ljust(4096, b"\0") + symbols + strings)
    for n in numbers[:MAX_SYMBOLS:1000]:
        assert name_at(found, 16 * n + 15) == f"{n:07}"
    assert [name_at(found, 16 * n) for n in numbers[MAX_SYMBOLS:]] == [None] * 10
    assert found.size_bytes < 64 << 20
    assert time.process_time() - began_s < 20  # 1 s

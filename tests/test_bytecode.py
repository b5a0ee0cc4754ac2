"""Compiled programs: what they are known by, what is kept of them, and what is said where there is no compiler."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from tests.conftest import why_no_bpf
from tracer.errors import ShmtraceError
from tracer.kernel import bpf_syscall, bytecode, host, loader
from tracer.kernel.bytecode import FIRST_ROOM, ROOMS, Bytecode, MapLayout, Wanted, compiled
from tracer.kernel.cache import Cache

COMPILER = "libbcc.so.0.26.0"
LAYOUTS = [MapLayout("ledger", 2, 4, 544, FIRST_ROOM, 1024), MapLayout("lasts", 2, 4, 64, FIRST_ROOM + 5, 0)]
BYTECODE = Bytecode(COMPILER, LAYOUTS, {"adding": bytes(range(240))})
WANTED = Wanted(("maps.c", "ledger.c"), {"OFF_TASK_MM": 1184, "HAVE_MM_MT": 1}, ("STACKS",))

needs_bpf = pytest.mark.skipif(why_no_bpf() is not None, reason=why_no_bpf() or "")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


# ---- known by ----


def test_the_same_is_known_by_the_same() -> None:
    """In whatever order its defines come."""
    assert WANTED.key() == WANTED._replace(defines={"HAVE_MM_MT": 1, "OFF_TASK_MM": 1184}).key()
    assert len(WANTED.key()) == 64


@pytest.mark.parametrize(
    "other",
    [
        WANTED._replace(sources=("maps.c",)),
        WANTED._replace(defines={"OFF_TASK_MM": 1192, "HAVE_MM_MT": 1}),
        WANTED._replace(defines={"OFF_TASK_MM": 1184}),
        WANTED._replace(flags=()),
    ],
)
def test_another_is_known_by_another(other: Wanted) -> None:
    assert other.key() != WANTED.key()


def test_a_source_that_has_changed_makes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = WANTED.key()
    changed = {**bytecode.sources(), "wire.h": "#define WHEN_BITS 41"}
    monkeypatch.setattr(bytecode, "sources", lambda: changed)
    assert WANTED.key() != before


# ---- kept ----


def test_it_is_read_as_it_was_written() -> None:
    assert Bytecode.load(BYTECODE.dump()) == BYTECODE


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What has been compiled, in the place of bcc."""
    asked: list[Wanted] = []

    def compile_one(wanted: Wanted) -> Bytecode:
        asked.append(wanted)
        return BYTECODE

    monkeypatch.setattr(Wanted, "compile", compile_one)
    monkeypatch.setattr(bytecode, "installed_compiler", lambda: COMPILER)
    return asked


def test_it_is_compiled_once(cache: Cache, compiling: list[Wanted]) -> None:
    assert [compiled(WANTED, cache) for _ in range(3)] == [BYTECODE] * 3
    assert compiling == [WANTED]


def test_another_compiler_makes_it_anew(cache: Cache, compiling: list[Wanted], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(WANTED, cache)
    monkeypatch.setattr(bytecode, "installed_compiler", lambda: "libbcc.so.0.35.0")
    compiled(WANTED, cache)
    assert compiling == [WANTED] * 2


def test_without_a_compiler_what_is_kept_will_do(
    cache: Cache, compiling: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(WANTED, cache)
    monkeypatch.setattr(bytecode, "installed_compiler", lambda: None)
    compiled(WANTED, cache)
    assert compiling == [WANTED]


def test_one_bit_is_another_start(cache: Cache, compiling: list[Wanted]) -> None:
    """It is not loaded, one line says so, and it is made anew."""
    compiled(WANTED, cache)
    kept = cache.directory / WANTED.key()
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    assert compiled(WANTED, cache) == BYTECODE
    assert compiling == [WANTED] * 2
    assert cache.warnings == [f"{kept} is not used: it is damaged, or from another kernel"]
    assert compiled(WANTED, cache) == BYTECODE
    assert len(compiling) == 2


# ---- maps by their place ----


def instruction(operation: int, registers: int, constant: int) -> bytes:
    return struct.pack("=BBhi", operation, registers, 0, constant)


CODE = b"".join(
    [
        *[instruction(0xB7, 0x00, 11), instruction(0x18, 0x11, 11), instruction(0, 0, 0)],
        *[instruction(0x18, 0x01, 11), instruction(0, 0, 7), instruction(0x18, 0x12, 5), instruction(0, 0, 0)],
    ]
)
"""r0 = 11; r1 = the map of descriptor 11; r1 = the number 7 << 32 | 11; r2 = the map of descriptor 5"""


def test_a_map_is_told_by_its_place() -> None:
    placed = bpf_syscall.renumber_maps(CODE, {5: 0, 11: 1})
    assert [struct.unpack_from("=4xi", placed, at)[0] for at in range(0, len(placed), 8)] == [11, 1, 0, 11, 7, 0, 0]
    assert bpf_syscall.renumber_maps(placed, [5, 11]) == CODE


# ---- what bcc says ----


@needs_bpf
def test_what_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**bytecode.sources(), "maps.c": "int f(void *ctx) { return missing; }"}
    monkeypatch.setattr(bytecode, "sources", lambda: changed)
    with pytest.raises(ShmtraceError, match=r"maps\.c:1.*error: .*`shmtrace doctor` says more.*snapshot"):
        Wanted(("maps.c",), {}, ()).compile()


def test_without_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('nothing of the kind')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ShmtraceError) as raised:
        WANTED.compile()
    text = str(raised.value)
    assert text.startswith(f"bcc cannot be imported by {sys.executable} (nothing of the kind): ")
    assert "--system-site-packages" in text
    assert "`shmtrace prepare`" in text
    assert text.endswith("`shmtrace snapshot` works without")


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("none", "BPF refused: R1 invalid mem access: `shmtrace doctor` says more"),
        (None, "BPF refused: R1 invalid mem access: `shmtrace doctor` says more"),
        ("confidentiality", "the kernel is locked down (confidentiality) and refuses BPF: boot with lockdown"),
    ],
)
def test_bpf_is_refused(mode: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "lockdown", lambda: mode)
    line = str(loader.refusal(OSError(13, "R1 invalid mem access")))
    assert line.startswith(said)
    assert line.endswith("`shmtrace snapshot` works without")


# ---- rooms ----


def test_rooms_have_numbers_of_their_own() -> None:
    """No map that the sources give a size of its own has one of these."""
    numbers = {str(FIRST_ROOM + place) for place in range(len(ROOMS))}
    assert not any(number in text for number in numbers for text in bytecode.sources().values())

"""What is asked of a kernel's types, of a BTF that is made up; and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tracer.errors import ShmtraceError
from tracer.kernel import fields
from tracer.kernel.btf import Btf
from tracer.kernel.cache import Cache
from tracer.kernel.fields import Function, KernelLayout


class FakeBtf(Btf):
    """Every field at an offset of its own, but those that are missing; of functions, these by their parameters."""

    def __init__(self, *missing: str, **functions: list[str]) -> None:
        self.missing = missing
        self.asked: list[str] = []
        self.functions = list(functions.items())

    def function(self, name: str) -> int | None:
        return next((number for number, (known, _) in enumerate(self.functions, 1) if known == name), None)

    def parameters(self, function: int) -> list[str]:
        return self.functions[function - 1][1]

    def arguments(self, tracepoint: str) -> int | None:
        return None if tracepoint in self.missing else 2

    def offset(self, path: str) -> int | None:
        self.asked.append(path)
        return None if path in self.missing else 8 * len(self.asked)

    def size(self, struct: str) -> int | None:
        return None if struct in self.missing else 64

    def enum_value(self, enum: str, name: str) -> int | None:
        return None if name in self.missing else len(name)


def defines_of(btf: Btf) -> dict[str, int]:
    return KernelLayout.of(btf, (), 4096).defines


def test_a_kernel_that_has_it_all() -> None:
    btf = FakeBtf()
    found = defines_of(btf)
    grouped = {f"OFF_{name}" for members in fields.GROUPS.values() for name in members}
    assert found.keys() == {
        *(f"OFF_{name}" for name in fields.FIELDS),
        *grouped,
        *(f"HAVE_{group}" for group in fields.GROUPS),
        *(f"BIT_{bit.upper()}" for bit in fields.BITS),
        "SIZE_PAGE",
        "SIZE_PERCPU_COUNTER",
        "HAVE_VICTIM_TASK",
        "HAVE_PAGE_FAULT",
        "PAGE_SHIFT",
        "MEMORY_CGROUPS",
    }
    assert found["OFF_TASK_TGID"] == 8 * (btf.asked.index("task_struct.tgid") + 1)


def test_an_older_name_of_a_field() -> None:
    older = FakeBtf("folio.mapping", "folio.index")
    found = defines_of(older)
    assert found["OFF_FOLIO_INDEX"] == 8 * (older.asked.index("page.index") + 1)


@pytest.mark.parametrize("missing", [["task_struct.tgid"], ["folio.mapping", "page.mapping"], ["PG_head"]])
def test_a_field_that_no_name_leads_to(missing: list[str]) -> None:
    with pytest.raises(ShmtraceError, match=rf"^this kernel's BTF has no {missing[0]}: .*snapshot` works"):
        defines_of(FakeBtf(*missing))


def test_a_group_comes_whole_or_not_at_all() -> None:
    found = defines_of(FakeBtf("maple_arange_64.slot", "page.compound_order"))
    absent = {"HAVE_MM_MT", "HAVE_PAGE_ORDER", *(f"OFF_{name}" for name in fields.GROUPS["MM_MT"])}
    assert not absent & found.keys()
    assert {"HAVE_MM_RB", "OFF_MM_RB", "OFF_VMA_RB", "OFF_RB_LEFT", "OFF_RB_RIGHT"} <= found.keys()


def test_a_presence_that_a_function_tells() -> None:
    assert "HAVE_HUGETLB_BASEPAGE_INDEX" not in defines_of(FakeBtf())
    assert defines_of(FakeBtf(hugetlb_basepage_index=["page"]))["HAVE_HUGETLB_BASEPAGE_INDEX"] == 1


@pytest.mark.parametrize(("page_bytes", "shift"), [(4096, 12), (16384, 14), (65536, 16)])
def test_the_size_of_a_page(page_bytes: int, shift: int) -> None:
    assert KernelLayout.of(FakeBtf(), (), page_bytes).defines["PAGE_SHIFT"] == shift


@pytest.mark.parametrize(
    ("missing", "found"),
    [
        (["user_pt_regs.regs"], {"HAVE_X86_64_REGISTERS", "HAVE_PAGE_FAULT"}),
        (["pt_regs.di", "page_fault_user"], {"HAVE_ARM64_REGISTERS"}),
        (["pt_regs.di", "user_pt_regs.regs", "page_fault_user"], set()),
    ],
)
def test_the_machine(missing: list[str], found: set[str]) -> None:
    of_machines = {"HAVE_X86_64_REGISTERS", "HAVE_ARM64_REGISTERS", "HAVE_PAGE_FAULT"}
    assert defines_of(FakeBtf(*missing)).keys() & of_machines == found


def test_a_kernel_that_tells_of_a_victim_by_its_pid() -> None:
    """And one without memory cgroups."""
    found = defines_of(FakeBtf("mark_victim", "memory_cgrp_id", "percpu_counter"))
    assert not {"HAVE_VICTIM_TASK", "MEMORY_CGROUPS"} & found.keys()
    assert found["SIZE_PERCPU_COUNTER"] == 0


# ---- functions ----


def test_functions() -> None:
    """Those that are asked for, and are there."""
    btf = FakeBtf(make_file=["name", "size"], add_page=[], another=["x"])
    assert KernelLayout.of(btf, ["add_page", "make_file", "absent"], 4096).functions == {
        "make_file": Function("make_file", 1, ["name", "size"]),
        "add_page": Function("add_page", 2, []),
    }


# ---- kept ----


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the running kernel."""
    monkeypatch.setattr(fields, "NOTES", tmp_path / "notes")
    (tmp_path / "notes").write_bytes(b"\x04\0\0\0GNU\0 one")
    return tmp_path / "notes"


def test_it_is_read_as_it_was_written() -> None:
    found = KernelLayout.of(FakeBtf(add_page=["folio", "index"]), ["add_page"], 4096)
    assert KernelLayout.load(found.dump()) == found


@pytest.fixture
def first(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Cache, KernelLayout]:
    """Found in the BTF, of which there is none after that."""
    monkeypatch.setattr(fields, "Btf", lambda: FakeBtf(add_page=["folio"]))
    cache = Cache(tmp_path / "cache")
    found = KernelLayout.of_kernel(["add_page"], cache)
    monkeypatch.delattr(fields, "Btf")
    return cache, found


def test_the_same_kernel_has_the_same(first: tuple[Cache, KernelLayout]) -> None:
    cache, found = first
    assert KernelLayout.of_kernel(["add_page"], cache) == found
    assert len(list(cache.directory.iterdir())) == 1


def test_another_kernel_is_asked_anew(first: tuple[Cache, KernelLayout], notes: Path) -> None:
    notes.write_bytes(b"\x04\0\0\0GNU\0 two")
    with pytest.raises(NameError):
        KernelLayout.of_kernel(["add_page"], first[0])


def test_another_question_is_asked_anew(first: tuple[Cache, KernelLayout]) -> None:
    with pytest.raises(NameError):
        KernelLayout.of_kernel(["make_file"], first[0])


def test_a_kernel_that_does_not_say_which_it_is(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept of it."""
    notes.unlink()
    monkeypatch.setattr(fields, "Btf", lambda: FakeBtf(add_page=["folio"]))
    cache = Cache(tmp_path / "cache")
    assert KernelLayout.of_kernel(["add_page"], cache).functions["add_page"].parameters == ["folio"]
    assert not cache.directory.exists()


def test_it_is_all_text(first: tuple[Cache, KernelLayout]) -> None:
    assert json.loads(first[1].dump())[0]["OFF_TASK_TGID"] == first[1].defines["OFF_TASK_TGID"]

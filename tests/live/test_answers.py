"""Workloads whose owners are known to the page, each traced from its first instruction and reported after its end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from tests.live.reports import Report, find_region, pages_by_part, part_of, trace_command
from tests.live.shmem import PAGE_BYTES
from tests.live.workload import Notes

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]

Pages = Mapping[str, int]
NOTHING: Pages = MappingProxyType({})
HUGE_PAGE = 512


class Answer(NamedTuple):
    """What a region must come to, in pages, by the parts the processes play."""

    touched: Pages
    unseen: int = 0
    freed: Pages | None = NOTHING
    """None: not to be foretold."""
    creator: str = "main"
    kind: str = "anon"


def memfd(touched: Pages, unseen: int = 0, freed: Pages = NOTHING) -> Answer:
    return Answer(touched, unseen, freed, kind="memfd")


TOUCHING = {
    "strided": {"pool": Answer({"A": 43, "B": 52})},
    "reversed": {"pool": Answer({"A": 111})},
    "overlapping": {"pool": Answer({"A": 23, "B": 18})},
    "reads": {"pool": Answer({"A": 13, "B": 18, "C": 7})},
    "fault_around": {"pool": Answer({"main": 37, "B": 10})},
    "kernel_faults": {"pool": Answer({"A": 29, "B": 11, "C": 3})},
    "removed": {"pool": Answer({"A": 30, "C": 5}, freed={"A": 11})},
    "removed_by_owner": {"pool": Answer({"A": 11}, freed={"A": 19 * 30})},
    "truncated": {"pool": memfd({"A": 29, "B": 22}, freed={"A": 32})},
    "unmapped_not_freed": {"pool": Answer({"A": 19, "B": 12})},
    "reclaimed": {"pool": Answer({"A": 9, "B": 4}, freed={"A": 7})},
    "forbidden": {"pool": Answer({"B": 7})},
    "beyond_end": {"pool": memfd({"B": 7, "C": 5})},
    # the page that finds no room is there for a moment on some kernels, and so is counted among those freed
    "full": {"pool": Answer({"A": 2, "C": 4}, freed=None, kind="other")},
}

PROCESSES = {
    "hundred": {"pool": Answer({"main": 3, **{f"child-{number}": 7 for number in range(100)}})},
    "brief": {"pool": Answer({f"brief-{number}": 1 for number in range(1009)})},
    "generations": {"pool": Answer({"main": 3, "child": 5, "grandchild": 7, "greatgrandchild": 11})},
    "orphaned": {"pool": Answer({"parent": 5, "orphan": 11})},
    "threads": {"pool": Answer({"main": 52, "A": 45})},
    "lent": {"pool": Answer({"V": 5, "main": 18, "A": 7})},
    "spawned": {"pool": Answer({"main": 21})},
    "sharing": {"pool": Answer({"C": 4, "main": 9}), "made": Answer({"C": 6, "main": 13}, creator="C")},
    "exec": {"pool": Answer({"main": 3, "A": 5}), "fresh": Answer({"A": 19, "B": 5}, creator="A")},
    "inherited": {"pool": memfd({"main": 7, "A": 7})},
}

MAPPING = {
    "moved": {"pool": Answer({"main": 11, "A": 20, "B": 9})},
    "resized": {"pool": memfd({"A": 51, "B": 8, "C": 6})},
    "holed": {"pool": Answer({"A": 42, "B": 19})},
    "replaced": {"pool": Answer({"main": 7, "A": 35}), "other": memfd({"A": 19, "B": 4})},
    "twice": {"pool": memfd({"A": 12, "B": 17, "C": 22})},
    "protected": {"pool": Answer({"A": 29, "B": 14})},
    "read_only_view": {"pool": memfd({"A": 14, "B": 10})},
    "jit": {"pool": Answer({"main": 2, "A": 16, "B": 19})},
    "private_view": {"pool": memfd({"main": 11, "A": 10, "B": 3, "C": 6})},
    "many_regions": {f"pool-{i}": Answer({"B" if i % 2 else "A": i + 1}) for i in range(45)},
    "ranges_64": {"pool": memfd({"A": 192})},
}

KINDS = {
    "anon": {"pool": Answer({"A": 13, "B": 6})},
    "dev_zero": {"pool": Answer({"A": 13, "B": 6})},
    "memfd": {"pool": memfd({"A": 13, "B": 6})},
    "sysv": {"pool": Answer({"A": 13, "B": 6}, kind="sysv")},
    "sysv_detached": {"pool": Answer({"A": 17, "B": 3}, kind="sysv")},
    "posix": {"pool": Answer({"A": 13, "B": 6}, kind="posix")},
    "posix_named": {"pool": Answer({"A": 13, "B": 6}, kind="posix")},
    "twins": {"pool": memfd({"A": 13, "B": 6}), "twin": Answer({"A": 5, "B": 3}, kind="sysv")},
}

BLIND = {
    "fallocated": {"pool": memfd({"B": 8}, unseen=23)},
    "written": {"pool": memfd({"B": 2}, unseen=19)},
    "written_first": {"pool": memfd({"A": 28}, unseen=13)},
    "populated": {"pool": Answer({"B": 4}, unseen=17)},
    "mapped_populated": {"pool": Answer({}, unseen=29)},
    "locked": {"pool": Answer({"B": 20}, unseen=11)},
    "written_across": {"pool": Answer({"B": 6}, unseen=13)},
    "remade_unseen": {"pool": memfd({"A": 11, "B": 4}, unseen=11, freed={"A": 20})},
}

ANSWERS: dict[str, dict[str, Answer]] = {**TOUCHING, **PROCESSES, **MAPPING, **KINDS, **BLIND}


class Traced(NamedTuple):
    report: Report
    notes: Notes


class Tracer:
    def __init__(self, program: Path, directory: Path) -> None:
        self.program = program
        self.notes = directory / "notes"

    def __call__(self, name: str) -> Traced:
        report = trace_command(self.program, name, self.notes)
        return Traced(report, Notes.read(self.notes))


@pytest.fixture
def traced(program: Path, tmp_path: Path) -> Tracer:
    return Tracer(program, tmp_path)


def assert_answer(traced: Traced, name: str, answer: Answer) -> None:
    held = traced.notes.regions[name]
    region = find_region(traced.report, held.id)
    parts = traced.notes.parts
    assert pages_by_part(region, parts, "touched_bytes") == answer.touched
    if answer.freed is not None:
        assert pages_by_part(region, parts, "freed_bytes") == answer.freed
    assert region["unseen_bytes"] == answer.unseen * PAGE_BYTES
    assert region["before_bytes"] == 0
    assert region["allocated_bytes"] == held.pages * PAGE_BYTES
    assert part_of(region["creator"], parts) == answer.creator
    # a region with a path is made by open(2), which is not traced
    assert region["creator"]["how"] == ("inferred" if answer.kind in ("posix", "other") else "traced")
    assert region["kind"] == answer.kind
    assert region["gone"] is not None


@pytest.mark.parametrize("name", ANSWERS)
def test_known_answer(traced: Tracer, name: str) -> None:
    result = traced(name)
    for region, answer in ANSWERS[name].items():
        assert_answer(result, region, answer)
    assert not any(result.report["lost"].values())


@pytest.mark.parametrize("name", ANSWERS)
def test_the_workload_is_what_it_is_said_to_be(program: Path, tmp_path: Path, name: str) -> None:
    """The answers add up to what the kernel says without shmtrace."""
    subprocess.run([program, name, tmp_path / "notes"], stdin=subprocess.DEVNULL, check=True)
    notes = Notes.read(tmp_path / "notes")
    for region, answer in ANSWERS[name].items():
        assert notes.regions[region].pages == sum(answer.touched.values()) + answer.unseen


def test_everything_rolls_up_to_the_creator(traced: Tracer) -> None:
    result = traced("replaced")
    [parent] = result.report["parents"]
    assert part_of(parent["process"], result.notes.parts) == "main"
    held = [held.pages * PAGE_BYTES for held in result.notes.regions.values()]
    assert parent["allocated_bytes"] == parent["grown_bytes"] == sum(held)
    assert len(parent["regions"]) == 2


def test_faults_are_not_growth(traced: Tracer) -> None:
    """Fault-around maps 16 pages at once: A read 37 pages that were there."""
    result = traced("fault_around")
    region = find_region(result.report, result.notes.regions["pool"].id)
    faults = {part_of(row["process"], result.notes.parts): row["faults"] for row in region["touchers"]}
    assert faults["main"] == 37
    assert 3 <= faults["A"] <= 4
    assert 10 <= faults["B"] <= 14


def test_contended_pages_have_one_owner_each(traced: Tracer) -> None:
    result = traced("contended")
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    touched = pages_by_part(region, result.notes.parts, "touched_bytes")
    assert set(touched) <= {"A", "B", "C", "D"}
    assert sum(touched.values()) == held.pages == 5003
    assert region["unseen_bytes"] == 0


def test_three_lives_of_one_pid(traced: Tracer) -> None:
    result = traced("reused")
    region = find_region(result.report, result.notes.regions["pool"].id)
    lives = sorted(region["touchers"], key=lambda row: row["process"]["start_time_ns"])
    assert {part_of(row["process"], result.notes.parts) for row in lives} == {"R"}
    assert [row["touched_bytes"] // PAGE_BYTES for row in lives] == [5, 9, 2]


def test_too_many_ranges_become_unseen(traced: Tracer) -> None:
    result = traced("ranges_80")
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    touched = pages_by_part(region, result.notes.parts, "touched_bytes")
    assert 64 * 3 <= touched["A"] < held.pages
    assert region["unseen_bytes"] == (held.pages - touched["A"]) * PAGE_BYTES
    assert any("ranges" in warning for warning in result.report["warnings"])


def test_five_thousand_regions_come_and_go(traced: Tracer) -> None:
    result = traced("churned")
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    assert pages_by_part(region, result.notes.parts, "touched_bytes") == {"A": 23}
    others = [row for row in result.report["regions"] if row is not region]
    assert len(others) == 5000
    assert sum(row["allocated_bytes"] for row in others) == sum(i % 3 + 1 for i in range(5000)) * PAGE_BYTES
    assert all(row["unseen_bytes"] == 0 for row in others)
    assert not any(result.report["lost"].values())


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Three of 2 MB, for MAP_HUGETLB."""
    knob = Path("/proc/sys/vm/nr_hugepages")
    before = knob.read_text()
    knob.write_text(str(int(before) + 3))
    if int(knob.read_text()) < int(before) + 3:
        knob.write_text(before)
        pytest.skip("this kernel has no three huge pages to give")
    yield
    knob.write_text(before)


@pytest.mark.usefixtures("huge_pages")
def test_hugetlb_is_listed_and_not_paged(traced: Tracer) -> None:
    result = traced("hugetlb")
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    assert region["kind"] == "hugetlb"
    assert region["vss_bytes"] == 3 * HUGE_PAGE * PAGE_BYTES
    assert region["allocated_bytes"] == held.pages * PAGE_BYTES == 2 * HUGE_PAGE * PAGE_BYTES
    assert pages_by_part(region, result.notes.parts, "touched_bytes") == {}
    assert part_of(region["creator"], result.notes.parts) == "main"


@pytest.fixture
def transparent_huge_pages() -> Iterator[None]:
    """For shared memory that asks for them, as APCu does."""
    knob = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if not knob.exists():
        pytest.skip("this kernel has no transparent huge pages for shared memory")
    before = knob.read_text().partition("[")[2].partition("]")[0]
    knob.write_text("advise")
    yield
    knob.write_text(before)


@pytest.mark.usefixtures("transparent_huge_pages")
def test_huge_pages_are_not_lost_sight_of(traced: Tracer) -> None:
    """A writes one byte and makes 512 pages; B writes 30, of which 18 lie in the next huge page."""
    result = traced("huge")
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    assert held.pages == 2 * HUGE_PAGE
    touched = pages_by_part(region, result.notes.parts, "touched_bytes")
    assert set(touched) == {"A", "B"}
    assert max(touched.values()) <= HUGE_PAGE
    assert sum(touched.values()) == held.pages - region["unseen_bytes"] // PAGE_BYTES

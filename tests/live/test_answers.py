"""Workloads whose owners are known to the page, traced from the first instruction and reported after the end.

All of them run one after another under one trace in each tier, but those few whose report as a whole matters.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live.answers import ANSWERS, HUGE_PAGE, Answer
from tests.live.reports import (
    Report,
    assert_touched,
    find_region,
    pages_by_part,
    part_of,
    skipped_at_most,
    trace_command,
)
from tests.live.shmem import PAGE_BYTES
from tests.live.tiers import TIERS, shmtrace
from tests.live.workload import Notes

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]

ALONE = ("contended", "reused", "renamed", "hugetlb", "huge", "read_from_hole")
"""Whose answers are not of the common form."""
HUGETLB_BYTES = 2 << 20


class Traced(NamedTuple):
    report: Report
    notes: Notes


class Batch(NamedTuple):
    """Workloads that ran under one trace."""

    report: Report
    directory: Path

    def __getitem__(self, name: str) -> Traced:
        notes = Notes.read(self.directory / name)
        errors = (self.directory / f"{name}.errors").read_text()
        assert not errors, errors
        if notes.absent:
            pytest.skip(notes.absent)
        return Traced(self.report, notes)


# stdin is none of the tests', and every workload's errors are its own
RUN_ALL = 'program=$1; shift; for name; do "$program" "${name##*/}" "$name" </dev/null 2>"$name.errors"; done; true'


def chosen(items: Iterable[pytest.Item]) -> list[str]:
    """The workloads that the chosen tests are of, each in the order of the answers; all, if one is of them all."""
    tests = [item for item in items if isinstance(item, pytest.Function) and "batch" in item.fixturenames]
    names = {test.callspec.params.get("name") for test in tests}
    return [*ANSWERS, *ALONE] if None in names else [name for name in ANSWERS if name in names]


@pytest.fixture(scope="module")
def batch(
    request: pytest.FixtureRequest,
    tier: str,
    program: Path,
    huge_pages: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Batch:
    directory = tmp_path_factory.mktemp(tier)
    names = [directory / name for name in chosen(request.session.items)]
    report = trace_command("sh", "-c", RUN_ALL, "sh", program, *names, shmtrace=shmtrace(tier), patience_s=600)
    return Batch(report, directory)


def assert_answer(traced: Traced, name: str, answer: Answer, tier: str) -> int:
    """And how many pages are unseen."""
    held = traced.notes.regions[name]
    region = find_region(traced.report, held.id)
    parts = traced.notes.parts
    seen = answer.seen(tier)
    if skipped := assert_touched(traced.report, region, parts, seen, tier):
        return skipped
    freed = answer.given_back(tier)
    if freed is not None:
        assert pages_by_part(region, parts, "freed_bytes") == freed
    made_for = {
        part_of(row["process"], parts): {
            part_of(made["process"], parts): made["made_bytes"] // PAGE_BYTES for made in row["made_for"]
        }
        for row in region["touchers"]
        if row["made_for"]
    }
    assert made_for == ({} if tier == "faults" else answer.made_for)
    unseen = answer.pages - sum(seen.values())
    if tier == "faults" and answer.kind in ("posix", "other"):
        # seen from its first mapping on; where a kernel keeps no birth times, what was there then is from before
        assert region["unseen_bytes"] + region["before_bytes"] == unseen * PAGE_BYTES
    else:
        assert region["unseen_bytes"] == unseen * PAGE_BYTES
        assert region["before_bytes"] == 0
    assert region["allocated_bytes"] == held.pages * PAGE_BYTES
    assert part_of(region["creator"], parts) == answer.creator
    # a region with a path is made by open(2), which the tier of page faults does not trace
    inferred = tier == "faults" and answer.kind in ("posix", "other")
    assert region["creator"]["how"] == ("inferred" if inferred else "traced")
    assert region["kind"] == answer.kind
    assert region["gone"] is not None
    return unseen


@pytest.mark.parametrize("name", ANSWERS)
def test_known_answer(tier: str, batch: Batch, name: str, record_property: Callable[[str, object], None]) -> None:
    traced = batch[name]
    unseen = [assert_answer(traced, region, answer, tier) for region, answer in ANSWERS[name].items()]
    record_property("unseen_pages", sum(unseen))


def test_nothing_was_lost(tier: str, batch: Batch) -> None:
    lost = dict(batch.report["lost"])
    # what the kernel skipped is owned up to, whether a page was lost by it or not
    assert len(batch.report["warnings"]) == (lost.pop("probes") > 0)
    assert not any(lost.values())
    assert batch.report["tier"] == TIERS[tier].name
    assert batch.report["mechanism"] == TIERS[tier].by


@pytest.mark.parametrize("name", ANSWERS)
def test_the_workload_is_what_it_is_said_to_be(program: Path, tmp_path: Path, huge_pages: None, name: str) -> None:
    """The answers add up to what the kernel says without shmtrace."""
    subprocess.run([program, name, tmp_path / "notes"], stdin=subprocess.DEVNULL, check=True)
    notes = Notes.read(tmp_path / "notes")
    if notes.absent:
        pytest.skip(notes.absent)
    for region, answer in ANSWERS[name].items():
        assert notes.regions[region].pages == answer.pages


class Tracer:
    def __init__(self, tier: str, program: Path, directory: Path) -> None:
        self.shmtrace = shmtrace(tier)
        self.program = program
        self.notes = directory / "notes"

    def __call__(self, name: str) -> Traced:
        report = trace_command(self.program, name, self.notes, shmtrace=self.shmtrace)
        return Traced(report, Notes.read(self.notes))


@pytest.fixture
def traced(tier: str, program: Path, tmp_path: Path) -> Tracer:
    return Tracer(tier, program, tmp_path)


def test_everything_rolls_up_to_the_creator(traced: Tracer) -> None:
    result = traced("replaced")
    [parent] = result.report["parents"]
    assert part_of(parent["process"], result.notes.parts) == "main"
    held = [held.pages * PAGE_BYTES for held in result.notes.regions.values()]
    noted = noted_bytes(result.report)
    # those that exist, or else those that are gone
    assert parent["allocated_bytes"] == parent["grown_bytes"] == sum(noted or held)
    assert len(parent["regions"]) == 2 + len(noted)


def noted_bytes(report: Report) -> list[int]:
    """Of the notes that the workload itself writes, where the directory of the tests is on a tmpfs."""
    return [row["allocated_bytes"] for row in report["regions"] if row["name"].endswith("/notes")]


def test_faults_are_not_growth(tier: str, batch: Batch) -> None:
    """Fault-around maps 16 pages at once: A read 37 pages that were there. The exact tier counts no faults."""
    result = batch["fault_around"]
    region = find_region(result.report, result.notes.regions["pool"].id)
    if tier != "faults":
        assert {row["faults"] for row in region["touchers"]} == {None}
        return
    faults = {part_of(row["process"], result.notes.parts): row["faults"] for row in region["touchers"]}
    assert faults["main"] == 37
    assert 3 <= faults["A"] <= 4
    assert 10 <= faults["B"] <= 14


def test_what_is_read_out_of_a_hole(tier: str, batch: Batch) -> None:
    """sendfile from a hole makes pages on some kernels: the workload says how many it found."""
    result = batch["read_from_hole"]
    held, made = result.notes.regions["pool"], result.notes.pages["A"]
    region = find_region(result.report, held.id)
    seen = {"A": made, "B": 29 - made} if tier != "faults" else {"B": 29 - made}
    assert held.pages == 29
    skipped = assert_touched(
        result.report, region, result.notes.parts, {part: n for part, n in seen.items() if n}, tier
    )
    assert region["unseen_bytes"] == (held.pages - sum(seen.values()) + skipped) * PAGE_BYTES


def test_contended_pages_have_one_owner_each(tier: str, batch: Batch) -> None:
    result = batch["contended"]
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    touched = pages_by_part(region, result.notes.parts, "touched_bytes")
    assert set(touched) <= {"A", "B", "C", "D"}
    assert held.pages == 5003
    unseen = region["unseen_bytes"] // PAGE_BYTES
    assert sum(touched.values()) + unseen == held.pages
    assert unseen <= (result.report["lost"]["probes"] if tier == "fentry" else 0)


def test_three_lives_of_one_pid(batch: Batch) -> None:
    result = batch["reused"]
    region = find_region(result.report, result.notes.regions["pool"].id)
    lives = sorted(region["touchers"], key=lambda row: row["process"]["start_time_ns"])
    assert {part_of(row["process"], result.notes.parts) for row in lives} == {"R"}
    assert [row["touched_bytes"] // PAGE_BYTES for row in lives] == [5, 9, 2]


def test_what_they_called_themselves_and_how_they_ended(tier: str, batch: Batch) -> None:
    result = batch["renamed"]
    region = find_region(result.report, result.notes.regions["pool"].id)
    assert_touched(result.report, region, result.notes.parts, {"A": 3, "B": 5, "C": 7}, tier)
    found = {part_of(row["process"], result.notes.parts): row["process"] for row in region["touchers"]}
    assert found["A"]["comm"] == "renamed-3"
    assert [found[part]["exit_code"] for part in "ABC"] == [0, 3, None]
    assert [found[part]["exit_signal"] for part in "ABC"] == [None, None, "SIGKILL"]
    assert found["B"]["command"] == "pool: five"
    # the title that it took after its last touch: before v6.16 only the exact tier asks for it in time
    assert found["C"]["command"] == "pool: seven" or (tier == "faults" and "renamed" in found["C"]["command"])


def test_a_child_is_of_the_tree_whether_its_fork_was_seen_or_not(tier: str, traced: Tracer) -> None:
    result = traced("crowded")
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    probes_skipped = result.report["lost"]["probes"]
    for toucher in region["touchers"]:
        assert toucher["process"]["in_tree"]
        # where the fork of its parent was skipped too, page faults alone tell no name
        assert "crowded" in toucher["process"]["command"] or (tier == "faults" and probes_skipped)
    touched = [toucher["touched_bytes"] // PAGE_BYTES for toucher in region["touchers"]]
    missing = 6 * 70 * 5 - sum(touched)
    assert max(touched) == 5
    # page faults alone do not tell whose child it is: none of its pages is seen
    skipped = 5 * probes_skipped if tier == "faults" else skipped_at_most(result.report, tier)
    assert 0 <= missing <= skipped
    assert region["unseen_bytes"] == missing * PAGE_BYTES


def test_many_regions_come_and_go(tier: str, traced: Tracer) -> None:
    result = traced("churned")
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    assert_touched(result.report, region, result.notes.parts, {"A": 23}, tier)
    others = [row for row in result.report["regions"] if row is not region and not row["name"].endswith("/notes")]
    assert len(others) == 1499
    assert sum(row["allocated_bytes"] for row in others) == sum(i % 3 + 1 for i in range(1499)) * PAGE_BYTES
    lost = dict(result.report["lost"])
    skipped = lost.pop("probes")
    assert sum(row["unseen_bytes"] for row in others) <= (skipped * PAGE_BYTES if tier == "fentry" else 0)
    assert not any(lost.values())


def test_hugetlb(tier: str, batch: Batch) -> None:
    """Page faults do not tell who made its pages: it is listed."""
    result = batch["hugetlb"]
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    assert region["kind"] == "hugetlb"
    assert region["size_bytes"] == 3 * HUGETLB_BYTES
    assert region["allocated_bytes"] == held.pages * PAGE_BYTES == 2 * HUGETLB_BYTES
    seen = {} if tier == "faults" else {"A": 2 * HUGETLB_BYTES // PAGE_BYTES}
    assert pages_by_part(region, result.notes.parts, "touched_bytes") == seen
    assert region["unseen_bytes"] == region["allocated_bytes"] - sum(seen.values()) * PAGE_BYTES
    assert part_of(region["creator"], result.notes.parts) == "main"


def test_huge_pages(tier: str, batch: Batch) -> None:
    """A writes one byte and makes a huge page; B writes 30, of which 18 lie in the next huge page."""
    result = batch["huge"]
    held = result.notes.regions["pool"]
    region = find_region(result.report, held.id)
    assert held.pages == 2 * HUGE_PAGE
    touched = pages_by_part(region, result.notes.parts, "touched_bytes")
    assert set(touched) == {"A", "B"}
    if tier == "faults":
        assert max(touched.values()) <= HUGE_PAGE
        assert sum(touched.values()) == held.pages - region["unseen_bytes"] // PAGE_BYTES
    else:
        assert touched == {"A": HUGE_PAGE, "B": HUGE_PAGE}
        assert region["unseen_bytes"] == 0

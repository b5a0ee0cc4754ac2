"""A million page additions by eight processes that have a quarter of the memory they need, and swap for the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.reports import find_region, pages_by_part, trace_command
from tests.live.shmem import PAGE_BYTES
from tests.live.workload import Notes

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]

TOUCHED = {"A": 6765, "B": 6762, "C": 6772, "D": 6769, "E": 6766, "F": 6763, "G": 6773, "H": 6770}
ADDED = {part: 125_000 + 101 * number for number, part in enumerate(TOUCHED)}
PATIENCE_S = 1800.0  # in an emulated guest, on CPUs that have other work


def test_nothing_is_lost_under_pressure(program: Path, tmp_path: Path) -> None:
    """In the best tier there is."""
    report = trace_command(program, "pressure", tmp_path / "notes", patience_s=PATIENCE_S)
    notes = Notes.read(tmp_path / "notes")
    if notes.absent:
        pytest.skip(notes.absent)
    held = notes.regions["pool"]
    region = find_region(report, held.id)
    touched = pages_by_part(region, notes.parts, "touched_bytes")
    freed = pages_by_part(region, notes.parts, "freed_bytes")
    assert touched == TOUCHED, (report["lost"], region["unseen_bytes"])
    assert region["allocated_bytes"] == held.pages * PAGE_BYTES
    assert region["unseen_bytes"] == 0
    lost = dict(report["lost"])
    # what the kernel skipped is owned up to: no page that is there was lost by it, but of those given back some are not
    # counted (7.2, which preempts programs: 4, 6, 9 and 18 of four processes' 125,000)
    skipped = lost.pop("probes")
    assert len(report["warnings"]) == (skipped > 0)
    assert not any(lost.values())
    if report["tier"] == "exact":
        uncounted = {part: added - touched[part] - freed[part] for part, added in ADDED.items()}
        assert min(uncounted.values()) >= 0
        assert sum(uncounted.values()) <= skipped

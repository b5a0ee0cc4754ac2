"""What is written of a region, by what the probes say; these are made up."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.kernel.maps import Usage
from tracer.proc import shmem
from tracer.record.processes import Processes
from tracer.record.region_writer import RegionWriter
from tracer.record.regions import TracedRegion

CLOCK = Clock(monotonic_ns=500, boot_ns=1_000_000_000_000, wall_ns=1_700_000_000_000_000_000)
TGID, REGION = 812, 7


@pytest.fixture
def capture() -> Iterator[Capture]:
    with Capture() as capture:
        yield capture


def test_what_the_dead_had_freed_is_never_of_who_has_their_pid_next(capture: Capture) -> None:
    """The probes know the PID alone. A process that never touched the region has freed nothing of it; of two that had
    the PID and touched it, what once counted for the first goes on to: else counters would count it again.
    """
    lives, usages = Processes(capture, CLOCK), dict[tuple[int, int], Usage]()
    probes = mock.Mock(counts_faults=True, usages=lambda number: usages if number == REGION else {})
    row = capture.insert("region", dev=1, ino=1046, kind="posix", name="/dev/shm/x")
    region = TracedRegion(row, REGION, shmem.RegionKey(1, 1046, 7), "posix", None)
    writer = RegionWriter(capture, probes, lives, None, mock.Mock(), CLOCK)

    def freed() -> dict[int, int]:
        with mock.patch.object(writer, "_usages_at_s", 0.0):
            writer.checkpoint_usages({REGION: region})
        query = "SELECT process.start_time_ns, freed_pages FROM usage JOIN process ON process.id = process"
        return {started_ns: pages for started_ns, pages in capture.rows(query) if pages}

    def lived(start_time_ns: int) -> None:
        lives.end(lives.begin(TGID, start_time_ns, None, "x", "x", began_us=start_time_ns), start_time_ns + 1)

    lived(10)  # touches nothing
    lived(20)
    usages.update({(TGID, 20): Usage(23, 2), (TGID, 0): Usage(0, 5)})
    assert freed() == {20: 2 + 5}
    lived(30)  # touches nothing, either
    usages[TGID, 0] = Usage(0, 7)
    assert freed() == {20: 2 + 7}
    lived(40)
    usages[TGID, 40] = Usage(3, 1)
    assert freed() == {20: 2 + 7, 40: 1}

"""The CSV export: one row for each process, region and second, with the pages touched."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from tracer.account import Account, Process, Region
from tracer.capture.capture import PAGE_BYTES, Capture
from tracer.tables.table import Column

TOUCHED = """
SELECT region, process, min(first_ns), sum("end" - start) FROM extent WHERE process IS NOT NULL
GROUP BY region << 32 | process, first_ns / 1000000000 ORDER BY 3
"""


class TouchRow(NamedTuple):
    """A part of what a region has allocated."""

    region: Region
    part: str
    """touched, before or unseen"""
    process: Process | None
    time_ns: int | None
    """CLOCK_REALTIME of the first of these pages"""
    touched_bytes: int


COLUMNS = [
    Column("time_ns", "", lambda touch: touch.time_ns),
    Column("region", "", lambda touch: touch.region.id),
    Column("kind", "", lambda touch: touch.region.kind),
    Column("name", "", lambda touch: touch.region.name),
    Column("part", "", lambda touch: touch.part),
    Column("tgid", "", lambda touch: touch.process and touch.process.tgid),
    Column("command", "", lambda touch: touch.process and touch.process.command),
    Column("pages", "", lambda touch: touch.touched_bytes // PAGE_BYTES),
    Column("bytes", "", lambda touch: touch.touched_bytes),
]


def rows(account: Account, capture: Capture, processes: dict[int, Process]) -> Iterator[TouchRow]:
    """All touches of a capture, whatever the account's window. A region's rows add up to what it has allocated.

    processes: by row, as read_processes() returns them.
    """
    regions = {region.row: region for region in account.regions}
    numbers = array("q")  # read all at once: while the capture is being read, a running trace cannot commit
    for touched in capture.each(TOUCHED):
        numbers.extend(touched)
    yield from _left(account, "before")
    for row, process, time_ns, pages in zip(*[iter(numbers)] * 4):
        yield TouchRow(regions[row], "touched", processes[process], time_ns, pages * PAGE_BYTES)
    yield from _left(account, "unseen")


def _left(account: Account, part: str) -> Iterator[TouchRow]:
    for region in account.regions:
        size_bytes = region.before_bytes if part == "before" else region.unseen_bytes
        if size_bytes:
            yield TouchRow(region, part, None, None, size_bytes)

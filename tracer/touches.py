"""Every touch in a capture as a row of a table: who, which region, in which second, how many pages."""

from __future__ import annotations

from typing import NamedTuple

from tracer.account import Account, Process, Region, region_id
from tracer.capture import Capture
from tracer.procfs import PAGE_BYTES
from tracer.tables import Column, Table

TOUCHED = """
SELECT region, process, min(first_ns), sum("end" - start) FROM extent WHERE process IS NOT NULL
GROUP BY region, process, first_ns / 1000000000 ORDER BY 3
"""


class Touch(NamedTuple):
    """A part of what a region has."""

    region: Region
    part: str
    """touched, before or unseen"""
    process: Process | None
    time_ns: int | None
    """of the first of these pages"""
    touched_bytes: int


COLUMNS = [
    Column("time_ns", "", lambda touch: touch.time_ns),
    Column("region", "", lambda touch: region_id(touch.region)),
    Column("kind", "", lambda touch: touch.region.kind),
    Column("name", "", lambda touch: touch.region.name),
    Column("part", "", lambda touch: touch.part),
    Column("pid", "", lambda touch: touch.process and touch.process.tgid),
    Column("process", "", lambda touch: touch.process and touch.process.command),
    Column("pages", "", lambda touch: touch.touched_bytes // PAGE_BYTES),
    Column("bytes", "", lambda touch: touch.touched_bytes),
]


def table(account: Account, capture: Capture, processes: dict[int, Process]) -> Table:
    """The bytes of a region's rows add up to what it has allocated. Of all of the capture's time."""
    keys = capture.rows("SELECT id, dev, ino, generation FROM region")
    of_key = {(region.dev, region.ino, region.generation): region for region in account.regions}
    regions = {row: of_key[tuple(key)] for row, *key in keys}
    rows = [Touch(region, "before", None, None, region.before_bytes) for region in account.regions]
    rows += [
        Touch(regions[region], "touched", processes[process], first_ns, pages * PAGE_BYTES)
        for region, process, first_ns, pages in capture.rows(TOUCHED)
    ]
    rows += [Touch(region, "unseen", None, None, region.unseen_bytes) for region in account.regions]
    return Table("touch", COLUMNS, [row for row in rows if row.touched_bytes])

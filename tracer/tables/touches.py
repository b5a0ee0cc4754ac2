"""The CSV export: one row for each process, label, region and second, with the pages touched."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from tracer import alike, labels
from tracer.account import read_labels
from tracer.capture.capture import Capture
from tracer.model import Account, Label, Process, Region
from tracer.tables.table import Column

TOUCHED = """
SELECT region, process, ifnull(label, 0), min(first_ns), sum("end" - start) FROM extent WHERE process IS NOT NULL
GROUP BY region << 32 | process, label, first_ns / 1000000000 ORDER BY 4
"""


class TouchRow(NamedTuple):
    """A part of what a region has allocated."""

    region: Region
    part: str
    """touched, before or unseen"""
    process: Process | None
    group: str | None
    """what the process has in common with those alike"""
    label: Label | None
    time_ns: int | None
    """CLOCK_REALTIME of the first of these pages"""
    touched_bytes: int


def columns(account: Account) -> list[Column]:
    """The columns of the rows: with labels in the capture, also one for each of their texts."""
    texts = labels.columns(account.session.label)
    return [
        Column("time_ns", "", lambda touch: touch.time_ns),
        Column("region", "", lambda touch: touch.region.id),
        Column("kind", "", lambda touch: touch.region.kind),
        Column("name", "", lambda touch: touch.region.name),
        Column("part", "", lambda touch: touch.part),
        Column("tgid", "", lambda touch: touch.process and touch.process.tgid),
        Column("command", "", lambda touch: touch.process and touch.process.command),
        Column("group", "", lambda touch: touch.group),
        *(_of_label(text) for text in texts),
        Column("pages", "", lambda touch: touch.touched_bytes // account.session.page_bytes),
        Column("bytes", "", lambda touch: touch.touched_bytes),
    ]


def _of_label(text: str) -> Column:
    return Column(text, "", lambda touch: touch.label and getattr(touch.label, text))


def rows(account: Account, capture: Capture, processes: dict[int, Process]) -> Iterator[TouchRow]:
    """All touches of a capture, whatever the account's window. A region's rows add up to what it has allocated.

    processes: by row, as read_processes() returns them.
    """
    regions = {region.row: region for region in account.regions}
    groups = {row: alike.of_process(process) for row, process in processes.items()}
    found = read_labels(capture) if account.session.label else {}
    page_bytes = account.session.page_bytes
    numbers = array("q")  # read all at once: while the capture is being read, a running trace cannot commit
    for touched in capture.each(TOUCHED):
        numbers.extend(touched)
    yield from _left(account, "before")
    for row, process, label, time_ns, pages in zip(*[iter(numbers)] * 5):
        who = processes[process], groups[process]
        yield TouchRow(regions[row], "touched", *who, found.get(label), time_ns, pages * page_bytes)
    yield from _left(account, "unseen")


def _left(account: Account, part: str) -> Iterator[TouchRow]:
    for region in account.regions:
        size_bytes = region.before_bytes if part == "before" else region.unseen_bytes
        if size_bytes:
            yield TouchRow(region, part, None, None, None, None, size_bytes)

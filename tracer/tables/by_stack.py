"""The table of an account by user stack: which code allocated the pages. Pure."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tracer.errors import ShmtraceError
from tracer.model import Account, Region
from tracer.tables.rollup import what
from tracer.tables.table import Column, Table


class StackRow(NamedTuple):
    """The pages of one region that were allocated from one user stack."""

    region: Region
    what: str
    frames: tuple[str, ...] | None
    """callers first; None: unknown"""
    made_bytes: int
    """including what was freed since"""
    processes: int
    """how many processes had this stack"""


BY_STACK = [
    Column("made_bytes", "made", lambda row: row.made_bytes),
    Column("processes", "by", lambda row: row.processes),
    Column("region", "", lambda row: row.region.id, "<"),
    Column("ino", "region", lambda row: row.region.ino),
    Column("what", "what", lambda row: row.what, "<"),
    Column(
        "stack",
        "stack",
        lambda row: row.frames and ";".join(frame.replace(";", "\\x3b") for frame in row.frames),
        "<",
        shown=lambda row: " < ".join(reversed(row.frames)) if row.frames else "?",
    ),
]


def by_stack(account: Account) -> Table:
    """Bytes of each region by user stack, most first. Raises ShmtraceError if the capture has no stacks."""
    if not account.has_stacks:
        raise ShmtraceError("the capture has no stacks", "record it with --stacks")
    rows = []
    for parent in account.parents:
        for region in parent.regions:
            sizes: Counter[tuple[str, ...] | None] = Counter()
            processes: Counter[tuple[str, ...] | None] = Counter()
            for toucher in region.touchers:
                for made in toucher.stacks:
                    sizes[made.frames] += made.size_bytes
                    processes[made.frames] += 1
            rows += [
                StackRow(region, what(region, parent), frames, made_bytes, processes[frames])
                for frames, made_bytes in sizes.items()
            ]
    return Table("stack", BY_STACK, sorted(rows, key=lambda row: (-row.made_bytes, row.frames or ())))

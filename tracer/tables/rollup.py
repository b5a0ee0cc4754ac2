"""The tables of an account by region, by process and by parent. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tracer import guess
from tracer.capture.capture import Capture
from tracer.formatting import shorten, shorten_command
from tracer.model import ALL_TIME, Account, Parent, Process, Region, Toucher
from tracer.tables.by_time import bounds, histories
from tracer.tables.table import Column, Table

PARTS = {"other_times": "at other times", "before": "before the trace", "unseen": "unseen", "sum": "sum"}
"""How tables show the parts that no process touched in the window, and the sum."""


def command(process: Process | None) -> str:
    """The command line of a process; empty for None."""
    return process.name if process else ""


def who(process: Process | None) -> str:
    """PID and name of a process; empty for None."""
    return process.who if process else ""


# ---- by region ----


class RegionRow(NamedTuple):
    """A region and its growth in the window."""

    region: Region
    what: str
    """its guessed use, or else its name"""
    grown_bytes: int
    grower: Toucher | None
    """the process that touched most of it in the window; None: nobody touched it"""


BY_REGION = [
    Column("id", "", lambda row: row.region.id, "<"),
    Column("ino", "region", lambda row: row.region.ino),
    Column(
        "what",
        "what",
        lambda row: row.what,
        "<",
        shown=lambda row: f"{row.what}{', gone' * bool(row.region.gone_ns)}",
        cut=shorten,
    ),
    Column("name", "", lambda row: row.region.name, "<"),
    Column("kind", "kind", lambda row: row.region.kind, "<"),
    Column("size_bytes", "size", lambda row: row.region.size_bytes),
    Column("allocated_bytes", "allocated", lambda row: row.region.allocated_bytes),
    Column("grown_bytes", "grown", lambda row: row.grown_bytes, signed=True),
    Column("peak_bytes", "", lambda row: row.region.peak_bytes),
    Column("swapped_bytes", "swapped", lambda row: row.region.swapped_bytes, if_any=True),
    Column("touched_bytes", "", lambda row: row.region.touched_bytes),
    Column("other_times_bytes", "", lambda row: row.region.other_times_bytes),
    Column("before_bytes", "", lambda row: row.region.before_bytes),
    Column("unseen_bytes", "", lambda row: row.region.unseen_bytes),
    Column("grower", "most by", lambda row: who(row.grower and row.grower.process), "<", cut=shorten_command),
    Column("grower_bytes", "", lambda row: row.grower.touched_bytes if row.grower else 0),
    Column("creator", "creator", lambda row: row.region.creator and row.region.creator.process.tgid),
    Column("creator_command", "", lambda row: command(row.region.creator and row.region.creator.process), "<"),
    Column("created_ns", "", lambda row: row.region.created_ns),
    Column("gone_ns", "", lambda row: row.region.gone_ns),
]


def by_region(account: Account, capture: Capture) -> Table:
    """A row for each region; those that are gone come last. capture: read only if the account has a window."""
    found = None if account.window == ALL_TIME else histories(account, capture)
    rows = []
    for parent in account.parents:
        for region in parent.regions:
            most = region.touchers[0] if region.touchers and region.touchers[0].touched_bytes else None
            grown_bytes = region.grown_bytes
            if found:
                since_ns, until_ns = bounds(account)
                history = found[region.row]
                grown_bytes = history.at(until_ns) - history.at(since_ns)
            rows.append(RegionRow(region, what(region, parent), grown_bytes, most))
    return Table("region", BY_REGION, sorted(rows, key=lambda row: row.region.gone_ns is not None))


def what(region: Region, parent: Parent) -> str:
    """The guessed use of a region, or else its name."""
    return guess.called(region, parent.process)


# ---- by process ----


class ProcessRow(NamedTuple):
    """What one process did to all regions together."""

    process: Process
    touched_bytes: int
    freed_bytes: int
    faults: int | None
    regions: Sequence[str]
    """names of the regions it touched, most touched first"""


BY_PROCESS = [
    Column("tgid", "PID", lambda row: row.process.tgid),
    Column("started_ns", "", lambda row: row.process.started_ns),
    Column("ns_tgid", "", lambda row: row.process.ns_tgid),
    Column(
        "command",
        "process",
        lambda row: command(row.process),
        "<",
        shown=lambda row: row.process.who.partition(" ")[2],
        cut=shorten_command,
    ),
    Column("parent", "", lambda row: row.process.parent),
    Column("cgroup", "", lambda row: row.process.cgroup, "<"),
    Column("unit", "", lambda row: row.process.unit, "<"),
    Column("touched_bytes", "touched", lambda row: row.touched_bytes),
    Column("freed_bytes", "freed", lambda row: row.freed_bytes, if_any=True),
    Column("faults", "faults", lambda row: row.faults),
    Column("exited_ns", "exited", lambda row: row.process.exited_ns),
    Column("regions", "of", lambda row: ", ".join(row.regions), "<"),
]


def by_process(account: Account) -> Table:
    """A row for each process that touched a region or faulted on one, most touched first."""
    found: dict[Process, list[tuple[Toucher, str]]] = {}
    for parent in account.parents:
        for region in parent.regions:
            name = f"{what(region, parent)} {region.ino}"
            for toucher in region.touchers:
                found.setdefault(toucher.process, []).append((toucher, name))
    rows = []
    for process, touched in found.items():
        touched.sort(key=lambda item: -item[0].touched_bytes)
        faults = [toucher.faults for toucher, _ in touched if toucher.faults is not None]
        rows.append(
            ProcessRow(
                process,
                sum(toucher.touched_bytes for toucher, _ in touched),
                sum(toucher.freed_bytes for toucher, _ in touched),
                sum(faults) if faults else None,
                [name for toucher, name in touched if toucher.touched_bytes],
            )
        )
    rows.sort(key=lambda row: (-row.touched_bytes, -(row.faults or 0), row.process.tgid, row.process.start_time_ns))
    return Table("process", BY_PROCESS, rows)


# ---- by parent ----


class Share(NamedTuple):
    """A part of what one region has allocated."""

    parent: Parent
    region: Region
    part: str
    """touched, other_times, before or unseen"""
    toucher: Toucher | None
    """None unless part is touched"""
    size_bytes: int


BY_PARENT = [
    Column("parent", "", lambda row: row.parent.process and row.parent.process.tgid),
    Column("parent_command", "", lambda row: command(row.parent.process), "<"),
    Column("region", "", lambda row: row.region.id, "<"),
    Column("what", "", lambda row: what(row.region, row.parent), "<"),
    Column("name", "", lambda row: row.region.name, "<"),
    Column("kind", "", lambda row: row.region.kind, "<"),
    Column("gone_ns", "", lambda row: row.region.gone_ns),
    Column("part", "", lambda row: row.part, "<"),
    Column("allocated_bytes", "", lambda row: row.size_bytes),
    Column("tgid", "", lambda row: row.toucher and row.toucher.process.tgid),
    Column("command", "", lambda row: command(row.toucher and row.toucher.process), "<"),
    Column("exited_ns", "", lambda row: row.toucher and row.toucher.process.exited_ns),
    Column("freed_bytes", "", lambda row: row.toucher and row.toucher.freed_bytes),
    Column("faults", "", lambda row: row.toucher and row.toucher.faults),
    Column("first_ns", "", lambda row: row.toucher and row.toucher.first_ns),
    Column("last_ns", "", lambda row: row.toucher and row.toucher.last_ns),
]


def by_parent(account: Account) -> Table:
    """A row for each part of each region. A region's rows add up to what it has allocated."""
    rows = []
    for parent in account.parents:
        for region in parent.regions:
            rows += [Share(parent, region, "touched", toucher, toucher.touched_bytes) for toucher in region.touchers]
            rows += [
                Share(parent, region, part, None, size_bytes)
                for part, size_bytes in (
                    ("other_times", region.other_times_bytes),
                    ("before", region.before_bytes),
                    ("unseen", region.unseen_bytes),
                )
            ]
    return Table("parent", BY_PARENT, rows)

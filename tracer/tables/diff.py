"""Compare two accounts, A and B: what grew between them, by region and by process. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Sequence
from typing import Callable, NamedTuple, TypeVar

from tracer.account import Account, Process, Region
from tracer.tables.rollup import command, what
from tracer.tables.table import Column, Table

SAME_BOOT_NS = 10 * 10**9  # boot times that differ by less are one boot: a clock may be adjusted, a boot takes longer
T = TypeVar("T")


class Change(NamedTuple):
    """One region, one process, or all processes of one command, in A and in B."""

    of: str
    """region, process or sum"""
    what: str
    kind: str
    ids_a: Sequence[str]
    ids_b: Sequence[str]
    how: str
    """same, alike (another region or process with the same name), new or gone"""
    allocated_a_bytes: int | None
    allocated_b_bytes: int | None
    touched_a_bytes: int
    touched_b_bytes: int

    @property
    def allocated_change_bytes(self) -> int | None:
        if self.allocated_a_bytes is None or self.allocated_b_bytes is None:
            return None
        return self.allocated_b_bytes - self.allocated_a_bytes

    @property
    def touched_change_bytes(self) -> int:
        return self.touched_b_bytes - self.touched_a_bytes


class Held(NamedTuple):
    """A region with the names that identify it in a capture of another boot, where its inode number differs."""

    whose: str
    """command line of its parent"""
    what: str
    """its guessed use, or else its name"""
    region: Region


class Diff(NamedTuple):
    """The changes from A to B, in tables of Change rows with their sums."""

    same_boot: bool
    """both are of one boot of one host"""
    regions: Table
    processes: Table


REGION_COLUMNS = [
    Column("of", "", lambda row: row.of, "<"),
    Column("what", "what", lambda row: row.what, "<"),
    Column("kind", "kind", lambda row: row.kind, "<"),
    Column("how", "is", lambda row: row.how, "<"),
    Column("ids_a", "", lambda row: " ".join(row.ids_a), "<"),
    Column("ids_b", "", lambda row: " ".join(row.ids_b), "<"),
    Column("allocated_a_bytes", "allocated A", lambda row: row.allocated_a_bytes),
    Column("allocated_b_bytes", "B", lambda row: row.allocated_b_bytes),
    Column("allocated_change_bytes", "change", lambda row: row.allocated_change_bytes, signed=True),
    Column("touched_a_bytes", "touched A", lambda row: row.touched_a_bytes),
    Column("touched_b_bytes", "B", lambda row: row.touched_b_bytes),
    Column("touched_change_bytes", "change", lambda row: row.touched_change_bytes, signed=True),
]
PROCESS_COLUMNS = [
    Column("tgids", "PID", lambda row: _pids(row)),
    Column("what", "process", lambda row: row.what, "<"),
    *[column for column in REGION_COLUMNS if column.name == "how" or column.name.startswith("touched")],
]


def diff(a: Account, b: Account) -> Diff:
    """The changes from A to B, largest first.

    In two captures of one boot, regions are matched by inode and processes by PID and start time. What this leaves
    over, and everything in captures of two boots, is matched by name. Of a parent's regions, those that still exist
    count.
    """
    same_boot = _same_boot(a, b)
    regions = sorted(_regions(a, b, same_boot), key=lambda row: -abs(row.allocated_change_bytes or 0))
    processes = sorted(_processes(a, b, same_boot), key=lambda row: -abs(row.touched_change_bytes))
    return Diff(
        same_boot,
        Table("region", REGION_COLUMNS, regions, _sum(regions, allocated=True)),
        Table("process", PROCESS_COLUMNS, processes, _sum(processes, allocated=False)),
    )


def both(found: Diff) -> Table:
    """One table for CSV: the regions, then the processes, in the columns of the regions."""
    return Table("diff", REGION_COLUMNS, [*found.regions.rows, *found.processes.rows])


def _same_boot(a: Account, b: Account) -> bool:
    booted_a, booted_b = _booted_ns(a), _booted_ns(b)
    if a.session.host != b.session.host or booted_a is None or booted_b is None:
        return False
    return abs(booted_a - booted_b) < SAME_BOOT_NS


def _booted_ns(account: Account) -> float | None:
    """CLOCK_REALTIME of the boot, computed from processes whose start is known in both clocks; None: unknown."""
    processes = {toucher.process for region in account.regions for toucher in region.touchers}
    processes |= {parent.process for parent in account.parents if parent.process}
    booted = [one.started_ns - one.start_time_ns for one in processes if one.started_ns and one.start_time_ns]
    return statistics.median(booted) if booted else None


# ---- regions ----


def _regions(a: Account, b: Account, same_boot: bool) -> Iterable[Change]:
    first, second = _current(a), _current(b)
    pairs: list[tuple[Held, Held]] = []
    if same_boot:
        pairs, first, second = _match(first, second, lambda one: one.region.id)
    alike, gone, new = _match(first, second, lambda one: (one.whose, one.what, one.region.kind, one.region.size_bytes))
    yield from (_region("same", *pair) for pair in pairs)
    yield from (_region("alike", *pair) for pair in alike)
    yield from (_region("gone", one, None) for one in gone)
    yield from (_region("new", None, one) for one in new)


def _current(account: Account) -> list[Held]:
    return [
        Held(command(parent.process), what(region, parent), region)
        for parent in account.parents
        for region in parent.current
    ]


def _match(
    first: Sequence[T], second: Sequence[T], key: Callable[[T], Hashable]
) -> tuple[list[tuple[T, T]], list[T], list[T]]:
    """(pairs with the same key, unmatched of first, unmatched of second). Each item is in one pair at most."""
    waiting: dict[Hashable, list[T]] = {}
    for one in second:
        waiting.setdefault(key(one), []).append(one)
    pairs, left = [], []
    for one in first:
        others = waiting.get(key(one))
        if others:
            pairs.append((one, others.pop(0)))
        else:
            left.append(one)
    return pairs, left, [one for others in waiting.values() for one in others]


def _region(how: str, one: Held | None, other: Held | None) -> Change:
    """The change of a region. one is from A, other from B; at most one of them is None."""
    a, b = ([held.region] if held else [] for held in (one, other))
    name = [held.what for held in (one, other) if held][-1]
    return Change(
        "region",
        name,
        (a + b)[0].kind,
        [region.id for region in a],
        [region.id for region in b],
        how,
        sum(region.allocated_bytes for region in a),
        sum(region.allocated_bytes for region in b),
        sum(region.touched_bytes for region in a),
        sum(region.touched_bytes for region in b),
    )


# ---- processes ----


def _processes(a: Account, b: Account, same_boot: bool) -> Iterable[Change]:
    first, second = list(_touched(a).items()), list(_touched(b).items())
    pairs: list[tuple[tuple[Process, int], tuple[Process, int]]] = []
    if same_boot:
        pairs, first, second = _match(first, second, lambda one: (one[0].tgid, one[0].start_time_ns))
    for one, other in pairs:
        yield _process(command(other[0]), [one], [other], "same")
    names = dict.fromkeys(command(process) for process, _ in first + second)
    members: dict[str, tuple[list[tuple[Process, int]], list[tuple[Process, int]]]] = {name: ([], []) for name in names}
    for side, found in enumerate((first, second)):
        for one in found:
            members[command(one[0])][side].append(one)
    for name, (before, after) in members.items():
        yield _process(name, before, after, "alike" if before and after else "gone" if before else "new")


def _touched(account: Account) -> dict[Process, int]:
    touched: dict[Process, int] = {}
    for held in _current(account):
        for toucher in held.region.touchers:
            if toucher.touched_bytes:
                touched[toucher.process] = touched.get(toucher.process, 0) + toucher.touched_bytes
    return touched


def _process(name: str, before: list[tuple[Process, int]], after: list[tuple[Process, int]], how: str) -> Change:
    return Change(
        "process",
        name,
        "",
        [str(process.tgid) for process, _ in before],
        [str(process.tgid) for process, _ in after],
        how,
        None,
        None,
        sum(size_bytes for _, size_bytes in before),
        sum(size_bytes for _, size_bytes in after),
    )


def _pids(row: Change) -> str:
    """The PID if there is only one, or else the numbers of processes in A and in B."""
    ids = {*row.ids_a, *row.ids_b}
    if len(ids) <= 1:
        return "".join(ids)
    return f"x{len(row.ids_a)}" if len(row.ids_a) == len(row.ids_b) else f"x{len(row.ids_a)}→{len(row.ids_b)}"


def _sum(rows: Sequence[Change], allocated: bool) -> Change:
    return Change(
        "sum",
        "sum",
        "",
        [],
        [],
        "",
        sum(row.allocated_a_bytes or 0 for row in rows) if allocated else None,
        sum(row.allocated_b_bytes or 0 for row in rows) if allocated else None,
        sum(row.touched_a_bytes for row in rows),
        sum(row.touched_b_bytes for row in rows),
    )

"""Compare two accounts, A and B: what grew between them, by region, by process and by label. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Callable, NamedTuple, TypeVar

from tracer import alike, labels
from tracer.formatting import shorten, shorten_command
from tracer.model import NAMELESS, SAME_BOOT_NS, Account, Parent, Process, Region, booted_ns
from tracer.tables.rollup import command
from tracer.tables.table import Column, Table

T = TypeVar("T")


class Change(NamedTuple):
    """A region, a process or a label in A and in B; or regions or processes that are alike, together."""

    of: str
    """region, process, label, host or sum"""
    what: str
    kind: str
    ids_a: Sequence[str]
    ids_b: Sequence[str]
    how: str
    """same, alike (other regions or processes that are alike), new or gone"""
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


Held = tuple[Region, Parent]
"""A region and the parent that it rolls up to."""


class Diff(NamedTuple):
    """The changes from A to B, in tables of Change rows with their sums."""

    same_boot: bool
    """both are of one boot of one host"""
    regions: Table
    processes: Table
    labels: Table | None
    """None: the captures have no labels of one kind"""
    hosts: Table | None
    """None: both are of one host each"""


REGION_COLUMNS = [
    Column("of", "", lambda row: row.of, "<"),
    Column(
        "what", "what", lambda row: row.what, "<", shown=lambda row: f"{row.what} {_number(row)}".rstrip(), cut=shorten
    ),
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
HOST_COLUMNS = [
    Column("what", "host", lambda row: row.what, "<", cut=shorten),
    *[column for column in REGION_COLUMNS if column.name == "how" or column.name.endswith("_bytes")],
]
PROCESS_COLUMNS = [
    Column("tgids", "PID", lambda row: _number(row) or "".join({*row.ids_a, *row.ids_b})),
    Column("what", "process", lambda row: row.what, "<", cut=shorten_command),
    *[column for column in REGION_COLUMNS if column.name == "how" or column.name.startswith("touched")],
]


def diff(a: Account, b: Account) -> Diff:
    """The changes from A to B, largest first. Of many hosts, all are matched by what they have in common with others.

    In two captures of one boot, regions are matched by inode, and processes, unless they are more than a handful, by
    PID and start time. What this leaves over, and everything in captures of two boots, is matched by what it has in
    common with others, as the answer says it: regions also by their creators, and by their size if that fits. Of a
    parent's regions, those that still exist count.
    """
    same_boot = _same_boot(a, b)
    regions = sorted(_regions(a, b, same_boot), key=lambda row: -abs(row.allocated_change_bytes or 0))
    processes = sorted(_processes(a, b, same_boot), key=lambda row: -abs(row.touched_change_bytes))
    return Diff(
        same_boot,
        Table("region", REGION_COLUMNS, regions, _sum(regions, allocated=True)),
        Table("process", PROCESS_COLUMNS, processes, _sum(processes, allocated=False)),
        _labels(a, b),
        _hosts(a, b),
    )


def both(found: Diff) -> Table:
    """One table for CSV: the regions, processes, labels and hosts, in the columns of the regions."""
    others = [row for table in (found.labels, found.hosts) if table for row in table.rows]
    return Table("diff", REGION_COLUMNS, [*found.regions.rows, *found.processes.rows, *others])


def _same_boot(a: Account, b: Account) -> bool:
    if a.hosts or b.hosts:
        return False
    booted_a, booted_b = _booted_ns(a), _booted_ns(b)
    if a.session.host != b.session.host or booted_a is None or booted_b is None:
        return False
    return abs(booted_a - booted_b) < SAME_BOOT_NS


def _booted_ns(account: Account) -> float | None:
    processes = {toucher.process for region in account.regions for toucher in region.touchers}
    return booted_ns(processes | {parent.process for parent in account.parents if parent.process})


# ---- regions ----


def _regions(a: Account, b: Account, same_boot: bool) -> Iterator[Change]:
    keys: list[tuple[str, Callable[[Held], Hashable]]] = [
        ("alike", lambda held: (*_kind(held), held[0].size_bytes)),
        ("alike", _kind),
        ("alike", lambda held: (_program(held), *_kind(held)[1:])),
    ]
    if same_boot:
        keys.insert(0, ("same", lambda held: held[0].id))
    for how, before, after in _matched(_current(a), _current(b), keys):
        regions_a, regions_b = ([region for region, _ in some] for some in (before, after))
        yield Change(
            "region",
            alike.regions_called((region, parent.process) for region, parent in before + after),
            (regions_b or regions_a)[0].kind,
            [region.id for region in regions_a],
            [region.id for region in regions_b],
            how,
            sum(region.allocated_bytes for region in regions_a),
            sum(region.allocated_bytes for region in regions_b),
            sum(region.touched_bytes for region in regions_a),
            sum(region.touched_bytes for region in regions_b),
        )


def _current(account: Account) -> list[Held]:
    return [(region, parent) for parent in account.parents for region in parent.current]


def _kind(held: Held) -> tuple[str | None, str, str]:
    """What a region has in common with the one that takes its place when a service is started anew."""
    region, parent = held
    whose = parent.process and alike.of_process(parent.process)
    return whose, alike.of_region(region, parent.process), region.kind


def _program(held: Held) -> str | None:
    """A new release may have another command line, but it is the same program."""
    _, parent = held
    return parent.process and alike.NUMBER.sub("#", parent.process.comm or "?")


def _matched(
    first: list[T], second: list[T], keys: Sequence[tuple[str, Callable[[T], Hashable]]]
) -> Iterator[tuple[str, list[T], list[T]]]:
    """(how, some of first, some of second) by the first key that both have; what is in one alone is gone or new.

    keys: each with what to call its matches.
    """
    alone: list[tuple[list[T], list[T]]] = []
    for how, key in keys:
        groups: dict[Hashable, tuple[list[T], list[T]]] = {}
        for side, found in enumerate((first, second)):
            for one in found:
                groups.setdefault(key(one), ([], []))[side].append(one)
        yield from ((how, *sides) for sides in groups.values() if all(sides))
        alone = [sides for sides in groups.values() if not all(sides)]
        first, second = ([one for sides in alone for one in sides[side]] for side in (0, 1))
    yield from (("gone" if before else "new", before, after) for before, after in alone)


# ---- processes ----


def _processes(a: Account, b: Account, same_boot: bool) -> Iterator[Change]:
    touched_a, touched_b = _touched(a), _touched(b)
    keys: list[tuple[str, Callable[[Process], Hashable]]] = [("alike", alike.of_process)]
    if same_boot and len({_identity(process) for process in [*touched_a, *touched_b]}) <= alike.HANDFUL:
        keys.insert(0, ("same", _identity))
    for how, before, after in _matched(list(touched_a), list(touched_b), keys):
        some = after or before
        yield Change(
            "process",
            command(some[0]) if len(some) == 1 else alike.called(some),
            "",
            [str(process.tgid) for process in before],
            [str(process.tgid) for process in after],
            how,
            None,
            None,
            sum(touched_a[process] for process in before),
            sum(touched_b[process] for process in after),
        )


def _identity(process: Process) -> tuple[int, int]:
    return process.tgid, process.start_time_ns


def _touched(account: Account) -> Counter[Process]:
    touched: Counter[Process] = Counter()
    for region, _ in _current(account):
        for toucher in region.touchers:
            if toucher.touched_bytes:
                touched[toucher.process] += toucher.touched_bytes
    return touched


def _number(row: Change) -> str:
    """How many there are in A and in B, if they are more than one."""
    if len({*row.ids_a, *row.ids_b}) <= 1 or max(len(row.ids_a), len(row.ids_b)) == 1:
        return ""
    return f"×{len(row.ids_a)}" if len(row.ids_a) == len(row.ids_b) else f"×{len(row.ids_a)}→{len(row.ids_b)}"


# ---- labels ----


def _labels(a: Account, b: Account) -> Table | None:
    """By the most telling kind of label that both captures have."""
    kinds_a, kinds_b = (labels.columns(account.session.label) for account in (a, b))
    kind = next((kind for kind in kinds_a if kind in kinds_b), None)
    if kind is None:
        return None
    touched_a, touched_b = _labelled(a, kind), _labelled(b, kind)
    rows = [
        Change(
            "label",
            "?" if text is None else text or NAMELESS,
            "",
            [],
            [],
            "same" if text in touched_a and text in touched_b else "gone" if text in touched_a else "new",
            None,
            None,
            touched_a[text],
            touched_b[text],
        )
        for text in dict.fromkeys([*touched_a, *touched_b])
    ]
    rows.sort(key=lambda row: -abs(row.touched_change_bytes))
    name = Column("what", kind, lambda row: row.what, "<", cut=shorten)
    return Table("label", [*PROCESS_COLUMNS[2:], name], rows, _sum(rows, allocated=False))


def _labelled(account: Account, kind: str) -> Counter[str | None]:
    touched: Counter[str | None] = Counter()
    for region, _ in _current(account):
        for labelled in region.labelled:
            touched[labelled.text(kind)] += labelled.touched_bytes
    return touched


# ---- hosts ----


def _hosts(a: Account, b: Account) -> Table | None:
    """By the names of the hosts: of each, its regions that exist."""
    if not (a.hosts or b.hosts):
        return None
    sizes = [_of_hosts(account) for account in (a, b)]
    rows = [
        Change(
            "host",
            host,
            "",
            [host] * (before is not None),
            [host] * (after is not None),
            "gone" if after is None else "new" if before is None else "same",
            *(0 if each is None else each.allocated_bytes for each in (before, after)),
            *(0 if each is None else each.touched_bytes for each in (before, after)),
        )
        for host in dict.fromkeys([*sizes[0], *sizes[1]])
        for before, after in [[of_account.get(host) for of_account in sizes]]
    ]
    rows.sort(key=lambda row: -abs(row.allocated_change_bytes or 0))
    return Table("host", HOST_COLUMNS, rows, _sum(rows, allocated=True))


class OfHost(NamedTuple):
    """What the regions of a host come to."""

    allocated_bytes: int
    touched_bytes: int


def _of_hosts(account: Account) -> dict[str, OfHost]:
    found = {session.host: OfHost(0, 0) for session in account.hosts or [account.session]}
    for region, _ in _current(account):
        host = account.host_of(region)
        allocated_bytes, touched_bytes = found[host]
        found[host] = OfHost(allocated_bytes + region.allocated_bytes, touched_bytes + region.touched_bytes)
    return found


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

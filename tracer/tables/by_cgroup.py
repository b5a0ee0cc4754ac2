"""Tables of an account by systemd unit and by container. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Callable, NamedTuple

from tracer.account import ALL_TIME, Account, Toucher
from tracer.cgroup import Place, place, short
from tracer.tables.rollup import PARTS
from tracer.tables.table import Column, Table


class PlaceRow(NamedTuple):
    """What the processes of one unit or container touched; or a part that no process touched in the window."""

    part: str
    """touched, other_times, before, unseen or sum"""
    place: Place
    """without the unit in the table by container"""
    cgroups: Sequence[str]
    """all cgroups that the row sums up"""
    size_bytes: int
    freed_bytes: int | None
    nr_processes: int | None
    nr_regions: int
    key: Hashable = None
    """identity of a touched row, which stays the same while the row grows"""


def _unit(row: PlaceRow) -> str:
    """The unit, or else the cgroups of processes in no unit."""
    return PARTS.get(row.part) or row.place.unit or ", ".join(row.cgroups) or "?"


def _container(row: PlaceRow) -> str:
    return PARTS.get(row.part) or (short(row.place.container) or "-" if row.cgroups else "?")


SUMS = [
    Column("cgroups", "", lambda row: ", ".join(row.cgroups), "<"),
    Column("allocated_bytes", "allocated", lambda row: row.size_bytes),
    Column("freed_bytes", "freed", lambda row: row.freed_bytes),
    Column("processes", "processes", lambda row: row.nr_processes, shown=lambda row: str(row.nr_processes or "")),
    Column("regions", "regions", lambda row: row.nr_regions),
]
POD = Column("pod", "pod", lambda row: row.place.pod, "<", shown=lambda row: row.place.pod or "")
BY_UNIT = [
    Column("part", "unit", lambda row: row.part, "<", shown=_unit),
    Column("unit", "", lambda row: row.place.unit, "<"),
    Column(
        "container",
        "container",
        lambda row: row.place.container,
        "<",
        shown=lambda row: "" if row.part in PARTS else _container(row),
    ),
    POD._replace(title=""),
    *SUMS,
]
BY_CONTAINER = [
    Column("part", "container", lambda row: row.part, "<", shown=_container),
    Column("container", "", lambda row: row.place.container, "<"),
    POD,
    *SUMS,
]


def by_unit(account: Account) -> Table:
    """Touched and freed bytes by the systemd unit of the processes. The rows add up to what is allocated."""
    return _by_place(account, "unit", BY_UNIT, lambda found, cgroup: (found, None if found.unit else cgroup))


def by_container(account: Account) -> Table:
    """Touched and freed bytes by container and pod. All processes outside containers share one row."""
    return _by_place(account, "container", BY_CONTAINER, lambda found, cgroup: (found._replace(unit=None), not cgroup))


def _by_place(
    account: Account, by: str, columns: Sequence[Column], key: Callable[[Place, str | None], tuple[Place, Hashable]]
) -> Table:
    found: dict[tuple[Place, Hashable], list[tuple[Toucher, int]]] = {}
    for region in account.regions:
        for toucher in region.touchers:
            cgroup = toucher.process.cgroup
            found.setdefault(key(place(cgroup), cgroup), []).append((toucher, region.row))
    rows = [_place_row("touched", key[0], touched)._replace(key=key) for key, touched in found.items()]
    rows.sort(key=lambda row: (-row.size_bytes, -(row.freed_bytes or 0), row.cgroups))
    total = _place_row("sum", NOWHERE, [item for touched in found.values() for item in touched])
    for part in ("other_times", "before", "unseen"):
        sizes = [getattr(region, f"{part}_bytes") for region in account.regions]
        if part != "other_times" or account.window != ALL_TIME:
            rows.append(PlaceRow(part, NOWHERE, [], sum(sizes), None, None, sum(map(bool, sizes))))
    size_bytes = sum(region.allocated_bytes for region in account.regions)
    return Table(by, columns, rows, total._replace(size_bytes=size_bytes, nr_regions=len(account.regions)))


NOWHERE = Place(None, None, None)


def _place_row(part: str, where: Place, touched: Sequence[tuple[Toucher, int]]) -> PlaceRow:
    return PlaceRow(
        part,
        where,
        sorted({toucher.process.cgroup for toucher, _ in touched if toucher.process.cgroup}),
        sum(toucher.touched_bytes for toucher, _ in touched),
        sum(toucher.freed_bytes for toucher, _ in touched),
        len({toucher.process for toucher, _ in touched}),
        len({region for toucher, region in touched}),
    )

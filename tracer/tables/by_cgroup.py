"""Tables of an account by systemd unit and by container. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Callable, NamedTuple

from tracer.cgroup import Place
from tracer.formatting import shorten
from tracer.model import ALL_TIME, Account, Toucher
from tracer.tables.rollup import PARTS
from tracer.tables.table import Column, Table


class PlaceRow(NamedTuple):
    """What the processes of one unit or container touched; or a part that no process touched in the window."""

    part: str
    """touched, other_times, before, unseen or sum"""
    places: Sequence[Place]
    """one; none for a part; more if Kubernetes has started a container anew"""
    cgroups: Sequence[str]
    """all cgroups that the row sums up"""
    size_bytes: int
    freed_bytes: int | None
    nr_processes: int | None
    nr_regions: int
    key: Hashable = None
    """identity of a touched row, which stays the same while the row grows"""

    def of(self, get: Callable[[Place], str | None]) -> str | None:
        """What get() says of the places; None: nothing of any."""
        return ", ".join(dict.fromkeys(filter(None, map(get, self.places)))) or None


def _unit(row: PlaceRow) -> str | None:
    """What Kubernetes calls it, or else the unit."""
    return row.of(lambda place: place.in_pod or place.unit)


def _unit_or_cgroups(row: PlaceRow) -> str:
    """The unit, or else the cgroups of processes in no unit."""
    return PARTS.get(row.part) or _unit(row) or ", ".join(row.cgroups) or "?"


def _container(row: PlaceRow) -> str:
    return PARTS.get(row.part) or (row.of(lambda place: place.container_called) or "-" if row.cgroups else "?")


SUMS = [
    Column("cgroups", "", lambda row: ", ".join(row.cgroups), "<"),
    Column("allocated_bytes", "allocated", lambda row: row.size_bytes),
    Column("freed_bytes", "freed", lambda row: row.freed_bytes),
    Column("processes", "processes", lambda row: row.nr_processes, shown=lambda row: str(row.nr_processes or "")),
    Column("regions", "regions", lambda row: row.nr_regions),
]
CONTAINER = Column("container", "", lambda row: row.of(lambda place: place.container), "<")
POD = Column(
    "pod",
    "pod",
    lambda row: row.of(lambda place: place.pod),
    "<",
    shown=lambda row: row.of(lambda place: place.pod_called) or "",
    cut=shorten,
)
NAMES = [
    Column("namespace", "", lambda row: row.of(lambda place: place.names and place.names.namespace), "<"),
    Column("pod_name", "", lambda row: row.of(lambda place: place.names and place.names.pod), "<"),
    Column("container_name", "", lambda row: row.of(lambda place: place.names and place.names.container), "<"),
]
BY_UNIT = [
    Column("part", "unit", lambda row: row.part, "<", shown=_unit_or_cgroups, cut=shorten),
    Column("unit", "", _unit, "<"),
    CONTAINER._replace(
        title="container",
        shown=lambda row: "" if row.part in PARTS or row.of(lambda place: place.in_pod) else _container(row),
    ),
    POD._replace(title=""),
    *NAMES,
    *SUMS,
]
BY_CONTAINER = [
    Column("part", "container", lambda row: row.part, "<", shown=_container),
    CONTAINER,
    POD,
    *NAMES,
    *SUMS,
]


def by_unit(account: Account) -> Table:
    """Touched and freed bytes by the unit of the processes. The rows add up to what is allocated."""
    return _by_place(account, "unit", BY_UNIT, lambda found, cgroup: (found, None if found.unit else cgroup))


def by_container(account: Account) -> Table:
    """Touched and freed bytes by container and pod. All processes outside containers share one row."""
    return _by_place(account, "container", BY_CONTAINER, lambda found, cgroup: (found.container, found.pod, not cgroup))


def _by_place(
    account: Account, by: str, columns: Sequence[Column], key: Callable[[Place, str | None], Hashable]
) -> Table:
    """key: what processes of no pod, or of one without names, have in common."""
    found: dict[Hashable, list[tuple[Toucher, int]]] = {}
    for region in account.regions:
        for toucher in region.touchers:
            where = toucher.process.place
            whose = where.in_pod or key(where, toucher.process.cgroup)
            found.setdefault(whose, []).append((toucher, region.row))
    rows = [_place_row("touched", touched)._replace(key=key) for key, touched in found.items()]
    rows.sort(key=lambda row: (-row.size_bytes, -(row.freed_bytes or 0), row.cgroups))
    total = _place_row("sum", [item for touched in found.values() for item in touched])._replace(places=[])
    for part in ("other_times", "before", "unseen"):
        sizes = [getattr(region, f"{part}_bytes") for region in account.regions]
        if part != "other_times" or account.window != ALL_TIME:
            rows.append(PlaceRow(part, [], [], sum(sizes), None, None, sum(map(bool, sizes))))
    size_bytes = sum(region.allocated_bytes for region in account.regions)
    return Table(by, columns, rows, total._replace(size_bytes=size_bytes, nr_regions=len(account.regions)))


def _place_row(part: str, touched: Sequence[tuple[Toucher, int]]) -> PlaceRow:
    processes = {toucher.process for toucher, _ in touched}
    by_cgroup = {process.cgroup: process for process in processes if process.cgroup}
    return PlaceRow(
        part,
        [by_cgroup[cgroup].place for cgroup in sorted(by_cgroup)],
        sorted(by_cgroup),
        sum(toucher.touched_bytes for toucher, _ in touched),
        sum(toucher.freed_bytes for toucher, _ in touched),
        len(processes),
        len({region for toucher, region in touched}),
    )

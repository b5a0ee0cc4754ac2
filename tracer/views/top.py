"""What `shmtrace top` shows: the regions and growers of an account, and how they changed since the previous one. Pure.

All text here is safe for a terminal: control characters in names are shown as codes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Generic, NamedTuple, TypeVar, Union

from tracer import guess
from tracer.account import Account, Parent, Process, Region
from tracer.capture.capture import PAGE_BYTES
from tracer.formatting import clock, fit, format_bytes, format_change, printable, width
from tracer.tables import groups
from tracer.views.report import host_shmem

MAX_CHANGES = 20  # plain lines for regions, and for growers, in one interval
MAX_MAPPERS = 100


class RegionLine(NamedTuple):
    """A region, with its state in the previous account."""

    key: int
    """the region's row in the capture"""
    region: Region
    label: str
    """its guessed use, or else its name"""
    before: Region | None
    """the region in the previous account; None: it is new"""

    @property
    def delta_bytes(self) -> int:
        """Growth since the previous account; of a new region, since it was first seen."""
        return self.region.allocated_bytes - (self.before.allocated_bytes if self.before else self.region.start_bytes)

    @property
    def changed(self) -> bool:
        return not self.before or bool(self.delta_bytes) or self.before.gone_ns != self.region.gone_ns

    @property
    def ended(self) -> bool:
        return self.region.gone_ns is not None


class GrowerLine(NamedTuple):
    """A process that touched pages of all regions, or of one, first."""

    key: int
    """the process's row in the capture"""
    process: Process
    touched_bytes: int
    delta_bytes: int
    nr_regions: int
    before: Process | None
    """the process in the previous account; None: it had touched nothing yet"""

    @property
    def changed(self) -> bool:
        return not self.before or bool(self.delta_bytes) or self.before.exited_ns != self.process.exited_ns

    @property
    def ended(self) -> bool:
        return self.process.exited_ns is not None


class GroupLine(NamedTuple):
    """What one label, unit or container touched first: of all regions, or of one."""

    key: Hashable
    name: str
    touched_bytes: int
    nr_regions: int
    nr_processes: int
    delta_bytes: int = 0
    is_new: bool = True
    """it was not in the previous account"""

    @property
    def changed(self) -> bool:
        return self.is_new or bool(self.delta_bytes)

    @property
    def ended(self) -> bool:
        return False


Grower = Union[GrowerLine, GroupLine]


Touched = dict[int, tuple[Process, int, int]]
"""(process, touched bytes, number of regions) by row of the process."""


class View(NamedTuple):
    """An account, compared with the previous one."""

    account: Account
    regions: list[RegionLine]
    growers: list[GrowerLine]
    touched: Touched
    by_key: dict[int, Region]
    previous: Account | None
    """the previous account; None: this is the first"""


def compare(now: Account, before: View | None) -> View:
    """The view of an account. before: the previous view; None: deltas count from when each region was first seen."""
    by_key = {region.row: region for region in now.regions}
    labelled = {region.row: _label(region, parent.process) for parent in now.parents for region in parent.regions}
    rows = [
        RegionLine(key, region, labelled[key], before.by_key.get(key) if before else None)
        for key, region in by_key.items()
        if region.peak_bytes or region.gone_ns is None  # leave out regions that are gone and never had a page
    ]
    touched = _touched(by_key.values())
    growers = _growers(touched, before.touched if before else {})
    return View(now, rows, growers, touched, by_key, before.account if before else None)


def kinds(view: View) -> list[str]:
    """The groupings that the account offers, for --by and the key b."""
    return ["process", *groups.telling(view.account)]


def growers(view: View, by: str, of: RegionLine | None = None) -> Sequence[Grower]:
    """The growers, grouped as --by says. of: only those of this region."""
    if by == "process":
        return touchers(of) if of else view.growers
    then = view.previous.regions if view.previous else []
    if of:
        then = [of.before] if of.before else []
    before = _grouped(view.account, then, by)
    now = _grouped(view.account, [of.region] if of else view.account.regions, by)
    rows = []
    for key, row in {**before, **now}.items():
        if key not in now:  # all its pages were freed
            row = row._replace(touched_bytes=0, nr_regions=0, nr_processes=0)
        was_bytes = before[key].touched_bytes if key in before else 0
        if row.touched_bytes or was_bytes:
            rows.append(row._replace(delta_bytes=row.touched_bytes - was_bytes, is_new=key not in before))
    return rows


def _grouped(account: Account, regions: list[Region], by: str) -> dict[Hashable, GroupLine]:
    """The touched rows of the report's table of these regions, by key."""
    table = groups.table(account._replace(parents=[Parent(None, regions)]), by)
    return {
        row.key: GroupLine(row.key, printable(table.name(row)), row.size_bytes, row.nr_regions, row.nr_processes)
        for row in table.rows
        if row.part == "touched"
    }


def touchers(row: RegionLine) -> list[GrowerLine]:
    """The processes that touched pages of one region first."""
    return _growers(_touched([row.region]), _touched([row.before] if row.before else []))


def _growers(now: Touched, before: Touched) -> list[GrowerLine]:
    rows = []
    for key, (process, touched_bytes, nr_regions) in now.items():
        was, was_bytes, _ = before.get(key, (None, 0, 0))
        if touched_bytes or was_bytes:
            rows.append(GrowerLine(key, process, touched_bytes, touched_bytes - was_bytes, nr_regions, was))
    return rows


def _touched(regions: Iterable[Region]) -> Touched:
    found: Touched = {}
    for region in regions:
        for toucher in region.touchers:
            process, touched_bytes = toucher.process, toucher.touched_bytes
            _, so_far, nr_regions = found.get(process.row, (process, 0, 0))
            found[process.row] = process, so_far + touched_bytes, nr_regions + bool(touched_bytes)
    return found


def _label(region: Region, parent: Process | None) -> str:
    return guess.guess(region, parent) or printable(region.name)


# ---- columns ----

Row = TypeVar("Row")


@dataclass(frozen=True)
class LineColumn(Generic[Row]):
    """A column of top's tables."""

    title: str
    columns: int
    """its minimal width"""
    text: Callable[[Row], str]
    order: Callable[[Row], Any]
    """sort key; numbers are negated, so that the largest comes first"""
    rank: int
    """where room is short, columns with the highest rank are left out first"""
    stretches: bool = False
    """it is text, aligned left, and takes the room that is left"""


def _made_by(row: RegionLine) -> str:
    creator = row.region.creator
    if not creator:
        return "?"
    return f"{creator.process.tgid}{'' if creator.how == 'traced' else '?'} {_name(creator.process.comm)}"


def _name(name: str | None) -> str:
    return printable(name or "?")


def _state(process: Process) -> str:
    if process.exited_ns:
        return f"exited {clock(process.exited_ns)}" if process.ending == "exited" else process.ending
    return "outside" if process.outside_tree else "alive"


def _size(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else format_bytes(size_bytes)


def _delta(delta_bytes: int) -> str:
    return format_change(delta_bytes) if delta_bytes else "."


REGION_COLUMNS: list[LineColumn[RegionLine]] = [
    LineColumn("region", 12, lambda row: row.label, lambda row: row.label, 0, stretches=True),
    LineColumn("kind", 7, lambda row: row.region.kind, lambda row: row.region.kind, 6),
    LineColumn("size", 8, lambda row: _size(row.region.size_bytes), lambda row: -(row.region.size_bytes or 0), 4),
    LineColumn(
        "allocated", 9, lambda row: format_bytes(row.region.allocated_bytes), lambda row: -row.region.allocated_bytes, 2
    ),
    LineColumn(
        "delta",
        9,
        lambda row: "gone" if row.region.gone_ns else _delta(row.delta_bytes),
        lambda row: -row.delta_bytes,
        1,
    ),
    LineColumn("grown", 9, lambda row: format_change(row.region.grown_bytes), lambda row: -row.region.grown_bytes, 3),
    LineColumn(
        "made by", 14, _made_by, lambda row: row.region.creator.process.tgid if row.region.creator else 0, 5, True
    ),
]

GROWER_COLUMNS: list[LineColumn[GrowerLine]] = [
    LineColumn("PID", 7, lambda row: str(row.process.tgid), lambda row: row.process.tgid, 0),
    LineColumn("touched", 8, lambda row: format_bytes(row.touched_bytes), lambda row: -row.touched_bytes, 1),
    LineColumn("delta", 9, lambda row: _delta(row.delta_bytes), lambda row: -row.delta_bytes, 2),
    LineColumn("regions", 7, lambda row: str(row.nr_regions), lambda row: -row.nr_regions, 5),
    LineColumn("state", 15, lambda row: _state(row.process), lambda row: row.process.exited_ns or 0, 4),
    LineColumn(
        "command",
        12,
        lambda row: _name(row.process.command or row.process.comm),
        lambda row: row.process.command or "",
        3,
        stretches=True,
    ),
]

GROUP_COLUMNS: list[LineColumn[Any]] = [
    LineColumn("touched", 8, lambda row: format_bytes(row.touched_bytes), lambda row: -row.touched_bytes, 1),
    LineColumn("delta", 9, lambda row: _delta(row.delta_bytes), lambda row: -row.delta_bytes, 2),
    LineColumn("regions", 7, lambda row: str(row.nr_regions), lambda row: -row.nr_regions, 4),
    LineColumn("processes", 9, lambda row: str(row.nr_processes), lambda row: -row.nr_processes, 3),
]


def grower_columns(by: str, of_one: bool = False) -> list[LineColumn[Any]]:
    """The columns of the growers' table. of_one: the table is of one region, so it has no column regions."""
    name: LineColumn[GroupLine] = LineColumn(by, 12, lambda row: row.name, lambda row: row.name, 0, stretches=True)
    columns = [*GROUP_COLUMNS, name] if by != "process" else GROWER_COLUMNS
    return [column for column in columns if not (of_one and column.title == "regions")]


def sort(rows: Sequence[Row], column: LineColumn[Row]) -> list[Row]:
    """The rows sorted by a column, ties by size. Regions that are gone come last."""

    def order(row: Any) -> Any:
        if isinstance(row, RegionLine):
            return row.ended, column.order(row), -row.region.allocated_bytes, row.key  # type: ignore[arg-type]
        return column.order(row), -row.touched_bytes, row.name if isinstance(row, GroupLine) else row.key

    return sorted(rows, key=order)


def layout(columns: Sequence[LineColumn[Row]], room: int) -> list[tuple[LineColumn[Row], int]]:
    """The columns that fit into so many terminal columns, each with its width."""
    chosen: list[LineColumn[Row]] = []
    left = room + 1
    for column in sorted(columns, key=lambda column: column.rank):
        if left >= column.columns + 1 or not chosen:
            chosen.append(column)
            left -= column.columns + 1
        else:
            break
    stretching = [column for column in chosen if column.stretches]
    widths = {column.title: column.columns for column in chosen}
    for number, column in enumerate(stretching):
        share = max(left, 0) // (len(stretching) - number)
        widths[column.title] += share
        left -= share
    return [(column, widths[column.title]) for column in columns if column in chosen]


def heading(columns: Sequence[LineColumn[Row]], sorted_by: LineColumn[Row], room: int) -> str:
    """The line of titles. An arrow marks the column that the rows are sorted by."""
    titles = [
        _cell(("▼" if column is sorted_by else "") + column.title, column, columns)
        for column, columns in layout(columns, room)
    ]
    return fit(" ".join(titles), room)


def lines(rows: Iterable[Row], columns: Sequence[LineColumn[Row]], room: int) -> Iterator[str]:
    """One line for each row, at most `room` terminal columns wide."""
    chosen = layout(columns, room)
    for row in rows:
        yield fit(" ".join(_cell(column.text(row), column, width) for column, width in chosen), room)


def _cell(text: str, column: LineColumn[Any], columns: int) -> str:
    text = fit(text, columns)
    space = " " * (columns - width(text))
    return text + space if column.stretches or column.title in ("kind", "state") else space + text


# ---- above and beside the tables ----


def status(view: View) -> list[str]:
    """Two lines: the progress of the trace, and its balance; with -a a third, where the host's shared memory is."""
    session, regions = view.account.session, [row.region for row in view.regions if row.region.gone_ns is None]
    exited = sum(row.process.exited_ns is not None for row in view.growers)
    allocated_bytes = sum(region.allocated_bytes for region in regions)
    grown_bytes = sum(region.grown_bytes for region in regions)
    told = [
        f"{(session.ended_ns - session.started_ns) / 1e9:.0f} s",
        f"{len(regions)} regions {format_bytes(allocated_bytes)}, {format_change(grown_bytes)}",
        f"{len(view.growers)} growers, {exited} exited",
        f"tier {session.tier}",
    ]
    lost = {"events": session.lost_events, "pages": session.lost_pages}
    told += [f"lost {number} {what}" for what, number in lost.items() if number]
    told += [f"{len(session.warnings)} warnings"] if session.warnings else []
    whole = [host_shmem(view.account)] if view.account.unmapped else []
    return [" · ".join(told), balance(view.account.regions), *whole]


def balance(regions: Sequence[Region]) -> str:
    """The balance in pages: allocated = touched + before + unseen."""
    touched = sum(region.touched_bytes + region.other_times_bytes for region in regions) // PAGE_BYTES
    before = sum(region.before_bytes for region in regions) // PAGE_BYTES
    unseen = sum(region.unseen_bytes for region in regions) // PAGE_BYTES
    allocated = sum(region.allocated_bytes for region in regions) // PAGE_BYTES
    return f"balance {allocated} pages = {touched} touched + {before} before + {unseen} unseen"


def describe(row: RegionLine, complete: bool) -> list[str]:
    """The lines that describe an opened region. complete: the trace has ended, so its mappers are known."""
    region = row.region
    sizes = [
        f"allocated {format_bytes(region.allocated_bytes)}",
        f"{format_change(region.grown_bytes)} since the start",
    ]
    sizes.append(f"gone {clock(region.gone_ns)}" if region.gone_ns else f"delta {_delta(row.delta_bytes)}")
    if region.peak_bytes > region.allocated_bytes:
        sizes.append(f"peak {format_bytes(region.peak_bytes)}")
    sizes += [f"{format_bytes(region.swapped_bytes)} swapped"] if region.swapped_bytes else []
    creator = region.creator
    made_by = "made by an unknown process"
    if creator:
        command = _name(creator.process.command or creator.process.comm)
        made_by = f"made by {creator.process.tgid} ({creator.how}, {_state(creator.process)}) {command}"
    mappers = " ".join(map(str, region.mappers[:MAX_MAPPERS])) or ("nobody" if complete else "?")
    mappers += " …" * (len(region.mappers) > MAX_MAPPERS)
    name = f"{row.label}  " if row.label != printable(region.name) else ""
    return [
        f"{name}{region.kind} {_size(region.size_bytes)}  {printable(region.name)}",
        f"region {region.id}",
        ", ".join(sizes),
        made_by,
        f"mapped by {mappers}",
        balance([region]),
        f"before the trace {format_bytes(region.before_bytes)}, unseen {format_bytes(region.unseen_bytes)}",
    ]


def changes(view: View, by: str = "process") -> Iterator[str]:
    """Plain lines with their time: regions and growers that are new, changed, exited or gone, most changed first."""
    time = clock(view.account.session.ended_ns)
    regions = sorted((row for row in view.regions if row.changed), key=lambda row: -abs(row.delta_bytes))
    for region in regions[:MAX_CHANGES]:
        yield f"{time} region {_tell(region)}"
    if regions[MAX_CHANGES:]:
        rest_bytes = sum(row.delta_bytes for row in regions[MAX_CHANGES:])
        yield f"{time} region {format_change(rest_bytes)}  in {len(regions) - MAX_CHANGES} more"
    changed = sorted((row for row in growers(view, by) if row.changed), key=lambda row: -abs(row.delta_bytes))
    for grower in changed[:MAX_CHANGES]:
        if isinstance(grower, GroupLine):
            who, name = f"{grower.nr_processes} process(es)", grower.name
        else:
            who = f"{grower.process.tgid} {_state(grower.process)}"
            name = _name(grower.process.command or grower.process.comm)
        yield (
            f"{time} grower {format_change(grower.delta_bytes)}  {who}, "
            f"touched {format_bytes(grower.touched_bytes)} in {grower.nr_regions} region(s)  {name}"
        )
    if changed[MAX_CHANGES:]:
        rest_bytes = sum(row.delta_bytes for row in changed[MAX_CHANGES:])
        yield f"{time} grower {format_change(rest_bytes)}  of {len(changed) - MAX_CHANGES} more"


def _tell(row: RegionLine) -> str:
    region = row.region
    gone = f", gone {clock(region.gone_ns)}" if region.gone_ns else ""
    return (
        f"{format_change(row.delta_bytes)}  {row.label} {region.id} {region.kind} {_size(region.size_bytes)}, "
        f"allocated {format_bytes(region.allocated_bytes)}, {format_change(region.grown_bytes)} since the start{gone}, "
        f"made by {_made_by(row)}"
    )

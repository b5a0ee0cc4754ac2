"""What `shmtrace top` shows: the regions and growers of an account, and how they changed since the previous one. Pure.

All text here is safe for a terminal: control characters in names are shown as codes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Generic, NamedTuple, TypeVar, Union

from tracer import alike, answer, guess, labels
from tracer.formatting import (
    clock,
    duration,
    fit,
    format_bytes,
    format_change,
    printable,
    shorten,
    shorten_command,
    width,
    wrap,
)
from tracer.model import Account, Parent, Process, Region, Session, Toucher
from tracer.tables import dimensions, groups
from tracer.views.report import host_shmem

MAX_CHANGES = 20  # plain lines for regions, and for growers, in one interval
MAX_MAPPERS = 100
ANSWER_LINES = 2
SECOND_NS = 1_000_000_000
RATE_NS = 10 * SECOND_NS  # a rate is of so long; who touched a page within it grows now
PAST_NS = 300 * SECOND_NS  # what is kept of a region's past
STEP_NS = 5 * SECOND_NS  # of its points, of any three the first and the last are so far apart, but for the newest
TREND_COLUMNS = 10
LONG_S = 86400  # a time until full is not told beyond it
OF_PROCESSES = {"command", "process", "unit", "container"}  # groupings for which it is the same in which region
BARS = "▁▂▃▄▅▆▇█"
ASCII = str.maketrans(f"{BARS}▼…·×", "_.:-=+*#v~-x")
"""For terminals whose encoding has no such characters."""

Past = tuple[tuple[int, int], ...]
"""(time in ns since 1970, allocated bytes) of a region, oldest first. Between two points it grew evenly."""


class RegionLine(NamedTuple):
    """A region, with its state in the previous account."""

    key: int
    """the region's row in the capture"""
    region: Region
    label: str
    """its guessed use, or else its name"""
    before: Region | None
    """the region in the previous account; None: it is new"""
    past: Past

    @property
    def delta_bytes(self) -> int:
        """Growth since the previous account; of a new region, since it was first seen."""
        return self.region.allocated_bytes - (self.before.allocated_bytes if self.before else self.region.start_bytes)

    @property
    def bytes_per_second(self) -> float:
        """Growth in the last seconds."""
        return 0.0 if self.ended else _rate(self.past, RATE_NS)

    @property
    def full_in_s(self) -> float | None:
        """When it is full, if it grows on as in the last minutes; None: it does not grow, or its size is unknown."""
        rate = _rate(self.past, PAST_NS)
        left_bytes = (self.region.size_bytes or 0) - self.region.allocated_bytes
        return left_bytes / rate if rate > 0 and left_bytes > 0 and not self.ended else None

    @property
    def changed(self) -> bool:
        return not self.before or bool(self.delta_bytes) or self.before.gone_ns != self.region.gone_ns

    @property
    def ended(self) -> bool:
        return self.region.gone_ns is not None

    @property
    def opens(self) -> Opened:
        return Opened("region", self.key)


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
    grows: bool = False
    """it touched pages in the last seconds"""

    @property
    def changed(self) -> bool:
        return not self.before or bool(self.delta_bytes) or self.before.exited_ns != self.process.exited_ns

    @property
    def ended(self) -> bool:
        return self.process.exited_ns is not None and not self.grows

    @property
    def opens(self) -> Opened:
        return Opened("process", self.key)


class GroupLine(NamedTuple):
    """What the processes of one command, label, unit or container touched first: of all regions, or of one."""

    by: str
    key: Hashable
    name: str
    touched_bytes: int
    nr_processes: int
    nr_exited: int
    grows: bool = False
    """one of them touched pages in the last seconds"""
    delta_bytes: int = 0
    is_new: bool = True
    """it was not in the previous account"""

    @property
    def changed(self) -> bool:
        return self.is_new or bool(self.delta_bytes)

    @property
    def ended(self) -> bool:
        return self.nr_exited == self.nr_processes and not self.grows

    @property
    def opens(self) -> Opened:
        return Opened(self.by, self.key)


Grower = Union[GrowerLine, GroupLine]


class Opened(NamedTuple):
    """A row that Enter opens: what it is grouped by, and its key there."""

    by: str
    key: Hashable


Touched = dict[int, tuple[Process, int, int, int]]
"""(process, touched bytes, number of regions, time in ns of the last touch) by row of the process."""


class View(NamedTuple):
    """An account, compared with the previous one."""

    account: Account
    regions: list[RegionLine]
    growers: list[GrowerLine]
    touched: Touched
    by_key: dict[int, Region]
    past: dict[int, Past]
    """by key of the region"""
    summed: Account
    kills: Sequence[str]
    """of the answer, what the OOM killer did"""
    answer: str
    """the rest of it"""
    previous: View | None
    """the previous view, without its own; None: this is the first"""
    tables: dict[tuple[str, int | None], dict[Hashable, GroupLine]]
    """the tables that were asked for, by --by and key of the region: each is made once"""


def compare(now: Account, before: View | None) -> View:
    """The view of an account. before: the previous view; None: deltas count from when each region was first seen."""
    by_key = {region.row: region for region in now.regions}
    labelled = {region.row: _label(region, parent.process) for parent in now.parents for region in parent.regions}
    past = {}
    rows = []
    for key, region in by_key.items():
        if region.peak_bytes or region.gone_ns is None:  # leave out regions that are gone and never had a page
            past[key] = _past(region, now, before)
            rows.append(RegionLine(key, region, labelled[key], before.by_key.get(key) if before else None, past[key]))
    touched = _touched(by_key.values())
    growers = _growers(touched, before.touched if before else {}, now)
    summed = _summed(now, touched)
    previous = before and before._replace(previous=None)
    said = answer.kills(summed), answer.grown(summed)
    return View(now, rows, growers, touched, by_key, past, summed, *said, previous, {})


def _summed(account: Account, touched: Touched) -> Account:
    """The account as if each process had touched all its pages in one region, or in one that is gone.

    By process it comes to the same, and it takes far less time where many processes touched many regions.
    """
    gone = _touched([region for region in account.regions if region.gone_ns is not None])
    left: dict[bool, list[Toucher]] = {False: [], True: []}
    for key, (process, touched_bytes, _, last_ns) in touched.items():
        gone_bytes = gone[key][1] if key in gone else 0
        for is_gone, size_bytes in ((True, gone_bytes), (False, touched_bytes - gone_bytes)):
            if size_bytes:
                left[is_gone].append(Toucher(process, size_bytes, 0, None, None, last_ns))
    parents = []
    for parent in account.parents:
        regions = []
        for region in parent.regions:
            touchers = left.pop(region.gone_ns is not None, [])  # all of them in the first
            regions.append(region._replace(touchers=touchers, labelled=()))
        parents.append(parent._replace(regions=regions))
    return account._replace(parents=parents)


# ---- the past of a region ----


def _past(region: Region, now: Account, before: View | None) -> Past:
    time_ns = now.session.ended_ns
    began_ns = before.account.session.ended_ns if before else now.session.started_ns
    past: Past = before.past.get(region.row, ()) if before else ()
    if not past:
        past = ((min(began_ns, time_ns), region.start_bytes),)
    if region.gone_ns is not None:
        return past
    if time_ns < past[-1][0]:  # the clock was set back
        past = ()
    elif time_ns == past[-1][0] or _is_spare(past, time_ns, region.allocated_bytes):
        past = past[:-1]
    oldest = max(bisect_right(past, (time_ns - PAST_NS,)) - 1, 0)
    return (*past[oldest:], (time_ns, region.allocated_bytes))


def _is_spare(past: Past, now_ns: int, now_bytes: int) -> bool:
    """Whether the newest point tells nothing once there is another: they are close, or the region stands still."""
    if len(past) < 2:
        return False
    (before_ns, before_bytes), (_, last_bytes) = past[-2:]
    return now_ns - before_ns < STEP_NS or before_bytes == last_bytes == now_bytes


def _size_at(past: Past, time_ns: int) -> int:
    """What it had at that time; before its first point, what it had there."""
    after = bisect_right(past, (time_ns, 1 << 63))
    if not after or after == len(past):
        return past[max(after - 1, 0)][1]
    (from_ns, from_bytes), (to_ns, to_bytes) = past[after - 1 : after + 1]
    return from_bytes + (to_bytes - from_bytes) * (time_ns - from_ns) // (to_ns - from_ns)


def _rate(past: Past, span_ns: int) -> float:
    """Bytes a second in the last so many nanoseconds, or since the first point."""
    to_ns, to_bytes = past[-1]
    from_ns = max(to_ns - span_ns, past[0][0])
    return (to_bytes - _size_at(past, from_ns)) * SECOND_NS / (to_ns - from_ns) if to_ns > from_ns else 0.0


def trend(past: Past) -> str:
    """The growth in each tenth of the last minutes, the newest at the right; spaces where nothing is known of it."""
    part_ns = PAST_NS // TREND_COLUMNS
    ends = [past[-1][0] - part_ns * number for number in reversed(range(TREND_COLUMNS))]
    grown = [max(_size_at(past, end_ns) - _size_at(past, end_ns - part_ns), 0) for end_ns in ends]
    most = max(grown)
    bars = [BARS[-(-part * (len(BARS) - 1) // most)] if most else BARS[0] for part in grown]
    return "".join(bar if end_ns > past[0][0] else " " for bar, end_ns in zip(bars, ends))


# ---- growers ----


def by_default(view: View) -> str:
    """How growers are grouped unless one says: by command, if they are more than a handful."""
    return "command" if sum(row.touched_bytes > 0 for row in view.growers) > alike.HANDFUL else "process"


def kinds(view: View) -> list[str]:
    """The groupings that the account offers, for the key b."""
    telling = [kind for kind in groups.telling(view.account) if kind in groups.DIMENSIONS]
    return list(dict.fromkeys([*telling, "command", "process"]))


def growers(view: View, by: str, of: RegionLine | None = None) -> Sequence[Grower]:
    """The growers, grouped as --by says. of: only those of this region."""
    if by == "process":
        return touchers(view, of) if of else view.growers
    return _groups(view, by, of.key if of else None)


def inside(view: View, opened: Opened, by: str) -> Sequence[Grower]:
    """What belongs to an opened grower: its processes, regions, or labels."""
    found = [row for row in _groups(view, f"{opened.by},{by}") if row.key[0] == opened.key]  # type: ignore[index]
    rows = [row._replace(by=by, key=row.key[-1]) for row in found]  # type: ignore[index]
    if by != "process":
        return rows
    processes = {**(view.previous.touched if view.previous else {}), **view.touched}
    return [
        GrowerLine(key, processes[key][0], row.touched_bytes, row.delta_bytes, 0, None, row.grows)
        for row in rows
        for key in [row.key]
        if isinstance(key, int)
    ]


def parts(view: View, opened: Opened) -> list[str]:
    """What an opened grower is shown by."""
    kinds = labels.kinds(view.account.session.label)
    return [
        *(["process"] if opened.by != "process" else []),
        "region",
        *(kinds[:1] if opened.by not in ["label", *kinds] else []),
    ]


def _groups(view: View, by: str, of: int | None = None) -> list[GroupLine]:
    """The groups that there are, and those that have lost all their pages since."""
    before = _table(view.previous, by, of) if view.previous else {}
    now = _table(view, by, of)
    rows = []
    for key, row in {**before, **now}.items():
        if key not in now:  # all its pages were freed
            row = row._replace(touched_bytes=0, nr_processes=0, nr_exited=0, grows=False)
        was_bytes = before[key].touched_bytes if key in before else 0
        if row.touched_bytes or was_bytes:
            rows.append(row._replace(delta_bytes=row.touched_bytes - was_bytes, is_new=key not in before))
    return rows


def _table(view: View, by: str, of: int | None) -> dict[Hashable, GroupLine]:
    """The groups by key. of: the region, by key, that they are of; None: all."""
    if (by, of) not in view.tables:
        account = view.summed if of is None and OF_PROCESSES.issuperset(by.split(",")) else view.account
        if of is not None:
            parents = [Parent(parent.process, [r for r in parent.regions if r.row == of]) for parent in account.parents]
            account = account._replace(parents=parents)
        table = dimensions.by(account, by.split(","))
        name = table.columns[-1].shown or str
        view.tables[by, of] = {
            key: GroupLine(
                by,
                key,
                printable(name(row)),
                row.size_bytes,
                row.nr_processes,
                row.nr_exited,
                _is_now(row.last_ns, account),
            )
            for row in table.rows
            if row.part == "touched"
            for key in [row.key if "," in by else row.key[0]]
        }
    return view.tables[by, of]


def touchers(view: View, row: RegionLine) -> list[GrowerLine]:
    """The processes that touched pages of one region first."""
    return _growers(_touched([row.region]), _touched([row.before] if row.before else []), view.account)


def _growers(now: Touched, before: Touched, account: Account) -> list[GrowerLine]:
    rows = []
    for key, (process, touched_bytes, nr_regions, last_ns) in now.items():
        was, was_bytes, *_ = before.get(key, (None, 0))
        if touched_bytes or was_bytes:
            delta_bytes, grows = touched_bytes - was_bytes, _is_now(last_ns, account)
            rows.append(GrowerLine(key, process, touched_bytes, delta_bytes, nr_regions, was, grows))
    return rows


def _is_now(last_ns: int | None, account: Account) -> bool:
    return account.session.ended_ns - (last_ns or 0) < RATE_NS


def _touched(regions: Iterable[Region]) -> Touched:
    found: dict[int, list[Any]] = {}
    for region in regions:
        for toucher in region.touchers:
            touched_bytes, last_ns = toucher.touched_bytes, toucher.last_ns or 0
            sums = found.get(toucher.process.row)
            if sums is None:
                found[toucher.process.row] = [toucher.process, touched_bytes, int(touched_bytes > 0), last_ns]
                continue
            sums[1] += touched_bytes
            sums[2] += touched_bytes > 0
            if last_ns > sums[3]:
                sums[3] = last_ns
    return {row: tuple(sums) for row, sums in found.items()}


def _label(region: Region, parent: Process | None) -> str:
    return printable(guess.called(region, parent))


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
    cut: Callable[[str, int], str] = fit
    """makes a text fit into so many terminal columns"""


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


def _share(row: RegionLine) -> float:
    return row.region.allocated_bytes / row.region.size_bytes if row.region.size_bytes else -1.0


def _used(row: RegionLine) -> str:
    """Rounded down: a region at 100% is full."""
    share = _share(row)
    if share < 0:
        return "?"
    return "<1%" if 0 < share < 0.01 else f"{int(share * 100)}%" if share < 10 else ">999%"


def _speed(row: RegionLine) -> str:
    if row.ended:
        return "gone"
    return f"{format_change(round(row.bytes_per_second))}/s" if round(row.bytes_per_second) else "."


def _full_in(row: RegionLine) -> str:
    if row.region.size_bytes is None:
        return "?"
    seconds = row.full_in_s
    if seconds is None:
        return "-"
    return duration(seconds) if seconds <= LONG_S else "> 1 d"


REGION_COLUMNS: list[LineColumn[RegionLine]] = [
    LineColumn("region", 20, lambda row: row.label, lambda row: row.label, 0, stretches=True, cut=shorten),
    LineColumn("kind", 7, lambda row: row.region.kind, lambda row: row.region.kind, 10),
    LineColumn("size", 8, lambda row: _size(row.region.size_bytes), lambda row: -(row.region.size_bytes or 0), 8),
    LineColumn(
        "allocated",
        10,
        lambda row: format_bytes(row.region.allocated_bytes),
        lambda row: -row.region.allocated_bytes,
        1,
    ),
    LineColumn("used", 5, _used, lambda row: -_share(row), 4),
    LineColumn(
        "delta",
        9,
        lambda row: "gone" if row.region.gone_ns else _delta(row.delta_bytes),
        lambda row: -row.delta_bytes,
        7,
    ),
    LineColumn("rate", 11, _speed, lambda row: -row.bytes_per_second, 2),
    LineColumn("full in", 8, _full_in, lambda row: float("inf") if row.full_in_s is None else row.full_in_s, 5),
    LineColumn("5 min", TREND_COLUMNS, lambda row: trend(row.past), lambda row: -_rate(row.past, PAST_NS), 6),
    LineColumn("grown", 9, lambda row: format_change(row.region.grown_bytes), lambda row: -row.region.grown_bytes, 3),
    LineColumn(
        "made by", 14, _made_by, lambda row: row.region.creator.process.tgid if row.region.creator else 0, 9, True
    ),
]


def _most_first(row: Any) -> Any:
    """Those that grow now, then by what they touched."""
    return not row.grows, -row.touched_bytes


GROWER_COLUMNS: list[LineColumn[GrowerLine]] = [
    LineColumn("PID", 7, lambda row: str(row.process.tgid), lambda row: row.process.tgid, 0),
    LineColumn("touched", 8, lambda row: format_bytes(row.touched_bytes), _most_first, 1),
    LineColumn("delta", 9, lambda row: _delta(row.delta_bytes), lambda row: -row.delta_bytes, 2),
    LineColumn("regions", 8, lambda row: str(row.nr_regions), lambda row: -row.nr_regions, 5),
    LineColumn("state", 15, lambda row: _state(row.process), lambda row: row.process.exited_ns or 0, 4),
    LineColumn(
        "command",
        12,
        lambda row: _name(row.process.command or row.process.comm),
        lambda row: row.process.command or "",
        3,
        stretches=True,
        cut=shorten_command,
    ),
]

GROUP_COLUMNS: list[LineColumn[Any]] = [
    LineColumn("touched", 8, lambda row: format_bytes(row.touched_bytes), _most_first, 1),
    LineColumn("delta", 9, lambda row: _delta(row.delta_bytes), lambda row: -row.delta_bytes, 2),
    LineColumn("processes", 10, lambda row: str(row.nr_processes), lambda row: -row.nr_processes, 3),
    LineColumn("exited", 7, lambda row: str(row.nr_exited), lambda row: -row.nr_exited, 4),
]


def grower_columns(by: str, of: Opened | None = None) -> list[LineColumn[Any]]:
    """The columns of a growers' table. of: what the table is inside of, of which there is no need to count one."""
    name: LineColumn[GroupLine] = LineColumn(
        by, 12, lambda row: row.name, lambda row: row.name, 0, stretches=True, cut=shorten
    )
    columns = [*GROUP_COLUMNS, name] if by != "process" else GROWER_COLUMNS
    known = {"regions"} if of else set()
    known |= {"processes", "exited"} if of and of.by == "process" else set()
    return [column for column in columns if column.title not in known]


def matching(rows: Sequence[Row], columns: Sequence[LineColumn[Row]], text: str) -> Sequence[Row]:
    """The rows that contain the text in some column, whatever its case."""
    wanted = text.casefold()
    return [row for row in rows if any(wanted in column.text(row).casefold() for column in columns)] if text else rows


def sort(rows: Sequence[Row], column: LineColumn[Row]) -> list[Row]:
    """The rows sorted by a column, ties by size. What has ended, and grows no more, comes last."""

    def order(row: Any) -> Any:
        if isinstance(row, RegionLine):
            return row.ended, column.order(row), -row.region.allocated_bytes, row.key  # type: ignore[arg-type]
        name = row.name if isinstance(row, GroupLine) else row.key
        return row.ended, column.order(row), -row.touched_bytes, name

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


def column_at(columns: Sequence[LineColumn[Row]], room: int, place: int) -> LineColumn[Row] | None:
    """The column that stands at this place of a line; None: none does."""
    for column, columns_wide in layout(columns, room):
        if place < columns_wide:
            return column
        place -= columns_wide + 1
    return None


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
    has_room = sum(columns_wide + 1 for _, columns_wide in chosen) <= room + 1
    for row in rows:
        line = " ".join([_cell(column.text(row), column, columns_wide) for column, columns_wide in chosen])
        yield line if has_room else fit(line, room)


def _cell(text: str, column: LineColumn[Any], columns: int) -> str:
    text = column.cut(text, columns)
    space = " " * (columns - width(text))
    return text + space if column.stretches or column.title in ("kind", "state") else space + text


# ---- above and beside the tables ----


def headline(view: View, room: int) -> list[str]:
    """The answer in lines that fit, two at most; above them one about OOM kills, if there were any."""
    lines = wrap(view.answer, room)
    rest = " ".join(lines[ANSWER_LINES - 1 :])
    return [
        *[fit(kill, room) for kill in view.kills[:1]],
        *lines[: ANSWER_LINES - 1],
        *([fit(rest, room)] if rest else []),
    ]


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
    return [" · ".join(told), balance(view.summed.regions, session.page_bytes), *whole]


def balance(regions: Sequence[Region], page_bytes: int) -> str:
    """The balance in pages: allocated = touched + before + unseen."""
    touched = sum(region.touched_bytes + region.other_times_bytes for region in regions) // page_bytes
    before = sum(region.before_bytes for region in regions) // page_bytes
    unseen = sum(region.unseen_bytes for region in regions) // page_bytes
    allocated = sum(region.allocated_bytes for region in regions) // page_bytes
    return f"balance {allocated} pages = {touched} touched + {before} before + {unseen} unseen"


def describe(row: RegionLine, session: Session) -> list[str]:
    """The lines that describe an opened region. Where the trace has ended, its mappers are known."""
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
    mappers = " ".join(map(str, region.mappers[:MAX_MAPPERS])) or ("nobody" if session.complete else "?")
    mappers += " …" * (len(region.mappers) > MAX_MAPPERS)
    speed = [f"rate {format_change(round(row.bytes_per_second))}/s", f"{_used(row)} of its size"]
    speed += [f"full in {_full_in(row)}"] if row.full_in_s is not None else []
    name = f"{row.label}  " if row.label != printable(region.name) else ""
    return [
        f"{name}{printable(region.kind)} {_size(region.size_bytes)}  {printable(region.name)}",
        f"region {region.id}",
        ", ".join(sizes),
        ", ".join(speed),
        made_by,
        f"mapped by {mappers}",
        balance([region], session.page_bytes),
        f"before the trace {format_bytes(region.before_bytes)}, unseen {format_bytes(region.unseen_bytes)}",
    ]


def describe_grower(row: Grower) -> list[str]:
    """The lines that describe an opened grower."""
    touched = f"touched {format_bytes(row.touched_bytes)}, delta {_delta(row.delta_bytes)}"
    if isinstance(row, GroupLine):
        return [f"{row.by} {row.name}", f"{touched}, by {row.nr_processes} process(es), {row.nr_exited} exited"]
    process = row.process
    parent = "" if process.parent is None else f", child of {process.parent}"
    pod = [f"pod {printable(where)}"] if (where := process.place.in_pod) else []
    cgroup = [f"cgroup {printable(process.cgroup)}"] if process.cgroup else []
    return [printable(process.who), f"{touched}, {_state(process)}{parent}", *pod, *cgroup]


def changes(view: View, by: str = "process") -> Iterator[str]:
    """Plain lines with their time: OOM kills, the answer, and the regions and growers that are new, changed or gone.

    Most changed first; nothing if nothing changed.
    """
    time = clock(view.account.session.ended_ns)
    told = [*_region_changes(view), *_grower_changes(view, by)]
    if view.kills != (view.previous.kills if view.previous else []):
        yield f"{time} {' '.join(view.kills)}"
    if told:
        yield f"{time} answer {view.answer}"
    yield from (f"{time} {line}" for line in told)


def _region_changes(view: View) -> Iterator[str]:
    regions = sorted((row for row in view.regions if row.changed), key=lambda row: -abs(row.delta_bytes))
    for region in regions[:MAX_CHANGES]:
        yield f"region {_tell(region)}"
    if regions[MAX_CHANGES:]:
        rest_bytes = sum(row.delta_bytes for row in regions[MAX_CHANGES:])
        yield f"region {format_change(rest_bytes)}  in {len(regions) - MAX_CHANGES} more"


def _grower_changes(view: View, by: str) -> Iterator[str]:
    changed = sorted((row for row in growers(view, by) if row.changed), key=lambda row: -abs(row.delta_bytes))
    for grower in changed[:MAX_CHANGES]:
        touched = f"touched {format_bytes(grower.touched_bytes)}"
        if isinstance(grower, GroupLine):
            who, name = f"{grower.nr_processes} process(es)", grower.name
        else:
            who, touched = (
                f"{grower.process.tgid} {_state(grower.process)}",
                f"{touched} in {grower.nr_regions} region(s)",
            )
            name = _name(grower.process.command or grower.process.comm)
        yield f"grower {format_change(grower.delta_bytes)}  {who}, {touched}  {name}"
    if changed[MAX_CHANGES:]:
        rest_bytes = sum(row.delta_bytes for row in changed[MAX_CHANGES:])
        yield f"grower {format_change(rest_bytes)}  of {len(changed) - MAX_CHANGES} more"


def _tell(row: RegionLine) -> str:
    region = row.region
    gone = f", gone {clock(region.gone_ns)}" if region.gone_ns else ""
    return (
        f"{format_change(row.delta_bytes)}  {row.label} {region.id} {region.kind} {_size(region.size_bytes)}, "
        f"allocated {format_bytes(region.allocated_bytes)}, {format_change(region.grown_bytes)} since the start{gone}, "
        f"made by {_made_by(row)}"
    )

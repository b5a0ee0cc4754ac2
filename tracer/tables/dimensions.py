"""The table of an account by one or two dimensions: what was touched first, by whom, for what, where, when. Pure.

A dimension is something that every touched page has: the process that touched it, the region it is in, the process
that created that, what the process was doing, the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Callable, NamedTuple, Union

from tracer import alike, labels
from tracer.capture.capture import Capture
from tracer.cgroup import Place
from tracer.errors import ShmtraceError
from tracer.formatting import fit, format_bytes, shorten, shorten_command
from tracer.model import NAMELESS, Account, Labelled, Parent, Process, Region
from tracer.tables.by_time import parts_of_time
from tracer.tables.rollup import PARTS, what
from tracer.tables.table import Column, Table

NAMES = ["command", "creator", "process", "what", "region", "unit", "container", "pod", "namespace", "time", "host"]
"""The dimensions of every capture. command and creator stand for processes that are alike, what for such regions."""

CUTS: Mapping[str, Callable[[str, int], str]] = {
    **dict.fromkeys(["command", "creator", "process"], shorten_command),
    **dict.fromkeys(["what", "region", "unit", "container", "pod", "host", "script", "file", "directory"], shorten),
}
"""How a text is made to fit: many names differ at their end alone."""

Text = Union[str, int, None]


class Cell(NamedTuple):
    """Pages of one region that one process touched first, with one label."""

    parent: Parent
    region: Region
    labelled: Labelled
    time_ns: int | None = None
    """CLOCK_REALTIME when the part of the time began that they were touched in; None: of any time"""


class Group(NamedTuple):
    """The cells that are alike in each dimension, summed up; or a part that no process touched."""

    part: str
    """touched, other_times, before or unseen"""
    texts: Sequence[Text]
    """one for each dimension: nanoseconds since 1970 for time. None: unknown; "": the label was empty"""
    size_bytes: int
    nr_processes: int | None = None
    nr_exited: int | None = None
    first_ns: int | None = None
    last_ns: int | None = None
    regions: Sequence[str] = ()
    """names of the regions, most touched first"""
    gone_bytes: int = 0
    """of it, in regions that are gone"""
    key: Hashable = None
    """identity of a touched row, which stays the same while the row grows"""
    nr_hosts: int | None = None

    @property
    def nr_regions(self) -> int:
        return len(self.regions)


def by(account: Account, names: Sequence[str], capture: Capture | None = None, depth: int | None = None) -> Table:
    """Touched bytes by these dimensions, most first; if time is one of them, in its order.

    names: of NAMES and of labels.KINDS; "label" is the most telling kind that the capture has. The rows add up to what
    is allocated. capture: needed for time alone. depth: as in Label.text(). Raises ShmtraceError if the capture has no
    labels of that kind.
    """
    of = [_kind(account, name) if name in labels.KINDS else name for name in names]
    names_of = {region.row: _name(parent, region) for parent in account.parents for region in parent.regions}
    dimensions = [_dimension(name, depth, names_of, account.host_of) for name in of]
    found: dict[tuple[Hashable, ...], _Sum] = {}
    for cell in _of_parts_of_time(account, capture) if capture and "time" in names else cells(account):
        key = tuple([dimension.key(cell) for dimension in dimensions])
        if key not in found:
            found[key] = _Sum(cell)
        found[key].add(cell)
    rows = [
        sums.group(key, [dimension.text(sums) for dimension in dimensions], names_of) for key, sums in found.items()
    ]
    times = [place for place, name in enumerate(of) if name == "time"]
    rows.sort(
        key=lambda row: (
            [row.texts[place] for place in times],
            -row.size_bytes,
            [(text is None, str(text)) for text in row.texts],
        )
    )
    rows += [
        Group(part, [None] * len(of), size_bytes)
        for part in ("other_times", "before", "unseen")
        if (size_bytes := sum(getattr(region, f"{part}_bytes") for region in account.regions))
    ]
    return Table(",".join(names), _columns(of, bool(account.hosts) and "host" not in of), rows)


def cells(account: Account) -> Iterator[Cell]:
    """What was touched in the account's window, in the smallest pieces that an account has."""
    for parent in account.parents:
        for region in parent.regions:
            yield from (Cell(parent, region, labelled) for labelled in region.labelled or _unlabelled(region))


def _unlabelled(region: Region) -> Iterator[Labelled]:
    for process, touched_bytes, _, _, first_ns, last_ns, *_ in region.touchers:
        if touched_bytes:
            yield Labelled(None, process, touched_bytes, first_ns or 0, last_ns or 0)


def _of_parts_of_time(account: Account, capture: Capture) -> Iterator[Cell]:
    """The same, each cell in one part of the time."""
    of = {region.row: (parent, region) for parent in account.parents for region in parent.regions}
    for row, time_ns, labelled in parts_of_time(account, capture):
        if row in of:
            yield Cell(*of[row], labelled, time_ns)


class _Sum:
    """The cells of a group, added up as they come: there may be very many."""

    def __init__(self, first: Cell) -> None:
        self.first = first
        self.processes: dict[int, Process] = {}
        self.regions: dict[int, tuple[Region, Parent]] = {}
        self._sizes: Counter[int] = Counter()  # by the row of the region
        self._first_ns, self._last_ns = first.labelled.first_ns, first.labelled.last_ns

    def add(self, cell: Cell) -> None:
        parent, region, (_, process, touched_bytes, first_ns, last_ns), _ = cell
        self.processes[process.row] = process
        self.regions[region.row] = region, parent
        self._sizes[region.row] += touched_bytes
        self._first_ns, self._last_ns = min(self._first_ns, first_ns), max(self._last_ns, last_ns)

    def group(self, key: Hashable, texts: Sequence[Text], names: Mapping[int, str]) -> Group:
        """names: of the regions, by row."""
        gone = [row for row, (region, _) in self.regions.items() if region.gone_ns is not None]
        return Group(
            "touched",
            texts,
            sum(self._sizes.values()),
            len(self.processes),
            sum(process.exited_ns is not None for process in self.processes.values()),
            self._first_ns,
            self._last_ns,
            [names[row] for row, _ in self._sizes.most_common()],
            sum(self._sizes[row] for row in gone),
            key,
            len({region.host for region, _ in self.regions.values()}),
        )


def _kind(account: Account, name: str) -> str:
    """The kind of label text that a name stands for. Raises ShmtraceError if the capture has none."""
    kinds = labels.kinds(account.session.label)
    if not kinds or name not in ["label", *kinds]:
        has = f"it has {', '.join(kinds)}" if kinds else "it has no labels; record it with --label"
        raise ShmtraceError(f"the capture has no {name} to group by", has)
    return labels.meant(account.session.label, name)


# ---- dimensions ----


class _Dimension(NamedTuple):
    key: Callable[[Cell], Hashable]
    """what the cells of one group have in common"""
    text: Callable[[_Sum], Text]
    """of a group"""


def _dimension(name: str, depth: int | None, names: Mapping[int, str], host_of: Callable[[Region], str]) -> _Dimension:
    """names: of the regions, by row. host: of a capture."""
    if name == "command":
        return _Dimension(
            lambda cell: alike.of_process(cell.labelled.process), lambda sums: alike.called(sums.processes.values())
        )
    if name == "creator":
        return _Dimension(lambda cell: (made := _creator(cell.region)) and alike.of_process(made), _creators_called)
    if name == "process":
        return _Dimension(lambda cell: cell.labelled.process.row, lambda sums: _who(sums.first.labelled.process))
    if name == "what":
        return _Dimension(
            lambda cell: alike.of_region(cell.region, cell.parent.process),
            lambda sums: alike.regions_called((region, parent.process) for region, parent in sums.regions.values()),
        )
    if name == "region":
        return _Dimension(lambda cell: cell.region.row, lambda sums: names[sums.first.region.row])
    if name == "unit":
        return _of_texts(lambda cell: cell.labelled.process.unit)
    if name in PLACES:
        return _of_texts(lambda cell: cell.labelled.process.cgroup and PLACES[name](cell.labelled.process.place))
    if name == "host":
        return _of_texts(lambda cell: host_of(cell.region))
    if name == "time":
        return _of_texts(lambda cell: cell.time_ns)
    return _of_texts(lambda cell: cell.labelled.text(name, depth))


def _of_texts(text: Callable[[Cell], Text]) -> _Dimension:
    return _Dimension(text, lambda sums: text(sums.first))


def _creator(region: Region) -> Process | None:
    return region.creator and region.creator.process


def _creators_called(sums: _Sum) -> str | None:
    """None: they are unknown."""
    found = {made.row: made for region, _ in sums.regions.values() if (made := _creator(region))}
    return alike.called(found.values()) if found else None


PLACES: Mapping[str, Callable[[Place], str | None]] = {
    "container": lambda place: place.in_pod or place.container_called or "-",
    "pod": lambda place: place.pod_called or "-",
    "namespace": lambda place: place.names.namespace if place.names else None if place.pod else "-",
}
"""What a place is called; "-": it is in none, None: unknown."""


def _name(parent: Parent, region: Region) -> str:
    return f"{f'{region.host} ' if region.host else ''}{what(region, parent)} {region.ino}"


def _who(process: Process) -> str:
    return f"{process.host}: {process.who}" if process.host else process.who


# ---- columns ----


def _columns(names: Sequence[str], of_hosts: bool) -> list[Column]:
    """of_hosts: tell how many hosts a row is of."""
    alone = len(names) == 1
    texts = [place for place, name in enumerate(names) if name != "time"]
    return [
        *(Column("time_ns", "from", _text(place)) for place, name in enumerate(names) if name == "time"),
        Column("part", "", lambda row: row.part, "<"),
        Column("allocated_bytes", "allocated", lambda row: row.size_bytes),
        Column(
            "gone_bytes",
            "gone",
            lambda row: row.gone_bytes,
            shown=lambda row: format_bytes(row.gone_bytes) if row.gone_bytes else "",
            if_any=True,
        ),
        Column(
            "processes",
            "touchers" if "creator" in names else "by",
            lambda row: row.nr_processes,
            shown=lambda row: str(row.nr_processes or ""),
        ),
        Column(
            "exited",
            "exited" if "command" in names else "",
            lambda row: row.nr_exited,
            shown=lambda row: str(row.nr_exited or ""),
            if_any=True,
        ),
        *[Column("hosts", "hosts", lambda row: row.nr_hosts, shown=lambda row: str(row.nr_hosts or ""))] * of_hosts,
        Column("first_ns", "first" * alone, lambda row: row.first_ns),
        Column("last_ns", "last" * alone, lambda row: row.last_ns),
        Column("regions", "", lambda row: ", ".join(row.regions), "<"),
        *(
            Column(
                names[place],
                names[place],
                _text(place),
                "<",
                shown=_shown(place, place == texts[0]),
                always=True,
                cut=CUTS.get(names[place], fit),
            )
            for place in texts
        ),
    ]


def _text(place: int) -> Callable[[Group], Text]:
    return lambda row: row.texts[place]


def _shown(place: int, names_parts: bool) -> Callable[[Group], str]:
    def shown(row: Group) -> str:
        if row.part in PARTS:
            return PARTS[row.part] * names_parts
        text = row.texts[place]
        return "?" if text is None else str(text) or NAMELESS

    return shown

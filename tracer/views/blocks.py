"""The blocks of the report: who owns which regions, and who touched them; alike processes and regions together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, Optional, TypeVar

from tracer import alike, labels
from tracer.answer import how_many
from tracer.cgroup import short
from tracer.formatting import (
    COLUMNS,
    clock,
    duration,
    fit,
    format_bytes,
    format_change,
    printable,
    shorten,
    shorten_command,
    width,
)
from tracer.model import NAMELESS, Account, Parent, Process, Region, Toucher, charged
from tracer.tables.rollup import PARTS

NAME_COLUMNS = 16  # of a region, at least
COMM_COLUMNS = 16  # the kernel keeps 15 bytes; control characters, shown as codes, take more
MAX_OWNERS = 20
MAX_REGIONS = 6  # of an owner, shown in full
MAX_LINES = 20  # further regions of an owner, shown as one line each
MAX_TOUCHERS = 10
MAX_MADE_FOR = 3
MADE_FOR_COLUMNS = 30
MAX_CHARGED = 2
BELONGS_COLUMNS = 19  # a line has room for two of these, and the number of others
POD_COLUMNS = 50  # namespace/pod/container has a line of its own where it is so long
HEADER = "    {:>7} {:>8} {:>5}{} {}"
FAULTS = " {:>7}"
MAX_ENDINGS = 2
MAX_DEEDS = 5
DEEDS = "    {:>8} {:>5}  {}"
T = TypeVar("T")


def render(account: Account) -> list[str]:
    """The lines of all blocks, each with an empty line after it."""
    owners = _owners(account.parents, _most_apart(account))
    lines: list[str] = []
    for owner in owners[:MAX_OWNERS]:
        lines += [*_owner(owner, account), ""]
    rest = owners[MAX_OWNERS:]
    if rest:
        total_bytes = sum(owner.allocated_bytes for owner in rest)
        nr_processes = sum(len(owner.processes) or 1 for owner in rest)
        lines += [f"…{nr_processes} more processes with regions, {format_bytes(total_bytes)} allocated", ""]
    return lines


# ---- who owns which regions ----


class Owner(NamedTuple):
    """Processes that are alike, or one, with the regions that roll up to them."""

    processes: Sequence[Process]
    """empty: unknown"""
    regions: Sequence[Owned]

    @property
    def allocated_bytes(self) -> int:
        """Of the regions that exist; if none does, of those that are gone."""
        return sum(
            region.allocated_bytes
            for region, _ in [owned for owned in self.regions if owned[0].gone_ns is None] or self.regions
        )


Owned = tuple[Region, Optional[Process]]
"""A region and its parent."""


def _most_apart(account: Account) -> int:
    """How many that are alike are told one by one: of many hosts, none."""
    return 1 if account.hosts else alike.HANDFUL


def _owners(parents: Sequence[Parent], most_apart: int) -> list[Owner]:
    """The parents, more of them that are alike than most_apart as one; most allocated first."""
    groups: dict[str | None, list[Parent]] = {}
    for parent in parents:
        groups.setdefault(parent.process and alike.of_process(parent.process), []).append(parent)
    owners = [
        Owner(
            [parent.process for parent in some if parent.process],
            [(region, parent.process) for parent in some for region in parent.regions],
        )
        for some in _together(groups.values(), most_apart)
    ]
    return sorted(owners, key=lambda owner: -owner.allocated_bytes)


def _together(groups: Iterable[list[T]], most_apart: int) -> Iterator[list[T]]:
    """Groups of more than most_apart; of smaller ones each by itself."""
    for some in groups:
        yield from [some] if len(some) > most_apart else ([each] for each in some)


def _owner(owner: Owner, account: Account) -> list[str]:
    shown = [owned for owned in owner.regions if owned[0].peak_bytes or owned[0].gone_ns is None]
    alikes = _alike(shown, _most_apart(account))
    names = Counter(_called(some) for some in alikes)
    lines = [_heading(owner.processes, account.session.has_days)]
    for some in alikes[:MAX_REGIONS]:
        lines += _regions(some, names[_called(some)] > 1, owner, account)
    further = alikes[MAX_REGIONS:]
    for some in further[:MAX_LINES]:
        lines += _summary(some, names[_called(some)] > 1, account)
    rest = [region for some in further[MAX_LINES:] for region, _ in some]
    if rest:
        total_bytes = sum(region.allocated_bytes for region in rest)
        lines.append(f"  …{len(rest)} more regions, {format_bytes(total_bytes)} allocated")
    hidden = len(owner.regions) - len(shown)
    if hidden:
        lines.append(f"  …{hidden} more came and went without a page")
    return lines


def _key(owned: Owned) -> tuple[bool, str, str]:
    region, parent = owned
    return region.gone_ns is not None, region.kind, alike.of_region(region, parent)


def _called(owned: Sequence[Owned]) -> tuple[bool, str]:
    return owned[0][0].gone_ns is not None, alike.regions_called(owned)


def _alike(owned: Sequence[Owned], most_apart: int) -> list[list[Owned]]:
    """The regions, more of them that are alike than most_apart together; those that are gone come last."""
    groups: dict[tuple[bool, str, str], list[Owned]] = {}
    for each in owned:
        groups.setdefault(_key(each), []).append(each)
    return sorted(
        _together(groups.values(), most_apart), key=lambda some: (some[0][0].gone_ns is not None, -_allocated(some))
    )


def _allocated(owned: Iterable[Owned]) -> int:
    return sum(region.allocated_bytes for region, _ in owned)


def _heading(processes: Sequence[Process], days: bool) -> str:
    if not processes:
        return "?  made by unknown processes; no process here maps them now"
    first = processes[0]
    name, command = f"{fit(printable(first.comm or '?'), COMM_COLUMNS)} {_number(processes)}", first.command or ""
    notes = f"  {_ended(processes, days)}".rstrip() + _on({process.host for process in processes})
    if len(processes) > 1:
        command = alike.called(processes)
    return f"{name}  {shorten_command(printable(command), COLUMNS - width(name) - 2 - len(notes))}{notes}"


def _on(hosts: set[str | None]) -> str:
    """On which host, or how many; empty in a capture of one."""
    if hosts <= {None}:
        return ""
    [host, *others] = hosts
    return f"  on {f'{len(hosts)} hosts' if others else shorten(printable(host or ''), NAME_COLUMNS)}"


def _number(processes: Sequence[Process]) -> str:
    """The PID; of several, how many they are."""
    return _numbers(processes[0]) if len(processes) == 1 else f"×{len(processes)}"


def _ended(processes: Sequence[Process], days: bool) -> str:
    """How and when a process ended; of several, how many in which way. Empty if none has. days: a time has its day."""
    first, *_ = processes
    exited = [process for process in processes if process.exited_ns]
    if len(processes) == 1 and exited:
        return f"{first.ending} {clock(first.exited_ns, days)}"
    ways = Counter((process.exit_status, process.oom_killed) for process in exited)
    endings: Counter[str] = Counter()
    for (exit_status, oom_killed), number in ways.items():
        endings[first._replace(exit_status=exit_status, oom_killed=oom_killed).ending] += number
    return ", ".join(
        f"{how_many(number, len(processes))} {ending}" for ending, number in endings.most_common(MAX_ENDINGS)
    )


# ---- regions ----


def _summary(owned: Sequence[Owned], collides: bool, account: Account) -> list[str]:
    """The region, or regions that are alike, in a line: name, size, allocated, growth, or when they went.

    collides: others have the same name.
    """
    regions = [region for region, _ in owned]
    first = regions[0]
    number = f" ×{len(regions)}" * (len(regions) > 1)
    sizes = [region.size_bytes for region in regions if region.size_bytes is not None]
    size = format_bytes(sum(sizes)) if len(sizes) == len(regions) else "?"
    held = f"{'had' if first.gone_ns else 'allocated'} {format_bytes(_allocated(owned))}"
    line = f"{number}  {printable(first.kind)} {size}, {held}"
    parts = []
    if first.gone_ns:
        went = [
            clock(time_ns, account.session.has_days) for time_ns in sorted(region.gone_ns or 0 for region in regions)
        ]
        line += f" when {'they' if number else 'it'} went"
        parts.append(" to ".join(dict.fromkeys((went[0], went[-1]))))
    elif account.session.tier != "proc":
        line += f", {format_change(sum(region.grown_bytes for region in regions))} in {lasted(account)}"
    name = shorten(printable(alike.regions_called(owned)), max(COLUMNS - 2 - width(line), NAME_COLUMNS))
    swapped_bytes = sum(region.swapped_bytes or 0 for region in regions)
    if swapped_bytes:
        parts.append(f"{format_bytes(swapped_bytes)} swapped")
    if len(regions) == 1 and first.peak_bytes > first.allocated_bytes:
        parts.append(f"peak {format_bytes(first.peak_bytes)}")
    return _flow([f"  {name}{line}", *parts, *[f"id {first.id}"] * collides])


def _flow(parts: Sequence[str], separator: str = ", ") -> list[str]:
    """The parts with commas between them, in lines of at most 80 columns. separator: after the first."""
    lines = [parts[0]]
    for part in parts[1:]:
        if width(lines[-1] + separator + part) <= COLUMNS:
            lines[-1] += separator + part
        else:
            lines.append(f"      {part}")
        separator = ", "
    return lines


def _regions(owned: Sequence[Owned], collides: bool, owner: Owner, account: Account) -> list[str]:
    """A region, or regions that are alike, with a table of who touched them. collides: others have the same name."""
    regions, days = [region for region, _ in owned], account.session.has_days
    lines = _summary(owned, collides and len(regions) == 1, account)
    lines += [f"    {line}" for line in (_largest(regions), _made_by(regions, owner, days)) if line]
    if account.session.tier == "proc":
        return lines
    everyone = [toucher for region in regions for toucher in region.touchers]
    most_apart = _most_apart(account)
    touchers = [toucher for toucher in everyone if toucher.touched_bytes]
    total_bytes = _allocated(owned)
    parts = {
        part: sum(getattr(region, f"{part}_bytes") for region in regions)
        for part in ("other_times", "before", "unseen")
    }
    if touchers or parts["other_times"] or parts["unseen"]:
        counted = any(toucher.faults is not None for toucher in everyone)
        lines.append(HEADER.format("PID", "touched", "share", FAULTS.format("faults") * counted, "process"))
        rows = _rows(touchers, days, most_apart)
        for row in rows[:MAX_TOUCHERS]:
            lines += row.lines(total_bytes, counted)
        rest = [toucher for row in rows[MAX_TOUCHERS:] for toucher in row.touchers]
        if rest:
            lines += Row("", f"…{len(rows) - MAX_TOUCHERS} more", rest).lines(total_bytes, counted)
        lines += [
            _row("", parts[part], total_bytes, FAULTS.format("") * counted, name)
            for part, name in PARTS.items()
            if part in parts and (parts[part] or part == "unseen")
        ]
        lines += _freed(everyone, days, most_apart)
        lines += _deeds(regions, account)
    lines += _charged(regions)
    used = {toucher.process.row for toucher in everyone if toucher.faults}
    if used:  # faults are counted in one tier alone
        used -= {toucher.process.row for toucher in touchers}
    if used:
        noun = "more" if touchers else "process" if len(used) == 1 else "processes"
        faults = sum(toucher.faults or 0 for toucher in everyone if toucher.process.row in used)
        lines.append(f"    used without growing it by {len(used)} {noun}: {faults} fault{'s' * (faults != 1)}")
    return lines


def _largest(regions: Sequence[Region]) -> str:
    """Of regions that are alike."""
    if len(regions) == 1:
        return ""
    most = max(regions, key=lambda region: region.allocated_bytes)
    size = f"largest {format_bytes(most.allocated_bytes)}  "
    return f"{size}{shorten(printable(most.name), COLUMNS - 6 - len(size) - len(most.id))}  {most.id}"


def _made_by(regions: Sequence[Region], owner: Owner, days: bool) -> str:
    """The creators of the regions; empty if the heading says it, or a probe saw the parent create it, as usual."""
    if any(region.creator is None for region in regions):
        return "made by an unknown process" if owner.processes else ""
    creators = list(dict.fromkeys(region.creator for region in regions if region.creator))
    processes = list({creator.process: None for creator in creators})
    hows = {creator.how for creator in creators}
    if set(processes) <= set(owner.processes):
        if hows == {"traced"} or len(processes) > 1:
            return ""
        return f"made by {_numbers(processes[0])} ({', '.join(sorted(hows))})"
    made_by = f"made by {_number(processes)} "
    how = f" ({', '.join([*sorted(hows), *filter(None, [_ended(processes, days)])])})"
    command = alike.called(processes) if len(processes) > 1 else processes[0].command or processes[0].comm or "?"
    return made_by + shorten_command(printable(command), COLUMNS - 4 - len(made_by) - len(how)) + how


# ---- who touched them ----


class Row(NamedTuple):
    """A row of a region's table: a process, or processes that are alike."""

    number: str
    """the PID, or how many they are"""
    name: str
    touchers: Sequence[Toucher]
    note: str = ""

    @property
    def touched_bytes(self) -> int:
        return sum(toucher.touched_bytes for toucher in self.touchers)

    @property
    def freed_bytes(self) -> int:
        return sum(toucher.freed_bytes for toucher in self.touchers)

    def lines(self, total_bytes: int, counted: bool) -> list[str]:
        """The row, and for whom they made pages. counted: there is a column for faults."""
        known = [toucher.faults for toucher in self.touchers if toucher.faults is not None]
        faults = FAULTS.format(sum(known) if known else "") * counted
        row = _row(self.number, self.touched_bytes, total_bytes, faults, self.name, self.note)
        sizes: Counter[Process] = Counter()
        for toucher in self.touchers:
            for process, made_bytes in toucher.made_for:
                sizes[process] += made_bytes
        made_for = [
            f"{format_bytes(made_bytes)} for {_numbers(process)} {shorten_command(_name(process), MADE_FOR_COLUMNS)}"
            for process, made_bytes in sizes.most_common(MAX_MADE_FOR)
        ]
        rest_bytes = sum(sizes.values()) - sum(made_bytes for _, made_bytes in sizes.most_common(MAX_MADE_FOR))
        if rest_bytes:
            made_for.append(f"{format_bytes(rest_bytes)} for {len(sizes) - MAX_MADE_FOR} more")
        if made_for and sum(sizes.values()) > self.touched_bytes:
            made_for[-1] += ", some freed since"
        return [row, *(f"{'':12}{line}" for line in made_for)]


def _rows(touchers: Sequence[Toucher], days: bool, most_apart: int) -> list[Row]:
    """A row for each process; those that are alike share one if they all are more than most_apart."""
    are_many = len({toucher.process.row for toucher in touchers}) > most_apart
    groups: dict[Hashable, list[Toucher]] = {}
    for toucher in touchers:
        key = alike.of_process(toucher.process) if are_many else toucher.process.row
        groups.setdefault(key, []).append(toucher)
    rows = []
    for some in groups.values():
        alikes = list({toucher.process.row: toucher.process for toucher in some}.values())
        name = _name(alikes[0]) if len(alikes) == 1 else printable(alike.called(alikes))
        notes = [_ended(alikes, days), "outside tree" * all(process.outside_tree for process in alikes)]
        notes += [_on({alikes[0].host}).strip()] * (len(alikes) == 1)
        inner = _inner(alikes[0]) * (len(alikes) == 1)
        number = str(alikes[0].tgid) if len(alikes) == 1 else _number(alikes)
        rows.append(Row(number, f"{inner}{name}", some, ", ".join(filter(None, notes))))
    return sorted(rows, key=lambda row: -row.touched_bytes)


def _freed(touchers: Sequence[Toucher], days: bool, most_apart: int) -> list[str]:
    """The freed pages, by who had touched them first."""
    freed = [row for row in touchers if row.freed_bytes]
    gave = sorted(_rows(freed, days, most_apart), key=lambda row: -row.freed_bytes)
    if not gave:
        return []
    most, *rest = gave
    line = f"    freed: {format_bytes(most.freed_bytes)} of {most.number} {most.name}"
    more = f", {format_bytes(sum(row.freed_bytes for row in rest))} of {len(rest)} more" if rest else ""
    return [fit(line, COLUMNS - width(more)) + more]


def _deeds(regions: Sequence[Region], account: Account) -> list[str]:
    """The touched bytes by label, most first."""
    if account.session.label is None:
        return []
    touched: Counter[str | None] = Counter()
    for kind in labels.columns(account.session.label):  # the first that they have: hosts may have others
        touched.clear()
        for region in regions:
            for labelled in region.labelled:
                touched[labelled.text(kind)] += labelled.touched_bytes
        if not set(touched) <= {""}:
            break
    else:
        return []
    total_bytes = sum(region.allocated_bytes for region in regions)
    most = sorted(touched.items(), key=lambda item: (-item[1], item[0] is None, item[0]))
    lines = [DEEDS.format("touched", "share", kind)]
    for text, size_bytes in most[:MAX_DEEDS]:
        words = "?" if text is None else " ".join(text.split()) or NAMELESS
        lines.append(DEEDS.format(format_bytes(size_bytes), _share(size_bytes, total_bytes), printable(words)))
    if most[MAX_DEEDS:]:
        rest_bytes = sum(size_bytes for _, size_bytes in most[MAX_DEEDS:])
        more = f"…{len(most) - MAX_DEEDS} more"
        lines.append(DEEDS.format(format_bytes(rest_bytes), _share(rest_bytes, total_bytes), more))
    return lines


def _charged(regions: Sequence[Region]) -> list[str]:
    """The creators' cgroup and those charged for the regions; empty if the only one charged is the creators'."""
    sizes: Counter[str | None] = Counter()
    for region in regions:
        for process, size_bytes in charged(region):
            sizes[process and _belongs(process)] += size_bytes
    made = {region.creator.process for region in regions if region.creator and region.creator.process.cgroup}
    made_in = ", ".join(sorted(set(map(_belongs, made)))) if made else ""
    known = sizes.keys() - {None}
    if len(known) < 2 and (not made or known <= {made_in}):
        return []
    shares = [(where, size_bytes) for where, size_bytes in sizes.most_common() if where]
    rest_bytes = sum(size_bytes for _, size_bytes in shares[MAX_CHARGED:])
    shares = shares[:MAX_CHARGED] + ([(f"…{len(shares) - MAX_CHARGED} more", rest_bytes)] if rest_bytes else [])
    first, *others = (f"{format_bytes(size_bytes)} to {where}" for where, size_bytes in shares)
    return _flow([f"    made in {made_in or '?'}", f"charged {first}", *others], "; ")


def _belongs(process: Process) -> str:
    """The short name of its cgroup: the container, or else the unit, or else the path."""
    where = process.place
    if where.in_pod:
        return shorten(printable(where.in_pod), POD_COLUMNS)
    return fit(printable(short(where.container) or process.unit or "?"), BELONGS_COLUMNS)


def _numbers(process: Process) -> str:
    """The PID on the host, then in parentheses the one in its own PID namespace if that differs: 4312 (7)."""
    return f"{process.tgid} {_inner(process)}".rstrip()


def _inner(process: Process) -> str:
    return "" if process.ns_tgid is None else f"({process.ns_tgid}) "


def _name(process: Process) -> str:
    return printable(process.name)


def _row(number: str, size_bytes: int, total_bytes: int, faults: str, name: str, note: str = "") -> str:
    """note: kept whole, if the name must be cut."""
    line = HEADER.format(number, format_bytes(size_bytes), _share(size_bytes, total_bytes), faults, "")
    note = f"  {note}" * bool(note)
    return f"{line}{shorten_command(name, COLUMNS - width(line) - len(note))}{note}"


def _share(size_bytes: int, total_bytes: int) -> str:
    return f"{100 * size_bytes / total_bytes:.0f}%" if total_bytes else ""


def lasted(account: Account) -> str:
    """How long the capture's time was."""
    return duration((account.session.ended_ns - account.session.started_ns) / 1e9)

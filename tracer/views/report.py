"""The text report, in 80 columns, most important first."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable

from tracer import guess, labels, unmapped
from tracer.account import ALL_TIME, NAMELESS, Account, Parent, Process, Region, Toucher, charged
from tracer.answer import NO_ANSWER, answer
from tracer.capture.capture import PAGE_BYTES
from tracer.cgroup import place, short
from tracer.formatting import COLUMNS, clock, fit, format_bytes, format_change, moment, printable, width, wrap
from tracer.unmapped import UnmappedRow

PROCESS_COLUMNS = 22
COMM_COLUMNS = 16  # the kernel keeps 15 bytes; control characters, shown as codes, take more
MAX_PARENTS = 20
MAX_REGIONS = 6  # of a parent, shown in full
MAX_LINES = 20  # further regions of a parent, shown as one line each
MAX_TOUCHERS = 10
MAX_MADE_FOR = 3
MADE_FOR_COLUMNS = 36
MAX_CHARGED = 2
BELONGS_COLUMNS = 19  # a line has room for two of these, and the number of others
HEADER = f"    {'PID':>7} {'process':<{PROCESS_COLUMNS}} {'touched':>8} {'share':>5}"
FAULTS = f" {'faults':>7}"
MAX_DEEDS = 5
MAX_UNMAPPED = 20
DEEDS = "    {:>8} {:>5}  {}"


def render(account: Account) -> str:
    """The whole report. Its lines are cut at 80 columns, except warnings."""
    text = answer(account).text
    lines = _of_tmpfs(account)
    lines += [*wrap(text, COLUMNS), ""] if text else []
    for parent in account.parents[:MAX_PARENTS]:
        lines += [*_parent(parent, account), ""]
    rest = account.parents[MAX_PARENTS:]
    if rest:
        total = sum(parent.allocated_bytes for parent in rest)
        lines += [f"…{len(rest)} more processes with regions, {format_bytes(total)} allocated", ""]
    if not account.regions and not account.session.tmpfs:
        lines += [NO_ANSWER, ""]
    lines += _unmapped(account)
    lines += footer(account)
    return "\n".join([fit(line, COLUMNS) for line in lines] + warnings(account))


def _of_tmpfs(account: Account) -> list[str]:
    """How full the tmpfs is that was looked at; empty if it was processes."""
    session = account.session
    if not session.tmpfs:
        return []
    row = next((row for row in account.unmapped if row.kind == "tmpfs"), None)
    used_bytes = sum(region.allocated_bytes for region in account.regions if region.gone_ns is None)
    used_bytes += sum(row.allocated_bytes for row in account.unmapped if row.kind != "file")
    line = format_bytes(used_bytes)
    if row and row.size_bytes:
        line += f" of {format_bytes(row.size_bytes)} ({100 * used_bytes / row.size_bytes:.0f}%)"
    if session.tier != "proc":
        grown_bytes = sum(region.remaining_grown_bytes for region in account.regions)
        line += f", {format_change(grown_bytes)} in {_seconds(account)}"
    if row and row.files is not None:
        line += f", {row.files} inodes"
    return [f"{line}, of the tmpfs {printable(session.tmpfs)}", ""]


def warnings(account: Account) -> list[str]:
    """The account's warnings, one line each, never cut."""
    return [f"warning: {printable(text)}" for text in account.session.warnings]


def _parent(parent: Parent, account: Account) -> list[str]:
    shown = [region for region in parent.regions if region.peak_bytes or region.gone_ns is None]
    lines = [_heading(parent.process)]
    for region in shown[:MAX_REGIONS]:
        lines += _region(region, parent.process, account)
    lines += [_summary(region, parent.process, account) for region in shown[MAX_REGIONS:][:MAX_LINES]]
    rest = shown[MAX_REGIONS + MAX_LINES :]
    if rest:
        total = sum(region.allocated_bytes for region in rest)
        lines.append(f"  …{len(rest)} more regions, {format_bytes(total)} allocated")
    hidden = len(parent.regions) - len(shown)
    if hidden:
        lines.append(f"  …{hidden} more came and went without a page")
    return lines


def _heading(process: Process | None) -> str:
    if process is None:
        return "?  made by unknown processes; no process here maps them now"
    name = f"{fit(printable(process.comm or '?'), COMM_COLUMNS)} {_numbers(process)}"
    exited = f"  {process.ending} {clock(process.exited_ns)}" if process.exited_ns else ""
    return f"{name}  {fit(printable(process.command or ''), COLUMNS - width(name) - 2 - len(exited))}{exited}"


def _summary(region: Region, parent: Process | None, account: Account) -> str:
    """The region in one line: name, size, allocated, growth, or when it went."""
    name = guess.guess(region, parent) or fit(printable(region.name), 24)
    size = "?" if region.size_bytes is None else format_bytes(region.size_bytes)
    line = f"  {name}  {region.kind} {size}, allocated {format_bytes(region.allocated_bytes)}"
    if region.gone_ns:
        line += f" when it went, {clock(region.gone_ns)}"
    elif account.session.tier != "proc":
        line += f", {format_change(region.grown_bytes)} in {_seconds(account)}"
    if region.swapped_bytes:
        line += f", {format_bytes(region.swapped_bytes)} swapped"
    if region.peak_bytes > region.allocated_bytes:
        line += f", peak {format_bytes(region.peak_bytes)}"
    return line


def _region(region: Region, parent: Process | None, account: Account) -> list[str]:
    lines = [_summary(region, parent, account)]
    made_by = _made_by(region, parent)
    if made_by:
        lines.append(f"    {made_by}")
    if account.session.tier == "proc":
        return lines
    touchers = [toucher for toucher in region.touchers if toucher.touched_bytes]
    others = [toucher for toucher in region.touchers if not toucher.touched_bytes]
    if touchers or region.other_times_bytes or region.unseen_bytes:
        counted = any(toucher.faults is not None for toucher in region.touchers)
        lines.append(HEADER + FAULTS * counted)
        for toucher in touchers[:MAX_TOUCHERS]:
            lines += _toucher(toucher, region, counted)
        rest = touchers[MAX_TOUCHERS:]
        if rest:
            touched_bytes = sum(toucher.touched_bytes for toucher in rest)
            faults = _faults(rest) if counted else None
            lines.append(_row("", f"…{len(rest)} more", touched_bytes, region, faults))
        if region.other_times_bytes:
            lines.append(_row("", "at other times", region.other_times_bytes, region))
        if region.before_bytes:
            lines.append(_row("", "before the trace", region.before_bytes, region))
        lines.append(_row("", "unseen", region.unseen_bytes, region))
        lines += _freed(region)
        lines += _deeds(region, account)
    lines += _charged(region)
    if any(toucher.faults for toucher in others):
        noun = "more" if touchers else "process" if len(others) == 1 else "processes"
        who = f"{len(others)} {noun}"
        lines.append(f"    used without growing it by {who}: {_faults(others)} faults")
    return lines


def _deeds(region: Region, account: Account) -> list[str]:
    """The touched bytes by label, most first."""
    if not region.labelled or account.session.label is None:
        return []
    kind = labels.columns(account.session.label)[0]
    touched: Counter[str | None] = Counter()
    for labelled in region.labelled:
        touched[labelled.text(kind)] += labelled.touched_bytes
    if set(touched) == {""}:
        return []
    most = sorted(touched.items(), key=lambda item: (-item[1], item[0] is None, item[0]))
    lines = [DEEDS.format("touched", "share", kind)]
    for text, size_bytes in most[:MAX_DEEDS]:
        words = "?" if text is None else " ".join(text.split()) or NAMELESS
        lines.append(DEEDS.format(format_bytes(size_bytes), _share(size_bytes, region), printable(words)))
    if most[MAX_DEEDS:]:
        rest_bytes = sum(size_bytes for _, size_bytes in most[MAX_DEEDS:])
        more = f"…{len(most) - MAX_DEEDS} more"
        lines.append(DEEDS.format(format_bytes(rest_bytes), _share(rest_bytes, region), more))
    return lines


def _made_by(region: Region, parent: Process | None) -> str:
    """The creator of the region; empty if the heading says it, or a probe saw the parent create it, as usual."""
    creator = region.creator
    if creator is None:
        return "made by an unknown process" if parent else ""
    if creator.process == parent:
        return "" if creator.how == "traced" else f"made by {_numbers(creator.process)} ({creator.how})"
    exited = f", {creator.process.ending} {clock(creator.process.exited_ns)}" if creator.process.exited_ns else ""
    made_by, how = f"made by {_numbers(creator.process)} ", f" ({creator.how}{exited})"
    command = printable(creator.process.command or creator.process.comm or "?")
    return made_by + fit(command, COLUMNS - 4 - len(made_by) - len(how)) + how


def _faults(touchers: Iterable[Toucher]) -> int:
    return sum(toucher.faults or 0 for toucher in touchers)


def _toucher(toucher: Toucher, region: Region, counted: bool) -> list[str]:
    process = toucher.process
    notes = [f"{process.ending} {clock(process.exited_ns)}"] if process.exited_ns else []
    notes += ["outside tree"] if process.outside_tree else []
    faults = "" if counted else None  # an empty cell, or no such column
    row = _row(
        str(process.tgid),
        f"{_inner(process)}{_name(process)}",
        toucher.touched_bytes,
        region,
        faults if toucher.faults is None else toucher.faults,
        ", ".join(notes),
    )
    made_for = [_made_for(*made) for made in toucher.made_for[:MAX_MADE_FOR]]
    rest = toucher.made_for[MAX_MADE_FOR:]
    if rest:
        made_for.append(f"{format_bytes(sum(made for _, made in rest))} for {len(rest)} more")
    if made_for and sum(made for _, made in toucher.made_for) > toucher.touched_bytes:
        made_for[-1] += ", some freed since"
    return [row, *(f"{'':12}{line}" for line in made_for)]


def _made_for(process: Process, made_bytes: int) -> str:
    """Pages made in another process's memory, as by process_vm_writev, ptrace, userfaultfd or khugepaged."""
    return f"{format_bytes(made_bytes)} for {_numbers(process)} {fit(_name(process), MADE_FOR_COLUMNS)}"


def _freed(region: Region) -> list[str]:
    """The freed pages, by the process that had touched them first."""
    gave = sorted((row for row in region.touchers if row.freed_bytes), key=lambda row: -row.freed_bytes)
    if not gave:
        return []
    most, *rest = gave
    line = f"    freed: {format_bytes(most.freed_bytes)} of {_numbers(most.process)} {_name(most.process)}"
    more = f", {format_bytes(sum(row.freed_bytes for row in rest))} of {len(rest)} more" if rest else ""
    return [fit(line, COLUMNS - width(more)) + more]


def _charged(region: Region) -> list[str]:
    """The creator's cgroup and those charged for the region; empty if the only one charged is the creator's."""
    sizes: Counter[str | None] = Counter()
    for cgroup, size_bytes in charged(region):
        sizes[cgroup and _belongs(cgroup)] += size_bytes
    made = region.creator.process.cgroup if region.creator else None
    known = sizes.keys() - {None}
    if len(known) < 2 and (not made or known <= {_belongs(made)}):
        return []
    shares = [(where, size_bytes) for where, size_bytes in sizes.most_common() if where]
    rest_bytes = sum(size_bytes for _, size_bytes in shares[MAX_CHARGED:])
    shares = shares[:MAX_CHARGED] + ([(f"…{len(shares) - MAX_CHARGED} more", rest_bytes)] if rest_bytes else [])
    first, *others = (f"{format_bytes(size_bytes)} to {where}" for where, size_bytes in shares)
    lines = [f"    made in {_belongs(made)}"]
    for separator, indent, part in [("; ", "    ", f"charged {first}"), *((", ", "      ", other) for other in others)]:
        if width(lines[-1] + separator + part) <= COLUMNS:
            lines[-1] += separator + part
        else:
            lines.append(indent + part)
    return lines


def _belongs(cgroup: str | None) -> str:
    """The short name of a cgroup: its container, or else its unit, or else its path."""
    where = place(cgroup)
    return fit(printable(short(where.container) or where.unit or cgroup or "?"), BELONGS_COLUMNS)


def _numbers(process: Process) -> str:
    """The PID on the host, then in parentheses the one in its own PID namespace if that differs: 4312 (7)."""
    return f"{process.tgid} {_inner(process)}".rstrip()


def _inner(process: Process) -> str:
    return "" if process.ns_tgid is None else f"({process.ns_tgid}) "


def _name(process: Process) -> str:
    return printable(process.name)


def _row(tgid: str, name: str, size_bytes: int, region: Region, faults: int | str | None = None, note: str = "") -> str:
    name = fit(name, PROCESS_COLUMNS)
    name += " " * (PROCESS_COLUMNS - width(name))
    count = "" if faults is None else f" {faults:>7}"
    return f"    {tgid:>7} {name} {format_bytes(size_bytes):>8} {_share(size_bytes, region):>5}{count}  {note}".rstrip()


def _share(size_bytes: int, region: Region) -> str:
    return f"{100 * size_bytes / region.allocated_bytes:.0f}%" if region.allocated_bytes else ""


def footer(account: Account) -> list[str]:
    """The lines about the whole account: balance, tier, window, and what is unknown."""
    session, regions = account.session, account.regions
    lines: list[str] = []
    held = sum(region.allocated_bytes for region in regions if region.gone_ns is None)
    if session.sum_of_rss_bytes and held:
        lines.append(
            f"ps would add up to {format_bytes(session.sum_of_rss_bytes)} of RSS; "
            f"the regions hold {format_bytes(held)}, counted once"
        )
    if session.private_end_bytes is not None:
        grown_bytes = account.private_grown_bytes
        grown = "" if grown_bytes is None else f", {format_change(grown_bytes)}"
        exact = session.private_is_exact
        private = f"private memory {'' if exact else 'at most '}{format_bytes(session.private_end_bytes)}{grown}"
        lines.append(private if exact else f"{private}; pages shared by forks count for each")
    if session.tier != "proc":
        touched = sum(region.touched_bytes for region in regions) // PAGE_BYTES
        other_times = sum(region.other_times_bytes for region in regions) // PAGE_BYTES
        before = sum(region.before_bytes for region in regions) // PAGE_BYTES
        unseen = sum(region.unseen_bytes for region in regions) // PAGE_BYTES
        allocated = sum(region.allocated_bytes for region in regions) // PAGE_BYTES
        at_other_times = "" if account.window == ALL_TIME else f" + {other_times} at other times"
        balance = f"balance {allocated} pages = {touched} touched{at_other_times} + {before} before + {unseen} unseen"
        lines += textwrap.wrap(balance, COLUMNS, subsequent_indent="  ")
    if account.window != ALL_TIME:
        since_ns, until_ns = account.window
        since = "the start" if since_ns is None else moment(since_ns)
        until = "the end" if until_ns is None else moment(until_ns)
        lines.append(f"touched from {since} to {until}; allocated at the end")
    lost = "" if session.tier == "proc" else f", lost {session.lost_events} events and {session.lost_pages} pages"
    by = f" by {session.mechanism}" if session.tier == "exact" else ""
    lines.append(f"tier {session.tier}{by}{lost}")
    if not session.tmpfs:
        lines += textwrap.wrap(host_shmem(account), COLUMNS, subsequent_indent="  ")
    if not session.complete:
        lines.append(f"cut off: this is the state at {clock(session.ended_ns)}, when the capture was last written")
    if session.blind_to and any(region.unseen_bytes for region in regions):
        reasons = f"unseen may be {'; or '.join(session.blind_to)}"
        lines += textwrap.wrap(reasons, COLUMNS, subsequent_indent="  ")
    return lines


def host_shmem(account: Account) -> str:
    """Where the host's shared memory is; empty if it is unknown how much there is."""
    total_bytes, unexplained_bytes = account.session.shmem_total_bytes, account.shmem_unexplained_bytes
    if total_bytes is None or unexplained_bytes is None:
        return ""
    rest_bytes = account.shmem_rest_bytes
    if rest_bytes is None:
        return f"host shmem {format_bytes(total_bytes)}, {format_bytes(unexplained_bytes)} of it outside these regions"
    parts = [f"{format_bytes(total_bytes - unexplained_bytes)} mapped"]
    parts += [f"{format_bytes(size_bytes)} {part}" for part, size_bytes in unmapped.sums(account.unmapped).items()]
    return f"host shmem {format_bytes(total_bytes)} = {' + '.join(parts)} + {format_bytes(rest_bytes)} rest"


def _unmapped(account: Account) -> list[str]:
    """What nobody maps, and the command that shows or frees it; of a tmpfs, what is in no region."""
    if not account.unmapped:
        return []
    lines = ["not in these regions" if account.session.tmpfs else "mapped by no process"]
    rows = [row for row in account.unmapped if row.allocated_bytes]
    for row in rows[:MAX_UNMAPPED]:
        size, remedy = f"  {format_bytes(row.allocated_bytes):>8}  ", f"  {printable(row.remedy)}"
        what = ("  " if row.kind == "file" else "") + _what(row)
        lines.append(size + (fit(what, COLUMNS - width(size)) if row.kind == "file" else what))
        if row.kind != "file":
            lines.append(" " * len(size) + remedy)
    rest = rows[MAX_UNMAPPED:]
    if rest:
        lines.append(f"  …{len(rest)} more")
    rest_bytes = account.shmem_rest_bytes
    if rest_bytes is not None:
        lines.append(
            f"  {format_bytes(rest_bytes):>8}  the rest: in flight in a socket, or the kernel's own (GEM, zram)"
        )
    return [*lines, ""] if len(lines) > 1 else []


def _what(row: UnmappedRow) -> str:
    name = printable(row.name)
    if row.kind == "held":
        more = f" and {row.holders - 1} more" if row.holders and row.holders > 1 else ""
        return f"{name}, held by {printable(row.who or '?')}{more}"
    if row.kind == "sysv":
        used = f", last used {moment(row.used_ns)}" if row.used_ns else ""
        return f"{name}{used}, created by {printable(row.who or '?')}"
    if row.kind == "tmpfs":
        limit = f" of {format_bytes(row.size_bytes)}" if row.size_bytes else ""
        return f"files of the tmpfs on {name}{limit}, {row.files} inodes"
    return name


# ---- colour ----

BOLD, YELLOW, PLAIN = "\x1b[1m", "\x1b[33m", "\x1b[0m"
# A line with indented lines below it is a process with its regions, except for the line on unseen pages.
HEADING = re.compile(r"^(?!unseen may be )\S.*(?=\n  )", re.MULTILINE)
WARNING = re.compile(r"^(?:warning: |cut off: | +unseen +[1-9-]).*", re.MULTILINE)


def paint(report: str) -> str:
    """The report with ANSI colours: processes in bold, warnings and unseen pages in yellow."""
    return WARNING.sub(rf"{YELLOW}\g<0>{PLAIN}", HEADING.sub(rf"{BOLD}\g<0>{PLAIN}", report))


# ---- values to text ----


def _seconds(account: Account) -> str:
    return f"{(account.session.ended_ns - account.session.started_ns) / 1e9:.0f} s"

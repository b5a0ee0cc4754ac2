"""The text report, in 80 columns, most important first."""

from __future__ import annotations

import re
import textwrap

from tracer import unmapped
from tracer.answer import NO_ANSWER, answer
from tracer.formatting import (
    COLUMNS,
    clock,
    count,
    fit,
    format_bytes,
    format_change,
    moment,
    printable,
    width,
    wrap,
)
from tracer.model import ALL_TIME, Account
from tracer.tables.by_host import by_host
from tracer.tables.table import Table
from tracer.unmapped import UnmappedRow
from tracer.views import blocks, table

MAX_UNMAPPED = 20
MAX_HOSTS = 10


def render(account: Account) -> str:
    """The whole report. Its lines are cut at 80 columns, except warnings."""
    lines = _of_tmpfs(account)
    found = answer(account)
    for sentences in (found.kills, found.sentences):
        lines += [*wrap(" ".join(sentences), COLUMNS), ""] if sentences else []
    lines += _hosts(account)
    lines += blocks.render(account)
    if not account.regions and not account.session.tmpfs:
        lines += [NO_ANSWER, ""]
    lines += _unmapped(account)
    lines += footer(account)
    return "\n".join([fit(line, COLUMNS) for line in lines] + warnings(account))


def of_table(found: Table, account: Account) -> str:
    """A table as text, then the footer and warnings of the account's report."""
    lines = table.text(found, days=account.session.has_days)
    return "\n".join([*lines, "", *(fit(line, COLUMNS) for line in footer(account)), *warnings(account)])


def _hosts(account: Account) -> list[str]:
    """The hosts that grew most, and the sum of all; empty: it is of one capture."""
    return [*table.text(by_host(account), limit=MAX_HOSTS), ""] if account.hosts else []


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
        line += f", {format_change(grown_bytes)} in {blocks.lasted(account)}"
    if row and row.files is not None:
        line += f", {row.files} inodes"
    return [f"{line}, of the tmpfs {printable(session.tmpfs)}", ""]


def warnings(account: Account) -> list[str]:
    """The account's warnings, one line each, never cut."""
    return [f"warning: {printable(text)}" for text in account.session.warnings]


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
        peak_bytes = session.private_peak_bytes or 0
        private += f", peak {format_bytes(peak_bytes)}" * (peak_bytes > session.private_end_bytes)
        shared = "" if exact else "; pages shared by forks count for each"
        lines += textwrap.wrap(private + shared, COLUMNS, subsequent_indent="  ")
    if session.tier != "proc":
        touched = sum(region.touched_bytes for region in regions) // session.page_bytes
        other_times = sum(region.other_times_bytes for region in regions) // session.page_bytes
        before = sum(region.before_bytes for region in regions) // session.page_bytes
        unseen = sum(region.unseen_bytes for region in regions) // session.page_bytes
        allocated = sum(region.allocated_bytes for region in regions) // session.page_bytes
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
    if account.hosts:
        older = f"; {count(account.nr_older, 'older capture')} in the file, not counted" * bool(account.nr_older)
        lines.append(f"{count(len(account.hosts), 'host')}, of each the latest{older}")
    if session.part:
        since = moment(session.since_ns)
        lines.append(f"part {session.part} of a trace, since {since}; `--since +0s`: this alone")
    if not session.complete and account.hosts:
        nr_cut_off = sum(not host.complete for host in account.hosts)
        lines.append(f"cut off, or still written: {nr_cut_off} of them, as of when they were last written")
    elif not session.complete:
        ended = clock(session.ended_ns, session.has_days)
        lines.append(f"cut off: this is the state at {ended}, when the capture was last written")
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
    if not account.unmapped or account.hosts:
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
# A line with indented lines below it is a process with its regions, except for lines of the footer.
HEADING = re.compile(r"^(?!unseen may be |private memory |balance |host shmem )\S.*(?=\n  )", re.MULTILINE)
WARNING = re.compile(r"^(?:(?:warning: |cut off: ).*| +(?!0 B)-?[\d.]+ [KMGT]?i?B .* unseen)$", re.MULTILINE)


def paint(report: str) -> str:
    """The report with ANSI colours: processes in bold, warnings and unseen pages in yellow."""
    return WARNING.sub(rf"{YELLOW}\g<0>{PLAIN}", HEADING.sub(rf"{BOLD}\g<0>{PLAIN}", report))

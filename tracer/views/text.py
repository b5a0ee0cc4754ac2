"""The report for a person: 80 columns, most important first."""

from __future__ import annotations

import unicodedata
from datetime import datetime

from tracer import labels
from tracer.account import Account, Parent, Process, Region, Toucher
from tracer.procfs import PAGE_BYTES

COLUMNS = 80
MAX_TOUCHERS = 10
MAX_REGIONS = 6  # shown in full; of the rest a line each, up to
MAX_LINES = 20


def render(account: Account) -> str:
    session = account.session
    lines = []
    for parent in account.parents:
        lines += [*_parent(parent, account), ""]
    if not account.regions:
        lines += ["no shared memory: none of these processes maps any, or did", ""]
    return "\n".join(fit(line, COLUMNS) for line in lines + _footer(account)) + "".join(
        f"\nwarning: {warning}" for warning in session.warnings
    )


def _parent(parent: Parent, account: Account) -> list[str]:
    shown = [region for region in parent.regions if region.peak_bytes or region.gone_ns is None]
    hidden = len(parent.regions) - len(shown)
    lines = [_heading(parent.process)]
    for region in shown[:MAX_REGIONS]:
        lines += _region(region, parent.process, account)
    lines += [f"  {_summary(region, parent.process, account)}" for region in shown[MAX_REGIONS:][:MAX_LINES]]
    rest = shown[MAX_REGIONS + MAX_LINES :]
    if rest:
        lines.append(f"  …{len(rest)} more regions, {format_bytes(sum(r.allocated_bytes for r in rest))} allocated")
    if hidden:
        lines.append(f"  …{hidden} more came and went without a page")
    return lines


def _heading(process: Process | None) -> str:
    if process is None:
        return "?  made by a process that had exited before, and mapped by none of these now"
    command = printable(process.command or "")
    exited = f"  exited {_clock(process.exited_ns)}" if process.exited_ns else ""
    name = f"{printable(process.comm or '?')} {process.tgid}"
    return f"{name}  {fit(command, COLUMNS - len(name) - 2 - len(exited))}{exited}"


def _summary(region: Region, parent: Process | None, account: Account) -> str:
    """One line: which region, how big, how much it grew, whether it is gone."""
    name = labels.guess(region, parent) or printable(region.name)
    size = "?" if region.vss_bytes is None else format_bytes(region.vss_bytes)
    line = f"{fit(name, 24)}  {region.kind} {size}  allocated {format_bytes(region.allocated_bytes)}"
    if region.gone_ns:
        line += f" at its end, gone {_clock(region.gone_ns)}"
    elif account.session.tier != "proc":
        line += f"  {format_change(region.grown_bytes)} in {_seconds(account)}"
    if region.swapped_bytes:
        line += f"  {format_bytes(region.swapped_bytes)} swapped"
    if region.peak_bytes > region.allocated_bytes:
        line += f"  peak {format_bytes(region.peak_bytes)}"
    return line


def _region(region: Region, parent: Process | None, account: Account) -> list[str]:
    lines = [f"  {_summary(region, parent, account)}"]
    creator = region.creator
    if creator is None:
        lines.append("    made by a process that had exited before")
    elif creator.process != parent or creator.how != "traced":
        lines.append(f"    made by {creator.process.tgid} {printable(creator.process.command or '?')} ({creator.how})")
    if account.session.tier == "proc":
        return lines
    touchers = [toucher for toucher in region.touchers if toucher.touched_bytes]
    users = [toucher for toucher in region.touchers if not toucher.touched_bytes]
    for i, toucher in enumerate(touchers[:MAX_TOUCHERS]):
        lines.append(_toucher("grown by" if i == 0 else "", toucher, region))
    rest = touchers[MAX_TOUCHERS:]
    if rest:
        lines.append(_row("", f"…{len(rest)} more", sum(t.touched_bytes for t in rest), region, ""))
    if region.before_bytes:
        lines.append(_row("before", "", region.before_bytes, region, "there when the trace began"))
    if region.unseen_bytes:
        lines.append(_row("unseen", "", region.unseen_bytes, region, "made by a way this tier is blind to"))
    if users:
        faults = sum(user.faults or 0 for user in users)
        some = ", ".join(str(user.process.tgid) for user in users[:3]) + (", …" if len(users) > 3 else "")
        lines.append(f"    used, not grown, by {len(users)} more ({some}): {faults} faults")
    return lines


def _toucher(head: str, toucher: Toucher, region: Region) -> str:
    process = toucher.process
    exited = f"exited {_clock(process.exited_ns)}" if process.exited_ns else ""
    what = fit(printable(process.command or process.comm or "?"), COLUMNS - 59)
    return _row(head, f"{process.tgid:>7} {what}", toucher.touched_bytes, region, exited, toucher.faults)


def _row(head: str, who: str, size_bytes: int, region: Region, note: str, faults: int | None = None) -> str:
    share = f"{100 * size_bytes / region.allocated_bytes:.0f}%" if region.allocated_bytes else ""
    count = f"{faults} f" if faults is not None else ""
    return f"    {head:<8} {who:<29} {format_bytes(size_bytes):>7} {share:>4} {count:>9}  {note}".rstrip()


def _footer(account: Account) -> list[str]:
    session, regions = account.session, account.regions
    pages = {
        "allocated": sum(region.allocated_bytes for region in regions),
        "touched": sum(region.touched_bytes for region in regions),
        "before": sum(region.before_bytes for region in regions),
        "unseen": sum(region.unseen_bytes for region in regions),
    }
    allocated, touched, before, unseen = (size_bytes // PAGE_BYTES for size_bytes in pages.values())
    lines = []
    if session.tier != "proc":
        lines.append(f"balance {allocated} pages = {touched} touched + {before} before + {unseen} unseen")
    living = sum(region.allocated_bytes for region in regions if region.gone_ns is None)
    if session.sum_of_rss_bytes is not None and living:
        lines.append(
            f"RSS adds up to {format_bytes(session.sum_of_rss_bytes)} over these processes; "
            f"the regions hold {format_bytes(living)}, once"
        )
    lost = f" · {session.lost_events} events, {session.lost_pages} pages lost" if session.tier != "proc" else ""
    lines.append(
        f"tier {session.tier}{lost} · host shmem {format_bytes(session.shmem_total_bytes)}, "
        f"{format_bytes(account.shmem_unexplained_bytes)} not of these"
    )
    return lines


# ---- values to text ----


def format_bytes(size_bytes: int) -> str:
    """As 81.2M; below 1 KiB, and zero, plain."""
    value = float(size_bytes)
    for unit in ("", "K", "M", "G", "T"):
        if value < 1024 or unit == "T":
            break
        value /= 1024
    return f"{value:.1f}{unit}" if unit else str(size_bytes)


def format_change(size_bytes: int) -> str:
    return ("+" if size_bytes >= 0 else "-") + format_bytes(abs(size_bytes))


def printable(text: str) -> str:
    """Text from strangers: what could move the cursor, colour, reorder or hide is shown as its code."""
    return "".join(
        character
        if unicodedata.category(character)[0] != "C" and unicodedata.category(character) not in ("Zl", "Zp")
        else f"\\x{ord(character):02x}"
        for character in text
    )


def width(text: str) -> int:
    """Terminal columns: East Asian wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def fit(text: str, columns: int) -> str:
    """Cut to so many columns, with an ellipsis where something was cut."""
    if width(text) <= columns:
        return text
    cut = text[: max(columns - 1, 0)]
    while width(cut) > columns - 1:
        cut = cut[:-1]
    return cut + "…"


def _seconds(account: Account) -> str:
    return f"{(account.session.ended_ns - account.session.started_ns) / 1e9:.0f} s"


def _clock(unix_ns: int | None) -> str:
    """Local time of day."""
    return "?" if unix_ns is None else datetime.fromtimestamp(unix_ns / 1e9).strftime("%H:%M:%S")  # noqa: DTZ006

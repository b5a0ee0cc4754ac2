"""The table of an account by host: what there is on each, how it grew, and what for, or by whom, most. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tracer import alike, labels
from tracer.formatting import format_bytes, shorten
from tracer.model import ALL_TIME, NAMELESS, Account, Region, Session
from tracer.tables.table import Column, Table


class HostRow(NamedTuple):
    """What the regions of a host come to, those that are gone as when they went; or the sum of all hosts."""

    host: str
    ended_ns: int
    """CLOCK_REALTIME of the end of its capture"""
    regions: int
    allocated_bytes: int
    gone_bytes: int
    """of it, in regions that are gone"""
    grown_bytes: int | None
    """of the regions that exist; None: it is not known of a window"""
    touched_bytes: int
    other_times_bytes: int
    before_bytes: int
    unseen_bytes: int
    most: str | None
    """what most was touched for; without labels, by whom; None: nothing was touched"""
    most_bytes: int


BY_HOST = [
    Column("host", "host", lambda row: row.host, "<", cut=shorten),
    Column("ended_ns", "", lambda row: row.ended_ns),
    Column("regions", "", lambda row: row.regions),
    Column("allocated_bytes", "allocated", lambda row: row.allocated_bytes),
    Column(
        "gone_bytes",
        "gone",
        lambda row: row.gone_bytes,
        shown=lambda row: format_bytes(row.gone_bytes) if row.gone_bytes else "",
        if_any=True,
    ),
    Column("grown_bytes", "grown", lambda row: row.grown_bytes, signed=True),
    Column("touched_bytes", "touched", lambda row: row.touched_bytes),
    Column("other_times_bytes", "", lambda row: row.other_times_bytes),
    Column("before_bytes", "", lambda row: row.before_bytes),
    Column("unseen_bytes", "unseen", lambda row: row.unseen_bytes, if_any=True),
    Column("most", "most by", lambda row: row.most, "<", shown=lambda row: row.most or "", cut=shorten),
    Column("most_bytes", "", lambda row: row.most_bytes),
]


def by_host(account: Account) -> Table:
    """A row for each host: the most grown first, or in a window the most touched. They add up to what is allocated."""
    regions: dict[str, list[Region]] = {}
    for region in account.regions:
        regions.setdefault(account.host_of(region), []).append(region)
    sessions = {session.host: session for session in account.hosts or [account.session]}
    rows = [_row(session, regions.get(host, []), account) for host, session in sessions.items()]
    rows.sort(key=lambda row: (-(row.touched_bytes if row.grown_bytes is None else row.grown_bytes), row.host))
    total = _row(account.session._replace(host="sum"), account.regions, account)._replace(most=None, most_bytes=0)
    return Table("host", BY_HOST, rows, total)


def _row(session: Session, regions: Sequence[Region], account: Account) -> HostRow:
    touched = _touched(session, regions)
    most, most_bytes = max(touched.items(), key=lambda item: item[1], default=(None, 0))
    return HostRow(
        session.host,
        session.ended_ns,
        len(regions),
        sum(region.allocated_bytes for region in regions),
        sum(region.allocated_bytes for region in regions if region.gone_ns is not None),
        sum(region.remaining_grown_bytes for region in regions) if account.window == ALL_TIME else None,
        sum(region.touched_bytes for region in regions),
        sum(region.other_times_bytes for region in regions),
        sum(region.before_bytes for region in regions),
        sum(region.unseen_bytes for region in regions),
        most,
        most_bytes,
    )


def _touched(session: Session, regions: Sequence[Region]) -> Counter[str]:
    """Touched bytes by the most telling text of the labels; without them by processes that are alike."""
    touched: Counter[str] = Counter()
    telling = labels.telling(session.label)
    for region in regions:
        for labelled in region.labelled:
            texts = [labelled.text(column) for column in telling]
            touched[next(filter(None, texts), "?" if None in texts else NAMELESS)] += labelled.touched_bytes
        for toucher in () if region.labelled else region.touchers:
            touched[alike.of_process(toucher.process)] += toucher.touched_bytes
    return +touched

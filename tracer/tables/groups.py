"""Every table of an account that --by names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from tracer import alike, labels
from tracer.capture.capture import Capture
from tracer.formatting import shorten
from tracer.model import Account
from tracer.tables import by_time, dimensions, rollup
from tracer.tables.by_cgroup import by_container, by_unit
from tracer.tables.by_host import by_host
from tracer.tables.by_stack import by_stack
from tracer.tables.by_unmapped import by_unmapped
from tracer.tables.table import Column, Table

ALONE: Mapping[str, Callable[[Account], Table]] = {
    "parent": rollup.by_parent,
    "process": rollup.by_process,
    "unit": by_unit,
    "container": by_container,
    "host": by_host,
    "stack": by_stack,
    "unmapped": by_unmapped,
}
FROM_CAPTURE: Mapping[str, Callable[[Account, Capture], Table]] = {
    "region": rollup.by_region,
    "time": by_time.by_time,
}
HOSTS: Mapping[str, Callable[[Any], Any]] = {
    "parent": lambda row: row.region.host,
    "region": lambda row: row.region.host,
    "stack": lambda row: row.region.host,
    "process": lambda row: row.process.host,
    "unmapped": lambda row: row.host,
}
"""Of tables whose rows are of one host each, which one."""
DIMENSIONS = [*dimensions.NAMES, *labels.KINDS]
"""What may be crossed with one another."""
NAMES = list(dict.fromkeys([*ALONE, *FROM_CAPTURE, *DIMENSIONS]))


def table(account: Account, by: str, capture: Capture | None = None, depth: int | None = None) -> Table:
    """The table by one of NAMES, or by two of DIMENSIONS, as in "script,command".

    capture: needed for region and time. depth: of a directory, as in Labelled.text(). Raises ShmtraceError if the
    capture has no such data.
    """
    if by in ALONE:
        return _of_hosts(ALONE[by](account), account)
    if capture and by in FROM_CAPTURE:
        return _of_hosts(FROM_CAPTURE[by](account, capture), account)
    return dimensions.by(account, by.split(","), capture, depth)


def _of_hosts(table: Table, account: Account) -> Table:
    """With a column for the host, if there are several."""
    if not account.hosts or table.by not in HOSTS:
        return table
    return table._replace(columns=[Column("host", "host", HOSTS[table.by], "<", cut=shorten), *table.columns])


def telling(account: Account) -> list[str]:
    """The groupings that make sense for this account, the most specific first."""
    touchers = {toucher.process.row: toucher.process for region in account.regions for toucher in region.touchers}
    processes = list(touchers.values())
    places = {process.place for process in processes}
    creators = {alike.of_process(region.creator.process) for region in account.regions if region.creator}
    return [
        *labels.kinds(account.session.label),
        *(["host"] if len(account.hosts) > 1 else []),
        *(["command"] if len({alike.of_process(process) for process in processes}) < len(processes) else []),
        *(["creator"] if len(creators) > 1 else []),
        *(["unit"] if len({where.unit for where in places}) > 1 else []),
        *(["container"] if any(where.container for where in places) else []),
        *(["pod"] if any(where.pod for where in places) else []),
        *(["stack"] if account.has_stacks else []),
    ]

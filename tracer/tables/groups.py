"""Group an account by something else than regions and processes: unit, container, stack or label. Pure."""

from __future__ import annotations

from tracer import labels
from tracer.account import Account
from tracer.cgroup import place
from tracer.tables.by_cgroup import by_container, by_unit
from tracer.tables.by_label import by_label
from tracer.tables.by_stack import by_stack
from tracer.tables.by_unmapped import by_unmapped
from tracer.tables.table import Table


def table(account: Account, by: str, depth: int | None = None) -> Table:
    """The table by unit, container, stack, unmapped or a kind of label. depth: as in Labelled.text().

    Raises ShmtraceError if the capture has no such data.
    """
    tables = {"unit": by_unit, "container": by_container, "stack": by_stack, "unmapped": by_unmapped}
    return tables[by](account) if by in tables else by_label(account, by, depth)


def telling(account: Account) -> list[str]:
    """The groupings that make sense for this account, the most specific first."""
    places = {place(toucher.process.cgroup) for region in account.regions for toucher in region.touchers}
    return [
        *(labels.kinds(account.session.label) if account.session.label else []),
        *(["unit"] if len({where.unit for where in places}) > 1 else []),
        *(["container"] if any(where.container for where in places) else []),
        *(["stack"] if account.has_stacks else []),
    ]

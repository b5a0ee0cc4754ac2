"""By what else an account may be looked at than by its regions and processes. Pure."""

from __future__ import annotations

from tracer import labels
from tracer.account import Account
from tracer.cgroup import place
from tracer.tables.by_cgroup import by_container, by_unit
from tracer.tables.by_label import by_label
from tracer.tables.by_stack import by_stack
from tracer.tables.table import Table


def table(account: Account, by: str) -> Table:
    """Raises ShmtraceError where the capture does not tell."""
    tables = {"unit": by_unit, "container": by_container, "stack": by_stack}
    return tables[by](account) if by in tables else by_label(account, by)


def telling(account: Account) -> list[str]:
    """By what this account falls into parts: the most telling first."""
    places = {place(toucher.process.cgroup) for region in account.regions for toucher in region.touchers}
    return [
        *(labels.kinds(account.session.label) if account.session.label else []),
        *(["unit"] if len({where.unit for where in places}) > 1 else []),
        *(["container"] if any(where.container for where in places) else []),
        *(["stack"] if account.has_stacks else []),
    ]

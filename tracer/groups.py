"""By what else an account may be looked at than by its regions and processes. Pure."""

from __future__ import annotations

from tracer import sources
from tracer.account import Account
from tracer.belonging import by_container, by_unit
from tracer.deeds import by_label, by_stack
from tracer.places import place
from tracer.tables import Table


def table(account: Account, by: str) -> Table:
    """Raises ShmtraceError where the capture does not tell."""
    tables = {"unit": by_unit, "container": by_container, "stack": by_stack}
    return tables[by](account) if by in tables else by_label(account, by)


def telling(account: Account) -> list[str]:
    """By what this account falls into parts: the most telling first."""
    places = {place(toucher.process.cgroup) for region in account.regions for toucher in region.touchers}
    return [
        *(sources.kinds(account.session.label) if account.session.label else []),
        *(["unit"] if len({where.unit for where in places}) > 1 else []),
        *(["container"] if any(where.container for where in places) else []),
        *(["stack"] if account.has_stacks else []),
    ]

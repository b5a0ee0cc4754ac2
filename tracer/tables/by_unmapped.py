"""A table of the shared memory of the host that no process maps. Pure."""

from __future__ import annotations

from tracer.errors import ShmtraceError
from tracer.model import Account
from tracer.tables.table import Column, Table

BY_UNMAPPED = [
    Column("kind", "kind", lambda row: row.kind, "<"),
    Column("allocated_bytes", "allocated", lambda row: row.allocated_bytes),
    Column("swapped_bytes", "", lambda row: row.swapped_bytes),
    Column("size_bytes", "size", lambda row: row.size_bytes),
    Column("name", "name", lambda row: row.name, "<"),
    Column("files", "files", lambda row: row.files, shown=lambda row: str(row.files or "")),
    Column("holders", "", lambda row: row.holders),
    Column("holder", "who", lambda row: row.who, "<", shown=lambda row: row.who or ""),
    Column("used_ns", "", lambda row: row.used_ns),
    Column("reach", "", lambda row: row.reach, "<"),
    Column("remedy", "", lambda row: row.remedy, "<"),
]


def by_unmapped(account: Account) -> Table:
    """One row for each, as the report has them. Raises ShmtraceError if the capture has none."""
    if not account.unmapped:
        raise ShmtraceError("the capture has no shared memory that nobody maps", "record the whole host, with -a")
    return Table("unmapped", BY_UNMAPPED, account.unmapped)

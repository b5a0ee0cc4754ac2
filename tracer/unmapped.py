"""What a capture says of shared memory that no process had mapped. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from tracer.capture.capture import Capture

PARTS = {"held": "held by descriptors", "sysv": "unattached SysV", "tmpfs": "tmpfs files"}
"""Kinds that add up, as a person reads them; a file is part of its tmpfs."""


class UnmappedRow(NamedTuple):
    """A row of the capture's table of that name; schema.sql says what is in it."""

    kind: str
    name: str
    reach: str
    allocated_bytes: int
    swapped_bytes: int | None
    size_bytes: int | None
    creator: int | None
    creator_command: str | None
    last_user: int | None
    last_user_command: str | None
    used_ns: int | None
    holders: int | None
    holder: int | None
    holder_command: str | None
    files: int | None
    host: str | None = None
    """None: that of the capture"""

    @property
    def values(self) -> tuple[object, ...]:
        """Of COLUMNS."""
        return self[:-1]

    @property
    def in_memory_bytes(self) -> int:
        """At most, where it is not known what is swapped out."""
        return self.allocated_bytes - (self.swapped_bytes or 0)

    @property
    def who(self) -> str | None:
        """PID and command of a process that holds it, or else of its creator; None: unknown."""
        if self.holder is not None:
            return f"{self.holder} {self.holder_command or '?'}"
        return None if self.creator is None else f"{self.creator} {self.creator_command or '(exited)'}"

    @property
    def remedy(self) -> str:
        """The command that frees it, or shows what is in it or who has it."""
        commands = {"sysv": "ipcrm -m", "held": "ls -l", "tmpfs": "du -ah", "file": "ls -l"}
        return f"{commands.get(self.kind, 'ls -l')} {shlex.quote(self.reach)}"  # a file may be called anything


COLUMNS = ", ".join(UnmappedRow._fields[:-1])
"""Of the table unmapped."""


def read(capture: Capture) -> tuple[UnmappedRow, ...]:
    """As they were written: the largest first, each tmpfs followed by its largest files. Only of the whole host."""
    query = f"SELECT {COLUMNS}, {capture.host_column} FROM unmapped ORDER BY rowid"  # noqa: S608
    return tuple(UnmappedRow(*row) for row in capture.rows(query))


def sums(rows: Sequence[UnmappedRow]) -> dict[str, int]:
    """Bytes in memory by PARTS, those that have any."""
    found = {part: sum(row.in_memory_bytes for row in rows if row.kind == kind) for kind, part in PARTS.items()}
    return {part: size_bytes for part, size_bytes in found.items() if size_bytes}

"""Writes into a capture what of the host's shared memory no process maps, or what else one tmpfs has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Callable, Optional

from tracer.capture.capture import Capture
from tracer.proc import unmapped
from tracer.proc.procfs import Proc
from tracer.proc.tmpfs import Place
from tracer.record.regions import TracedRegion
from tracer.unmapped import COLUMNS, UnmappedRow

PATIENCE_S = unmapped.PATIENCE_S
Commands = Callable[[int], Optional[str]]
"""tgid to command line, running or exited; None: unknown."""


def write(
    capture: Capture,
    proc: Proc,
    regions: Collection[TracedRegion],
    commands: Commands,
    only: Place | None = None,
    patience_s: float = PATIENCE_S,
) -> list[str]:
    """Find and write the shared memory that is in no region, in place of what was written before. Returns warnings.

    regions: those in the capture, as they are now. only: look at this tmpfs alone. patience_s: what takes longer is
    left out.
    """
    allocated_bytes: dict[int, int] = {}
    for region in regions:
        allocated_bytes[region.key.dev] = allocated_bytes.get(region.key.dev, 0) + region.allocated_bytes
    segments = [region.key.ino for region in regions if region.kind == "sysv"]
    found = unmapped.find(proc, [region.key for region in regions], segments, allocated_bytes, only, patience_s)
    capture.empty("unmapped")
    capture.insert_all("unmapped", COLUMNS, (_row(each, commands).values for each in found.unmapped))
    return found.warnings


def _row(found: unmapped.UnmappedMemory, commands: Commands) -> UnmappedRow:
    def command(tgid: int | None) -> str | None:
        return None if tgid is None else commands(tgid)

    holder = found.holders[0] if found.holders else None
    return UnmappedRow(
        found.kind,
        found.name,
        found.reach,
        found.allocated_bytes,
        found.swapped_bytes,
        found.size_bytes,
        found.creator,
        command(found.creator),
        found.last_user,
        command(found.last_user),
        found.used_ns,
        len(found.holders) or None,
        holder,
        command(holder),
        found.files,
    )

"""Writes the shared memory of the host that no process maps into a capture."""

from __future__ import annotations

from collections.abc import Collection
from typing import Callable, Optional

from tracer.capture.capture import UNMAPPED, Capture
from tracer.proc import unmapped
from tracer.proc.procfs import Proc
from tracer.record.regions import TracedRegion

PATIENCE_S = unmapped.PATIENCE_S
Commands = Callable[[int], Optional[str]]
"""tgid to command line, running or exited; None: unknown."""


def write(
    capture: Capture,
    proc: Proc,
    regions: Collection[TracedRegion],
    commands: Commands,
    patience_s: float = PATIENCE_S,
) -> list[str]:
    """Find and write the shared memory that no process maps. Returns warnings.

    regions: those in the capture, as they are now. patience_s: what takes longer is left out.
    """
    allocated_bytes: dict[int, int] = {}
    for region in regions:
        allocated_bytes[region.key.dev] = allocated_bytes.get(region.key.dev, 0) + region.allocated_bytes
    segments = [region.key.ino for region in regions if region.kind == "sysv"]
    found = unmapped.find(proc, [region.key for region in regions], segments, allocated_bytes, patience_s)

    def command(tgid: int | None) -> str | None:
        return None if tgid is None else commands(tgid)

    capture.insert_all(
        "unmapped",
        UNMAPPED,
        (
            (
                *each[:6],
                each.creator,
                command(each.creator),
                each.last_user,
                command(each.last_user),
                each.used_ns,
                len(each.holders) or None,
                each.holders[0] if each.holders else None,
                command(each.holders[0] if each.holders else None),
                each.files,
            )
            for each in found.unmapped
        ),
    )
    return found.warnings

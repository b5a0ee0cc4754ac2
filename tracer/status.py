"""The progress of a trace, and the line that shows it while the trace runs. Pure."""

from __future__ import annotations

from typing import NamedTuple

from tracer.formatting import format_bytes, format_change, printable


class Status(NamedTuple):
    """The progress of a trace."""

    elapsed_s: float
    nr_processes: int
    nr_regions: int
    allocated_bytes: int
    grown_bytes: int
    grower: str | None
    """PID and command of the process that touched most so far; None: nobody touched anything"""
    grower_bytes: int


def render(status: Status) -> str:
    """The progress as one line, not cut to any width."""
    line = (
        f"{status.elapsed_s:.0f} s · processes {status.nr_processes} · regions {status.nr_regions} · "
        f"{format_bytes(status.allocated_bytes)} allocated, {format_change(status.grown_bytes)}"
    )
    if status.grower:
        line += f" · most by {printable(status.grower)} {format_bytes(status.grower_bytes)}"
    return line

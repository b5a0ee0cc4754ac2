"""When a part of a trace ends."""

from __future__ import annotations

from typing import NamedTuple


class Schedule(NamedTuple):
    """When a part of a trace ends: after this time, or when its capture is that large. None: not for this reason."""

    every_s: float | None = None
    max_bytes: int | None = None

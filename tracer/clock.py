"""Converts between the clocks of a capture: the kernel's two clocks, the ledger's microseconds, and wall-clock time."""

from __future__ import annotations

import time
from typing import NamedTuple


class Clock(NamedTuple):
    """When the capture began, by CLOCK_MONOTONIC, CLOCK_BOOTTIME and CLOCK_REALTIME, in nanoseconds."""

    monotonic_ns: int
    boot_ns: int
    wall_ns: int

    @classmethod
    def start(cls) -> Clock:
        """Read all three clocks now."""
        return cls(time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())

    def since_us(self, monotonic_ns: int) -> int:
        """CLOCK_MONOTONIC ns to microseconds since the capture began, as in a ledger word."""
        return (monotonic_ns - self.monotonic_ns) // 1000

    def wall(self, monotonic_ns: int) -> int:
        """CLOCK_MONOTONIC ns to CLOCK_REALTIME ns."""
        return monotonic_ns - self.monotonic_ns + self.wall_ns

    def wall_of_us(self, since_us: int) -> int:
        """Microseconds since the capture began to CLOCK_REALTIME ns."""
        return since_us * 1000 + self.wall_ns

    def wall_of_boot(self, boot_ns: int) -> int:
        """CLOCK_BOOTTIME ns, as of a process's start time, to CLOCK_REALTIME ns."""
        return boot_ns - self.boot_ns + self.wall_ns

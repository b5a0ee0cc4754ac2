"""Limits the time that a trace spends on reading files of other users: some seconds, plus a share of all time.

Nothing else limits it: users can run ten thousand programs, and each takes time to read.
"""

from __future__ import annotations

import time


class Budget:
    """A time budget. Use it as a context manager around the work to account for."""

    AT_ONCE_S = 2.0
    SHARE = 0.01

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._used_s = 0.0
        self._since_s = 0.0

    @property
    def used_up(self) -> bool:
        """Whether no more such work should be started."""
        return self._used_s > self.AT_ONCE_S + self.SHARE * (time.monotonic() - self._began_s)

    def __enter__(self) -> Budget:
        self._since_s = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._used_s += time.monotonic() - self._since_s

"""How signals stop a trace."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


class Signals:
    """Handlers for the signals that stop a trace, as a context manager.

    The first signal lets the trace finish and report. A second one, or one before the trace exists, exits at once.
    """

    def __init__(self) -> None:
        self.trace: Any = None
        self.first: int | None = None
        self.on_hangup: Callable[[], None] | None = None
        """Called on SIGHUP, which then does not stop the trace."""

    def __enter__(self) -> Signals:
        # under nohup, SIGHUP stays ignored
        wanted = [
            number for number in STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]
        self._before = {number: signal.signal(number, self._come) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _come(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.on_hangup:
            self.on_hangup()
            return
        if self.trace and not self.trace.stopping:
            self.trace.stopping = True
            self.first = number
            return
        self.ignore()
        raise SystemExit(128 + number)

    def ignore(self) -> None:
        """Ignore further signals: only cleanup is left."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

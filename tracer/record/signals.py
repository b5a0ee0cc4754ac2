"""What a signal does to a trace."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


class Signals:
    """What stops a trace. The first signal lets it report; a second one, or one that comes before there is a trace,
    ends everything at once."""

    def __init__(self) -> None:
        self.trace: Any = None
        self.first: int | None = None

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
        if self.trace and not self.trace.stopping:
            self.trace.stopping = True
            self.first = number
            return
        self.ignore()
        raise SystemExit(128 + number)

    def ignore(self) -> None:
        """From here on, nothing is left but to clean up."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

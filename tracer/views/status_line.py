"""The one line that shows a trace at work, on a terminal."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TextIO

from tracer.formatting import fit, printable, width

# The terminal shows ^C for a Ctrl-C, and a character in the last column makes some scroll.
SPARE_COLUMNS = 3
ATTACHING = "attaching"


class Line:
    """Rewritten in place; on anything but a terminal, silent."""

    def __init__(self, stream: TextIO, alone: bool = True) -> None:
        """alone: nobody else writes to this terminal meanwhile."""
        self._stream = stream
        self.shown = alone and stream.isatty()

    def show(self, text: str) -> None:
        if self.shown:
            line = fit(text, self._columns())
            self._stream.write("\r" + line + " " * (self._columns() - width(line)))
            self._stream.flush()

    @contextlib.contextmanager
    def showing(self, text: str) -> Iterator[None]:
        """As long as something lasts."""
        self.show(text)
        try:
            yield
        finally:
            self.clear()

    def clear(self) -> None:
        if self.shown:
            self._stream.write("\r" + " " * self._columns() + "\r")
            self._stream.flush()

    def _columns(self) -> int:
        return shutil.get_terminal_size().columns - SPARE_COLUMNS

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._stream.write(f"shmtrace: {printable(text)}\n")
        self._stream.flush()

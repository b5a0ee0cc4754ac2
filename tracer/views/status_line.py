"""The status line of a running trace on a terminal."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TextIO

from tracer.formatting import fit, printable, width

# Room for the ^C that the terminal echoes. A character in the last column would make some terminals scroll.
SPARE_COLUMNS = 3
ATTACHING = "attaching"


class Line:
    """A line that is rewritten in place. On anything but a terminal it stays empty."""

    def __init__(self, stream: TextIO, alone: bool = True) -> None:
        """alone: no other process writes to this terminal meanwhile."""
        self._stream = stream
        self.shown = alone and stream.isatty()

    def show(self, text: str) -> None:
        """Replace the line by this text, cut to the terminal's width."""
        if self.shown:
            line = fit(text, self._columns())
            self._stream.write("\r" + line + " " * (self._columns() - width(line)))
            self._stream.flush()

    @contextlib.contextmanager
    def showing(self, text: str) -> Iterator[None]:
        """Show the text while the body runs."""
        self.show(text)
        try:
            yield
        finally:
            self.clear()

    def clear(self) -> None:
        """Erase the line."""
        if self.shown:
            self._stream.write("\r" + " " * self._columns() + "\r")
            self._stream.flush()

    def _columns(self) -> int:
        return shutil.get_terminal_size().columns - SPARE_COLUMNS

    def say(self, text: str) -> None:
        """Print a permanent line, on any stream."""
        self.clear()
        self._stream.write(f"shmtrace: {printable(text)}\n")
        self._stream.flush()

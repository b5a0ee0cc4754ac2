"""Files that all may read: a unit, metrics. They are whole as soon as they have their name."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tracer.proc import bounded


class NotAFileError(OSError):
    """Something else is where a file should be, such as a link: a masked unit is one to /dev/null."""


def read(place: Path, max_bytes: int) -> bytes | None:
    """The beginning of the file; None: there is none. Raises NotAFileError and other kinds of OSError."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise NotAFileError(0, "it is no regular file")
    return bounded.read(place, max_bytes)


def write(place: Path, data: bytes) -> None:
    """Write the file, or replace it. Raises OSError."""
    unfinished = place.with_name(f".{place.name}.unfinished")
    with contextlib.suppress(FileNotFoundError):
        unfinished.unlink()
    fd = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    with contextlib.ExitStack() as undo:
        undo.callback(unfinished.unlink)
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o644)  # whatever the umask is
            file.write(data)
        unfinished.replace(place)
        undo.pop_all()

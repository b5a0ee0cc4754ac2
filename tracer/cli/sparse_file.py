"""The output of read: a new file of mode 0600, or standard output. Holes stay holes in either."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from tracer.errors import ShmtraceError

ZEROS = bytes(1 << 20)


class Sink:
    """A file written once from its beginning to its end. A context manager.

    Leaving it without finish() removes the file. Standard output is left as it is.
    """

    def __init__(self, path: Path | None, fd: int) -> None:
        """path None: write to fd, from its current offset. Raises ShmtraceError if path exists or cannot be made."""
        self.path = path
        self._fd = _create(path) if path else fd
        self._sparse = bool(path) or _can_be_sparse(fd)
        self._finished = False
        self.is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path:
            os.close(self._fd)
            if not self._finished:
                self.path.unlink()

    def write(self, data: bytes | memoryview) -> None:
        """Raises OSError."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]

    def skip(self, size_bytes: int) -> None:
        """Write this many zeros, as a hole where the output can have one. Raises OSError."""
        if self._sparse:
            os.lseek(self._fd, size_bytes, os.SEEK_CUR)
            return
        while size_bytes:
            some = min(size_bytes, len(ZEROS))
            self.write(memoryview(ZEROS)[:some])
            size_bytes -= some

    def finish(self) -> None:
        """Set the file's length and keep the file. Raises OSError."""
        if self._sparse:
            os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR))
        self._finished = True


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ShmtraceError(f"{path} exists", "give another name, or remove it") from None
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be written ({error.strerror})", "give another path") from None


def _can_be_sparse(fd: int) -> bool:
    """Whether skipping leaves zeros: in a regular file, not in append mode, with no data after the current offset."""
    held = os.fstat(fd)
    if not stat.S_ISREG(held.st_mode) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
        return False
    return held.st_size <= os.lseek(fd, 0, os.SEEK_CUR)

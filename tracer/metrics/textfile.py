"""The file of metrics that node_exporter reads. Its first line says which process writes it, so that no two do."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from pathlib import Path

from tracer.errors import ShmtraceError
from tracer.proc.procfs import Proc
from tracer.service import public

SUFFIX = ".prom"  # node_exporter reads no other
BEGINNING = b"# shmtrace "
WRITER = re.compile(rb"# shmtrace is written by (\d{1,10}), started at (\d{1,20})\n")
MAX_BYTES = 100  # of that line
MAX_FILES = 1000  # in the directory


class Textfile:
    """A file that this process writes."""

    def __init__(self, path: Path) -> None:
        """Raises ShmtraceError where it cannot be written, where another file is, or where somebody else writes it."""
        if path.suffix != SUFFIX:
            raise ShmtraceError(f"node_exporter does not read {path}", f"give it a name that ends with {SUFFIX}")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ShmtraceError(f"{path.parent} is no directory that can be written", "give another, or make it")
        self._path = path
        own = Proc().process(os.getpid())
        self._first = b"# shmtrace is written by %d, started at %d\n" % (os.getpid(), own.start_time_ns if own else 0)
        try:
            self._check()
            self._check_others()
        except OSError as error:
            raise ShmtraceError(f"{path} cannot be read ({error.strerror})", "give another name") from None

    def write(self, metrics: bytes) -> None:
        """Replace it. Raises OSError, and ShmtraceError where it is somebody else's by now."""
        self._check()
        public.write(self._path, self._first + metrics)

    def remove(self) -> None:
        """Remove it if it is this process's still: what is left behind would look like a trace."""
        with contextlib.suppress(OSError):
            if (public.read(self._path, MAX_BYTES) or b"").startswith(self._first):
                self._path.unlink()

    def _check_others(self) -> None:
        """Of metrics that are in two files node_exporter drops one, and says nothing."""
        for each in itertools.islice(self._path.parent.glob(f"*{SUFFIX}"), MAX_FILES):
            with contextlib.suppress(OSError):
                if each != self._path and (public.read(each, MAX_BYTES) or b"").startswith(BEGINNING):
                    remedy = "trace all with one record, by more -p; or remove it, if it was left behind"
                    raise ShmtraceError(f"{each} is of shmtrace, too, and node_exporter takes one file a host", remedy)

    def _check(self) -> None:
        found = public.read(self._path, MAX_BYTES)
        if not found or found.startswith(self._first):
            return
        if not found.startswith(BEGINNING):
            raise ShmtraceError(f"{self._path} exists and is not an earlier output", "give another name, or remove it")
        writer = WRITER.match(found)
        other = Proc().process(int(writer[1])) if writer else None
        if writer and other and other.start_time_ns == int(writer[2]):
            raise ShmtraceError(f"process {other.tgid} writes {self._path} already", "give another name, or stop it")

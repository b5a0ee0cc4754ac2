"""Opens a capture, with the journal next to it, without writing either.

SQLite keeps in FILE-journal what a commit is about to overwrite. If a trace was killed during a commit, reading the
file needs both. But SQLite plays the journal back in place, and deletes any file that the journal names as its
super-journal: https://sqlite.org/fileformat.html#the_rollback_journal. So the journal is played back in a private copy,
and only if it belongs to the capture.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import stat
import struct
import tempfile
from pathlib import Path
from typing import IO

from tracer.errors import ShmtraceError

SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # the end of a journal that names a super-journal
RESERVED_BYTE = 0x40000001  # of the file; a writer locks this byte: os.h of SQLite
FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
OTHERS = stat.S_IWGRP | stat.S_IWOTH
TRIES = 5
AS_IT_IS = "mode=ro&immutable=1"  # ignores any journal or WAL file
DOUBT = "the last writes may be wrong or missing"


def path_of(capture: Path) -> Path:
    """The path of SQLite's journal of a capture."""
    return capture.with_name(f"{capture.name}-journal")


def hold(capture: Path) -> int:
    """Note that a capture is being written, until the returned descriptor is closed. Its journal must be there.

    The journal is locked: closing a descriptor of the capture itself would drop SQLite's locks. Raises OSError.
    """
    descriptor = os.open(path_of(capture), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system may have no such locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def is_held(capture: Path) -> bool:
    """Whether a trace is writing it."""
    try:
        descriptor = os.open(path_of(capture), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def connect(capture: Path, busy_s: float) -> tuple[sqlite3.Connection, str | None]:
    """Connect to a capture as last committed; also returns a remark if that may be wrong.

    busy_s: how long to wait for a commit in progress. Raises OSError, ShmtraceError, sqlite3.Error.
    """
    log = capture.with_name(f"{capture.name}-wal")
    # SQLite would use it, whatever the capture's header says, and create an index file beside it
    if os.path.lexists(log):
        return _connect(capture, AS_IT_IS, busy_s), f"{log} is ignored, since no trace makes one: {DOUBT}"
    for _ in range(TRIES):
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(_open(capture))
            journal, strange = _find(capture, file)
            if journal:
                stack.enter_context(journal)
            if not (journal or strange) or _is_being_written(file):
                break
            if strange:
                told = f"{path_of(capture)} is ignored, since {strange}: {DOUBT}"
                return _connect(capture, AS_IT_IS, busy_s), told
            copy = journal and _played_back(capture, file, journal, busy_s)
            if copy:
                return copy, None
    # The file is closed by now: closing it later would drop the locks that SQLite takes for this process.
    return _connect(capture, "mode=ro", busy_s), None


def _open(path: Path) -> IO[bytes]:
    """Open for reading without blocking, whatever kind of file it is."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")


def _find(capture: Path, file: IO[bytes]) -> tuple[IO[bytes] | None, str | None]:
    """The journal to play back, or why an existing one is not used. (None, None): the last commit was completed."""
    path = path_of(capture)
    try:
        found = path.lstat()
        strange = _why_strange(found, os.fstat(file.fileno()), capture.absolute().parent.stat())
        if strange:
            return None, strange
        if not found.st_size:
            return None, None
        journal = _open(path)
    except FileNotFoundError:
        return None, None
    opened = os.fstat(journal.fileno())
    end = os.pread(journal.fileno(), len(SUPER_JOURNAL), max(opened.st_size - len(SUPER_JOURNAL), 0))
    if (opened.st_dev, opened.st_ino) != (found.st_dev, found.st_ino):
        strange = "it was replaced just now"
    elif end == SUPER_JOURNAL:
        strange = "it names another file"
    elif os.pread(journal.fileno(), 1, 0) != b"\0":
        return journal, None
    journal.close()
    return None, strange


def _why_strange(journal: os.stat_result, capture: os.stat_result, directory: os.stat_result) -> str | None:
    """Why the journal may be from a user who could not have written the capture. sshd checks key files like this."""
    if not stat.S_ISREG(journal.st_mode) or journal.st_nlink != 1:
        return "it is not a regular file"
    if journal.st_uid != capture.st_uid:
        return "it belongs to another user"
    if journal.st_mode & OTHERS:
        return "other users may write it"
    if directory.st_mode & OTHERS and not directory.st_mode & stat.S_ISVTX:
        return "other users may write its directory"
    return None


def _is_being_written(file: IO[bytes]) -> bool:
    """Whether a trace holds the write lock. SQLite then ignores the journal for readers, too."""
    lock = fcntl.fcntl(file, fcntl.F_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, RESERVED_BYTE, 1, 0))
    return bool(FLOCK.unpack(lock)[0] != fcntl.F_UNLCK)


def _played_back(capture: Path, file: IO[bytes], journal: IO[bytes], busy_s: float) -> sqlite3.Connection | None:
    """A private copy of the capture, repaired by SQLite. None: the original has changed meanwhile."""
    before = os.fstat(journal.fileno())
    try:
        with tempfile.TemporaryDirectory(prefix="shmtrace-") as directory:
            copy = Path(directory, "capture")
            for source, path in (file, copy), (journal, path_of(copy)):
                with path.open("xb") as target:
                    shutil.copyfileobj(source, target)
            after = os.fstat(journal.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or _is_being_written(file):
                return None
            db = _connect(copy, "mode=rw", busy_s)
            try:
                db.execute("SELECT 1 FROM sqlite_master").fetchone()
            except BaseException:
                db.close()
                raise
            return db
    except OSError as error:
        raise ShmtraceError(
            f"{capture} was cut off, and cannot be copied to repair it ({error.strerror})",
            f"make room in {tempfile.gettempdir()}, or set TMPDIR to another directory",
        ) from None


def _connect(path: Path, how: str, busy_s: float) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", timeout=busy_s, isolation_level=None, uri=True)

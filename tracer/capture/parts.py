"""The files of a trace that is cut into parts: how they are called, which are whose, and which go first.

A part that is over is called by when it began, as in pool.20261130-030000.capture. The one that is being written keeps
the name that the user gave.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tracer.capture import journal
from tracer.capture.capture import Capture, is_capture, need_place
from tracer.errors import ShmtraceError

ENDED = "SELECT ended_ns FROM session WHERE part IS NOT NULL AND typeof(ended_ns) = 'integer'"
MAX_STEPS = 1_000_000  # of SQLite, to read that
MAX_ALIKE = 1000  # parts that began within one second


class Part(NamedTuple):
    """A part that is over."""

    ended_ns: int
    path: Path


def name(path: Path, began_ns: int, number: int = 1) -> Path:
    """What a part is called once it is over; in local time. number: of those that began within this second."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began_ns // 10**9))
    return path.with_name(f"{path.stem}.{stamp}{f'-{number}' * (number > 1)}{path.suffix}")


def keep(path: Path, began_ns: int, copy: Callable[[Path], None], names: Sequence[Path] = ()) -> Path:
    """Keep a part under a name of its own, which is returned. copy: writes it to a new file. names: to try first.

    The file has its name only once it is complete. Raises OSError, ShmtraceError or sqlite3.Error; there is no file
    then.
    """
    unfinished = _unfinished(path)
    _remove_unfinished(unfinished)
    copy(unfinished)
    try:
        return _link(unfinished, [*names, *(name(path, began_ns, number) for number in range(1, MAX_ALIKE + 1))])
    finally:
        unfinished.unlink(missing_ok=True)


def check(path: Path) -> None:
    """Raises ShmtraceError if no trace can write parts there: see set_aside(). Changes nothing."""
    _need_name(path)
    if not os.path.lexists(path):
        need_place(path)
        return
    _need_left(path)
    if path.stat().st_size:
        with Capture.open(path) as capture:
            if capture.rows("SELECT 1 FROM session WHERE part IS NULL"):
                raise _not_ours(path)


def check_new(path: Path) -> None:
    """Raises ShmtraceError if nothing can be kept beside this file, which may be there. Changes nothing."""
    _need_name(path)
    need_place(name(path, time.time_ns()))


def _need_left(path: Path) -> None:
    """Raises ShmtraceError if this file is another's, or is being written."""
    if not _is_ours(path.lstat()):
        raise _not_ours(path)
    if journal.is_held(path):
        raise ShmtraceError(f"another trace is writing {path}", "end that one, or name another file")


def _need_name(path: Path) -> None:
    if not path.name or path.is_dir():
        raise ShmtraceError(f"{path} is a directory", "name a file in it")


def set_aside(path: Path) -> Path | None:
    """Give the part that an earlier trace has left under this name a name of its own; None: there was none.

    Raises ShmtraceError where there is something else, or a part that cannot be read or moved.
    """
    is_there = os.path.lexists(path)
    if is_there:
        _need_left(path)  # first: who is writing it may have an unfinished part
    _remove_unfinished(_unfinished(path))
    if not is_there:
        _remove_journal(path)
        return None
    kept = None
    try:
        if path.stat().st_size:  # else it was cut off before anything was written
            with Capture.open(path) as capture:
                kept = _keep_left(path, capture)
        path.unlink()
        _remove_journal(path)
    except (OSError, sqlite3.Error) as error:
        raise ShmtraceError(f"{path} cannot be kept under another name ({error})", "remove it, or make room") from None
    return kept


def _keep_left(path: Path, capture: Capture) -> Path | None:
    """Keep a part that was left; None: nothing was recorded, or it has a name of its own already."""
    for row in capture.rows("SELECT part, part_started_ns, ended_ns FROM session"):
        if row["part"] is None:
            raise _not_ours(path)
        if row["ended_ns"] not in (part.ended_ns for part in over(path)):
            return keep(path, row["part_started_ns"], capture.back_up)
    return None


def _not_ours(path: Path) -> ShmtraceError:
    return ShmtraceError(f"{path} is there already, and is no part of a trace", "name another, or remove it")


def _remove_journal(path: Path) -> None:
    """Remove the journal of a capture that is gone."""
    left = journal.path_of(path)
    if os.path.lexists(left) and _is_ours(left.lstat()):
        left.unlink()


def over(path: Path) -> list[Part]:
    """The parts that are over of this name, oldest first: regular files of this user, that say that they are parts.

    Raises OSError where the directory cannot be read.
    """
    pattern = re.compile(rf"{re.escape(path.stem)}\.\d{{8}}-\d{{6}}(-\d+)?{re.escape(path.suffix)}", re.ASCII)
    with os.scandir(path.absolute().parent) as entries:
        found = [
            Path(entry.path)
            for entry in entries
            if pattern.fullmatch(entry.name) and _is_ours(entry.stat(follow_symlinks=False))
        ]
    parts = [Part(ended_ns, each) for each in found for ended_ns in [_ended_ns(each)] if ended_ns is not None]
    return sorted(parts)


def remove_oldest(path: Path, keep: int) -> None:
    """Remove the oldest parts that are over, all but so many. Raises OSError."""
    for part in over(path)[:-keep]:
        part.path.unlink()


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _remove_unfinished(path: Path) -> None:
    """Remove what a trace that was killed has left. Raises ShmtraceError where it is not that."""
    if not os.path.lexists(path):
        return
    if not (_is_ours(path.lstat()) and (not path.lstat().st_size or is_capture(path))):
        raise ShmtraceError(f"{path} is in the way, and no trace has left it", "remove it")
    path.unlink()


def _link(unfinished: Path, names: Sequence[Path]) -> Path:
    """Give a file the first of these names that is free. A link takes no other file's place, as a rename would."""
    for kept in names:
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, kept)
            return kept
    raise ShmtraceError(f"there are files of all names up to {names[-1]}", "remove some")


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _ended_ns(path: Path) -> int | None:
    """When a part ended; None: it is none, or cannot be read."""
    if not is_capture(path):
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?{journal.AS_IT_IS}", uri=True)) as db:
            db.set_progress_handler(lambda: 1, MAX_STEPS)
            row = db.execute(ENDED).fetchone()
    except sqlite3.Error:
        return None
    return int(row[0]) if row else None

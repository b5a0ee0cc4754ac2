"""What to trace: processes by name, PID or pidfile, with the trees below them, or a tmpfs.

Pure, except for reading pidfiles and finding the tmpfs.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tracer.errors import ShmtraceError
from tracer.proc import shmem, tmpfs
from tracer.proc.procfs import ProcessStat
from tracer.proc.tmpfs import Place

PIDFILE_BYTES = 4096  # of a pidfile; the PID is on its first line
MAX_DIGITS = 19  # of a PID; more than any PID has


class NoPidfileError(ShmtraceError):
    """The pidfile does not exist, or not yet."""


class Targets(NamedTuple):
    """What -p and -a select."""

    tgids: frozenset[int]
    patterns: tuple[re.Pattern[str], ...]
    everything: bool = False
    tmpfs: Place | None = None
    """Only the files of this tmpfs, whichever process uses them."""

    def match(self, comm: str, title: str) -> bool:
        """Whether a process matches by name. A partial match of comm or title is enough, as with pgrep."""
        return self.everything or any(pattern.search(comm) or pattern.search(title) for pattern in self.patterns)

    def roots(self, processes: Mapping[int, ProcessStat], excluded: Iterable[int] = ()) -> list[int]:
        """tgids of matching processes without a matching ancestor."""
        shunned = set(excluded)
        found = {
            process.tgid
            for process in processes.values()
            if process.tgid not in shunned and (process.tgid in self.tgids or self.match(process.comm, process.title))
        }
        children = _children(processes)
        return sorted(found.difference(tree(processes, [child for tgid in found for child in children.get(tgid, ())])))

    def letters(self) -> tuple[bytes, ...]:
        """Letters that a process has in its comm or title if it matches one of the patterns, for each of them.

        Empty: it may have any.
        """
        found = [_letters(pattern.pattern) for pattern in self.patterns]
        return () if self.everything or not all(found) else tuple(found)

    def close_to(self, processes: Mapping[int, ProcessStat]) -> list[str]:
        """Names of running processes similar to what was asked for."""
        import difflib  # slow to import, and only needed for an error

        # kernel threads have no title
        names = sorted({process.comm for process in processes.values() if process.title})
        wanted = [pattern.pattern for pattern in self.patterns]
        return [name for want in wanted for name in difflib.get_close_matches(want, names, n=3, cutoff=0.5)]


def parse(words: Sequence[str]) -> Targets:
    """The targets of -p's words.

    Digits are a PID, a word with a slash is a tmpfs or a pidfile, and anything else is a regular expression. Raises
    ShmtraceError where a word cannot be used, and NoPidfileError where a pidfile cannot be read.
    """
    tgids, patterns = set(), []
    for word in words:
        if word.isdecimal():
            tgids.add(int(word[:MAX_DIGITS]))
        elif "/" in word:
            place = _tmpfs(Path(word))
            if place and len(words) == 1:
                return Targets(frozenset(), (), everything=True, tmpfs=place)
            if place:
                raise ShmtraceError(f"-p {word} is a tmpfs, which is looked at for every process", "give it alone")
            tgids.add(_read_pidfile(Path(word)))
        else:
            patterns.append(pattern(word))
    return Targets(frozenset(tgids), tuple(patterns))


class Lasting:
    """The targets of -p's words for a long time: a pidfile is read anew, and a PID stands for who had it first."""

    def __init__(self, words: Sequence[str], everything: bool) -> None:
        """Raises ShmtraceError where a word cannot be used; a pidfile may come later."""
        self._words = words
        self._everything = everything
        self.may_come = everything or not all(word.isdecimal() for word in words)
        """A process may begin that is one of them."""
        is_tmpfs = any("/" in word and _tmpfs(Path(word)) for word in words)
        self._tmpfs = parse(words) if is_tmpfs else None
        self._began_ns: dict[int, int] = {}  # of a PID that was given, since boot
        for word in words:
            with contextlib.suppress(NoPidfileError):
                parse([word])

    def now(self, processes: Mapping[int, ProcessStat]) -> Targets:
        """The targets now. processes: those that run. A pidfile without a PID is about to be written."""
        if self._tmpfs:
            return self._tmpfs
        tgids: set[int] = set()
        patterns: list[re.Pattern[str]] = []
        for word in self._words:
            try:
                found = parse([word])
            except ShmtraceError:
                continue
            patterns += found.patterns
            tgids |= {tgid for tgid in found.tgids if not word.isdecimal() or self._is_first(tgid, processes)}
        return Targets(frozenset(tgids), tuple(patterns), self._everything)

    def _is_first(self, tgid: int, processes: Mapping[int, ProcessStat]) -> bool:
        stat = processes.get(tgid)
        return stat is not None and self._began_ns.setdefault(tgid, stat.start_time_ns) == stat.start_time_ns


def pattern(word: str) -> re.Pattern[str]:
    """The regular expression that a word of -p is. Raises ShmtraceError where it is none."""
    if not word:
        raise ShmtraceError("-p '' would match every process", "name one, or take the whole host with -a")
    try:
        return re.compile(word)
    except (re.error, OverflowError, RecursionError) as error:
        raise ShmtraceError(f"-p {word[:40]!r} is not a regular expression ({error})", "escape it with \\") from None


def _letters(text: str) -> bytes:
    """The longest run of letters that whatever matches a regular expression has in it; empty: not known."""
    if not re.fullmatch(r"[\w/:=@,%~. ^$+-]*", text, re.ASCII):  # what may make a part of it optional
        return b""
    # a command line has a NUL where it is shown with a blank
    return max(re.split(r"[. ^$+]", text), key=len).encode()


def _tmpfs(path: Path) -> Place | None:
    try:
        return tmpfs.at(path)
    except OSError:  # _read_pidfile() says what is wrong
        return None


def _read_pidfile(path: Path) -> int:
    try:
        with open(shmem.open_promptly(path), "rb", buffering=0) as file:
            text = (file.read(PIDFILE_BYTES) or b"").decode(errors="replace").split("\n", 1)[0].strip()
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ShmtraceError(f"pidfile {path} is {error.strerror}", "name the process or its PID") from None
        raise NoPidfileError(f"pidfile {path}: {error.strerror}", "is the service running?") from None
    if not text.isdecimal():
        raise ShmtraceError(f"pidfile {path} holds no PID, but {text[:40]!r}", "name the process or its PID")
    return int(text[:MAX_DIGITS])


def _children(processes: Mapping[int, ProcessStat]) -> dict[int, list[int]]:
    """Children by their parent's tgid."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.tgid)
    return children


def tree(processes: Mapping[int, ProcessStat], roots: Iterable[int]) -> list[int]:
    """tgids of the roots and all their descendants, parents before children."""
    children = _children(processes)
    found: dict[int, None] = {}
    waiting = deque(roots)
    while waiting:
        tgid = waiting.popleft()
        if tgid in processes and tgid not in found:
            found[tgid] = None
            waiting += sorted(children.get(tgid, ()))
    return list(found)

"""Cuts a trace of weeks into captures that each tell all: by time or size, when asked to, or when memory ran out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tracer.capture import parts
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.formatting import moment
from tracer.record.schedule import Schedule
from tracer.record.trace import Trace

FAILURES = (OSError, ShmtraceError)  # of writing or removing another file than the capture
RETRY_S = 60.0  # after one of these, at most so long until it is tried again
SLACK_BYTES = 1 << 20
SETTLE_S = 3.0  # from an OOM kill until its victim has ended, and who touches its memory next is seen
LAST_NS = 3600 * 10**9  # what keep-on-oom keeps of the past
PRUNE_S = 600.0  # between two looks for what is older
KEEP_OOMS = 10  # captures of OOM kills, besides the first

Say = Callable[[str], None]
Told = Callable[[Capture], None]


class Rotation:
    """The parts of a trace: the current one has the name that the user gave, those that are over have its time, too."""

    def __init__(
        self, path: Path, capture: Capture, trace: Trace, schedule: Schedule, keep: int | None, say: Say, told: Told
    ) -> None:
        """Begin the first part. keep: how many that are over to keep; None: all. say: called when one cannot be kept.
        told: called with the capture before what is over is dropped from it.

        Trace and capture must have been opened.
        """
        self._path = path
        self._capture = capture
        self._trace = trace
        self._schedule = schedule
        self._keep = keep
        self._say = say
        self._told = told
        self._said: str | None = None
        self._part = 0
        self._asked = False
        trace.waits = True
        self._begin(time.time_ns())

    @property
    def status(self) -> str:
        """Which part it is."""
        return f"part {self._part} of {self._path} since {moment(self._began_ns)}"

    def ask(self) -> None:
        """Have the part end now. Called from a signal handler."""
        self._asked = True

    def look(self) -> bool:
        """End the part if it is time, and return whether one has ended. Call it often."""
        if not self._capture.is_in_place():
            self._put_back()
        if not (self._asked or self._is_due()) or not self._capture.is_in_place():
            return False
        self._asked = False
        with self._trace.closed() as whole:
            now_ns = time.time_ns()
            if not (whole and self._keep_part()):
                return False
            self._told(self._capture)
            needed = self._trace.needed(now_ns)
        self._trace.prune(needed, now_ns)
        self._begin(now_ns)
        try:
            if self._keep is not None:
                parts.remove_oldest(self._path, self._keep)
            self._said = None
        except FAILURES as error:
            self._warn(f"older parts of {self._path} cannot be removed: {_reason(error)}")
        return True

    def _put_back(self) -> None:
        """Somebody has moved or deleted the capture, or its directory."""
        try:
            self._capture.put_back()
        except FAILURES as error:
            self._warn(
                f"the capture was moved or deleted, and the trace waits until it can be written: {_reason(error)}"
            )
        else:
            self._warn(f"{self._path} was moved or deleted, and is written anew with all that it had")

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        if self._schedule.max_bytes and now_s >= self._again_s and self._capture.used_bytes() >= self._most_bytes:
            return True
        return now_s >= self._at_s

    def _begin(self, now_ns: int) -> None:
        self._part += 1
        self._began_ns = now_ns
        self._at_s = time.monotonic() + (self._schedule.every_s or float("inf"))
        self._again_s = 0.0
        # what a part takes over may alone be as large
        self._most_bytes = max(self._schedule.max_bytes or 0, 2 * self._capture.used_bytes())
        self._trace.begin_part(self._part, now_ns)

    def _keep_part(self) -> bool:
        """Keep the part under a name of its own. False: that failed, and is tried again."""
        try:
            _need_room(self._path.absolute().parent, self._capture.used_bytes())
            parts.keep(self._path, self._began_ns, self._capture.copy)
        except FAILURES as error:
            self._again_s = self._at_s = time.monotonic() + min(RETRY_S, self._schedule.every_s or RETRY_S)
            self._warn(f"the part stays in {self._path} and goes on: {_reason(error)}")
            return False
        return True

    def _warn(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)


class OomKeeper:
    """Keeps the last hour of a trace when the OOM killer has struck, and nothing else."""

    def __init__(self, path: Path, capture: Capture, trace: Trace, keep: int | None, say: Say, told: Told) -> None:
        """Begin. keep: how many captures to keep besides the first; None: KEEP_OOMS. say: called with each that was
        kept, and where that failed. told: as for Rotation.

        Trace and capture must have been opened.
        """
        self._path = path
        self._capture = capture
        self._trace = trace
        self._keep = keep or KEEP_OOMS
        self._say = say
        self._told = told
        self._nr_seen = trace.nr_ooms
        self._nr_kept = 0
        self._keep_at_s: float | None = None
        self._prune_at_s = time.monotonic() + PRUNE_S
        self._began_ns = time.time_ns()
        trace.begin_part(1, self._began_ns)

    @property
    def status(self) -> str:
        """How many it has kept."""
        return f"{self._nr_kept} OOM kills kept in {self._path}"

    def look(self) -> bool:
        """Keep the last hour if it is time to, and return whether it was. Call it often."""
        now_s = time.monotonic()
        if self._has_struck():
            self._keep_at_s = self._keep_at_s or now_s + SETTLE_S
        is_due = self._keep_at_s is not None and now_s >= self._keep_at_s
        if is_due or now_s >= self._prune_at_s:
            self._cut(is_due)
        return is_due

    def end(self) -> None:
        """Keep what there is, if the OOM killer has struck just before the trace ended. Call it after that."""
        if self._has_struck() or self._keep_at_s is not None:
            self._keep_now(None)

    def _has_struck(self) -> bool:
        before, self._nr_seen = self._nr_seen, self._trace.nr_ooms
        return self._nr_seen != before

    def _cut(self, keeps: bool) -> None:
        with self._trace.closed() as whole:
            if not whole:
                return
            self._told(self._capture)
            since_ns = max(self._began_ns, time.time_ns() - LAST_NS)
            self._trace.begin_part(self._nr_kept + 1, since_ns)
            needed = self._trace.needed(since_ns)
            if keeps:
                self._keep_at_s = None
                self._keep_now(since_ns)
        self._trace.prune(needed, since_ns)
        self._prune_at_s = time.monotonic() + PRUNE_S

    def _keep_now(self, since_ns: int | None) -> None:
        """since_ns: as Capture.copy() has it."""

        def copy(path: Path) -> None:
            self._capture.copy(path, since_ns)

        try:
            _need_room(self._path.absolute().parent, self._capture.used_bytes())
            kept = parts.keep(self._path, time.time_ns(), copy, [self._path])
            self._nr_kept += 1
            self._say(f"an OOM kill: the last hour is in {kept}: `shmtrace report {kept}` shows it")
            parts.remove_oldest(self._path, self._keep)
        except FAILURES as error:
            self._say(f"an OOM kill, and what led to it cannot be kept in {self._path}: {_reason(error)}")


def _need_room(directory: Path, size_bytes: int) -> None:
    """Raises ShmtraceError where a copy of a capture, and the journal of pruning it, would fill the disk."""
    disk = os.statvfs(directory)
    if disk.f_bavail * disk.f_frsize < 2 * size_bytes + SLACK_BYTES:
        raise ShmtraceError(f"there is no room in {directory}", "make some")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

"""An armed trace: the kernel keeps the record, and no process of ours runs. `shmtrace arm` begins it.

What the kernel does not keep is in two files: a capture of what existed at the beginning, and a note of how to read the
maps. Whoever asks later takes a copy of that capture, reads all of the maps into it, and gives nothing back: so it can
be asked any number of times.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tracer import __version__
from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.errors import ShmtraceError
from tracer.formatting import format_bytes
from tracer.kernel import host, pins, probes, tiers
from tracer.kernel.bytecode import MapLayout, sources
from tracer.kernel.loader import ARM_AGAIN, Beginning, Loaded, Sizes
from tracer.kernel.probes import Probes
from tracer.proc import tmpfs
from tracer.proc.private_memory import Private
from tracer.proc.procfs import ProcessStat
from tracer.proc.shmem import PAGE_BYTES, RegionKey
from tracer.record.ledger import PageSet
from tracer.record.regions import TracedRegion
from tracer.record.targets import Targets, pattern
from tracer.record.trace import ROOM_BYTES, Trace

STATE = Path("/var/lib/shmtrace")
MAX_NOTE_BYTES = 1 << 20
LOCK_S = 10.0  # how long to wait for another one that reads the maps


class Note(NamedTuple):
    """How to read what the kernel keeps. As JSON in STATE/armed.json."""

    version: str
    """Of shmtrace."""
    wire: str
    """A hash of the structures in the maps, in which this version has them."""
    boot_id: str
    words: list[str]
    """What -p was given."""
    size: str
    """What there was at the beginning, as Trace.size() says it."""
    tier: str
    by: str
    missing: list[str]
    sizes: list[int]
    maps: list[list[Any]]
    """MapLayout of each."""
    nr_links: int
    """What is attached. All of them must be pinned still."""
    memory_bytes: int
    """Of the kernel, for the maps."""
    clock: list[int]
    patterns: list[str]
    everything: bool
    tmpfs: str | None
    private: list[tuple[int, int | None]] | None
    """Private memory: at the start, the most, and the last, as private_memory.Private."""

    @property
    def said(self) -> str:
        """What was asked for, as on the command line."""
        return " ".join(f"-p {word}" for word in self.words) or "-a"

    def targets(self) -> Targets:
        """What to trace. Not who was named by PID: these processes are known, and the PIDs may be others' by now."""
        try:
            place = tmpfs.at(Path(self.tmpfs)) if self.tmpfs else None
        except OSError:
            place = None
        if self.tmpfs and not place:
            raise ShmtraceError(f"{self.tmpfs}, which was armed, is no tmpfs any more", ARM_AGAIN)
        return Targets(frozenset(), tuple(map(pattern, self.patterns)), self.everything, place)


def _wire() -> str:
    """A hash of bpf/wire.h without its comments: another hash, other structures."""
    text = re.sub(r"/\*.*?\*/", "", sources()["wire.h"], flags=re.DOTALL)
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def _note_path() -> Path:
    return STATE / "armed.json"


def _capture_path() -> Path:
    return STATE / "armed.capture"


def _need_own_directory() -> None:
    try:
        STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = STATE.lstat()
    except OSError as error:
        raise ShmtraceError(f"{STATE} cannot be made ({error.strerror})", "make that directory, of mode 0700") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ShmtraceError(f"{STATE} is not a directory that only its owner may write", "chown root, chmod 0700")


def _is_same(noted: os.stat_result | None) -> bool:
    """Whether the note is still that file."""
    try:
        return noted is None or os.path.samestat(noted, _note_path().stat())
    except OSError:
        return False


def is_there() -> bool:
    """Whether anything is armed, or was."""
    return pins.PINS.is_dir() or os.path.lexists(_note_path())


def note() -> Note:
    """The note of what is armed and can be read. Raises ShmtraceError, with why not."""
    if not is_there():
        raise ShmtraceError("nothing is armed", "`shmtrace arm -p NAME` begins a record that needs no process")
    version = None
    try:
        with open(os.open(_note_path(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            told = json.loads(file.read(MAX_NOTE_BYTES))
        version = told.get("version")
        found = Note(**told)
    except (OSError, ValueError, AttributeError, RecursionError):
        raise ShmtraceError("arming was cut off, or its note is damaged", ARM_AGAIN) from None
    except TypeError:
        found = None
    if not found or found.wire != _wire():
        raise ShmtraceError(
            f"shmtrace {version} has armed this, and its maps are not as {__version__} has them",
            f"read them with that version; then {ARM_AGAIN}",
        )
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.clock[2] / 1e9))
    if found.boot_id != host.boot_id():
        gone = f"the host was booted since {since}, when {found.said} was armed: that record is gone"
        raise ShmtraceError(gone, ARM_AGAIN)
    if pins.nr_links() != found.nr_links:
        raise ShmtraceError(
            f"{pins.PINS} lacks some of what was armed at {since}: it is not recorded any more", ARM_AGAIN
        )
    return found


def arm(words: Sequence[str], targets: Targets, excluded: Iterable[int], room_bytes: int = ROOM_BYTES) -> Note:
    """Arm. words: what -p was given; empty: all processes. Raises ShmtraceError, and leaves nothing then."""
    pins.need_bpffs()
    _need_own_directory()
    with _alone():
        if pins.PINS.is_dir() and _note_path().exists():
            raise ShmtraceError("it is armed already", "`shmtrace doctor` says for what, `shmtrace disarm` ends it")
        _remove()
        try:
            with Capture(_capture_path()) as capture:
                trace = _Arming(capture, targets, excluded, room_bytes=room_bytes)
                with trace:
                    trace.run(0.01)
                    made = trace.note(words)
            with open(os.open(_note_path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump(made._asdict(), file)
        except BaseException as error:
            _remove()
            if isinstance(error, (OSError, sqlite3.Error)):
                raise ShmtraceError(f"{STATE} cannot be written ({error})", "make room there") from None
            raise
    return made


def disarm() -> bool:
    """Leave nothing of what is armed; returns whether there was anything. Raises ShmtraceError."""
    try:
        if not STATE.is_dir():
            return pins.remove()
        with _alone():
            return _remove()
    except OSError as error:
        what = error.filename or STATE
        raise ShmtraceError(f"{what} cannot be removed ({error.strerror})", "remove it by hand") from None


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One arms or disarms at a time."""
    with _flock(STATE, "another shmtrace is arming or disarming", os.O_DIRECTORY):
        yield


def _remove() -> bool:
    there = pins.remove()
    for path in (_note_path(), _capture_path(), _capture_path().with_name(f"{_capture_path().name}-journal")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            there = True
    return there


class _Arming(Trace):
    """A trace whose probes stay when it is left."""

    def _attach(self, processes: dict[int, ProcessStat]) -> Probes:
        self._sizes = self._room(processes)
        best_first = [tiers.armed(tier) for tier in tiers.tiers()]
        return probes.attached(best_first, self._sizes, self._beginning(), keep=pins.keep)

    def _beginning(self) -> Beginning:
        return super()._beginning()._replace(armed=True)

    def note(self, words: Sequence[str]) -> Note:
        """The note of this trace."""
        tier, place = self._probes.tier, self._wanted.tmpfs
        return Note(
            version=__version__,
            wire=_wire(),
            boot_id=host.boot_id(),
            words=list(words),
            size=self.size(),
            tier=tier.name,
            by=tier.by,
            missing=self._probes.missing,
            sizes=list(self._probes.sizes),
            maps=[list(layout) for layout in self._probes.layouts()],
            nr_links=self._probes.nr_links,
            memory_bytes=self._probes.memory_bytes(),
            clock=list(self._clock),
            patterns=[found.pattern for found in self._wanted.patterns],
            everything=self._wanted.everything,
            tmpfs=str(place.file()) if place else None,
            private=[(each.status_bytes, each.cgroups_bytes) for each in self._private] if self._private else None,
        )


class Armed(Trace):
    """The armed trace, taken up from where the capture of its beginning ends. It stays armed."""

    def __init__(self, capture: Capture, found: Note, excluded: Iterable[int] = (), interval_s: float = 0.5) -> None:
        """capture: a new one."""
        capture.fill(_capture_path())
        super().__init__(capture, found.targets(), excluded, interval_s, clock=Clock(*found.clock))
        self._note = found
        self._noted: os.stat_result | None = None
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Armed:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked())
            self._noted = _note_path().stat()
            super().__enter__()
            stack.push(super().__exit__)
            self._hear_all()  # all that has happened since
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._lock.__exit__(*exception)

    def _attach(self, processes: dict[int, ProcessStat]) -> Probes:
        known = {(tier.name, tier.by): tier for tier in tiers.TIERS}
        tier = tiers.armed(known[self._note.tier, self._note.by])
        self._sizes = Sizes(*self._note.sizes)
        loaded = Loaded.pinned([MapLayout(*layout) for layout in self._note.maps], pins.PINS)
        try:
            found = Probes(tier, self._sizes, loaded, {}, is_armed=True)
        except BaseException:
            loaded.close()
            raise
        found.missing = self._note.missing
        return found

    def _enter_session(self) -> int:
        self._attached_ns = self._clock.monotonic_ns
        (row,) = self._capture.rows("SELECT rowid, warnings FROM session")
        for text in filter(None, row["warnings"].split("\n")):
            self._warn(text)
        return int(row["rowid"])

    def _take_in(self, processes: dict[int, ProcessStat]) -> None:
        known = self.lives.restore(self._capture.rows("SELECT * FROM process ORDER BY id"))
        numbers = {region.key: number for number, region in self._probes.read_regions().items()}
        for row in self._capture.rows("SELECT * FROM region"):
            key = RegionKey(row["dev"], row["ino"], row["generation"])
            if row["gone_ns"]:  # while it was armed: its account is closed
                self._probes.forget(numbers.get(key, 0))
                continue
            if key not in numbers:  # it went, and its place was recycled
                self._capture.forget_region(row["id"])
                continue
            region = TracedRegion(row["id"], numbers[key], key, row["kind"], path=None)
            region.creator = known.get(row["creator"])
            region.created_ns, region.hint, region.address = row["created_ns"], row["hint"], row["address"]
            region.size_bytes, region.start_bytes = row["size_bytes"] or 0, row["start_bytes"] or 0
            region.allocated_bytes, region.peak_bytes = row["allocated_bytes"] or 0, row["peak_bytes"] or 0
            extents = self._capture.each(
                'SELECT start, "end" FROM extent WHERE region = ? AND process IS NULL', (region.row,)
            )
            region.baseline, region.kept = PageSet((start, end) for start, end in extents), True
            self.regions[region.id] = region
        if self._note.private:
            start, most, last = self._note.private
            self._private = Private(*start), Private(*most), Private(*last)
        self._probes.know({process.key for process in self.lives.all_alive()})
        self._look_for_lives()

    def _sample(self) -> None:
        if pins.nr_links() != self._note.nr_links or not _is_same(self._noted):
            self._warn("it was disarmed meanwhile: nothing is recorded since then")
            self._stopping = True
        super()._sample()

    def _recycled(self) -> list[str]:
        found = self._probes.recycled()
        told = []
        if found["regions"]:
            gone = f"{found['regions']} regions that came and went, with {format_bytes(found['pages'] * PAGE_BYTES)}"
            told.append(f"{gone} in all, were forgotten to make room; give more with --room")
        if found["processes"]:
            dead = f"of {found['processes']} processes that have exited"
            told.append(f"{dead} only PID and name were kept, to make room; give more with --room")
        return told


@contextlib.contextmanager
def now(excluded: Iterable[int] = ()) -> Iterator[Capture]:
    """A temporary capture of all that the armed trace has recorded up to now. Raises ShmtraceError."""
    with Capture() as capture, Armed(capture, note(), excluded) as trace:
        trace.finish()
        yield capture


def _locked() -> contextlib.AbstractContextManager[None]:
    """One reads the maps at a time: the change flags are cleared by who reads."""
    return _flock(_note_path(), "another shmtrace is reading what is armed")


@contextlib.contextmanager
def _flock(path: Path, taken: str, flags: int = 0) -> Iterator[None]:
    """Hold a lock on a file. Raises ShmtraceError where another process holds it for LOCK_S, or there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError:
        raise ShmtraceError("nothing is armed any more", "`shmtrace arm -p NAME` begins anew") from None
    try:
        end_s = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end_s:
                    raise ShmtraceError(taken, "end that one first") from None
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)

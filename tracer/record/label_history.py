"""The labels of each process over time: collects them from the probes, and looks them up by process and time."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Collection, Iterable

from tracer import wire
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.kernel import events, tiers
from tracer.kernel.events import Absent
from tracer.kernel.probes import Probes
from tracer.labels import Source
from tracer.proc.procfs import Proc
from tracer.proc.shmem import FileKey
from tracer.record.label_sites import Site, Sources

# limit for a program with another label on every page; a pool of servers has as many labels as scripts
MAX_LABELS = 1 << 18
MAX_MOMENTS = 1 << 18  # kept per process
MAX_BINARIES = 256  # of running processes
MAX_DOUBTS = 10  # any user may have programs with a matching name


@dataclasses.dataclass
class _HookedBinary:
    """A file whose label is read, as long as processes run it."""

    path: str
    uprobes: list[int] = dataclasses.field(default_factory=list)
    processes: int = 0
    said: bool | None = None
    """Whether any of its labels could be read; None: none was reported yet."""


class LabelHistory:
    """Tells the probes where processes keep their labels, and collects what they report.

    Times are microseconds since the capture began.
    """

    def __init__(self, capture: Capture, probes: Probes, proc: Proc, source: Source) -> None:
        self._capture = capture
        self._probes = probes
        self._sources = Sources(proc, source)
        self._source = source
        self._found = self._finished = False
        self._warnings: list[str] = []
        self._doubts: list[str] = []  # why programs have no labels
        self._sites: dict[int, Site] = {}  # by tgid
        self._binaries: dict[FileKey, _HookedBinary] = {}
        self._rows: dict[tuple[str | None, ...], int] = {}
        # by tgid: (times, label rows), both ordered by time
        self._moments: dict[int, tuple[list[int], list[int | None]]] = {}

    @property
    def warnings(self) -> list[str]:
        """Why some labels are missing, one sentence each."""
        none = f"no process had what --label {self._source.name} reads: all labels are ?"
        mute = [_is_mute(binary, self._source) for binary in self._binaries.values() if binary.said is False]
        doubts = list(dict.fromkeys(self._doubts + mute[:MAX_DOUBTS]))
        return self._warnings + [none] * (self._finished and not self._found) + doubts

    @property
    def doubt(self) -> str | None:
        """Why the first program looked at has no labels. None: no such problem, or some program has labels."""
        return self._doubts[0] if self._doubts and not self._found else None

    def adopt(self, tgid: int) -> None:
        """Read labels of an existing process, or of one that has just executed a program."""
        self._leave(tgid)
        try:
            site = self._sources.find(tgid)
            if site:
                self._meet(site, tgid)
                self._found = True
                self._enter(tgid, site)
        except OSError:  # the process is gone, or runs another program by now
            pass
        except ShmtraceError as error:
            self._doubt(_unknown(error.message))
        self._forget_idle()

    def begin(self, tgid: int, since_us: int, parent_tgid: int | None = None) -> None:
        """Start over with a PID: a new process, or a new program in it. Its label is unknown."""
        if tgid in self._moments:
            self._note(tgid, since_us, None)
        self._leave(tgid)
        site = self._sites.get(parent_tgid or 0)
        if site:  # fork_label() did this already, unless the parent's site became known after the fork
            self._enter(tgid, site)

    def heard(self, event: events.LabelRead) -> None:
        """Record a label that was reported."""
        tgid = event.tgid
        if event.lost_us:
            self._note(tgid, event.lost_us, None)
        self._note(tgid, event.since_us, self._row(tgid, event.texts))

    def ended(self, tgid: int) -> None:
        """Close the labels of a process that has exited. Its map entry remains only if labels were lost."""
        raw = self._probes.labels[wire.TGID.pack(tgid)]
        self._settle(tgid, raw)
        del self._probes.labels[wire.TGID.pack(tgid)]
        self._leave(tgid)
        self._forget_idle()

    def finish(self) -> None:
        """Record which labels of running processes were lost so far."""
        for tgid in self._sites:
            self._settle(tgid, self._probes.labels[wire.TGID.pack(tgid)])
        self._finished = True

    def at(self, tgid: int, when_us: int) -> int | None:
        """The label row of a process at a time; None: unknown."""
        since_us, rows = self._moments.get(tgid, ((), ()))
        place = bisect_right(since_us, when_us)
        return rows[place - 1] if place else None

    def is_one(self, tgid: int, first_us: int, last_us: int) -> bool:
        """Whether the label stayed the same between two times."""
        since_us, _ = self._moments.get(tgid, ((), ()))
        return bisect_right(since_us, first_us) == bisect_right(since_us, last_us)

    def needed(self, asked: Iterable[tuple[int, int]], alive: Collection[int]) -> set[int]:
        """Forget the moments that nothing can ask for any more, and return the label rows of the others.

        asked: (tgid, time) of all words in the ledger. alive: tgids.
        """
        places: dict[int, set[int]] = {tgid: {len(self._moments[tgid][0]) - 1} for tgid in self._moments.keys() & alive}
        for tgid, when_us in asked:
            place = bisect_right(self._moments[tgid][0], when_us) if tgid in self._moments else 0
            if place:
                places.setdefault(tgid, set()).add(place - 1)
        self._moments = {
            tgid: ([times_us[place] for place in kept], [rows[place] for place in kept])
            for tgid, (times_us, rows) in self._moments.items()
            for kept in [sorted(places.get(tgid, ()))]
            if kept
        }
        return {row for _, rows in self._moments.values() for row in rows if row is not None}

    def prune(self, rows: Collection[int]) -> None:
        """Forget the labels that the capture does not have any more. rows: those that it has."""
        self._rows = {texts: row for texts, row in self._rows.items() if row in rows}

    def _meet(self, site: Site, tgid: int) -> None:
        """Attach uprobes to a binary when its first process is met.

        Raises ShmtraceError where the program can have no labels, and OSError where its file cannot be opened any more.
        """
        if site.binary in self._binaries:
            return
        path = site.mapping.path
        if len(self._binaries) == MAX_BINARIES:
            raise ShmtraceError(f"{path} exceeds the limit of {MAX_BINARIES} programs", "trace fewer of them")
        binary = _HookedBinary(path)
        if site.functions:
            try:
                with self._sources.opened(site, tgid) as file:  # opened() makes sure that it is still the same file
                    for program, offset in site.functions.items():
                        binary.uprobes.append(self._probes.attach_uprobe(program, file, offset))
            except BaseException:
                self._detach(binary)
                raise
        self._binaries[site.binary] = binary

    def _detach(self, binary: _HookedBinary) -> None:
        for uprobe in binary.uprobes:
            self._probes.detach_uprobe(uprobe)

    def _leave(self, tgid: int) -> None:
        site = self._sites.pop(tgid, None)
        if site:
            self._binaries[site.binary].processes -= 1

    def _forget_idle(self) -> None:
        """Detach from programs that no process runs: a uprobe keeps their file system from being unmounted."""
        for key, binary in [item for item in self._binaries.items() if not item[1].processes]:
            self._detach(binary)
            if binary.said is False:
                self._doubt(_is_mute(binary, self._source))
            del self._binaries[key]

    def _enter(self, tgid: int, site: Site) -> None:
        key = wire.TGID.pack(tgid)
        if self._probes.labels.insert(key, site.pack()) or self._probes.labels[key]:
            self._sites[tgid] = site
            self._binaries[site.binary].processes += 1
        else:
            self._warn(tiers.LOSSES["processes"])

    def _settle(self, tgid: int, raw: bytes | None) -> None:
        lost_us = wire.LABEL.unpack(raw)[2 * wire.MAX_TEXTS] if raw else 0
        if lost_us:
            self._note(tgid, lost_us, None)

    def _note(self, tgid: int, since_us: int, row: int | None) -> None:
        times_us, rows = self._moments.setdefault(tgid, ([], []))
        place = bisect_right(times_us, since_us)  # threads may report out of order
        if place and (times_us[place - 1], rows[place - 1]) == (since_us, row):
            return
        times_us.insert(place, since_us)
        rows.insert(place, row)
        if len(rows) > MAX_MOMENTS:
            del times_us[: MAX_MOMENTS // 2], rows[: MAX_MOMENTS // 2]
            self._warn(f"{tgid} has had more than {MAX_MOMENTS} labels: its oldest are ?")

    def _row(self, tgid: int, texts: tuple[str | Absent, ...]) -> int | None:
        """The row of a label, added to the capture if it is new. None: its first text could not be read."""
        first = texts[0]
        site = self._sites.get(tgid)
        if site:
            binary = self._binaries[site.binary]
            binary.said = binary.said or first is not Absent.UNREADABLE
        if first is Absent.UNREADABLE:
            return None
        if self._source.texts[0].is_path and isinstance(first, str) and not first.startswith("/"):
            if site:
                self._doubt(_unknown(f"{binary.path} had {first[:40]!r} instead of a path in {self._source.symbol}"))
                del self._probes.labels[wire.TGID.pack(tgid)]
                self._leave(tgid)
            return None
        known = tuple(text if isinstance(text, str) else None for text in texts[: len(self._source.texts)])
        if known not in self._rows and len(self._rows) == MAX_LABELS:
            self._warn(f"more than {MAX_LABELS} different labels: the others are ?")
            return None
        if known not in self._rows:
            self._rows[known] = self._capture.insert("label", **self._source.label(known))
        return self._rows[known]

    def _doubt(self, doubt: str) -> None:
        if doubt not in self._doubts and len(self._doubts) <= MAX_DOUBTS:
            more = f"more programs lack what --label {self._source.name} reads: their labels are ?"
            self._doubts.append(doubt if len(self._doubts) < MAX_DOUBTS else more)

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)


def _unknown(problem: str) -> str:
    return f"{problem}: its labels are ?"


def _is_mute(binary: _HookedBinary, source: Source) -> str:
    return _unknown(f"{binary.path} has nothing readable at {source.symbol}")

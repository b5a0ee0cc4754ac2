"""What each process was doing, from one moment to the next: told by the kernel side, asked for by process and time."""

from __future__ import annotations

from bisect import bisect_right

from tracer import events, kernel, wire
from tracer.capture import Capture
from tracer.events import Absent
from tracer.probes import Probes
from tracer.procfs import Proc
from tracer.sources import Site, Source, Sources

# Of a program that says another thing for every page; a pool has as many labels as scripts.
MAX_LABELS = 1 << 18
MAX_MOMENTS = 1 << 18  # of one process


class Labelling:
    """Tells the kernel side where processes have their labels, and keeps what it tells of them.

    Times are microseconds since the capture began.
    """

    def __init__(self, capture: Capture, probes: Probes, proc: Proc, source: Source) -> None:
        self.warnings: list[str] = []
        self._capture = capture
        self._probes = probes
        self._sources = Sources(proc, source)
        self._source = source
        self._found = False
        self._sites: dict[int, Site] = {}  # by tgid
        self._hung: set[tuple[int, int]] = set()  # binaries that uprobes hang on
        self._refused: set[tuple[int, int]] = set()  # binaries that are not what they were taken for
        self._checked: set[tuple[int, int]] = set()  # that were seen to be
        self._rows: dict[tuple[str | None, ...], int] = {}
        self._moments: dict[int, tuple[list[int], list[int | None]]] = {}  # by tgid: from when, which label

    def adopt(self, tgid: int) -> None:
        """A process that exists, or runs another program now.

        Raises ShmtraceError where its program keeps labels in a way that is not known.
        """
        self._sites.pop(tgid, None)
        site = self._sources.find(tgid)
        if not site or site.binary in self._refused:
            return
        self._found = True
        problem = self._sources.why_not(site, tgid)
        if problem:
            self._refuse(site, problem)
            return
        if site.binary not in self._hung:
            self._hung.add(site.binary)
            for program, offset in site.functions.items():
                self._probes.attach_uprobe(program, site.path, offset)
        self._enter(tgid, site)

    def begin(self, tgid: int, since_us: int, parent_tgid: int | None = None) -> None:
        """A PID has another life, or another program, of which nothing is known yet."""
        if tgid in self._moments:
            self._note(tgid, since_us, None)
        self._sites.pop(tgid, None)
        site = self._sites.get(parent_tgid or 0)
        if site:  # the kernel side knows, unless the parent's label came to be known after the fork
            self._enter(tgid, site)

    def heard(self, event: events.Label) -> None:
        tgid = event.head.tgid
        if event.lost_us:
            self._note(tgid, event.lost_us, None)
        self._note(tgid, event.since_us, self._row(tgid, event.texts))

    def ended(self, tgid: int) -> None:
        """The kernel side keeps an entry beyond the end of its process only to tell of a loss."""
        raw = self._probes.labels[wire.TGID.pack(tgid)]
        self._settle(tgid, raw)
        del self._probes.labels[wire.TGID.pack(tgid)]
        self._sites.pop(tgid, None)

    def finish(self) -> None:
        """Of those that live, what could not be told is lost."""
        for tgid in self._sites:
            self._settle(tgid, self._probes.labels[wire.TGID.pack(tgid)])
        if not self._found:
            self._warn(f"no process had what --label {self._source.name} reads: all labels are ?")

    def at(self, tgid: int, when_us: int) -> int | None:
        """The row of the label it had then; None: unknown."""
        since_us, rows = self._moments.get(tgid, ((), ()))
        place = bisect_right(since_us, when_us)
        return rows[place - 1] if place else None

    def _enter(self, tgid: int, site: Site) -> None:
        key = wire.TGID.pack(tgid)
        if self._probes.labels.insert(key, site.pack()) or self._probes.labels[key]:
            self._sites[tgid] = site
        else:
            self._warn(kernel.LOSSES["processes"])

    def _settle(self, tgid: int, raw: bytes | None) -> None:
        lost_us = wire.LABEL.unpack(raw)[2 * wire.MAX_TEXTS] if raw else 0
        if lost_us:
            self._note(tgid, lost_us, None)

    def _note(self, tgid: int, since_us: int, row: int | None) -> None:
        times_us, rows = self._moments.setdefault(tgid, ([], []))
        place = bisect_right(times_us, since_us)  # threads may tell out of order
        times_us.insert(place, since_us)
        rows.insert(place, row)
        if len(rows) > MAX_MOMENTS:
            del times_us[: MAX_MOMENTS // 2], rows[: MAX_MOMENTS // 2]
            self._warn(f"{tgid} has said more than {MAX_MOMENTS} things: its labels of long ago are ?")

    def _row(self, tgid: int, texts: tuple[str | Absent, ...]) -> int | None:
        """Of a label in the capture, entered if it is new; None: its first text could not be read."""
        first = texts[0]
        if first is Absent.UNREADABLE:
            return None
        site = self._sites.get(tgid)
        if site and self._source.texts[0].is_path and isinstance(first, str):
            if not first.startswith("/"):
                self._refuse(site, f"{self._source.symbol} of {tgid} had {first[:40]!r} where a path is expected")
                return None
            if site.binary not in self._checked:
                problem = self._sources.why_not(site, tgid)
                if problem:
                    self._refuse(site, problem)
                    return None
                self._checked.add(site.binary)
        known = tuple(text if isinstance(text, str) else None for text in texts[: len(self._source.texts)])
        if known not in self._rows and len(self._rows) == MAX_LABELS:
            self._warn(f"more than {MAX_LABELS} different labels: the others are ?")
            return None
        if known not in self._rows:
            self._rows[known] = self._capture.insert("label", **self._source.label(known))
        return self._rows[known]

    def _refuse(self, site: Site, problem: str) -> None:
        if site.binary not in self._refused:
            self._refused.add(site.binary)
            self._warn(f"{problem}: its labels are ?")
        for tgid in [tgid for tgid, other in self._sites.items() if other.binary == site.binary]:
            del self._probes.labels[wire.TGID.pack(tgid)]
            del self._sites[tgid]

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

"""Finds regions through /proc: which mappings belong to a region, and by which path to open it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tracer import hints
from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.proc import bounded, procfs, shmem, tmpfs
from tracer.proc.blocking import each
from tracer.proc.contents import beginning
from tracer.proc.procfs import Proc, ProcessStat
from tracer.proc.shmem import Pages, RegionKey
from tracer.record.ledger import PageSet, Punches
from tracer.record.processes import Processes, TracedProcess, infer_creator

AT_ONCE = 128  # processes looked at between two looks at the clock
FILES = ("posix", "other")
"""The kinds of regions that processes may write without mapping them."""
Mapped = Mapping[int, Mapping[int, list[procfs.Mapping]]]
"""The mappings of each region, by region id and tgid."""


@dataclasses.dataclass
class TracedRegion:
    """A region that the tree maps, or has mapped."""

    row: int
    """In the capture."""
    id: int
    """In the BPF maps."""
    key: RegionKey
    kind: str
    path: Path | None
    """Where it was last found: below /proc/PID/map_files or /proc/PID/fd, or a file of a tmpfs. None: not found."""
    address: int | None = None
    """Where it was last seen mapped."""
    made: bool = False
    """The probes saw its creation."""
    created_ns: int | None = None
    """CLOCK_REALTIME, by the inode's birth time. None: not asked, or unknown."""
    creator: TracedProcess | None = None
    first_user: TracedProcess | None = None
    """The process first seen mapping or writing it, if it was not mapped before the trace."""
    is_older: bool = False
    """It was not mapped before the trace, but existed."""
    size_bytes: int = 0
    start_bytes: int = 0
    """Allocated when its capture began."""
    allocated_bytes: int = 0
    peak_bytes: int = 0
    sample: tuple[int, int, int] | None = None
    """The last sample in the capture: bytes allocated, resident, swapped."""
    samples_missed: int = 0
    """Samples in a row that did not find it."""
    baseline: PageSet = dataclasses.field(default_factory=lambda: PageSet([]))
    """The pages that existed when its capture began."""
    unread: bool = False
    """The baseline could not be read without blocking, because of a lease on the file."""
    punches: Punches = dataclasses.field(default_factory=Punches)
    punched: list[Pages] = dataclasses.field(default_factory=list)
    """Page ranges whose extents in the capture are out of date: punches, and a baseline that was read late."""
    hint: str | None = None
    """What its content says of its use."""
    kept: bool = False
    """The capture already has extents of this region."""
    written: tuple[int | None, ...] = ()
    """The values of region_writer.REGION_COLUMNS that the capture has."""
    dying_since_s: float | None = None
    """time.monotonic() when the start of its teardown was seen."""

    def whom(self) -> Path | None:
        """What a call on its path waits for."""
        return self.path and shmem.whom(self.path)

    def take_baseline(self, owned: Callable[[], PageSet] = lambda: PageSet([]), start_pages: int | None = None) -> None:
        """Take the pages that exist now and have no owner as the baseline.

        With probes, call it after they are attached. If a lease blocks reading the pages, only their number is taken
        and `unread` is set. Then call it again later.

        owned: returns the pages that have an owner by now. start_pages: for hugetlb, how many pages it had when the
        probes met it; SEEK_DATA on hugetlbfs reports the whole file.
        """
        found = shmem.survey(self.path, self.key) if self.path and self.kind != "hugetlb" else None
        size = found or (shmem.region_stat(self.path) if self.path else None)
        if size and not self.unread:
            self.size_bytes, self.allocated_bytes = size.size_bytes, size.allocated_bytes
            self.peak_bytes = max(self.peak_bytes, size.allocated_bytes)
            self.start_bytes = size.allocated_bytes if start_pages is None else start_pages * shmem.PAGE_BYTES
        if found:
            there = PageSet(found.pages)
            self.baseline = there.less(owned())
            if self.unread:
                self.punched.append((0, -(-found.size_bytes // shmem.PAGE_BYTES)))
            else:
                self.start_bytes = found.allocated_bytes - (len(there) - len(self.baseline)) * shmem.PAGE_BYTES
        # a file that is gone has nothing to read
        self.unread = not found and size is not None and self.kind != "hugetlb"


def on_lease(unknown: str, names: Collection[str]) -> list[str]:
    """The warning that leases hide something of these regions, or nothing if `names` is empty.

    {} in `unknown` stands for the names.
    """
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{unknown.format(next(iter(names)) + more)}: there is a lease on it"]


def enter_mappings(
    capture: Capture, region: TracedRegion, mappings: Mapping[TracedProcess, Iterable[procfs.Mapping]]
) -> None:
    """Write the mappings of a region into the capture."""
    capture.insert_all(
        "mapping",
        "region, process, address, first_page, pages",
        (
            (
                region.row,
                process.row,
                each.start,
                each.first_index,
                (each.end - each.start) // shmem.PAGE_BYTES,
            )
            for process, theirs in mappings.items()
            for each in theirs
        ),
    )


class Finder:
    """Finds regions through the processes that map them."""

    def __init__(self, proc: Proc, only_dev: int | None = None) -> None:
        """only_dev: leave out mappings of other devices."""
        self.proc = proc
        self._only_dev = only_dev
        self.segments = functools.lru_cache(maxsize=1)(proc.sysv_segments)
        """Cached: call cache_clear() to read them again."""

    def mappings(self, tgid: int) -> list[procfs.Mapping]:
        """The mappings of a process on a tmpfs or hugetlbfs, from /proc/PID/maps."""
        found = []
        others: set[int] = set()  # devices of other file systems
        for mapping in self.proc.mappings(tgid):
            if mapping.dev in others or self._only_dev not in (None, mapping.dev):
                continue
            if self.proc.file_system(tgid, mapping):
                found.append(mapping)
            else:
                others.add(mapping.dev)
        return found

    def describe(self, tgid: int, mapping: procfs.Mapping) -> tuple[str, str]:
        """(kind, name) of the region behind a mapping."""
        # maps escapes some characters of a path, and names some mappings differently
        plain = mapping.path.startswith("/") and "\\" not in mapping.path
        name = mapping.path.removesuffix(shmem.DELETED) if plain else shmem.link_name(self.proc.map_file(tgid, mapping))
        kind = shmem.kind_of(mapping.dev, self.proc.file_system(tgid, mapping) or shmem.TMPFS_MAGIC, name)
        return kind, mapping.path if mapping.path.startswith("[anon_shmem:") else name

    def mapped(self, processes: Iterable[TracedProcess], regions: Iterable[TracedRegion]) -> Mapped:
        """Find where these processes map these regions."""
        return self._mapped([process.tgid for process in processes], regions)

    def _mapped(
        self, tgids: Sequence[int], regions: Iterable[TracedRegion]
    ) -> dict[int, dict[int, list[procfs.Mapping]]]:
        known: dict[tuple[int, int], list[TracedRegion]] = {}
        for region in regions:
            known.setdefault((region.key.dev, region.key.ino), []).append(region)

        def look(tgid: int) -> Iterable[tuple[procfs.Mapping, RegionKey | None]]:
            mappings = [mapping for mapping in self.proc.mappings(tgid) if (mapping.dev, mapping.ino) in known]
            return zip(mappings, self.proc.identify(tgid, mappings))

        found: dict[int, dict[int, list[procfs.Mapping]]] = {}
        for tgid, theirs in each(self.proc.folder, look, tgids):
            for mapping, key in theirs or ():
                for region in known[mapping.dev, mapping.ino]:
                    # Inode numbers are reused, and a SysV segment's is its shmid, which other inodes may share. Compare
                    # generations.
                    if key == region.key:
                        found.setdefault(region.id, {}).setdefault(tgid, []).append(mapping)
        return found

    def locate(self, region: TracedRegion, mapped: Mapped, opened: Mapping[int, Path]) -> None:
        """Set the region's path and address from one of its mappings, or else its path from an open file.

        Where there is neither, clear the path.
        """
        tgid, mappings = next(iter(mapped.get(region.id, {}).items()), (0, []))
        region.path = self.proc.map_file(tgid, mappings[0]) if mappings else opened.get(region.id)
        region.address = mappings[0].start if mappings else region.address

    def open_files(self, processes: Iterable[TracedProcess], regions: Iterable[TracedRegion]) -> dict[int, Path]:
        """Find regions among the open files of processes, in /proc/PID/fd: path by region id."""
        found: dict[int, Path] = {}
        for number, _, path in self._opened([process.tgid for process in processes], regions):
            found.setdefault(number, path)
        return found

    def _opened(self, tgids: Sequence[int], regions: Iterable[TracedRegion]) -> Iterator[tuple[int, int, Path]]:
        """(region id, tgid, path) of each open file that is one of these regions."""
        wanted = {region.key: region.id for region in regions}

        def look(tgid: int) -> list[tuple[int, Path]]:
            files = ((shmem.identify(path), path) for path in self.proc.open_files(tgid))
            return [(wanted[key], path) for key, path in files if key in wanted]

        for tgid, theirs in each(self.proc.folder, look, tgids if wanted else []):
            for number, path in theirs or ():
                yield number, tgid, path

    def hint(self, region: TracedRegion, comm: str) -> str | None:
        """What the content of a region says of its use; None: nothing. comm: the name of a process that maps it.

        Reading it allocates nothing, and swaps nothing in.
        """
        known = hints.find(comm, region.kind)
        if not known or not region.path:
            return None
        try:
            return known.read(beginning(region.path, region.key, hints.LOOK_PAGES))
        except OSError as error:
            if not bounded.unreadable(error):
                raise
            return None

    def files(self, regions: Iterable[TracedRegion], patience_s: float) -> dict[int, tuple[str, Path]]:
        """Find regions among the files of every tmpfs: name and path by region id. What takes longer is left out."""
        wanted = {(region.key.dev, region.key.ino): region for region in regions}
        found = tmpfs.find(self.proc, wanted.keys(), patience_s)
        files = [(wanted[place], name, path) for place, (name, path) in found.items()]
        keys = each(lambda file: shmem.whom(file[2]), lambda file: shmem.identify(file[2]), files)
        return {region.id: (name, path) for (region, name, path), key in keys if key == region.key}

    def creator(
        self, region: TracedRegion, mappers: list[TracedProcess], known: Processes, clock: Clock
    ) -> tuple[TracedProcess | None, str]:
        """The creator of a region whose creation was not seen, and how it is known.

        "shmget": the kernel keeps the creator's PID of a SysV segment. "inferred": from the processes that map it, or
        the one first seen mapping it.
        """
        born_ns = region.created_ns
        if born_ns is None and region.path:
            born_ns = shmem.birth_time_ns(region.path)
        if region.kind == "sysv":
            segment = self.segments().get(region.key.ino)
            if segment:
                return self.maker(segment.creator, known, born_ns, clock), "shmget"
        suspects = [region.first_user] if region.first_user and not region.is_older else mappers
        return infer_creator(suspects, born_ns, clock), "inferred"

    def maker(self, tgid: int, known: Processes, born_ns: int | None, clock: Clock) -> TracedProcess:
        """The process that made something, by its PID. A placeholder if it has exited without being known."""
        return (not known.last(tgid) and self.process(tgid, known, born_ns, clock)) or known.at(tgid, -1)

    def process(self, tgid: int, known: Processes, born_ns: int | None, clock: Clock) -> TracedProcess | None:
        """A running process, traced or as /proc shows it; None if it is gone, or began after born_ns.

        born_ns: CLOCK_REALTIME; None: unknown.
        """
        stat = self.proc.process(tgid)
        if not stat or (born_ns is not None and clock.wall_of_boot(stat.start_time_ns) > born_ns + procfs.TICK_NS):
            return None
        return known.alive(tgid) or self.enter(stat, known, outside_tree=True)

    def enter(self, stat: ProcessStat, known: Processes, outside_tree: bool = False) -> TracedProcess:
        """Add a process that existed before, as /proc shows it."""
        return known.begin(
            stat.tgid,
            stat.start_time_ns,
            stat.parent,
            stat.comm,
            stat.command,
            began_us=-1,
            cgroup=self.proc.cgroup(stat.tgid),
            outside_tree=outside_tree,
            ns_tgid=self.proc.ns_tgid(stat.tgid),
        )

    def users(self, regions: Collection[TracedRegion], patience_s: float) -> dict[int, set[int]]:
        """Find all processes that map these regions or have them open: tgids by region id.

        What takes longer is left out.
        """
        end_s = time.monotonic() + patience_s
        tgids = self.proc.tgids() if regions else []
        found: dict[int, set[int]] = {}
        for first in range(0, len(tgids), AT_ONCE):
            if time.monotonic() > end_s:
                break
            some = tgids[first : first + AT_ONCE]
            for number, mappers in self._mapped(some, regions).items():
                found.setdefault(number, set()).update(mappers)
            for number, tgid, _ in self._opened(some, regions):
                found.setdefault(number, set()).add(tgid)
        return found

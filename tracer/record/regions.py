"""Regions as /proc shows them: which mappings are of one, which one, and by which path it can be looked at."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from tracer.capture.capture import PAGE_BYTES, Capture
from tracer.clock import Clock
from tracer.proc import procfs, shmem
from tracer.proc.blocking import each
from tracer.proc.procfs import Proc
from tracer.proc.shmem import Pages, RegionKey
from tracer.record.ledger import PageSet, Punches
from tracer.record.processes import Processes, TracedProcess, infer_creator

Mapped = Mapping[int, Mapping[int, list[procfs.Mapping]]]
"""Who maps what, and where: by region id and tgid."""


@dataclasses.dataclass
class TracedRegion:
    """A region that the tree maps, or mapped."""

    row: int
    """in the capture"""
    id: int
    """in the kernel's maps"""
    key: RegionKey
    kind: str
    path: Path | None
    """where it was last found"""
    address: int | None = None
    """where it was last seen mapped"""
    made: bool = False
    """it was seen being made"""
    created_ns: int | None = None
    """by its inode, if that was asked for"""
    creator: TracedProcess | None = None
    first_mapper: TracedProcess | None = None
    """who was seen to map it first, if it was not mapped before"""
    size_bytes: int = 0
    start_bytes: int = 0
    """allocated when the capture of it began"""
    allocated_bytes: int = 0
    peak_bytes: int = 0
    sample: tuple[int, int, int] | None = None
    """the last one in the capture: bytes allocated, resident, swapped"""
    samples_missed: int = 0
    """in a row: it was not there any more"""
    baseline: PageSet = dataclasses.field(default_factory=lambda: PageSet([]))
    """the pages that were there then"""
    unread: bool = False
    """which these are could not be seen without waiting: a lease is on it"""
    punches: Punches = dataclasses.field(default_factory=Punches)
    punched: list[Pages] = dataclasses.field(default_factory=list)
    """those of the punches that the extents in the capture do not know of yet, and what else they do not know of"""
    kept: bool = False
    """the capture has its extents as they stand"""
    written: tuple[int | None, ...] = ()
    """what the capture has of it, by region_writer.REGION_COLUMNS"""
    dying_since_s: float | None = None
    """monotonic; the beginning of its teardown was seen"""

    def take_baseline(self, owned: Callable[[], PageSet] = lambda: PageSet([]), start_pages: int | None = None) -> None:
        """What is there now and has no owner is from before. With probes, call it once they write.

        Where that cannot be seen without waiting, how much it is can: it is unread, and this is to be called again.
        owned: the pages that have an owner by now. start_pages: of hugetlb, whose SEEK_DATA shows all of the file; how
        many it had when the kernel side met it.
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
        self.unread = not found and size is not None and self.kind != "hugetlb"  # what is gone has nothing


def on_lease(unknown: str, names: Collection[str]) -> list[str]:
    """The warning that this is not known of these regions, if there are any; in it, {} stands for them."""
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{unknown.format(next(iter(names)) + more)}: there is a lease on it"]


def enter_mappings(
    capture: Capture, region: TracedRegion, mappings: Mapping[TracedProcess, Iterable[procfs.Mapping]]
) -> None:
    """Write into the capture who maps which part of a region where."""
    capture.insert_all(
        "mapping",
        "region, process, address, first_page, pages",
        (
            (
                region.row,
                process.row,
                each.start,
                each.first_index * shmem.PAGE_BYTES // PAGE_BYTES,
                (each.end - each.start) // PAGE_BYTES,
            )
            for process, theirs in mappings.items()
            for each in theirs
        ),
    )


class Finder:
    """Finds regions by the processes that map them."""

    def __init__(self, proc: Proc) -> None:
        self.proc = proc
        self.segments = functools.lru_cache(maxsize=1)(proc.sysv_segments)
        """to be cleared, for those of now"""

    def mappings(self, tgid: int) -> list[procfs.Mapping]:
        """The mappings of a process that are of regions: on a tmpfs or hugetlbfs."""
        found = []
        others: set[int] = set()  # devices of other file systems
        for mapping in self.proc.mappings(tgid):
            if mapping.dev in others:
                continue
            if self.proc.file_system(tgid, mapping):
                found.append(mapping)
            else:
                others.add(mapping.dev)
        return found

    def describe(self, tgid: int, mapping: procfs.Mapping) -> tuple[str, str]:
        """(kind, name) of the region behind a mapping."""
        plain = mapping.path.startswith("/") and "\\" not in mapping.path  # else maps has it otherwise, or does not
        name = mapping.path.removesuffix(shmem.DELETED) if plain else shmem.link_name(self.proc.map_file(tgid, mapping))
        kind = shmem.kind_of(mapping.dev, self.proc.file_system(tgid, mapping) or shmem.TMPFS_MAGIC, name)
        return kind, mapping.path if mapping.path.startswith("[anon_shmem:") else name

    def mapped(self, processes: Iterable[TracedProcess], regions: Iterable[TracedRegion]) -> Mapped:
        """Which of these processes map which of these regions."""
        known: dict[tuple[int, int], list[TracedRegion]] = {}
        for region in regions:
            known.setdefault((region.key.dev, region.key.ino), []).append(region)

        def look(tgid: int) -> Iterable[tuple[procfs.Mapping, RegionKey | None]]:
            mappings = [mapping for mapping in self.proc.mappings(tgid) if (mapping.dev, mapping.ino) in known]
            return zip(mappings, self.proc.identify(tgid, mappings))

        found: dict[int, dict[int, list[procfs.Mapping]]] = {}
        for tgid, theirs in each(self.proc.folder, look, [process.tgid for process in processes]):
            for mapping, key in theirs or ():
                for region in known[mapping.dev, mapping.ino]:
                    # numbers come again, and SysV's are those of others; the generation is the region's own
                    if key == region.key:
                        found.setdefault(region.id, {}).setdefault(tgid, []).append(mapping)
        return found

    def locate(self, region: TracedRegion, mapped: Mapped) -> None:
        """Where one of these maps the region, if one does."""
        tgid, mappings = next(iter(mapped.get(region.id, {}).items()), (0, []))
        region.path = self.proc.map_file(tgid, mappings[0]) if mappings else None
        region.address = mappings[0].start if mappings else region.address

    def open_files(self, processes: Iterable[TracedProcess], regions: Iterable[TracedRegion]) -> dict[int, Path]:
        """A path to each of these regions that one of these processes has an open file of; by region id."""
        wanted = {region.key: region.id for region in regions}
        found: dict[int, Path] = {}

        def look(tgid: int) -> list[tuple[int, Path]]:
            files = ((shmem.identify(path), path) for path in self.proc.open_files(tgid))
            return [(wanted[key], path) for key, path in files if key in wanted]

        for _, theirs in each(self.proc.folder, look, [process.tgid for process in processes] if wanted else []):
            for number, path in theirs or ():
                found.setdefault(number, path)
        return found

    def creator(
        self, region: TracedRegion, mappers: list[TracedProcess], known: Processes, clock: Clock
    ) -> tuple[TracedProcess | None, str]:
        """Who made a region that nobody saw being made, and how that is known: SysV keeps the PID, for the rest it is
        inferred from who maps it, or was seen to map it first."""
        if region.kind == "sysv":
            segment = self.segments().get(region.key.ino)
            if segment:
                return known.at(segment.creator, -1), "shmget"
        created_ns = region.created_ns
        if created_ns is None and region.path:
            created_ns = shmem.birth_time_ns(region.path)
        suspects = [region.first_mapper] if region.first_mapper else mappers
        return infer_creator(suspects, created_ns, clock), "inferred"

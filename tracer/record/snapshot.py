"""A snapshot: what /proc shows now. It needs neither BPF nor bcc, and cannot tell who touched a page."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from typing import Optional

from tracer import __version__
from tracer.capture.capture import PAGE_BYTES, Capture
from tracer.clock import Clock
from tracer.kernel import host, tiers
from tracer.proc import private_memory, procfs, shmem, tmpfs
from tracer.proc.blocking import each
from tracer.proc.leases import leased
from tracer.proc.procfs import Proc, ProcessStat
from tracer.proc.shmem import RegionKey, RegionStat, Residency
from tracer.record import host_memory, targets
from tracer.record.processes import Processes, TracedProcess, stands_for
from tracer.record.regions import Finder, TracedRegion, enter_mappings, on_lease
from tracer.record.targets import Targets

UNKNOWN = RegionStat(0, 0), Residency(None, None), None


def take(
    capture: Capture, wanted: Targets, excluded: Iterable[int] = (), regions_alone: bool = False
) -> list[TracedRegion]:
    """Write a snapshot into the capture: all regions that the selected processes map. Returns these.

    For each region it has size, mappings, and the creator if it can be inferred.

    regions_alone: leave out what takes long and names no region: what is swapped out, private memory, and what no
    process maps.
    """
    clock = Clock.start()
    proc = Proc()
    finder = Finder(proc, wanted.tmpfs and wanted.tmpfs.dev)
    processes = proc.processes()
    known = Processes(capture, clock)
    rss_bytes = 0
    regions: dict[RegionKey, TracedRegion] = {}
    names: dict[RegionKey, str] = {}
    mappers: dict[RegionKey, dict[TracedProcess, list[procfs.Mapping]]] = {}

    def look(tgid: int) -> tuple[ProcessStat | None, list[procfs.Mapping], list[RegionKey | None]]:
        mappings = [mapping for mapping in finder.mappings(tgid) if mapping.shared]
        return proc.process(tgid), mappings, proc.identify(tgid, mappings)

    for tgid, found in each(proc.folder, look, targets.tree(processes, wanted.roots(processes, excluded))):
        stat, mappings, keys = found or (None, [], [])
        stat = stat or processes[tgid]
        if stat.start_time_ns != processes[tgid].start_time_ns:
            continue  # the PID was reused
        process = finder.enter(stat, known)
        rss_bytes += proc.rss_bytes(tgid) or 0
        for mapping, key in zip(mappings, keys):
            if key is None:  # unmapped in the meantime
                continue
            if key not in regions:
                kind, name = finder.describe(tgid, mapping)
                row = capture.insert(
                    "region", dev=key.dev, ino=key.ino, generation=key.generation, kind=kind, name=name
                )
                regions[key] = TracedRegion(row, row, key, kind, proc.map_file(tgid, mapping), mapping.start)
                names[key] = name
            mappers.setdefault(key, {}).setdefault(process, []).append(mapping)
    files, warnings = tmpfs.files(wanted.tmpfs) if wanted.tmpfs else ([], [])
    for name, path in files:
        key = shmem.identify(path)
        if key and key not in regions:
            kind = shmem.kind_of(key.dev, shmem.TMPFS_MAGIC, name)
            row = capture.insert("region", dev=key.dev, ino=key.ino, generation=key.generation, kind=kind, name=name)
            regions[key] = TracedRegion(row, row, key, kind, path)
            names[key] = name
    measure = _size if regions_alone else _measure
    for region, measured in each(TracedRegion.whom, measure, list(regions.values())):
        size, residency, region.created_ns = measured or UNKNOWN
        region.allocated_bytes = size.allocated_bytes
        mapped = mappers.get(region.key, {})
        creator, how = finder.creator(region, list(mapped), known, clock)
        parent = stands_for(creator, mapped)
        capture.update(
            "region",
            region.row,
            created_ns=region.created_ns,
            creator=creator.row if creator else None,
            creator_how=how if creator else None,
            parent=parent.row if parent else None,
            size_bytes=size.size_bytes,
            allocated_bytes=size.allocated_bytes,
            peak_bytes=size.allocated_bytes,
            start_bytes=size.allocated_bytes,
            resident_bytes=residency.resident_bytes,
            swapped_bytes=residency.swapped_bytes,
            address=region.address,
            hint=finder.hint(region, next((process.comm or "" for process in mapped), "")),
        )
        # a snapshot has no start: all pages count as from before, and their places are not known
        capture.insert("extent", region=region.row, start=0, end=size.allocated_bytes // PAGE_BYTES)
        enter_mappings(capture, region, mapped)
    capture.sum_up(region.row for region in regions.values())
    shut = [name for key, name in names.items() if leased(key.dev, key.ino)]
    private = None
    if not (regions_alone or wanted.tmpfs):
        tree = known.tree()
        now = private_memory.measure(proc, (process.tgid for process in tree), (process.cgroup for process in tree))
        private = private_memory.change([now])
    if not regions_alone:
        known.pods.write()
        warnings += known.pods.warnings
    if wanted.everything and not regions_alone:
        commands = {tgid: process.command for tgid, process in processes.items()}
        warnings += host_memory.write(capture, proc, regions.values(), commands.get, wanted.tmpfs)
    used = resource.getrusage(resource.RUSAGE_SELF)
    capture.insert(
        "session",
        version=__version__,
        complete=1,
        host=procfs.host(),
        kernel=host.release(),
        tier=tiers.PROC.name,
        tmpfs=wanted.tmpfs and wanted.tmpfs.name(),
        mechanism=tiers.PROC.by,
        blind_to="\n".join(tiers.PROC.blind_to),
        warnings="\n".join(proc.warnings() + warnings + on_lease("the resident part of {} is not known", shut)),
        started_ns=clock.wall_ns,
        ended_ns=time.time_ns(),
        sum_of_rss_bytes=None if wanted.tmpfs else rss_bytes,
        private_end_bytes=private and private.end_bytes,
        private_how=private and private.how,
        shmem_total_bytes=proc.memory().shmem_bytes,
        self_cpu_seconds=used.ru_utime + used.ru_stime,
        self_rss_bytes=used.ru_maxrss * 1024,
    )
    capture.commit()
    return list(regions.values())


Measured = tuple[RegionStat, Residency, Optional[int]]
"""Size, residency and birth time of a region."""


def _measure(region: TracedRegion) -> Measured:
    size, residency, born_ns = _size(region)
    return size, shmem.residency(region.path, region.key) if region.path else residency, born_ns


def _size(region: TracedRegion) -> Measured:
    """Without the residency, which takes a look at each page."""
    if not region.path:
        return UNKNOWN
    return shmem.region_stat(region.path) or UNKNOWN[0], UNKNOWN[1], shmem.birth_time_ns(region.path)

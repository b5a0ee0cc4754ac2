"""A snapshot: what /proc alone can say, now. No BPF, no bcc: it answers anywhere, and never says who touched a page."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable

from tracer import __version__, kernel, lives, private, procfs, targets
from tracer.capture import PAGE_BYTES, Capture
from tracer.clock import Clock
from tracer.leases import leased
from tracer.lives import Lives, Process
from tracer.procfs import Proc, RegionKey
from tracer.regions import Finder, Region, enter_mappings, on_lease
from tracer.targets import Targets


def take(capture: Capture, wanted: Targets, excluded: Iterable[int] = ()) -> None:
    """Write one into the capture: every region that the wanted processes map, its size, its mappers, its creator as
    far as that can be inferred."""
    clock = Clock.start()
    proc = Proc()
    finder = Finder(proc)
    processes = proc.processes()
    known = Lives(capture, clock)
    rss_bytes = 0
    regions: dict[RegionKey, Region] = {}
    mappers: dict[RegionKey, dict[Process, list[procfs.Mapping]]] = {}
    for tgid in targets.tree(processes, wanted.roots(processes, excluded)):
        stat = proc.process(tgid) or processes[tgid]
        if stat.start_time_ns != processes[tgid].start_time_ns:
            continue  # its PID is another's by now
        process = known.begin(
            tgid,
            stat.start_time_ns,
            stat.parent,
            stat.comm,
            stat.command,
            began_us=-1,
            cgroup=proc.cgroup(tgid),
            ns_tgid=proc.ns_tgid(tgid),
        )
        rss_bytes += proc.rss_bytes(tgid) or 0
        mappings = [mapping for mapping in finder.mappings(tgid) if mapping.shared]
        paths = [proc.map_file(tgid, mapping) for mapping in mappings]
        for mapping, path, key in zip(mappings, paths, procfs.identify_each(paths)):
            if key is None:  # unmapped meanwhile
                continue
            if key not in regions:
                kind, name = finder.describe(tgid, mapping)
                row = capture.insert(
                    "region", dev=key.dev, ino=key.ino, generation=key.generation, kind=kind, name=name
                )
                regions[key] = Region(row, row, key, kind, path, mapping.start)
            mappers.setdefault(key, {}).setdefault(process, []).append(mapping)
    shut = []
    for key, region in regions.items():
        size = procfs.region_stat(region.path) if region.path else None
        if size:
            region.vss_bytes, region.allocated_bytes = size.vss_bytes, size.allocated_bytes
        residency = procfs.residency(region.path, key) if region.path else procfs.Residency(None, None)
        if leased(key.dev, key.ino):
            shut.append(procfs.link_name(region.path) if region.path else "?")
        created_ns = procfs.birth_time_ns(region.path) if region.path else None
        creator, how = finder.creator(region, list(mappers[key]), known, clock)
        parent = lives.stands_for(creator, mappers[key])
        capture.update(
            "region",
            region.row,
            created_ns=created_ns,
            creator=creator.row if creator else None,
            creator_how=how if creator else None,
            top=parent.row if parent else None,
            vss_bytes=region.vss_bytes,
            allocated_bytes=region.allocated_bytes,
            peak_bytes=region.allocated_bytes,
            start_bytes=region.allocated_bytes,
            resident_bytes=residency.resident_bytes,
            swapped_bytes=residency.swapped_bytes,
            address=region.address,
        )
        pages = region.allocated_bytes // PAGE_BYTES
        # a snapshot has no beginning: all that is there is from before, wherever it is
        capture.insert("extent", region=region.row, start=0, end=pages)
        enter_mappings(capture, region, mappers[key])
    tree = known.tree()
    now = private.measure(proc, (process.tgid for process in tree), (process.cgroup for process in tree))
    _, private_bytes, how = private.change(now, now)
    used = resource.getrusage(resource.RUSAGE_SELF)
    capture.insert(
        "session",
        version=__version__,
        complete=1,
        host=procfs.host(),
        kernel=kernel.release(),
        tier=kernel.PROC.name,
        mechanism=kernel.PROC.by,
        blind_to="\n".join(kernel.PROC.blind_to),
        warnings="\n".join(proc.warnings() + on_lease("how much of {} is in memory is not known", shut)),
        started_ns=clock.wall_ns,
        ended_ns=time.time_ns(),
        sum_of_rss_bytes=rss_bytes,
        private_end_bytes=private_bytes,
        private_how=how,
        shmem_total_bytes=proc.memory().shmem_bytes,
        self_cpu_seconds=used.ru_utime + used.ru_stime,
        self_rss_bytes=used.ru_maxrss * 1024,
    )
    capture.commit()

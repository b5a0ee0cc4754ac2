"""Compile ahead what a trace may need, for this kernel or for another one whose structure layout is known."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from tracer.kernel import tiers
from tracer.kernel.bytecode import Wanted, compiled
from tracer.kernel.cache import Cache
from tracer.kernel.fields import KernelLayout
from tracer.kernel.probes import STACKS, wanted
from tracer.kernel.tiers import Tier
from tracer.labels import READY, Source, parse

ANY_LABEL = parse("BINARY:SYMBOL")


class Variant(NamedTuple):
    """One BPF program to compile. title: the tier and the options that use it, for people."""

    title: str
    wanted: Wanted


def variants(layout: KernelLayout, tier: Tier, fexit: bool) -> list[Variant]:
    """The programs of a tier on a kernel, for every combination of --label and --stacks.

    fexit: the kernel can attach fexit programs to what this tier traces.
    """
    labels: dict[tuple[str, ...], list[str]] = {(): []}
    for source in (*READY.values(), ANY_LABEL):
        labels.setdefault(source.flags, []).append(source.name)
    return [
        Variant(
            " ".join([tier.title, *([f"--label {' or '.join(names)}"] if names else []), *stacks]),
            wanted(tier, layout, fexit, [*flags, *stacks.values()]),
        )
        for flags, names in labels.items()
        for stacks in ({}, {"--stacks": STACKS})
    ]


def of_kernel(cache: Cache) -> list[Variant]:
    """The programs of every tier that the running kernel supports. Raises ShmtraceError if its BTF cannot be read."""
    layout = tiers.layout(cache)
    found: list[Variant] = []
    for tier in tiers.TIERS:
        if not tiers.why_not(tier, layout):
            found += variants(layout, tier, tiers.has_fexit(tier, tiers.points(tier, layout)))
    return found


def trace_here(source: Source | None, stacks: bool) -> None:
    """Compile what a trace on this host will load, unless the cache has it.

    source: of labels. stacks: it also counts pages by user stack. Where nothing can be traced, nothing is compiled.
    Raises ShmtraceError if it cannot be.
    """
    cache = Cache()
    flags = [*(source.flags if source else ()), *([STACKS] if stacks else ())]
    layout = tiers.layout(cache)
    tier = next((tier for tier in tiers.tiers() if not tiers.why_not(tier, layout)), None)
    if tier:
        compiled(wanted(tier, layout, tiers.has_fexit(tier, tiers.points(tier, layout)), flags), cache)


def compile_all(wanted: list[Variant], cache: Cache) -> Iterator[Variant]:
    """Compile the variants in parallel, unless the cache has them. Yields each as it is done.

    Raises ShmtraceError if one cannot be compiled; the others are cancelled then.
    """
    with ThreadPoolExecutor() as pool:
        jobs = {pool.submit(compiled, variant.wanted, cache): variant for variant in wanted}
        try:
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        finally:
            for job in jobs:
                job.cancel()

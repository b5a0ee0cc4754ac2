"""Guess what an application uses a region for. Every guess ends with a question mark."""

from __future__ import annotations

from typing import Callable, NamedTuple, Protocol

from tracer import hints
from tracer.model import Process

# How many bits a user address has: 47 on x86-64; on arm64 39 or 48, or 47 where pages have 16 KiB. Where a kernel has
# more, a program must ask for such an address.
ADDRESS_BITS = 39, 47, 48


def is_below_mmap_area(address: int) -> bool:
    """Whether mmap(2) was given a hint that led here.

    Programs are loaded from 2/3 of the address space upwards, and without a hint mmap(2) starts at its top and goes
    down. Randomization moves either by an eighth of it at most (arch/x86/Kconfig, arch/arm64/Kconfig:
    ARCH_MMAP_RND_BITS_MAX).
    """
    space = next((1 << bits for bits in ADDRESS_BITS if address < 1 << bits), 0)
    return 0 < address < space * 13 // 16


class Looks(Protocol):
    """What a region looks like: a Region, or the row of one."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int | None: ...
    @property
    def address(self) -> int | None: ...
    @property
    def hint(self) -> str | None: ...


class Rule(NamedTuple):
    """One guess: the regions of a parent with this name that look like this get this label. The first rule wins."""

    comm: str
    """the parent's process name begins with this"""
    label: str
    fits: Callable[[Looks], bool]
    """whether the region looks like this use"""


RULES = [
    # fpm_shm_alloc() maps one scoreboard for each pool, with about 1200 bytes for each worker.
    Rule("php", "scoreboard?", lambda region: region.kind == "anon" and (region.size_bytes or 0) <= 1 << 20),
    # shared_alloc_mmap.c maps opcache where opcodes can reach it: on x86-64 below 4 GiB, or since PHP 8.3 beside PHP's
    # own text. Both lie below the area where mmap(2) puts mappings without an address hint, like apcu's. PHP 7.4 gives
    # no hint either, nor does any before 8.3 on arm64, so their opcache is taken for apcu.
    Rule("php", "opcache?", lambda region: region.kind != "posix" and is_below_mmap_area(region.address or 0)),
    Rule("php", "apcu?", lambda region: region.kind == "anon"),
    Rule("postgres", "shared buffers?", lambda region: region.kind in ("anon", "hugetlb")),
    Rule("postgres", "dynamic shared memory?", lambda region: region.name.startswith("/dev/shm/PostgreSQL.")),
    Rule("postgres", "interlock?", lambda region: region.kind == "sysv"),
    Rule("nginx", "zone?", lambda region: region.kind == "anon" and (region.size_bytes or 0) > 1 << 16),
    Rule("nginx", "counters?", lambda region: region.kind == "anon"),
    # ap_create_scoreboard(): about 130 bytes for each thread that there may be
    Rule("apache2", "scoreboard?", lambda region: region.kind == "anon" and (region.size_bytes or 0) <= 1 << 20),
    Rule("apache2", "opcache?", lambda region: region.kind != "posix" and is_below_mmap_area(region.address or 0)),
    Rule("apache2", "apcu?", lambda region: region.kind == "anon"),
    # uwsgi_cache_init() maps each cache whole; its hash tables and the tables of workers take half a MiB at most
    Rule("uwsgi", "cache?", lambda region: region.kind == "anon" and (region.size_bytes or 0) > 1 << 20),
    # ZPhysicalMemoryBacking: "java_heap"; with transparent huge pages "java_heap.hugetlbfs" and the like
    Rule("java", "heap?", lambda region: region.name.startswith("/memfd:java_heap")),
]


def called(region: Looks, parent: Process | None) -> str:
    """The guessed use of a region, or else its name."""
    return guess(region, parent) or region.name


def guess(region: Looks, parent: Process | None) -> str | None:
    """The guessed use of a region, from its content or the name of its parent process; None if no rule fits."""
    if region.hint and hints.SHOWN.fullmatch(region.hint):
        return f"{region.hint}?"
    comm = (parent.comm if parent else None) or ""
    return next((rule.label for rule in RULES if comm.startswith(rule.comm) and rule.fits(region)), None)

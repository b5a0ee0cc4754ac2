"""What a region probably is, for the reader who knows the application: a guess, and marked with a question mark."""

from __future__ import annotations

from typing import Callable, NamedTuple

from tracer.account import Process, Region

# Of x86-64: programs begin at 2/3 of 128 TiB, mmap(2) at the end and downwards; chance moves either by 16 TiB at most.
MMAP_AREA = 104 << 40


class Rule(NamedTuple):
    comm: str
    """beginning of the parent's process name"""
    label: str
    fits: Callable[[Region], bool]


RULES = [
    # fpm_shm_alloc() maps one scoreboard a pool, of some 1200 bytes a worker
    Rule("php", "scoreboard?", lambda region: region.kind == "anon" and (region.size_bytes or 0) <= 1 << 20),
    # shared_alloc_mmap.c wants opcodes to reach it: below 4 GiB, and since PHP 8.3 beside PHP's own text. That is below
    # where mmap(2) puts what comes without a wish, as apcu does; so does PHP 7.4's opcache, and passes for apcu.
    Rule("php", "opcache?", lambda region: region.kind != "posix" and 0 < (region.address or 0) < MMAP_AREA),
    Rule("php", "apcu?", lambda region: region.kind == "anon"),
    Rule("postgres", "shared buffers?", lambda region: region.kind in ("anon", "hugetlb")),
    Rule("postgres", "dynamic shared memory?", lambda region: region.name.startswith("/dev/shm/PostgreSQL.")),
    Rule("postgres", "interlock?", lambda region: region.kind == "sysv"),
    Rule("nginx", "zone?", lambda region: region.kind == "anon" and (region.size_bytes or 0) > 1 << 16),
]


def guess(region: Region, parent: Process | None) -> str | None:
    comm = (parent.comm if parent else None) or ""
    return next((rule.label for rule in RULES if comm.startswith(rule.comm) and rule.fits(region)), None)

"""Which tests may be skipped, and for which reasons, in a run that is to miss nothing: SHMTRACE_REQUIRE_BPF=1.

What a kernel has is told by other signs than those that a test goes by, mostly by the functions it has: a test that is
skipped where there is what it needs fails, and one that runs where that is not there is told.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
from collections.abc import Callable
from mmap import PAGESIZE
from pathlib import Path
from typing import NamedTuple

from tracer.kernel import bpf_syscall

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
# Which bootstrap does not install, and the tests that are for them.
PROGRAMS = {
    "fish": r"test_in_the_shell_itself\[fish\]",
    "mandoc": "test_mandoc_takes_it",
    "ruby": "test_vagrantfile_is_ruby",
    "shellcheck": "test_shellcheck_finds_nothing",
    "zsh": r"test_in_the_shell_itself\[zsh\]",
}
PAGE_CACHE_ORDER = 11  # no folio of the page cache is larger, since v6.10: MAX_XAS_ORDER in include/linux/pagemap.h


class Row(NamedTuple):
    tests: str
    """A pattern that is somewhere in their node IDs."""
    reason: str
    """A pattern for all of it."""
    there: Callable[[], object]
    """Whether what they need is there; then they must run."""


@functools.cache
def functions() -> frozenset[str]:
    """Those of the running kernel."""
    return frozenset(line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines())


def function(*names: str) -> Callable[[], bool]:
    """Whether the kernel has one, by any of its names."""
    return lambda: not functions().isdisjoint(names)


def fentry() -> bool:
    """A program of no function is invalid; a policy against all programs of its type refuses it before that is seen."""
    try:
        os.close(bpf_syscall.load(bpf_syscall.NOTHING, bpf_syscall.TRACING))
    except OSError as error:
        return error.errno != errno.EPERM and function("register_ftrace_direct")()  # on arm64 since v6.4
    return True


def huge_page_cache() -> bool:
    """Whether what fills a page table can be one page: with pages of 64 KiB that is too large."""
    size = HUGE_PAGES / "hpage_pmd_size"
    return size.exists() and int(size.read_text()) // PAGESIZE <= 1 << PAGE_CACHE_ORDER


def collapse() -> bool:
    return huge_page_cache() and function("madvise_collapse")()  # since v6.1


def swap() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


MOMENTARY = (
    "khugepaged does not come",
    "the kernel lost stacks, and the trace said so",
    r"huge pages for a memfd \(shmem_enabled, or free memory\)",
    "huge pages for fallocate",
    "huge pages for a tmpfs with huge=always",
    "the kernel has no three huge pages to give",
    "no three huge pages are free",
)
"""Reasons that memory in pieces and a busy host may give at any time."""
POPULATE = function("faultin_page_range", "faultin_vma_page_range")  # since v5.14

ROWS = [
    Row(r"live/.*\[kprobe", "no kprobe: the kernel has no kprobes", function("kprobe_dispatcher")),
    Row(r"live/.*\[fentry", r"no fentry: fentry is refused \(.*\)", fentry),
    Row(r"live/.*\[faults", "no faults: .* no tracepoints of page faults", function("__traceiter_page_fault_user")),
    Row(r"test_armed.*\[(kprobe|faults)", r"no links of perf events in .*", function("bpf_perf_link_release")),
    Row(r"\bpopulated\]", "no MADV_POPULATE_WRITE", POPULATE),
    Row(r"\bpopulate_read\]", "MADV_POPULATE_READ", POPULATE),
    Row(r"\bcollapsed\]", "MADV_COLLAPSE of shared memory", collapse),
    Row(r"\bkhugepaged\]", "MADV_HUGEPAGE|khugepaged.*", huge_page_cache),
    Row(r"\bhuge_punched\]|answers.*test_huge_pages", "MADV_HUGEPAGE", HUGE_PAGES.exists),
    Row(r"\bhuge_fallocated\]", "a tmpfs with huge=always", HUGE_PAGES.exists),
    Row(r"live/.*\bswapped\w*\]", "swap", swap),
    Row("test_what_is_swapped_out_stays_out", "there is no swap", swap),
    Row("live/test_pressure", "256 MiB of free swap", swap),
    Row(
        "test_survey_finds_what_fallocate_made|test_residency",
        r"cachestat\(2\) .*",
        function("__x64_sys_cachestat", "__arm64_sys_cachestat"),
    ),
    *(
        Row(tests, f"{name} is not installed", functools.partial(shutil.which, name))
        for name, tests in PROGRAMS.items()
    ),
]


def expected(test: str) -> list[str]:
    """For which reasons a test is to be skipped here, as patterns; none: it must run."""
    return [row.reason for row in ROWS if re.search(row.tests, test) and not row.there()]


def is_expected(test: str, reason: str) -> bool:
    return any(re.fullmatch(pattern, reason) for pattern in (*expected(test), *MOMENTARY))

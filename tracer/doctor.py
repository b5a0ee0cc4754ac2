"""The doctor: what this host allows, found by trying, and the command that mends what is missing.

Every check tries one thing and gives a Check. What is concluded, and the text, come of the checks alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import importlib
import mmap
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tracer import prepare
from tracer.errors import ShmtraceError
from tracer.formatting import COLUMNS, format_bytes, printable
from tracer.kernel import host, tiers
from tracer.kernel.cache import Cache
from tracer.kernel.packages import install_bcc
from tracer.kernel.probes import Beginning, Probes, Sizes
from tracer.kernel.tiers import Tier
from tracer.proc import shmem
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES

SMALL = Sizes(blocks=64, processes=64, regions=64, usages=64, alive=64)
NAME_COLUMNS = 26  # of the state and the name, before what was found
AS_ROOT = "sudo shmtrace doctor"
TOLD_BY = {
    "kprobe": "by kprobes where the kernel makes and drops pages",
    "fentry": "by fentry programs where the kernel makes and drops pages",
    "tracepoint": "by the tracepoints of page faults",
}
READING = "map_files"  # the one check that a snapshot stands on
THP = Path("/sys/kernel/mm/transparent_hugepage")
HUGETLB = Path("/sys/kernel/mm/hugepages")
PREPARE = "shmtrace prepare"
MOUNTS = Path("/proc/self/mounts")


class Check(NamedTuple):
    """What came of trying one thing."""

    name: str
    ok: bool | None
    """None: it works without, and something is lost by it"""
    found: str
    remedy: str = ""
    """a command, where one mends it"""


def examine() -> list[Check]:
    """Try everything. The probes of each tier are attached for a moment; nothing is left behind.

    Raises ShmtraceError where /proc is not what it should be.
    """
    host.need_proc()
    swap_bytes = Proc().memory().swap_bytes
    compiler = bcc()
    needed = [
        privileges(host.missing_capabilities(bpf=True), os.geteuid() == 0),
        tell("user namespace", False, lambda: user_namespace(host.sees_host_users())),
        tell("PID namespace", False, lambda: pid_namespace(host.sees_host_pids())),
        compiler,
        Check("kernel headers", True, "not needed"),
        kernel_types(),
        compiled(Cache(), can_compile=compiler.ok is True),
        lockdown(host.lockdown()),
        tell("tracefs", None, tracefs),
    ]
    best_first = tiers.tiers()
    trials = tried(best_first, needed)
    exact = any(check.ok for tier, check in zip(best_first, trials) if tier.name == tiers.KPROBE.name)
    return [
        *needed,
        *trials,
        *region_calls(),
        tell("huge pages", None, lambda: huge_pages(THP, MOUNTS.read_text(errors="backslashreplace"), exact)),
        tell("hugetlb", None, lambda: hugetlb(HUGETLB, exact)),
        Check("swap", True, f"{format_bytes(swap_bytes)}: a page that is swapped out keeps its toucher")
        if swap_bytes
        else Check("swap", True, "none"),
    ]


def tell(name: str, ok: bool | None, check: Callable[[], Check]) -> Check:
    """What a check comes to. ok: where what it reads is not there, in a container or a kernel of few parts."""
    try:
        return check()
    except OSError as error:
        return Check(name, ok, f"cannot be told ({error.filename or 'a system call'}: {error.strerror})")


# ---- the checks ----


def privileges(missing: list[str], root: bool) -> Check:
    if not missing:
        return Check("privileges", True, "all that are needed")
    adding = " ".join(f"--cap-add={name.removeprefix('CAP_')}" for name in missing)
    # root without them is in a container
    return Check("privileges", False, f"lacks {', '.join(missing)}", f"docker run {adding} …" if root else AS_ROOT)


def user_namespace(host: bool) -> Check:
    if host:
        return Check("user namespace", True, "the host's")
    return Check("user namespace", False, "not the host's: its root may not look at shared memory", AS_ROOT)


def pid_namespace(host: bool) -> Check:
    if host:
        return Check("PID namespace", True, "the host's")
    found = "not the host's: BPF tells processes by the host's PIDs, and /proc by others"
    return Check("PID namespace", False, found, "docker run --pid=host …, or run it on the host")


def bcc() -> Check:
    try:
        module = importlib.import_module("bcc")  # tracer/compiler.py uses it; here it is only looked at
    except (ImportError, OSError) as error:
        found = f"cannot be imported by {sys.executable} ({error}): nothing can be compiled here"
        if any(Path("/usr/lib").glob("python3*/*-packages/bcc")):
            venv = sys.prefix if sys.prefix != sys.base_prefix else ".venv"
            return Check("bcc", None, found, f"/usr/bin/python3 -m venv --system-site-packages {venv}")
        return Check("bcc", None, found, install_bcc())
    place = Path(module.__file__ or "?").parent
    if not hasattr(module, "BPF"):
        return Check("bcc", None, f"{place} is PyPI's, another project", f"{sys.executable} -m pip uninstall bcc")
    return Check("bcc", True, f"{getattr(module, '__version__', 'without a version')}, {place}")


def kernel_types() -> Check:
    try:
        count = len(tiers.layout(Cache()).defines)
    except ShmtraceError as error:
        return Check("BTF", False, str(error), "boot a kernel that has CONFIG_DEBUG_INFO_BTF=y, as distributions' have")
    return Check("BTF", True, f"has all that is asked of it ({count} facts)")


def compiled(cache: Cache, can_compile: bool) -> Check:
    """What of all that may be asked for here needs no compiler."""
    try:
        wanted = prepare.of_kernel(cache)
    except ShmtraceError as error:
        return Check("compiled", None, f"cannot be told ({error.message})")
    nr_kept = sum(cache.read(variant.wanted.key()) is not None for variant in wanted)
    found = f"{nr_kept} of {len(wanted)} variants for this kernel, in {cache.directory} or with shmtrace"
    doubts = f"; {cache.warnings[0]}" if cache.warnings else ""
    if nr_kept == len(wanted):
        return Check("compiled", True, found + doubts)
    if not can_compile:
        return Check("compiled", None, f"{found}; the others need bcc{doubts}")
    return Check("compiled", None, f"{found}; the others take seconds when they are asked for{doubts}", PREPARE)


def lockdown(mode: str | None) -> Check:
    if mode == "confidentiality":
        return Check("lockdown", False, "confidentiality: BPF may not read the kernel", "boot with lockdown=integrity")
    return Check("lockdown", True, f"{mode or 'none in force'}: BPF may read the kernel")


def tracefs() -> Check:
    try:
        with host.tracefs():
            place = host.mounted_tracefs()
    except ShmtraceError as error:
        return Check("tracefs", None, f"{error.message}: page faults are not told without it", error.remedy)
    return Check("tracefs", True, str(place) if place else "not mounted, and need not be")


def tried(best_first: Sequence[Tier], needed: Sequence[Check]) -> list[Check]:
    """Compile, load and attach each for real, if nothing that all need is missing. One that works is enough."""
    missing = [check.name for check in needed if check.ok is False]
    if missing:
        return [
            Check(tier.title, None, f"not tried, for want of the above ({', '.join(missing)})") for tier in best_first
        ]
    checks = [tell(tier.title, None, functools.partial(try_tier, tier)) for tier in best_first]
    if any(check.ok for check in checks):
        return checks
    return [check._replace(ok=False) for check in checks]


def try_tier(tier: Tier) -> Check:
    beginning = Beginning(time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    try:
        with Probes(tier, SMALL, beginning) as probes:
            probes.attach()
            taken_s = (time.monotonic_ns() - beginning.monotonic_ns) / 1e9
    except ShmtraceError as error:
        return Check(tier.title, None, error.message)
    blind = f"; blind to: {', '.join(dict.fromkeys(probes.missing))}" if probes.missing else ""
    return Check(tier.title, True, f"works, in {taken_s:.2f} s{blind}; it hangs on {', '.join(probes.attached)}")


def region_calls() -> list[Check]:
    """Each call that a region is looked at by, on one of our own."""
    try:
        with _own_region() as path:
            path.stat()
            resident_bytes, _ = shmem.residency(path)
            generation, born_ns = shmem.generation(path), shmem.birth_time_ns(path)
    except OSError as error:
        return [Check(READING, False, f"cannot be read ({error.strerror})", AS_ROOT)]
    lacking = host.missing_capabilities(bpf=False)
    return [
        Check(READING, False, f"only our own, without {', '.join(lacking)}", AS_ROOT)
        if lacking
        else Check(READING, True, "can be read: what a region holds is one stat"),
        Check("cachestat", True, "works: tells resident from swapped")
        if resident_bytes == PAGE_BYTES
        else Check("cachestat", None, "not here (it came with v6.5): what is swapped stays unknown"),
        Check("generation", True, "by name_to_handle_at: tells regions of one number apart")
        if generation is not None
        else Check("generation", None, "no name_to_handle_at: a SysV segment may be taken for another region"),
        Check("birth time", True, "by statx: tells when a region was made")
        if born_ns is not None
        else Check("birth time", None, "not by statx (it came with v6.1): who made an older region is less sure"),
    ]


@contextlib.contextmanager
def _own_region() -> Iterator[Path]:
    """The map_files path of a page of shared memory. Raises OSError."""
    with mmap.mmap(-1, PAGE_BYTES) as region:
        region[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(region))
        mapping = next((found for found in Proc().mappings(os.getpid()) if found.start <= address < found.end), None)
        if not mapping:
            raise OSError(errno.ENOENT, "/proc/self/maps has not what is mapped")
        yield Proc().map_file(os.getpid(), mapping)


def huge_pages(settings: Path, mounts: str, exact: bool) -> Check:
    """Whether shared memory may come in huge pages: of which, but in the exact tier, only the page that was touched is
    put down to somebody.

    settings: a directory like THP; mounts: the text of /proc/mounts.
    """
    name = "huge pages"
    if exact:
        return Check(name, True, "whole, for who touched one page of them")
    everywhere = settings / "shmem_enabled"
    # of a size: what it says itself; what it inherits is said by the one above
    paths = [everywhere, *sorted(settings.glob("hugepages-*/shmem_enabled"))]
    enabled = [path for path in paths if _chosen(path) not in ("never", "deny", "inherit", None)]
    if enabled:
        found = f"shmem_enabled is {_chosen(enabled[0])}: of a huge page, all but the page touched is unseen"
        return Check(name, None, found, f"echo never | tee {' '.join(map(str, enabled))}")
    if _chosen(everywhere) != "deny":
        for _, place, kind, options, *_ in map(str.split, mounts.splitlines()):
            huge = [option for option in options.split(",") if option.startswith("huge=") and option != "huge=never"]
            if kind == "tmpfs" and huge:
                found = f"{place} has {huge[0]}: of a huge page, all but the page touched is unseen"
                return Check(name, None, found, f"mount -o remount,huge=never {place}")
    return Check(name, True, "none for shared memory")


def _chosen(path: Path) -> str | None:
    """The word in brackets."""
    with contextlib.suppress(OSError):
        return next((word.strip("[]") for word in path.read_text().split() if word.startswith("[")), None)
    return None


def hugetlb(pools: Path, exact: bool) -> Check:
    """pools: a directory like HUGETLB."""
    counts = {path.parent.name.rpartition("-")[2]: int(path.read_text()) for path in pools.glob("*/nr_hugepages")}
    there = ", ".join(f"{count} of {size}" for size, count in sorted(counts.items()) if count)
    if there and exact:
        return Check("hugetlb", True, there)
    if there:
        return Check("hugetlb", None, f"{there}: regions of these are listed with their size, and no toucher")
    return Check("hugetlb", True, "none reserved")


# ---- what they come to ----


def traces(checks: Sequence[Check]) -> bool:
    return best(checks) is not tiers.PROC and all(check.ok is not False for check in checks)


def best(checks: Sequence[Check]) -> Tier:
    """The tier that a trace would have."""
    works = {check.name for check in checks if check.ok}
    return next((tier for tier in tiers.tiers() if tier.title in works), tiers.PROC)


def reads(checks: Sequence[Check]) -> bool:
    """Whether a snapshot works, if nothing else does."""
    return all(check.ok is not False for check in checks if check.name in (READING, "user namespace"))


def render(checks: Sequence[Check]) -> str:
    """For a person: the verdict first, 80 columns; a command is never cut or folded."""
    lines = [*_verdict(checks), ""]
    for check in checks:
        state = {True: "ok", False: "missing", None: "note"}[check.ok]
        lines += _fold(f"{state:<7}  {check.name:<17}", check.found, NAME_COLUMNS)
        if check.remedy:
            lines.append(f"{'':9}mend it: {check.remedy}")
    return "\n".join(map(printable, lines))


def _verdict(checks: Sequence[Check]) -> list[str]:
    missing = ", ".join(check.name for check in checks if check.ok is False)
    if traces(checks):
        tier = best(checks)
        text = f"first touches, {TOLD_BY[tier.by]}; it works here"
    elif reads(checks):
        tier, text = tiers.PROC, f"only `shmtrace snapshot` works here; to trace lacks: {missing}"
    else:
        return _fold("no tier: ", f"not even `shmtrace snapshot` works here; missing: {missing}", 9)
    blind = [line for blind in tier.blind_to for line in _fold("", f"- {blind}", 2)]
    return [*_fold(f"tier {tier.name}: ", text, 6), *(["blind to:"] if blind else []), *blind]


def _fold(head: str, words: str, indent: int) -> list[str]:
    return textwrap.wrap(
        words,
        COLUMNS,
        initial_indent=head,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )

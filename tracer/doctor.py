"""The doctor: try what tracing needs on this host, and name the command that fixes what is missing.

Every check tries one thing and returns a Check. The verdict and the text are derived from the checks alone.
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
from tracer.kernel import host, probes, tiers
from tracer.kernel.cache import Cache
from tracer.kernel.loader import Beginning, Sizes
from tracer.kernel.packages import install_bcc
from tracer.kernel.tiers import Tier
from tracer.proc import shmem
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES
from tracer.record import armed

SMALL = Sizes(blocks=64, processes=64, regions=64, usages=64, alive=64)
NAME_COLUMNS = 26  # width of the state and the name together
AS_ROOT = "sudo shmtrace doctor"
TOLD_BY = {
    "kprobe": "kprobes where the kernel allocates and frees pages",
    "fentry": "fentry programs where the kernel allocates and frees pages",
    "tracepoint": "the tracepoints of page faults",
}
READING = "map_files"  # the one check that a snapshot depends on
THP = Path("/sys/kernel/mm/transparent_hugepage")
HUGETLB = Path("/sys/kernel/mm/hugepages")
PREPARE = "shmtrace prepare"
MOUNTS = Path("/proc/self/mounts")


class Check(NamedTuple):
    """The result of trying one thing."""

    name: str
    ok: bool | None
    """True: works. False: tracing is impossible without it. None: tracing works without it, but loses something."""
    found: str
    """what was found, for people"""
    remedy: str = ""
    """a command that fixes it; empty if there is none"""


def examine() -> list[Check]:
    """Run all checks. The probes of each tier are attached for a moment; nothing is left behind.

    Raises ShmtraceError if /proc is not mounted, or belongs to another PID namespace.
    """
    host.need_proc()
    swap_bytes = Proc().memory().swap_bytes
    compiler = bcc()
    needed = [
        privileges(host.missing_capabilities(bpf=True), os.geteuid() == 0),
        tell("user namespace", False, lambda: user_namespace(host.sees_host_users())),
        tell("PID namespace", False, lambda: pid_namespace(host.sees_host_pids())),
        tell("cgroup namespace", None, lambda: cgroup_namespace(host.sees_host_cgroups())),
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
        Check("swap", True, f"{format_bytes(swap_bytes)}: a swapped-out page keeps its toucher")
        if swap_bytes
        else Check("swap", True, "none"),
        tell("armed", None, is_armed),
    ]


def tell(name: str, ok: bool | None, check: Callable[[], Check]) -> Check:
    """Run a check. ok: its result if it raises OSError, as when a file of /proc or /sys is missing here."""
    try:
        return check()
    except OSError as error:
        return Check(name, ok, f"cannot be checked ({error.filename or 'a system call'}: {error.strerror})")


# ---- the checks ----


def privileges(missing: list[str], root: bool) -> Check:
    """missing: names of the capabilities that this process lacks."""
    if not missing:
        return Check("privileges", True, "all needed capabilities")
    adding = " ".join(f"--cap-add={name.removeprefix('CAP_')}" for name in missing)
    # root lacks capabilities only in a container
    return Check("privileges", False, f"lacks {', '.join(missing)}", f"docker run {adding} …" if root else AS_ROOT)


def user_namespace(host: bool) -> Check:
    """host: this process is in the host's user namespace."""
    if host:
        return Check("user namespace", True, "the host's")
    return Check("user namespace", False, "not the host's: root of another may not look at shared memory", AS_ROOT)


def pid_namespace(host: bool) -> Check:
    """host: this process is in the host's PID namespace."""
    if host:
        return Check("PID namespace", True, "the host's")
    found = "not the host's: BPF reports the host's PIDs, and /proc here has other PIDs"
    return Check("PID namespace", False, found, "docker run --pid=host …, or run it on the host")


def cgroup_namespace(host: bool) -> Check:
    """host: this process is in the host's cgroup namespace."""
    if host:
        return Check("cgroup namespace", True, "the host's")
    found = "not the host's: cgroups are told as seen from this container's, and their memory is not"
    return Check("cgroup namespace", None, found, "nsenter --cgroup=/proc/1/ns/cgroup -- shmtrace …")


def is_armed() -> Check:
    """Whether a record is kept, and can be read."""
    if not armed.is_there():
        return Check("armed", True, "nothing")
    try:
        note = armed.note()
    except ShmtraceError as error:
        return Check("armed", None, error.message, error.remedy)
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(note.clock[2] / 1e9))
    return Check("armed", True, f"{note.said} since {since}, {format_bytes(note.memory_bytes)} of kernel memory")


def bcc() -> Check:
    """Whether bcc can be imported, and is the one of the distribution."""
    try:
        module = importlib.import_module("bcc")
    except (ImportError, OSError) as error:
        found = f"{sys.executable} cannot import it ({error}), so nothing can be compiled here"
        if any(Path("/usr/lib").glob("python3*/*-packages/bcc")):
            venv = sys.prefix if sys.prefix != sys.base_prefix else ".venv"
            return Check("bcc", None, found, f"/usr/bin/python3 -m venv --system-site-packages {venv}")
        return Check("bcc", None, found, install_bcc())
    place = Path(module.__file__ or "?").parent
    if not hasattr(module, "BPF"):
        found = f"{place} is PyPI's bcc, an unrelated project"
        return Check("bcc", None, found, f"{sys.executable} -m pip uninstall bcc")
    return Check("bcc", True, f"{getattr(module, '__version__', 'without a version')}, {place}")


def kernel_types() -> Check:
    """Whether the kernel's BTF has the structures that the BPF programs read."""
    try:
        count = len(tiers.layout(Cache()).defines)
    except ShmtraceError as error:
        remedy = "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions build it"
        return Check("BTF", False, str(error), remedy)
    return Check("BTF", True, f"describes all structures that are needed ({count} facts)")


def compiled(cache: Cache, can_compile: bool) -> Check:
    """How many of the programs that this kernel may need are compiled already."""
    try:
        wanted = prepare.of_kernel(cache)
    except ShmtraceError as error:
        return Check("compiled", None, f"cannot be checked ({error.message})")
    nr_kept = sum(cache.read(variant.wanted.key()) is not None for variant in wanted)
    found = f"{nr_kept} of {len(wanted)} variants for this kernel, in {cache.directory} or shipped with shmtrace"
    doubts = f"; {cache.warnings[0]}" if cache.warnings else ""
    if nr_kept == len(wanted):
        return Check("compiled", True, found + doubts)
    if not can_compile:
        return Check("compiled", None, f"{found}; the others need bcc{doubts}")
    return Check("compiled", None, f"{found}; a trace compiles the others in seconds{doubts}", PREPARE)


def lockdown(mode: str | None) -> Check:
    """mode: of /sys/kernel/security/lockdown; None: no lockdown."""
    if mode == "confidentiality":
        found = "confidentiality: BPF may not read kernel memory"
        return Check("lockdown", False, found, "boot with lockdown=integrity")
    return Check("lockdown", True, f"{mode or 'none'}: BPF may read kernel memory")


def tracefs() -> Check:
    """Whether tracefs is mounted or can be."""
    try:
        with host.tracefs():
            place = host.mounted_tracefs()
    except ShmtraceError as error:
        return Check("tracefs", None, f"{error.message}: page faults are not seen without it", error.remedy)
    return Check("tracefs", True, str(place) if place else "not mounted; a trace mounts it while attaching")


def tried(best_first: Sequence[Tier], needed: Sequence[Check]) -> list[Check]:
    """Compile, load and attach each tier, unless one of the needed checks failed. One tier that works is enough."""
    missing = [check.name for check in needed if check.ok is False]
    if missing:
        return [Check(tier.title, None, f"not tried, because it needs {', '.join(missing)}") for tier in best_first]
    checks = [tell(tier.title, None, functools.partial(try_tier, tier)) for tier in best_first]
    if any(check.ok for check in checks):
        return checks
    return [check._replace(ok=False) for check in checks]


def try_tier(tier: Tier) -> Check:
    """Attach the probes of a tier and detach them again."""
    beginning = Beginning(time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    try:
        with probes.load(tier, SMALL, beginning) as loaded:
            loaded.attach()
            taken_s = (time.monotonic_ns() - beginning.monotonic_ns) / 1e9
    except ShmtraceError as error:
        return Check(tier.title, None, error.message)
    blind = f"; blind to: {', '.join(dict.fromkeys(loaded.missing))}" if loaded.missing else ""
    return Check(tier.title, True, f"works, attached in {taken_s:.2f} s{blind}; probes: {', '.join(loaded.attached)}")


def region_calls() -> list[Check]:
    """Try each system call that reads the state of a region, on a region of this process."""
    try:
        with _own_region() as path:
            path.stat()
            resident_bytes, _ = shmem.residency(path)
            generation, born_ns = shmem.generation(path), shmem.birth_time_ns(path)
    except OSError as error:
        return [Check(READING, False, f"cannot be read ({error.strerror})", AS_ROOT)]
    lacking = host.missing_capabilities(bpf=False)
    return [
        Check(READING, False, f"can be read only of this process, without {', '.join(lacking)}", AS_ROOT)
        if lacking
        else Check(READING, True, "can be read: one stat tells what a region has allocated"),
        Check("cachestat", True, "works: tells resident pages from swapped ones")
        if resident_bytes == PAGE_BYTES
        else Check("cachestat", None, "needs Linux 6.5 or later: how much is swapped stays unknown"),
        Check("generation", True, "name_to_handle_at works: tells regions with one inode number apart")
        if generation is not None
        else Check("generation", None, "name_to_handle_at fails: a SysV segment may be taken for another region"),
        Check("birth time", True, "statx works: tells when a region was created")
        if born_ns is not None
        else Check("birth time", None, "needs Linux 6.1 or later: the creator of an older region is less sure"),
    ]


@contextlib.contextmanager
def _own_region() -> Iterator[Path]:
    """The map_files path of a page of shared memory. Raises OSError."""
    with mmap.mmap(-1, PAGE_BYTES) as region:
        region[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(region))
        mapping = next((found for found in Proc().mappings(os.getpid()) if found.start <= address < found.end), None)
        if not mapping:
            raise OSError(errno.ENOENT, "/proc/self/maps lacks a mapping of this process")
        yield Proc().map_file(os.getpid(), mapping)


def huge_pages(settings: Path, mounts: str, exact: bool) -> Check:
    """Whether shared memory may be allocated in huge pages. All tiers but exact see only the one page touched of each.

    settings: a directory like THP; mounts: the text of /proc/mounts; exact: the exact tier works.
    """
    name = "huge pages"
    if exact:
        return Check(name, True, "a whole huge page counts for the process that touched it first")
    everywhere = settings / "shmem_enabled"
    # The setting of one size applies unless it is "inherit"; then shmem_enabled of all sizes applies.
    paths = [everywhere, *sorted(settings.glob("hugepages-*/shmem_enabled"))]
    enabled = [path for path in paths if _chosen(path) not in ("never", "deny", "inherit", None)]
    if enabled:
        found = f"shmem_enabled is {_chosen(enabled[0])}: all of a huge page is unseen, but for the page touched"
        return Check(name, None, found, f"echo never | tee {' '.join(map(str, enabled))}")
    if _chosen(everywhere) != "deny":
        for _, place, kind, options, *_ in map(str.split, mounts.splitlines()):
            huge = [option for option in options.split(",") if option.startswith("huge=") and option != "huge=never"]
            if kind == "tmpfs" and huge:
                found = f"{place} has {huge[0]}: all of a huge page is unseen, but for the page touched"
                return Check(name, None, found, f"mount -o remount,huge=never {place}")
    return Check(name, True, "none for shared memory")


def _chosen(path: Path) -> str | None:
    """The setting in force: the word in brackets, as in "always [never]". None: the file is missing."""
    with contextlib.suppress(OSError):
        return next((word.strip("[]") for word in path.read_text().split() if word.startswith("[")), None)
    return None


def hugetlb(pools: Path, exact: bool) -> Check:
    """Whether hugetlb pages are reserved. pools: a directory like HUGETLB; exact: the exact tier works."""
    counts = {path.parent.name.rpartition("-")[2]: int(path.read_text()) for path in pools.glob("*/nr_hugepages")}
    there = ", ".join(f"{count} of {size}" for size, count in sorted(counts.items()) if count)
    if there and exact:
        return Check("hugetlb", True, there)
    if there:
        return Check("hugetlb", None, f"{there}: regions of these are listed with their size but without touchers")
    return Check("hugetlb", True, "none reserved")


# ---- the verdict ----


def traces(checks: Sequence[Check]) -> bool:
    """Whether a trace works here."""
    return best(checks) is not tiers.PROC and all(check.ok is not False for check in checks)


def best(checks: Sequence[Check]) -> Tier:
    """The tier that a trace would use; tiers.PROC if none works."""
    works = {check.name for check in checks if check.ok}
    return next((tier for tier in tiers.tiers() if tier.title in works), tiers.PROC)


def reads(checks: Sequence[Check]) -> bool:
    """Whether at least a snapshot works."""
    return all(check.ok is not False for check in checks if check.name in (READING, "user namespace"))


def render(checks: Sequence[Check]) -> str:
    """The text for people: the verdict first, in 80 columns. A command is never cut or folded."""
    lines = [*_verdict(checks), ""]
    for check in checks:
        state = {True: "ok", False: "missing", None: "note"}[check.ok]
        lines += _fold(f"{state:<7}  {check.name:<17}", check.found, NAME_COLUMNS)
        if check.remedy:
            lines.append(f"{'':9}fix: {check.remedy}")
    return "\n".join(map(printable, lines))


def _verdict(checks: Sequence[Check]) -> list[str]:
    missing = ", ".join(check.name for check in checks if check.ok is False)
    if traces(checks):
        tier = best(checks)
        text = f"tracing works here; it sees first touches by {TOLD_BY[tier.by]}"
    elif reads(checks):
        tier, text = tiers.PROC, f"only `shmtrace snapshot` works here; tracing needs: {missing}"
    else:
        return _fold("no tier: ", f"not even `shmtrace snapshot` works here; it needs: {missing}", 9)
    blind = [line for blind in tier.blind_to for line in _fold("", f"- {blind}", 2)]
    return [*_fold(f"tier {tier.name}: ", text, 6), *(["blind to:"] if blind else []), *blind]


def _fold(head: str, words: str, indent: int) -> list[str]:
    """Lines of at most 80 columns, the first after head, the others indented by so many columns."""
    return textwrap.wrap(
        words,
        COLUMNS,
        initial_indent=head,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )

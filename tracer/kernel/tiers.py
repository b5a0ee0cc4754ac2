"""The probes of each tier, and which tiers the running kernel supports.

Support is detected by what is present, never by a version number. What differs between kernels on the C side is in
bpf/compat.h, under the same names.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import NamedTuple

from tracer.kernel import bpf_syscall, host, perf
from tracer.kernel.cache import Cache
from tracer.kernel.fields import Function, KernelLayout

KPROBE_PMU = perf.PMUS / "kprobe"


class Kind(enum.Enum):
    """What a program attaches to."""

    RAW = "raw tracepoint"  # cheaper than TRACEPOINT, and needs no tracefs
    TRACEPOINT = "tracepoint"
    ENTRY = "entry of a kernel function"
    RETURN = "return of a kernel function"


class Probe(NamedTuple):
    """A BPF program and what it attaches to."""

    program: str
    kind: Kind
    points: tuple[str, ...]
    """category:event, or the names that a kernel function has had, newest first. The first one present is used."""
    costs: str = ""
    """What the account loses if none of the points is present. Empty: the tier requires this probe."""
    unless: tuple[str, str] = ("", "")
    """(program, parameter): if the function that this other program attaches to has the parameter, the probe is not
    needed."""


def _raw(program: str, point: str, costs: str = "") -> Probe:
    return Probe(program, Kind.RAW, (point,), costs)


def _call(program: str, *names: str, costs: str = "") -> Probe:
    return Probe(program, Kind.TRACEPOINT, tuple(f"syscalls:sys_{name}" for name in names), costs)


def _entry(program: str, *functions: str, costs: str = "", unless: tuple[str, str] = ("", "")) -> Probe:
    return Probe(program, Kind.ENTRY, functions, costs, unless)


def _return(program: str, *functions: str, costs: str = "", unless: tuple[str, str] = ("", "")) -> Probe:
    return Probe(program, Kind.RETURN, functions, costs, unless)


OOM = "what the OOM killer did"
# The order of attaching: processes first, so that no fork is missed while the rest attaches; pages last.
PROCESSES = [
    _raw("task_newtask", "task:task_newtask"),
    _raw("sched_process_exec", "sched:sched_process_exec"),
    _raw("sched_process_exit", "sched:sched_process_exit"),
    _raw("mark_victim", "oom:mark_victim", costs=OOM),
]
LABELS = [
    _raw("fork_label", "task:task_newtask"),
    _raw("exec_label", "sched:sched_process_exec"),
    _raw("exit_label", "sched:sched_process_exit"),
]
"""Added to any tier when labels are asked for."""
RECYCLE = _raw("recycle", "sched:sched_process_exit")
"""Added to any tier of an armed trace."""
FREED = _raw("mm_filemap_delete_from_page_cache", "filemap:mm_filemap_delete_from_page_cache")
FALLOCATE = "pages made by fallocate"
WRITES = "pages made by write(2) and its kin"
WRITE_CALLS = "write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile64", "copy_file_range"
FAULT = _raw("page_fault", "exceptions:page_fault_user")
FAULTS_PROBES = [
    *PROCESSES,
    _call("sys_exit_mmap", "exit_mmap"),
    _call("sys_exit_munmap", "exit_munmap"),
    _call("sys_exit_mmap", "exit_mremap"),
    _call("sys_exit_mmap", "exit_shmat", costs="SysV segments attached during the trace"),
    _call("sys_exit_munmap", "exit_shmdt", costs="SysV segments detached during the trace"),
    _call("sys_exit_memfd_create", "exit_memfd_create", costs="who made a memfd"),
    _call("sys_exit_shmget", "exit_shmget", costs="who made a SysV segment"),
    _call("sys_exit_fallocate", "exit_fallocate", costs=FALLOCATE),
    _call("sys_enter_fallocate", "enter_fallocate", costs=FALLOCATE),
    *[_call("sys_exit_write", f"exit_{call}", costs=WRITES) for call in WRITE_CALLS],
    *[_call(f"sys_enter_{call.rstrip('2')}", f"enter_{call}", costs=WRITES) for call in WRITE_CALLS],
    FREED,
    _raw("page_fault", "exceptions:page_fault_kernel"),
    FAULT,
]
HUGETLB = "who made and who touched regions of hugetlbfs"
COLLAPSED = "pages that khugepaged fills in"
FEATURES = {HUGETLB: "hugetlb_fault", COLLAPSED: "khugepaged"}
"""By what is lost: a function of each kernel that can do such a thing. Others, as those of PREEMPT_RT, lose nothing."""
MADE_FOR = "for which process a page was made, if another one made it"
TOLD = ("adding", "charge_mm")
FILLING = "shmem_mfill_filemap_add", "shmem_mfill_atomic_pte"
EXACT_PROBES = [
    *PROCESSES,
    _entry("exiting", "do_group_exit", costs="the title that a process had when it exited"),
    # Linux kernel commit e09764cff44b ("shmem: quota support") (in v6.6) moved the work to an inner function.
    _return("inode_made", "__shmem_get_inode", "shmem_get_inode", costs="who made a file of a tmpfs"),
    _return("shmem_file_made", "__shmem_file_setup"),
    _return("segment_made", "newseg", costs="SysV segments made during the trace"),
    _return("hugetlb_file_made", "hugetlb_file_setup", costs=HUGETLB),
    # v6.19 added mmap_prepare for shmem, which is called before the VMA exists; hugetlbfs has none yet in v7.2.
    _entry("shmem_mapped", "shmem_mmap_prepare", "shmem_mmap"),
    _entry("hugetlb_mapped", "hugetlbfs_file_mmap_prepare", "hugetlbfs_file_mmap", costs=HUGETLB),
    _entry("shmem_inode_gone", "shmem_evict_inode"),
    _entry("hugetlb_inode_gone", "hugetlbfs_evict_inode", costs=HUGETLB),
    _entry("punching", "shmem_undo_range"),
    FREED,
    _return("collapsed", "collapse_file", costs=COLLAPSED),
    _entry("collapsing", "collapse_file", costs=COLLAPSED),
    # the first name is that since v6.0
    _entry("hugetlb_adding", "hugetlb_add_to_page_cache", "huge_add_to_page_cache", costs=HUGETLB),
    # adding() knows for whom a page is made while its function has the parameter charge_mm (present in v6.6, absent in
    # v6.12).
    _return("got", "get_user_pages_remote", costs=MADE_FOR, unless=TOLD),
    _entry("getting", "get_user_pages_remote", costs=MADE_FOR, unless=TOLD),
    _return("pinned", "pin_user_pages_remote", costs=MADE_FOR, unless=TOLD),
    _entry("pinning", "pin_user_pages_remote", costs=MADE_FOR, unless=TOLD),
    _return("filled", *FILLING, costs=MADE_FOR, unless=TOLD),
    _entry("filling", *FILLING, costs=MADE_FOR, unless=TOLD),
    _entry("adding", "shmem_add_to_page_cache"),
]


class Tier(NamedTuple):
    """A set of probes, how they attach to kernel functions, and what they do not see."""

    name: str
    by: str
    """kprobe, fentry or tracepoint; empty: no probes."""
    sources: tuple[str, ...]
    """Files of bpf/, compiled after maps.c as one text in this order."""
    probes: list[Probe]
    blind_to: list[str]

    @property
    def title(self) -> str:
        """Name and mechanism, such as "exact by kprobe"."""
        return f"{self.name} by {self.by}" if self.functions else self.name

    @property
    def functions(self) -> list[Probe]:
        """The probes on kernel functions, rather than tracepoints."""
        return [probe for probe in self.probes if probe.kind in (Kind.ENTRY, Kind.RETURN)]


_COMMON = ("processes.c", "oom.c", "regions.c", "ledger.c", "recycle.c", "labels.c", "stacks.c")
_EXACT = (*_COMMON, "inodes.c", "pages.c")
KPROBE = Tier("exact", "kprobe", _EXACT, EXACT_PROBES, [])
FENTRY = Tier("exact", "fentry", _EXACT, EXACT_PROBES, [])
FAULTS = Tier(
    "faults",
    "tracepoint",
    (*_COMMON, "mappings.c", "faults.c", "calls.c"),
    FAULTS_PROBES,
    [
        "pages made without a page fault: splice, io_uring, O_DIRECT reads, MADV_POPULATE, mlock, process_vm_writev",
        "all but the first 64 MiB of a call of fallocate or write",
        "processes outside the traced tree",
        "huge pages, except the page touched or the range given to fallocate",
        "who made the pages of hugetlbfs",
    ],
)


def is_there(probe: Probe, there: Mapping[str, Function]) -> bool:
    """Whether there is something that the probe can be attached to; of tracepoints only trying tells."""
    return probe.kind not in (Kind.ENTRY, Kind.RETURN) or probe.program in there


def is_tracing(tier: Tier, probe: Probe, fexit: bool) -> bool:
    """Whether the program attaches by fentry or fexit."""
    return (probe.kind == Kind.ENTRY and tier.by == "fentry") or (probe.kind == Kind.RETURN and fexit)


def labelled(tier: Tier) -> Tier:
    """The tier with the probes that labels need."""
    return tier._replace(probes=[*tier.probes[: len(PROCESSES)], *LABELS, *tier.probes[len(PROCESSES) :]])


def armed(tier: Tier) -> Tier:
    """The tier with the probe that an armed trace needs."""
    return tier._replace(probes=[*tier.probes[: len(PROCESSES)], RECYCLE, *tier.probes[len(PROCESSES) :]])


PROC = Tier("proc", "", (), [], ["who touched the pages"])
TIERS = [KPROBE, FENTRY, FAULTS]
"""All tiers. Which of them a host supports is found by presence and by trial, never by a version."""


def layout(cache: Cache) -> KernelLayout:
    """The layout of the running kernel, with the functions that any exact tier attaches to, and those of FEATURES.

    Raises ShmtraceError where BTF is missing or lacks a field.
    """
    attached_to = {name for probe in KPROBE.functions for name in probe.points}
    return KernelLayout.of_kernel({*attached_to, *FEATURES.values()}, cache)


def points(tier: Tier, layout: KernelLayout) -> dict[str, Function]:
    """The kernel function of each program.

    Probes that are not needed, and those without a function here, are left out.
    """
    found = {}
    for probe in tier.functions:
        name = next((name for name in probe.points if name in layout.functions), None)
        if name:
            found[probe.program] = layout.functions[name]
    needless = [probe for probe in tier.functions if _parameters(found, probe.unless[0]).count(probe.unless[1])]
    return {program: point for program, point in found.items() if program not in [each.program for each in needless]}


def _parameters(there: Mapping[str, Function], program: str) -> list[str]:
    return there[program].parameters if program in there else []


def absent(tier: Tier, layout: KernelLayout) -> list[Probe]:
    """The probes of the tier that are needed but whose kernel function is missing."""
    there = points(tier, layout)
    return [
        probe
        for probe in tier.functions
        if probe.program not in there
        and probe.unless[1] not in _parameters(there, probe.unless[0])
        and (probe.costs not in FEATURES or FEATURES[probe.costs] in layout.functions)
    ]


def why_not(tier: Tier, layout: KernelLayout) -> str | None:
    """Why this kernel cannot run the tier, as far as a cheap trial shows. None: it seems to work."""
    if not tier.functions:
        lacks_faults = FAULT in tier.probes and "HAVE_PAGE_FAULT" not in layout.defines
        return "the kernel has no tracepoints of page faults" if lacks_faults else None
    there = points(tier, layout)
    missing = next((probe for probe in absent(tier, layout) if not probe.costs), None)
    if missing:
        return f"the kernel's BTF has no {missing.points[0]}"  # of arm64's 5.10 it has no static function
    if tier.by == "fentry":
        return try_fentry(there["adding"])
    if not {"HAVE_X86_64_REGISTERS", "HAVE_ARM64_REGISTERS"} & layout.defines.keys():
        return "kprobes need the registers of x86-64 or arm64"
    return None if KPROBE_PMU.exists() else "the kernel has no kprobes"


def tiers() -> list[Tier]:
    """The tiers, best first for this host.

    fentry costs less than a kprobe. But the kernel skips an fentry program while another task is preempted inside the
    same program, which has cost 7% of the pages. A kprobe's program runs with preemption disabled.
    """
    return [KPROBE, FENTRY, FAULTS] if host.preempts() else [FENTRY, KPROBE, FAULTS]


def try_fentry(point: Function) -> str | None:
    """Load and attach an empty program to a function. None: that works; otherwise the reason."""
    opened: list[int] = []
    try:
        opened.append(bpf_syscall.load(bpf_syscall.NOTHING, bpf_syscall.TRACING, point.id))
        opened.append(bpf_syscall.attach(opened[0]))
    except OSError as error:
        return f"fentry is refused ({error.strerror})"
    finally:
        for fd in reversed(opened):
            os.close(fd)
    return None


def has_fexit(tier: Tier, there: dict[str, Function]) -> bool:
    """Whether return probes use fexit, which also passes the arguments; a kretprobe does not.

    Call it for a supported tier.
    """
    return tier.by == "fentry" or (tier.by == "kprobe" and not try_fentry(there["adding"]))


def arguments(there: dict[str, Function]) -> dict[str, int]:
    """Defines for the exact tiers, from BTF.

    ARG_program_parameter is the position of a parameter, NARGS_program the number of parameters.
    """
    found = {}
    for program, point in there.items():
        found[f"NARGS_{program.upper()}"] = len(point.parameters)
        found |= {f"ARG_{program.upper()}_{name.upper()}": i for i, name in enumerate(point.parameters)}
    return found


# what each of wire.LOSSES means for the account, and the remedy
LOSSES = {
    "events": "some events about freed pages were lost: such pages may still count as touched",
    "processes": "more processes than there is room for: the rest is unseen; give more with --room",
    "regions": "more regions than there is room for: the rest is unseen; give more with --room",
    "usages": "more pairs of a process and a region than there is room for: some faults are not counted, and processes "
    "outside the tree are nameless; give more with --room",
    "pages": "the ledger is full: the rest is unseen; give more with --room",
    "probes": "the kernel skipped probes: pages that only these would have shown are unseen",
    "labels": "labels came faster than they could be recorded: their pages show ?",
    "stacks": "stacks were lost, for lack of room or because the kernel skipped a probe: their pages show ?",
    "mappings": "the kernel's VMA tree did not show some mappings: their pages are unseen",
}


def explain(losses: dict[str, int]) -> list[str]:
    """One sentence for each kind of loss that occurred."""
    return [f"{LOSSES[name]} ({count})" for name, count in losses.items() if count]

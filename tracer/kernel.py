"""What the running kernel offers, by presence: the fields, the flags and the probes of each tier.

Never a version number. What differs between kernels from the C side is in bpf/compat.h, under the same names.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tracer import bpf, perf
from tracer.btf import Btf
from tracer.errors import ShmtraceError

TRACEFS = Path("/sys/kernel/tracing")
KPROBE_PMU = perf.PMUS / "kprobe"
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432  # system calls, by the same numbers on all machines
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 1
HOST_PID_NAMESPACE, HOST_USER_NAMESPACE = 0xEFFFFFFC, 0xEFFFFFFD  # PROC_…_INIT_INO of include/linux/proc_ns.h

_libc = ctypes.CDLL(None, use_errno=True)

# OFF_name: the alternatives, newest kernel first.
FIELDS = {
    "TASK_TGID": ["task_struct.tgid"],
    "TASK_GROUP_LEADER": ["task_struct.group_leader"],
    "TASK_START_BOOTTIME": ["task_struct.start_boottime"],
    "TASK_COMM": ["task_struct.comm"],
    "TASK_MM": ["task_struct.mm"],
    "TASK_FLAGS": ["task_struct.flags"],
    "TASK_FILES": ["task_struct.files"],
    "TASK_PAGEFAULT_DISABLED": ["task_struct.pagefault_disabled"],
    "TASK_SIGNAL": ["task_struct.signal"],
    "TASK_REAL_PARENT": ["task_struct.real_parent"],
    "SIGNAL_LIVE": ["signal_struct.live"],
    "MM_ARG_START": ["mm_struct.arg_start"],
    "MM_ARG_END": ["mm_struct.arg_end"],
    "VMA_START": ["vm_area_struct.vm_start"],
    "VMA_END": ["vm_area_struct.vm_end"],
    "VMA_FLAGS": ["vm_area_struct.vm_flags"],
    "VMA_PGOFF": ["vm_area_struct.vm_pgoff"],
    "VMA_FILE": ["vm_area_struct.vm_file"],
    "VMA_MM": ["vm_area_struct.vm_mm"],
    "FILES_FDT": ["files_struct.fdt"],
    "FDT_FD": ["fdtable.fd"],
    "FDT_MAX_FDS": ["fdtable.max_fds"],
    "FILE_INODE": ["file.f_inode"],
    "FILE_DENTRY": ["file.f_path.dentry"],
    "DENTRY_NAME": ["dentry.d_name.name"],
    "INODE_INO": ["inode.i_ino"],
    "INODE_SB": ["inode.i_sb"],
    "INODE_SIZE": ["inode.i_size"],
    "INODE_BLOCKS": ["inode.i_blocks"],
    "INODE_COUNT": ["inode.i_count"],
    "INODE_GENERATION": ["inode.i_generation"],
    "INODE_MAPPING": ["inode.i_mapping"],
    "INODE_DATA": ["inode.i_data"],
    "INODE_MODE": ["inode.i_mode"],
    "SB_DEV": ["super_block.s_dev"],
    "SB_MAGIC": ["super_block.s_magic"],
    "SHMEM_VFS_INODE": ["shmem_inode_info.vfs_inode"],
    "SHMEM_SWAPPED": ["shmem_inode_info.swapped"],
    "MAPPING_HOST": ["address_space.host"],
    "MAPPING_NRPAGES": ["address_space.nrpages"],
    "MAPPING_XA_HEAD": ["address_space.i_pages.xa_head"],
    "XA_NODE_SHIFT": ["xa_node.shift"],
    "XA_NODE_SLOTS": ["xa_node.slots"],
    # Linux kernel commit 7b230db3b8d3 ("mm: Introduce struct folio") (in v5.16)
    "FOLIO_MAPPING": ["folio.mapping", "page.mapping"],
    "FOLIO_INDEX": ["folio.index", "page.index"],
}
# A group comes whole or not at all, and says so by HAVE_group.
GROUPS = {
    # Linux kernel commit 524e00b36e8c ("mm: remove rb tree.") (in v6.1)
    "MM_MT": {
        "MM_MT_ROOT": "mm_struct.mm_mt.ma_root",
        "MAPLE_RANGE_PIVOT": "maple_range_64.pivot",
        "MAPLE_RANGE_SLOT": "maple_range_64.slot",
        "MAPLE_ARANGE_PIVOT": "maple_arange_64.pivot",
        "MAPLE_ARANGE_SLOT": "maple_arange_64.slot",
    },
    "MM_RB": {
        "MM_RB": "mm_struct.mm_rb.rb_node",
        "VMA_RB": "vm_area_struct.vm_rb",
        "RB_LEFT": "rb_node.rb_left",
        "RB_RIGHT": "rb_node.rb_right",
    },
    # the order of a large folio: Linux kernel commit ebc1baf5c9b4 ("mm: free up a word in the first tail page") (v6.6)
    "FOLIO_FLAGS_1": {"FOLIO_FLAGS_1": "folio._flags_1"},
    "FOLIO_ORDER": {"FOLIO_ORDER": "folio._folio_order"},
    "PAGE_ORDER": {"PAGE_COMPOUND_ORDER": "page.compound_order"},
    # CONFIG_MEMCG
    "MM_OWNER": {"MM_OWNER": "mm_struct.owner"},
    # Linux kernel commit c84bf6dd2b83 ("mm: introduce new .mmap_prepare() file callback") (in v6.16)
    "DESC": {"DESC_FILE": "vm_area_desc.file", "DESC_FLAGS": "vm_area_desc.vma_flags"},
}
BITS = ["PG_swapbacked", "PG_head"]


class Kind(enum.Enum):
    """What a program hangs on."""

    RAW = "raw tracepoint"  # cheaper than the next, and needs no tracefs
    TRACEPOINT = "tracepoint"
    ENTRY = "entry of a kernel function"
    RETURN = "return of a kernel function"


class Probe(NamedTuple):
    """A BPF program and what it hangs on."""

    program: str
    kind: Kind
    points: tuple[str, ...]
    """category:event, or the names that a kernel function has had, newest first: the first that is there"""
    costs: str = ""
    """what the account loses where none of them is there; empty: the tier cannot do without"""
    unless: tuple[str, str] = ("", "")
    """a program, and a parameter of what it hangs on: where that is there, this one is not needed"""


def _raw(program: str, point: str) -> Probe:
    return Probe(program, Kind.RAW, (point,))


def _call(program: str, *names: str, costs: str = "") -> Probe:
    return Probe(program, Kind.TRACEPOINT, tuple(f"syscalls:sys_{name}" for name in names), costs)


def _entry(program: str, *functions: str, costs: str = "", unless: tuple[str, str] = ("", "")) -> Probe:
    return Probe(program, Kind.ENTRY, functions, costs, unless)


def _return(program: str, *functions: str, costs: str = "", unless: tuple[str, str] = ("", "")) -> Probe:
    return Probe(program, Kind.RETURN, functions, costs, unless)


# In the order to attach: the processes first, so that none is missed while the rest comes up; the pages last.
PROCESSES = [
    _raw("task_newtask", "task:task_newtask"),
    _raw("sched_process_exec", "sched:sched_process_exec"),
    _raw("sched_process_exit", "sched:sched_process_exit"),
]
LABELS = [
    _raw("fork_label", "task:task_newtask"),
    _raw("exec_label", "sched:sched_process_exec"),
    _raw("exit_label", "sched:sched_process_exit"),
]
"""For any tier, where labels are asked for."""
FREED = _raw("mm_filemap_delete_from_page_cache", "filemap:mm_filemap_delete_from_page_cache")
FALLOCATE = "pages made by fallocate"
FAULTS_PROBES = [
    *PROCESSES,
    _raw("fork_ranges", "task:task_newtask"),
    _raw("exec_ranges", "sched:sched_process_exec"),
    _raw("exit_ranges", "sched:sched_process_exit"),
    _call("sys_exit_mmap", "exit_mmap"),
    _call("sys_enter_munmap", "enter_munmap"),
    _call("sys_exit_mmap", "exit_munmap"),
    _call("sys_enter_munmap", "enter_mremap"),
    _call("sys_exit_mmap", "exit_mremap"),
    _call("sys_exit_mmap", "exit_shmat", costs="SysV segments attached during the trace"),
    _call("sys_enter_shmdt", "enter_shmdt", costs="SysV segments detached during the trace"),
    _call("sys_exit_mmap", "exit_shmdt", costs="SysV segments detached during the trace"),
    _call("sys_exit_memfd_create", "exit_memfd_create", costs="who made a memfd"),
    _call("sys_exit_shmget", "exit_shmget", costs="who made a SysV segment"),
    _call("sys_exit_fallocate", "exit_fallocate", costs=FALLOCATE),
    _call("sys_enter_fallocate", "enter_fallocate", costs=FALLOCATE),
    FREED,
    _raw("page_fault", "exceptions:page_fault_kernel"),
    _raw("page_fault", "exceptions:page_fault_user"),
]
HUGETLB = "who made and who touched regions of hugetlbfs"
BEHALF = "on whose behalf a page was made that one process made for another"
TOLD = ("adding", "charge_mm")
FILLING = "shmem_mfill_filemap_add", "shmem_mfill_atomic_pte"
EXACT_PROBES = [
    *PROCESSES,
    # Linux kernel commit e09764cff44b ("shmem: quota support") (in v6.6) made an inner function of it
    _return("inode_made", "__shmem_get_inode", "shmem_get_inode", costs="who made a file of a tmpfs"),
    _return("shmem_file_made", "__shmem_file_setup"),
    _return("segment_made", "newseg", costs="SysV segments made during the trace"),
    _return("hugetlb_file_made", "hugetlb_file_setup", costs=HUGETLB),
    # asked before there is an area since v6.19; hugetlbfs not yet in v7.2
    _entry("shmem_mapped", "shmem_mmap_prepare", "shmem_mmap"),
    _entry("hugetlb_mapped", "hugetlbfs_file_mmap_prepare", "hugetlbfs_file_mmap", costs=HUGETLB),
    _entry("shmem_inode_gone", "shmem_evict_inode"),
    _entry("hugetlb_inode_gone", "hugetlbfs_evict_inode", costs=HUGETLB),
    _entry("punching", "shmem_undo_range"),
    FREED,
    _return("collapsed", "collapse_file", costs="pages that khugepaged fills in"),
    _entry("collapsing", "collapse_file", costs="pages that khugepaged fills in"),
    # the first since v6.0
    _entry("hugetlb_adding", "hugetlb_add_to_page_cache", "huge_add_to_page_cache", costs=HUGETLB),
    # the funnel itself was told for whom, until its parameter charge_mm was dropped (present in v6.6, absent in v6.12)
    _return("got", "get_user_pages_remote", costs=BEHALF, unless=TOLD),
    _entry("getting", "get_user_pages_remote", costs=BEHALF, unless=TOLD),
    _return("pinned", "pin_user_pages_remote", costs=BEHALF, unless=TOLD),
    _entry("pinning", "pin_user_pages_remote", costs=BEHALF, unless=TOLD),
    _return("filled", *FILLING, costs=BEHALF, unless=TOLD),
    _entry("filling", *FILLING, costs=BEHALF, unless=TOLD),
    _entry("adding", "shmem_add_to_page_cache"),
]


class Tier(NamedTuple):
    """A set of probes, how they hang on kernel functions, and what they do not see."""

    name: str
    by: str
    """kprobe, fentry, tracepoint; empty: no probes"""
    sources: tuple[str, ...]
    """of bpf/, after maps.c, one text in this order"""
    probes: list[Probe]
    blind_to: list[str]

    @property
    def title(self) -> str:
        return f"{self.name} by {self.by}" if self.functions else self.name

    @property
    def functions(self) -> list[Probe]:
        return [probe for probe in self.probes if probe.kind in (Kind.ENTRY, Kind.RETURN)]


_EXACT = ("processes.c", "regions.c", "ledger.c", "labels.c", "stacks.c", "inodes.c", "pages.c")
KPROBE = Tier("exact", "kprobe", _EXACT, EXACT_PROBES, [])
FENTRY = Tier("exact", "fentry", _EXACT, EXACT_PROBES, [])
FAULTS = Tier(
    "faults",
    "tracepoint",
    ("processes.c", "regions.c", "ledger.c", "labels.c", "stacks.c", "ranges.c", "faults.c", "fallocate.c"),
    FAULTS_PROBES,
    [
        "pages made without a page fault: write(2), O_DIRECT, MADV_POPULATE, mlock, process_vm_writev",
        "of one call of fallocate all but the first 64 MiB",
        "processes outside the traced tree",
        "huge pages: all but the one that was touched, or those that fallocate was asked for",
        "who made the pages of a hugetlbfs",
    ],
)


def labelled(tier: Tier) -> Tier:
    """The tier with the probes that labels take besides."""
    return tier._replace(probes=[*tier.probes[: len(PROCESSES)], *LABELS, *tier.probes[len(PROCESSES) :]])


PROC = Tier("proc", "", (), [], ["who touched the pages"])
TIERS = [KPROBE, FENTRY, FAULTS]
"""Which of them a host has is found by presence and by trial, never by a version."""


class Point(NamedTuple):
    """A kernel function that a program hangs on, of those that this kernel has."""

    name: str
    id: int
    """in BTF"""
    parameters: list[str]
    """their names"""


def points(tier: Tier, btf: Btf) -> dict[str, Point]:
    """By program. A probe that is not needed here is left out, as one is that hangs on a function that is not there."""
    found = {}
    for probe in tier.functions:
        for name in probe.points:
            number = btf.function(name)
            if number:
                found[probe.program] = Point(name, number, btf.parameters(number))
                break
    needless = [probe for probe in tier.functions if _parameters(found, probe.unless[0]).count(probe.unless[1])]
    return {program: point for program, point in found.items() if program not in [each.program for each in needless]}


def _parameters(there: dict[str, Point], program: str) -> list[str]:
    return there[program].parameters if program in there else []


def absent(tier: Tier, there: dict[str, Point]) -> list[Probe]:
    """The probes of the tier on kernel functions that are needed and have none to hang on."""
    return [
        probe
        for probe in tier.functions
        if probe.program not in there and probe.unless[1] not in _parameters(there, probe.unless[0])
    ]


def why_not(tier: Tier, there: dict[str, Point]) -> str | None:
    """Why this kernel cannot have the tier, as far as a cheap trial tells; None if it seems it can."""
    if not tier.functions:
        return None
    missing = next((probe for probe in absent(tier, there) if not probe.costs), None)
    if missing:
        return f"the kernel has no {missing.points[0]}"
    if tier.by == "fentry":
        return try_fentry(there["adding"])
    if platform.machine() != "x86_64":
        return f"kprobes are read by x86's registers, and this is {platform.machine()}"
    return None if KPROBE_PMU.exists() else "the kernel has no kprobes"


def tiers() -> list[Tier]:
    """The best of them here first.

    fentry costs less than a kprobe. But the kernel skips its program where another task stands preempted within the
    same one, which has cost 7% of the pages; a kprobe's runs with preemption off.
    """
    return [KPROBE, FENTRY, FAULTS] if preempts() else [FENTRY, KPROBE, FAULTS]


def preempts(version: str | None = None) -> bool:
    """Whether a task may be preempted within a program of fentry: by the preemption model that is in force now.

    version: of the kernel, as `uname -v` prints it. Since v7.0 there are such models only: Linux kernel commit
    7dadeaa6e851 ("sched: Further restrict the preemption modes").
    """
    version = os.uname().version if version is None else version
    if "PREEMPT_DYNAMIC" not in version:
        return "PREEMPT" in version
    try:
        debugfs = _detached("debugfs")
    except OSError:
        return True  # who cannot tell takes what is right under each
    try:
        with open(os.open("sched/preempt", os.O_RDONLY, dir_fd=debugfs)) as file:
            return _model(file.read()) not in ("none", "voluntary")
    except OSError:  # a kernel that is locked down does not say
        return True
    finally:
        os.close(debugfs)


def _model(text: str) -> str:
    """What is in parentheses: none (voluntary) full"""
    return text.partition("(")[2].partition(")")[0]


def try_fentry(point: Point) -> str | None:
    """Load and attach a program that does nothing; None if that works."""
    opened: list[int] = []
    try:
        opened.append(bpf.load_tracing(bpf.NOTHING, point.id, at_exit=False))
        opened.append(bpf.attach(opened[0]))
    except OSError as error:
        return f"fentry is refused ({error.strerror})"
    finally:
        for fd in reversed(opened):
            os.close(fd)
    return None


def arguments(there: dict[str, Point]) -> dict[str, int]:
    """What the exact tier asks for: ARG_program_parameter, the place of each by its name in BTF, and NARGS_program."""
    found = {}
    for program, point in there.items():
        found[f"NARGS_{program.upper()}"] = len(point.parameters)
        found |= {f"ARG_{program.upper()}_{name.upper()}": i for i, name in enumerate(point.parameters)}
    return found


def mounted_tracefs() -> Path | None:
    """Where it is mounted, and open to this process."""
    mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape")
    places = (Path(place) for _, place, kind, *_ in map(str.split, mounts.splitlines()) if kind == "tracefs")
    return next((place for place in places if os.access(place / "events", os.X_OK)), None)


@contextlib.contextmanager
def tracefs() -> Iterator[int]:
    """A descriptor of its directory, to open files by. Where it is not mounted (containers, small systems) it is only
    for this descriptor, in no directory: nobody else sees it, and nothing of it outlives this process.

    Raises ShmtraceError.
    """
    try:
        place = mounted_tracefs()
        directory = os.open(place, os.O_PATH | os.O_DIRECTORY) if place else _detached("tracefs")
    except OSError as error:
        raise ShmtraceError(
            f"tracefs is not mounted, and cannot be ({error.strerror})", f"mount -t tracefs tracefs {TRACEFS}"
        ) from None
    try:
        yield directory
    finally:
        os.close(directory)


def _detached(filesystem: str) -> int:
    """A descriptor of its root, mounted nowhere (v5.2). Raises OSError."""

    def call(number: int, *arguments: object) -> int:
        result: int = _libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    context = call(FSOPEN, filesystem.encode(), FSOPEN_CLOEXEC)
    try:
        call(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return call(FSMOUNT, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)


def tracepoint_id(directory: int, point: str) -> int:
    """Of category:event, in tracefs. Raises OSError where it is not there."""
    with open(os.open(f"events/{point.replace(':', '/')}/id", os.O_RDONLY, dir_fd=directory)) as file:
        return int(file.read())


def release() -> str:
    return os.uname().release


def defines(btf: Btf) -> dict[str, int]:
    """What bpf/compat.h asks for, from BTF: OFF_… and SIZE_… in bytes, BIT_… page flags, HAVE_… presences.

    Raises ShmtraceError naming the first field that no alternative provides.
    """
    found = {}
    for name, paths in FIELDS.items():
        offsets = [offset for offset in map(btf.offset, paths) if offset is not None]
        if not offsets:
            raise ShmtraceError(f"this kernel's BTF has no {paths[0]}", "shmtrace needs porting to it; snapshot works")
        found[f"OFF_{name}"] = offsets[0]
    for group, members in GROUPS.items():
        fields = {f"OFF_{name}": offset for name, path in members.items() if (offset := btf.offset(path)) is not None}
        if len(fields) == len(members):
            found |= fields
            found[f"HAVE_{group}"] = 1
    if btf.function("hugetlb_basepage_index"):
        # Linux kernel commit a08c7193e4f1 ("mm/filemap: remove hugetlb special casing in filemap.c") (in v6.7) had the
        # page cache number huge pages as it does all others
        found["HAVE_HUGETLB_BASEPAGE_INDEX"] = 1
    found["SIZE_PAGE"] = btf.size("page") or 64
    for bit in BITS:
        value = btf.enum_value("pageflags", bit)
        if value is None:
            raise ShmtraceError(f"this kernel's BTF has no {bit}", "shmtrace needs porting to it; snapshot works")
        found[f"BIT_{bit.upper()}"] = value
    return found


def lockdown(path: Path = Path("/sys/kernel/security/lockdown")) -> str | None:
    """none, integrity or confidentiality; None where securityfs does not say."""
    try:
        text = path.read_text()
    except OSError:
        return None
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else None


# Bits of CapEff (include/uapi/linux/capability.h). CAP_SYS_ADMIN stands for the finer ones.
CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE = 19, 21, 38, 39, 40


def missing_capabilities(bpf: bool, status: Path = Path("/proc/self/status")) -> list[str]:
    """Names of the capabilities that this process lacks: to read others' map_files and, if bpf, to trace."""
    lines = status.read_text().splitlines()
    effective = int(next(line for line in lines if line.startswith("CapEff")).split()[1], 16)

    def have(bit: int) -> bool:
        return bool(effective >> bit & 1)

    wanted = {
        "CAP_SYS_PTRACE": have(CAP_SYS_PTRACE),
        "CAP_CHECKPOINT_RESTORE": have(CAP_CHECKPOINT_RESTORE) or have(CAP_SYS_ADMIN),
    }
    if bpf:
        wanted["CAP_BPF"] = have(CAP_BPF) or have(CAP_SYS_ADMIN)
        wanted["CAP_PERFMON"] = have(CAP_PERFMON) or have(CAP_SYS_ADMIN)
    return [name for name, there in wanted.items() if not there]


def possible_cpus() -> int:
    """How many CPUs the kernel may ever number."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().split("-")[-1].split(",")[-1]) + 1


def need_proc(root: Path = Path("/proc")) -> None:
    """Raises ShmtraceError where /proc is not there, has processes only (subset=pid), or numbers them for others."""
    try:
        for name in ("self/status", "meminfo"):
            (root / name).read_bytes()
    except OSError as error:
        what = f"{error.filename} cannot be read ({error.strerror})"
        raise ShmtraceError(what, f"mount -t proc proc {root}") from None
    if (root / "self").readlink().name != str(os.getpid()):
        raise ShmtraceError(f"{root} is of another PID namespace than this process", f"mount -t proc proc {root}")


def sees_host_pids(namespace: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether this process's PIDs are the host's, which are those that BPF gives."""
    return namespace.stat().st_ino == HOST_PID_NAMESPACE


def sees_host_users(namespace: Path = Path("/proc/self/ns/user")) -> bool:
    """Whether this process's capabilities are the host's: a user namespace's own open no map_files."""
    return namespace.stat().st_ino == HOST_USER_NAMESPACE


def need_host_users() -> None:
    """Raises ShmtraceError where root is not the host's root."""
    if not sees_host_users():
        raise ShmtraceError(
            "this user namespace is not the host's: its root may not look at shared memory",
            "run it as the host's root, or in a container that is not rootless and has no users of its own",
        )


def need_host_pids() -> None:
    """Raises ShmtraceError where BPF would speak of processes by other PIDs than /proc does."""
    if not sees_host_pids():
        raise ShmtraceError(
            "this PID namespace is not the host's: BPF tells processes by the host's PIDs, and /proc by others",
            "docker run --pid=host …, or run it on the host; `shmtrace snapshot` works here, for what is in here",
        )


# By wire.LOSSES: what it means for the account, and what mends it.
LOSSES = {
    "events": "not all that was given back could be told: such pages may count as touched still",
    "processes": "more processes than there is room for: the rest is unseen; give more with --room",
    "regions": "more regions than there is room for: the rest is unseen; give more with --room",
    "usages": "more pairs of a process and a region than there is room for: some faults are not counted, and strangers "
    "are nameless; give more with --room",
    "pages": "the ledger is full: the rest is unseen; give more with --room",
    "probes": "the kernel skipped probes: pages that only these would have shown are unseen",
    "labels": "labels came faster than they could be told: their pages say ?",
    "stacks": "stacks were lost, for want of room or with a probe that the kernel skipped: these pages are of ?",
    "mappings": "mappings that the kernel's own tree did not show: their pages are unseen",
}


def explain(losses: dict[str, int]) -> list[str]:
    """A sentence for each kind of loss that there was."""
    return [f"{LOSSES[name]} ({count})" for name, count in losses.items() if count]

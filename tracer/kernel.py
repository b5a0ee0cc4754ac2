"""What the running kernel offers, by presence: the fields, the flags and the probes of each tier.

Never a version number. What differs between kernels from the C side is in bpf/compat.h, under the same names.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tracer.btf import Btf
from tracer.errors import ShmtraceError

TRACEFS = Path("/sys/kernel/tracing")
DEBUG_TRACEFS = Path("/sys/kernel/debug/tracing")
MNT_DETACH = 2
HOST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h

_libc = ctypes.CDLL(None, use_errno=True)

# OFF_name: the alternatives, newest kernel first.
FIELDS = {
    "TASK_TGID": ["task_struct.tgid"],
    "TASK_GROUP_LEADER": ["task_struct.group_leader"],
    "TASK_START_BOOTTIME": ["task_struct.start_boottime"],
    "TASK_COMM": ["task_struct.comm"],
    "TASK_MM": ["task_struct.mm"],
    "TASK_FILES": ["task_struct.files"],
    "TASK_SIGNAL": ["task_struct.signal"],
    "SIGNAL_LIVE": ["signal_struct.live"],
    "MM_ARG_START": ["mm_struct.arg_start"],
    "MM_ARG_END": ["mm_struct.arg_end"],
    "VMA_START": ["vm_area_struct.vm_start"],
    "VMA_END": ["vm_area_struct.vm_end"],
    "VMA_FLAGS": ["vm_area_struct.vm_flags"],
    "VMA_PGOFF": ["vm_area_struct.vm_pgoff"],
    "VMA_FILE": ["vm_area_struct.vm_file"],
    "FILES_FDT": ["files_struct.fdt"],
    "FDT_FD": ["fdtable.fd"],
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
    "SB_DEV": ["super_block.s_dev"],
    "SB_MAGIC": ["super_block.s_magic"],
    "SHMEM_VFS_INODE": ["shmem_inode_info.vfs_inode"],
    "SHMEM_ALLOCED": ["shmem_inode_info.alloced"],
    "SHMEM_SWAPPED": ["shmem_inode_info.swapped"],
    "MAPPING_HOST": ["address_space.host"],
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
}
BITS = ["PG_swapbacked", "PG_head"]


class Probe(NamedTuple):
    """A BPF program and the tracepoint it hangs on."""

    program: str
    tracepoint: str
    """category:event"""
    raw: bool
    """attached as a raw tracepoint: cheaper, and needs no tracefs"""
    costs: str = ""
    """what the account loses where this tracepoint is absent; empty: the tier cannot do without"""


# In the order to attach: the processes first, so that none is missed while the rest comes up; the faults last.
FAULTS_PROBES = [
    Probe("task_newtask", "task:task_newtask", raw=True),
    Probe("sched_process_exec", "sched:sched_process_exec", raw=True),
    Probe("sched_process_exit", "sched:sched_process_exit", raw=True),
    Probe("sys_exit_mmap", "syscalls:sys_exit_mmap", raw=False),
    Probe("sys_enter_munmap", "syscalls:sys_enter_munmap", raw=False),
    Probe("sys_exit_mmap", "syscalls:sys_exit_munmap", raw=False),
    Probe("sys_enter_munmap", "syscalls:sys_enter_mremap", raw=False),
    Probe("sys_exit_mmap", "syscalls:sys_exit_mremap", raw=False),
    Probe("sys_exit_mmap", "syscalls:sys_exit_shmat", raw=False, costs="SysV segments attached during the trace"),
    Probe("sys_enter_shmdt", "syscalls:sys_enter_shmdt", raw=False, costs="SysV segments detached during the trace"),
    Probe("sys_exit_mmap", "syscalls:sys_exit_shmdt", raw=False, costs="SysV segments detached during the trace"),
    Probe("sys_exit_memfd_create", "syscalls:sys_exit_memfd_create", raw=False, costs="who made a memfd"),
    Probe("sys_exit_shmget", "syscalls:sys_exit_shmget", raw=False, costs="who made a SysV segment"),
    Probe("mm_filemap_delete_from_page_cache", "filemap:mm_filemap_delete_from_page_cache", raw=True),
    Probe("page_fault", "exceptions:page_fault_kernel", raw=True),
    Probe("page_fault", "exceptions:page_fault_user", raw=True),
]


class Tier(NamedTuple):
    """A set of probes, and what they do not see."""

    name: str
    probes: list[Probe]
    blind_to: list[str]


FAULTS = Tier(
    "faults",
    FAULTS_PROBES,
    [
        "pages made without a page fault: write(2), fallocate, O_DIRECT, MADV_POPULATE, mlock, process_vm_writev",
        "processes outside the traced tree",
        "huge pages: all but the one that was touched",
    ],
)
PROC = Tier("proc", [], ["who touched the pages"])


@contextlib.contextmanager
def tracefs() -> Iterator[Path]:
    """The directory of tracepoints. Where tracefs is not mounted (containers, small systems) it is, for as long as
    this lasts: to attach takes one look into it. One tracer does so at a time, for it takes the mount away again.

    Raises ShmtraceError.
    """
    with contextlib.ExitStack() as stack:
        above = os.open(TRACEFS.parent, os.O_RDONLY)
        stack.callback(os.close, above)
        fcntl.flock(above, fcntl.LOCK_EX)
        mounted = next((place for place in (TRACEFS, DEBUG_TRACEFS) if (place / "events").is_dir()), None)
        if not mounted:
            if _libc.mount(b"tracefs", os.fsencode(TRACEFS), b"tracefs", 0, None):
                reason = os.strerror(ctypes.get_errno())
                raise ShmtraceError(
                    f"tracefs is not mounted, and cannot be ({reason})", f"mount -t tracefs tracefs {TRACEFS}"
                )
            stack.callback(_libc.umount2, os.fsencode(TRACEFS), MNT_DETACH)
        yield (mounted or TRACEFS) / "events"


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


def sees_host_pids(namespace: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether this process's PIDs are the host's, which are those that BPF gives."""
    return namespace.stat().st_ino == HOST_PID_NAMESPACE


def need_host_pids() -> None:
    """Raises ShmtraceError where BPF would speak of processes by other PIDs than /proc does."""
    if not sees_host_pids():
        raise ShmtraceError(
            "this PID namespace is not the host's, whose PIDs are those that BPF knows",
            "run it on the host, or in a container started with --pid=host; `shmtrace snapshot` works here",
        )


# By wire.LOSSES: what it means for the account, and what mends it.
LOSSES = {
    "events": "events were lost: some processes or regions may be nameless",
    "ranges": "a process maps more than 64 ranges: the rest is unseen",
    "spaces": "more processes than there is room for: the rest is unseen",
    "regions": "more regions than there is room for: the rest is unseen",
    "usages": "more processes than there is room for: some faults are not counted",
    "pages": "the ledger is full: the rest is unseen; make it bigger with --room",
    "mappings": "mappings that the kernel's own tree did not show: their pages are unseen",
}


def explain(losses: dict[str, int]) -> list[str]:
    """A sentence for each kind of loss that there was."""
    return [f"{LOSSES[name]} ({count})" for name, count in losses.items() if count]

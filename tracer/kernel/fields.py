"""What the BPF programs need to know of the running kernel's types: field offsets, present features and functions.

This is detected by presence in the kernel's BTF, never by a version. The result is cached, since it never changes for a
kernel.
"""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from tracer.errors import ShmtraceError
from tracer.kernel.btf import VMLINUX, Btf, BtfError
from tracer.kernel.cache import Cache

NOTES = Path("/sys/kernel/notes")  # ELF notes of the kernel, which include its build id
MAX_NOTES_BYTES = 1 << 16

# OFF_name: alternative fields, newest kernel first
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
    "TASK_EXIT_CODE": ["task_struct.exit_code"],
    "SIGNAL_LIVE": ["signal_struct.live"],
    "SIGNAL_FLAGS": ["signal_struct.flags"],
    "SIGNAL_OOM_MM": ["signal_struct.oom_mm"],
    "SIGNAL_GROUP_EXIT_CODE": ["signal_struct.group_exit_code"],
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
    "FILE_POS": ["file.f_pos"],
    "FILE_FLAGS": ["file.f_flags"],
    "DENTRY_NAME": ["dentry.d_name.name"],
    "DENTRY_PARENT": ["dentry.d_parent"],
    "DENTRY_ALIAS": ["dentry.d_u.d_alias", "dentry.d_alias"],
    "INODE_INO": ["inode.i_ino"],
    "INODE_SB": ["inode.i_sb"],
    "INODE_SIZE": ["inode.i_size"],
    "INODE_BLOCKS": ["inode.i_blocks"],
    "INODE_COUNT": ["inode.i_count"],
    "INODE_GENERATION": ["inode.i_generation"],
    "INODE_MAPPING": ["inode.i_mapping"],
    "INODE_DATA": ["inode.i_data"],
    "INODE_MODE": ["inode.i_mode"],
    "INODE_DENTRY": ["inode.i_dentry.first"],
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
# The fields of a group are found all or none; HAVE_group says that they were.
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
    # The machine: at the entry of a function its arguments are in registers (bpf/compat.h).
    "X86_64_REGISTERS": {"REGISTER_DI": "pt_regs.di"},
    "ARM64_REGISTERS": {"REGISTERS": "user_pt_regs.regs"},
    # CONFIG_MEMCG
    "MM_OWNER": {"MM_OWNER": "mm_struct.owner"},
    # CONFIG_MEMCG
    "MEMCG": {
        "TASK_CGROUPS": "task_struct.cgroups",
        "CGROUPS_STATES": "css_set.subsys",
        "STATE_CGROUP": "cgroup_subsys_state.cgroup",
        "CGROUP_NODE": "cgroup.kn",
        "NODE_ID": "kernfs_node.id",
        "STATE_PARENT": "cgroup_subsys_state.parent",
        "MEMCG_STATE": "mem_cgroup.css",
        "MEMCG_MEMORY": "mem_cgroup.memory",
        "MEMCG_MEMSW": "mem_cgroup.memsw",
        "COUNTER_USAGE": "page_counter.usage",
        "COUNTER_MAX": "page_counter.max",
    },
    "RSS": {"MM_RSS": "mm_struct.rss_stat.count"},
    "RSS_BY_CPU": {"RSS_COUNTERS": "mm_struct.rss_stat.counters"},
    "PIDS": {
        "TASK_PID": "task_struct.thread_pid",
        "PID_NAMESPACE": "pid.numbers.ns",
        "NAMESPACE_PIDS": "pid_namespace.idr.idr_rt.xa_head",
        "PID_TASKS": "pid.tasks.first",
        "TASK_PID_LINKS": "task_struct.pid_links",
    },
    # Linux kernel commit c84bf6dd2b83 ("mm: introduce new .mmap_prepare() file callback") (in v6.16)
    "DESC": {"DESC_FILE": "vm_area_desc.file", "DESC_FLAGS": "vm_area_desc.vma_flags"},
}
BITS = ["PG_swapbacked", "PG_head"]
HUGE_INDEX = "hugetlb_basepage_index"
VICTIM, FAULT = "mark_victim", "page_fault_user"
CONTROLLERS, MEMORY = "cgroup_subsys_id", "memory_cgrp_id"
COUNTER = "percpu_counter"


class Function(NamedTuple):
    """A kernel function."""

    name: str
    id: int
    """BTF id."""
    parameters: list[str]
    """Names of its parameters, in order."""


class KernelLayout(NamedTuple):
    """What the programs need to know of one kernel."""

    defines: dict[str, int]
    """For bpf/compat.h: OFF_… and SIZE_… in bytes, BIT_… numbers of page flags, HAVE_… features present, PAGE_SHIFT."""
    functions: dict[str, Function]
    """The functions asked for that exist, by name."""

    @classmethod
    def of_kernel(cls, functions: Collection[str], cache: Cache) -> KernelLayout:
        """The layout of the running kernel, from the cache or from its BTF.

        Raises ShmtraceError, naming the first field that no alternative provides.
        """
        key = _key(functions)
        kept = cache.read(key) if key else None
        if kept:
            return cls.load(kept)
        try:
            found = cls.of(Btf(), functions, resource.getpagesize())
        except BtfError as error:
            raise ShmtraceError(str(error), "`shmtrace snapshot` works without") from None
        if key:
            cache.write(key, found.dump())
        return found

    @classmethod
    def of(cls, btf: Btf, functions: Collection[str], page_bytes: int) -> KernelLayout:
        """The layout from a given BTF and page size. Raises ShmtraceError where a field is missing."""
        ids = {name: number for name in functions if (number := btf.function(name))}
        defines = {**_defines(btf), "PAGE_SHIFT": page_bytes.bit_length() - 1}
        return cls(defines, {name: Function(name, number, btf.parameters(number)) for name, number in ids.items()})

    def dump(self) -> bytes:
        """JSON, as load() reads it."""
        return json.dumps([self.defines, list(self.functions.values())]).encode()

    @classmethod
    def load(cls, raw: bytes) -> KernelLayout:
        """Decode what dump() returned."""
        defines, functions = json.loads(raw)
        return cls(defines, {name: Function(name, *rest) for name, *rest in functions})


def _key(functions: Collection[str]) -> str | None:
    """The cache key for the running kernel and the questions asked. None: the kernel's notes or BTF cannot be read."""
    try:
        with NOTES.open("rb") as file:
            notes = file.read(MAX_NOTES_BYTES)
        size_bytes = VMLINUX.stat().st_size
    except OSError:
        return None
    names = [HUGE_INDEX, VICTIM, FAULT, CONTROLLERS, MEMORY, COUNTER, sorted(functions)]
    asked = [FIELDS, GROUPS, BITS, *names, size_bytes]
    return hashlib.sha256(json.dumps(asked).encode() + notes).hexdigest() if notes else None


def _defines(btf: Btf) -> dict[str, int]:
    found = {}
    for name, paths in FIELDS.items():
        offsets = [offset for offset in map(btf.offset, paths) if offset is not None]
        if not offsets:
            raise ShmtraceError(
                f"this kernel's BTF has no {paths[0]}",
                "shmtrace needs porting to this kernel; `shmtrace snapshot` works",
            )
        found[f"OFF_{name}"] = offsets[0]
    for group, members in GROUPS.items():
        fields = {f"OFF_{name}": offset for name, path in members.items() if (offset := btf.offset(path)) is not None}
        if len(fields) == len(members):
            found |= fields
            found[f"HAVE_{group}"] = 1
    if btf.function(HUGE_INDEX):
        # Since Linux kernel commit a08c7193e4f1 ("mm/filemap: remove hugetlb special casing in filemap.c") (in v6.7)
        # the page cache counts huge pages in base pages, like all others.
        found["HAVE_HUGETLB_BASEPAGE_INDEX"] = 1
    if btf.arguments(VICTIM) == 2:
        # Linux kernel commit 72ba14deb40a ("mm: update mark_victim tracepoints fields") (in v6.9): a task and a UID
        # instead of a PID
        found["HAVE_VICTIM_TASK"] = 1
    if btf.arguments(FAULT) is not None:  # x86 has it, arm64 has not
        found["HAVE_PAGE_FAULT"] = 1
    memory = btf.enum_value(CONTROLLERS, MEMORY)
    if memory is not None:  # CONFIG_MEMCG
        found["MEMORY_CGROUPS"] = memory
    found["SIZE_PERCPU_COUNTER"] = btf.size(COUNTER) or 0
    found["SIZE_PAGE"] = btf.size("page") or 64
    for bit in BITS:
        value = btf.enum_value("pageflags", bit)
        if value is None:
            raise ShmtraceError(
                f"this kernel's BTF has no {bit}", "shmtrace needs porting to this kernel; `shmtrace snapshot` works"
            )
        found[f"BIT_{bit.upper()}"] = value
    return found

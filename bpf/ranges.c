// SPDX-License-Identifier: GPL-2.0-only
/* The faults tier: the ranges of regions that each process maps, by the system calls that map and unmap. */

BPF_TABLE("hash", u32, struct ranges, ranges, NR_ALIVE); /* by tgid */
BPF_TABLE("array", u32, struct ranges, no_ranges, 1);
BPF_TABLE("array", u32, struct ranges, full_ranges,
	  1);					   /* of whom there is no room for: the kernel's tree knows them all */
BPF_TABLE("array", u32, u64, nr_range_changes, 1); /* of any process's: what is remembered of them holds until then */
/* What a thread's system call unmaps, [start, end), between its enter and its exit. */
struct interval {
	u64 start;
	u64 end;
	u64 found; /* a range in it */
};
BPF_TABLE("lru_hash", u64, struct interval, unmapping, 10240); /* by pid_tgid */

/* After the change. */
static inline void ranges_changed(void)
{
	u32 zero = 0;
	u64 *count = nr_range_changes.lookup(&zero);
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* User space has changed some, and runs this. */
int ranges_written(struct bpf_raw_tracepoint_args *ctx)
{
	ranges_changed();
	return 0;
}

static inline void add_range(struct ranges *all, struct range *range)
{
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *slot = &all->slot[i];
		if (slot->end)
			continue;
		/* another thread may look or write meanwhile: the end comes last, and makes the slot valid */
		slot->start = range->start;
		slot->region = range->region;
		slot->first_index = range->first_index;
		barrier();
		slot->end = range->end;
		if (slot->start != range->start)
			continue; /* another thread took the slot */
		if (all->count < i + 1)
			all->count = i + 1;
		return;
	}
	all->more = 1;
}

/*
 * [start, end) is mapped no more, or not as it was. The interval is read anew from the map each time: a bound that the
 * verifier knows narrows with each comparison, and then no two rounds of the loop look the same to it (1.2 s to load).
 */
static inline void drop_ranges(struct ranges *all, volatile struct interval *gone)
{
	struct range rest = {};
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *slot = &all->slot[i];
		if (i >= all->count)
			break;
		if (slot->end <= gone->start || slot->start >= gone->end)
			continue;
		if (slot->end > gone->end) { /* what stays above */
			rest = *slot;
			rest.start = gone->end;
			rest.first_index += (rest.start - slot->start) >> PAGE_SHIFT;
		}
		slot->end = slot->start < gone->start ? gone->start : 0;
		gone->found = 1;
	}
	if (rest.end)
		add_range(all, &rest);
	if (gone->found || all->more)
		ranges_changed();
}

/* Anonymous, of small pages or of huge ones: "dev/zero", which no file can be called, or "anon_hugepage". */
static inline bool is_nameless(u64 file)
{
	u64 name = RD(u64, RD(u64, RD(u64, file, OFF_FILE_DENTRY), OFF_DENTRY_NAME), 0);
	return name == 0x6f72657a2f766564 || name == 0x6775685f6e6f6e61; /* the first 8 letters */
}

/* The range that the kernel has at an address now, if it is of a region that is known or to be. */
static inline void learn_range(struct ranges *all, struct process *process, u64 address)
{
	u64 mm = RD(u64, bpf_get_current_task(), OFF_TASK_MM);
	u64 vma = vma_at(mm, address);
	if (!vma) {
		lose(LOST_MAPPINGS);
		return;
	}
	struct range range = {.start = RD(u64, vma, OFF_VMA_START), .end = RD(u64, vma, OFF_VMA_END)};
	u64 thread = bpf_get_current_pid_tgid();
	struct interval now = {.start = range.start, .end = range.end};
	unmapping.update(&thread, &now);
	struct interval *was = unmapping.lookup(&thread);
	if (was)
		drop_ranges(all, was);
	unmapping.delete(&thread);
	u64 file = RD(u64, vma, OFF_VMA_FILE);
	if (!file)
		return;
	u64 inode = RD(u64, file, OFF_FILE_INODE);
	u32 magic = magic_of(inode);
	u64 mapping = RD(u64, inode, OFF_INODE_MAPPING);
	if (!magic)
		return;
	struct region *region = region_at(mapping, &range.region);
	if (!region) {
		/* a private mapping makes pages too where it reads a hole, but it makes no region of interest */
		if (!(RD(u64, vma, OFF_VMA_FLAGS) & VM_MAYSHARE))
			return;
		region = enter_region(inode, magic, &range.region);
		/* an anonymous region has no name to be opened by: who maps an unknown one has just made it */
		if (region && is_nameless(file))
			made_by(region, process);
	}
	if (!region)
		return;
	region->size_bytes = RD(u64, inode, OFF_INODE_SIZE);
	tell_region(region, file, process);
	if (magic != TMPFS_MAGIC) /* huge pages are listed, not paged */
		return;
	range.first_index = RD(u64, vma, OFF_VMA_PGOFF);
	add_range(all, &range);
	ranges_changed();
}

/* The ranges that count for a process: its own, or its parent's, whose address space vfork lends. */
static inline struct ranges *ranges_of(u32 tgid, struct process *process)
{
	u32 zero = 0;
	if (process->lender)
		tgid = process->lender;
	struct ranges *own = ranges.lookup(&tgid);
	return own ? own : full_ranges.lookup(&zero);
}

static inline struct ranges *current_ranges(struct process **process)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	*process = tracked(tgid);
	return *process ? ranges_of(tgid, *process) : NULL;
}

/* ---- Made, mapped, unmapped: the system calls ---- */

struct enter { /* of syscalls:sys_enter_*: /sys/kernel/tracing/events/syscalls/sys_enter_mmap/format */
	u64 common;
	u64 number;
	u64 args[6];
};

struct leave { /* of syscalls:sys_exit_* */
	u64 common;
	u64 number;
	long result;
};

/* munmap(address, bytes), mremap(address, bytes, …) */
int sys_enter_munmap(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct process *process;
	struct interval gone = {.start = ctx->args[0]};
	gone.end = gone.start + ((ctx->args[1] + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1ULL));
	if (current_ranges(&process))
		unmapping.update(&thread, &gone);
	return 0;
}

/* shmdt(address) takes away all of the segment that one shmat put there, and says no length. */
int sys_enter_shmdt(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct process *process;
	struct ranges *all = current_ranges(&process);
	struct interval gone = {.start = ctx->args[0]};
	u32 region = 0;
	if (!all)
		return 0;
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *range = &all->slot[i];
		if (range->end <= gone.end || range->start - ((u64)range->first_index << PAGE_SHIFT) != gone.start)
			continue;
		if (!region)
			region = range->region;
		if (range->region == region)
			gone.end = range->end;
	}
	if (gone.end)
		unmapping.update(&thread, &gone);
	return 0;
}

/* mmap, mremap and shmat return an address; munmap and shmdt 0 */
int sys_exit_mmap(struct leave *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct process *process;
	struct ranges *all = current_ranges(&process);
	if (!all)
		return 0;
	struct interval *gone = unmapping.lookup(&thread);
	if (gone) {
		if (ctx->result >= 0)
			drop_ranges(all, gone);
		unmapping.delete(&thread);
	}
	if (ctx->result > 0)
		learn_range(all, process, ctx->result);
	return 0;
}

/* A memfd's creator is who asked for it, whoever maps it later. */
int sys_exit_memfd_create(struct leave *ctx)
{
	struct process *process = tracked(bpf_get_current_pid_tgid() >> 32);
	u32 id = 0;
	if (!process || ctx->result < 0)
		return 0;
	u64 file = file_at(ctx->result);
	struct region *region = enter_made(file, process, &id);
	if (region)
		tell_region(region, file, process);
	return 0;
}

/* Who asks for a SysV segment that nobody has asked for has made it; its inode will bear its number. */
BPF_TABLE("lru_hash", u32, struct asker, askers, 4096); /* by shmid */

int sys_exit_shmget(struct leave *ctx)
{
	struct process *process = tracked(bpf_get_current_pid_tgid() >> 32);
	u32 shmid = ctx->result;
	if (!process || ctx->result < 0)
		return 0;
	struct asker asker = {.start_time_ns = process->start_time_ns, .tgid = process->tgid};
	askers.insert(&shmid, &asker);
	return 0;
}

/* ---- fork, exec, exit: after those of processes.c, which are attached before these ---- */

int fork_ranges(struct bpf_raw_tracepoint_args *ctx)
{
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	u32 tgid = RD(u32, ctx->args[0], OFF_TASK_TGID);
	u32 zero = 0;
	struct process *child = tgid == parent_tgid ? NULL : tracked(tgid); /* not so for a thread */
	if (!child)
		return 0;
	struct process *parent = child->lender ? NULL : tracked(parent_tgid); /* who runs in another's has none yet */
	struct ranges *source = parent ? ranges_of(parent_tgid, parent) : no_ranges.lookup(&zero);
	if (source)
		ranges.update(&tgid, source);
	ranges_changed();
	return 0;
}

int exec_ranges(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u32 zero = 0;
	struct ranges *none = no_ranges.lookup(&zero);
	if (tracked(tgid) && none) {
		ranges.update(&tgid, none);
		ranges_changed();
	}
	return 0;
}

int exit_ranges(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	if (!process_of(tgid) && !ranges.delete(&tgid))
		ranges_changed();
	return 0;
}

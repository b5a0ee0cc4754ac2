// SPDX-License-Identifier: GPL-2.0-only
/* Regions, and the ranges of them that a process maps: made, mapped, unmapped. */

/* ---- Regions ---- */

static inline void key_of(u64 inode, struct region_key *key)
{
	key->ino = RD(u64, inode, OFF_INODE_INO);
	key->generation = RD(u32, inode, OFF_INODE_GENERATION);
	key->dev = RD(u32, RD(u64, inode, OFF_INODE_SB), OFF_SB_DEV);
}

/* The region of an inode, entered into the map, and told, if it is new. made: this call brought it into being. */
static inline struct region *region_of(struct space *space, u64 file, u64 inode, u32 magic, bool made)
{
	struct region_key key = {};
	struct region fresh = {};
	u32 zero = 0;
	key_of(inode, &key);
	u64 size_bytes = RD(u64, inode, OFF_INODE_SIZE);
	struct region *region = regions.lookup(&key);
	if (region) {
		region->size_bytes = size_bytes;
		return region;
	}
	u32 *id = last_id.lookup(&zero);
	if (!id)
		return NULL;
	*id += 1;
	/* user space numbers the regions it finds at the start as CPU number NR_CPUS would */
	fresh.id = *id * (NR_CPUS + 1) + bpf_get_smp_processor_id();
	fresh.size_bytes = size_bytes;
	fresh.huge = magic == HUGETLBFS_MAGIC;
	regions.insert(&key, &fresh);
	region = regions.lookup(&key);
	if (!region) {
		lose(LOST_REGIONS);
		return NULL;
	}
	if (region->id != fresh.id) /* another thread was first */
		return region;
	u64 mapping = RD(u64, inode, OFF_INODE_MAPPING);
	mappings.update(&fresh.id, &mapping);
	struct event_region *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return region;
	}
	head(&event->event, EVENT_REGION, bpf_get_current_pid_tgid() >> 32, space->start_time_ns);
	event->key = key;
	event->id = fresh.id;
	event->size_bytes = size_bytes;
	event->magic = magic;
	u64 dentry = RD(u64, file, OFF_FILE_DENTRY);
	long bytes = bpf_probe_read_kernel_str(event->name, NAME_BYTES, (void *)RD(u64, dentry, OFF_DENTRY_NAME));
	event->name_bytes = bytes > 0 ? bytes - 1 : 0;
	/* an anonymous region has no name to be opened by: who maps an unknown one has just made it */
	event->made = made || (event->name_bytes == 8 && event->name[0] == 'd' && event->name[3] == '/');
	events.ringbuf_submit(event, 0);
	return region;
}

/* ---- Ranges ---- */

static inline bool add_range(struct space *space, struct range *range)
{
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *slot = &space->ranges[i];
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
		if (space->nr_ranges < i + 1)
			space->nr_ranges = i + 1;
		return true;
	}
	lose(LOST_RANGES);
	return false;
}

/*
 * [start, end) is mapped no more, or not as it was. The interval is read anew from the map each time: a bound that the
 * verifier knows narrows with each comparison, and then no two rounds of the loop look the same to it (1.2 s to load).
 */
static inline void drop_ranges(struct space *space, volatile struct interval *gone)
{
	struct range rest = {};
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *slot = &space->ranges[i];
		if (i >= space->nr_ranges)
			break;
		if (slot->end <= gone->start || slot->start >= gone->end)
			continue;
		if (slot->end > gone->end) { /* what stays above */
			rest = *slot;
			rest.start = gone->end;
			rest.first_index += (rest.start - slot->start) >> PAGE_SHIFT;
		}
		slot->end = slot->start < gone->start ? gone->start : 0;
	}
	if (rest.end)
		add_range(space, &rest);
}

/* The range that the kernel has at an address now, if it is of a region that is tracked or to be. */
static inline void learn_range(struct space *space, u64 address)
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
		drop_ranges(space, was);
	unmapping.delete(&thread);
	u64 file = RD(u64, vma, OFF_VMA_FILE);
	if (!file)
		return;
	u64 inode = RD(u64, file, OFF_FILE_INODE);
	u32 magic = RD(u64, RD(u64, inode, OFF_INODE_SB), OFF_SB_MAGIC);
	if (magic != TMPFS_MAGIC && magic != HUGETLBFS_MAGIC)
		return;
	if (!(RD(u64, vma, OFF_VMA_FLAGS) & VM_SHARED)) {
		/* a private mapping makes pages too where it reads a hole, but it makes no region of interest */
		struct region_key key = {};
		key_of(inode, &key);
		if (!regions.lookup(&key))
			return;
	}
	struct region *region = region_of(space, file, inode, magic, false);
	if (!region || magic != TMPFS_MAGIC) /* huge pages are listed, not paged */
		return;
	range.region = region->id;
	range.first_index = RD(u64, vma, OFF_VMA_PGOFF);
	add_range(space, &range);
}

/* The space whose ranges count for a process: its own, or its parent's, which vfork lends. */
static inline struct space *lent_space(struct space *process)
{
	if (!process || !process->lender)
		return process;
	u32 lender = process->lender;
	return spaces.lookup(&lender);
}

static inline struct space *current_space(void)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	return lent_space(spaces.lookup(&tgid));
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
	struct interval gone = {.start = ctx->args[0]};
	gone.end = gone.start + ((ctx->args[1] + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1ULL));
	if (current_space())
		unmapping.update(&thread, &gone);
	return 0;
}

/* shmdt(address) takes away all of the segment that one shmat put there, and says no length. */
int sys_enter_shmdt(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct space *space = current_space();
	struct interval gone = {.start = ctx->args[0]};
	u32 region = 0;
	if (!space)
		return 0;
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *range = &space->ranges[i];
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
	struct space *space = current_space();
	if (!space)
		return 0;
	struct interval *gone = unmapping.lookup(&thread);
	if (gone) {
		if (ctx->result >= 0)
			drop_ranges(space, gone);
		unmapping.delete(&thread);
	}
	if (ctx->result > 0)
		learn_range(space, ctx->result);
	return 0;
}

/* A memfd's creator is who asked for it, whoever maps it later. */
int sys_exit_memfd_create(struct leave *ctx)
{
	struct space *space = current_space();
	if (!space || ctx->result < 0)
		return 0;
	u64 files = RD(u64, bpf_get_current_task(), OFF_TASK_FILES);
	u64 table = RD(u64, RD(u64, files, OFF_FILES_FDT), OFF_FDT_FD);
	u64 file = RD(u64, table, ctx->result * 8);
	u64 inode = RD(u64, file, OFF_FILE_INODE);
	u32 magic = RD(u64, RD(u64, inode, OFF_INODE_SB), OFF_SB_MAGIC);
	if (magic == TMPFS_MAGIC || magic == HUGETLBFS_MAGIC)
		region_of(space, file, inode, magic, true);
	return 0;
}

/* Who asks for a SysV segment that nobody has heard of has made it; its inode will bear its number. */
int sys_exit_shmget(struct leave *ctx)
{
	struct space *space = current_space();
	if (!space || ctx->result < 0)
		return 0;
	struct event_segment *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return 0;
	}
	head(&event->event, EVENT_SEGMENT, bpf_get_current_pid_tgid() >> 32, space->start_time_ns);
	event->shmid = ctx->result;
	events.ringbuf_submit(event, 0);
	return 0;
}

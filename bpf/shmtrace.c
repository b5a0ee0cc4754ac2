// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults tier: who made each region and who first touched each page, by tracepoints alone.
 *
 * A page fault says an address and a process. The ranges a process has of tracked regions turn the address into
 * (region, page index); the region's own XArray says whether that page is there already. Where it is not, this fault
 * is what makes it, and the ledger word is written, once. No event is sent for a page, so none can be lost.
 *
 * Knobs, maps, helpers, then the probes in the order a region lives: made, mapped, touched, unmapped, freed; and the
 * processes around it: fork, exec, exit. Probes carry the names of their tracepoints; all are attached by
 * tracer/probes.py, never by bcc's magic prefixes.
 *
 * Knobs (-D): T0_NS, NR_CPUS, NR_BLOCKS, NR_SPACES, NR_REGIONS, NR_USAGES, EVENT_PAGES; TRACE_ALL: every process is
 * tracked; WATCH_EXEC: tell of every exec on the host, and track it until user space says no.
 */
#define PAGE_SIZE 4096
#define PAGE_SHIFT 12
#include "wire.h"
#include "compat.h"

#define CLONE_VM 0x00000100
#define CLONE_THREAD 0x00010000
#define VM_SHARED 0x00000008
#define TMPFS_MAGIC 0x01021994
#define HUGETLBFS_MAGIC 0x958458f6
#define MAX_FOLIO_BLOCKS 8 /* 2 MiB */
#define barrier() __asm__ __volatile__("" ::: "memory")

/* ---- Maps ---- */

BPF_TABLE("hash", struct block_key, struct block, ledger, NR_BLOCKS);
BPF_TABLE("hash", u32, struct space, spaces, NR_SPACES); /* by tgid */
BPF_TABLE("hash", struct region_key, struct region, regions, NR_REGIONS);
BPF_TABLE("hash", u32, u64, mappings, NR_REGIONS); /* by region: the kernel's address of its struct address_space */
BPF_TABLE("hash", struct usage_key, struct usage, usages, NR_USAGES);
BPF_TABLE("array", u32, u64, losses, NR_LOSSES);
BPF_TABLE("percpu_array", u32, u32, last_id, 1);
BPF_TABLE("array", u32, struct block, blank_block, 1);
BPF_TABLE("array", u32, struct space, blank_space, 1);
/* What a thread's system call unmaps, [start, end), between its enter and its exit. */
struct interval {
	u64 start;
	u64 end;
};
BPF_TABLE("lru_hash", u64, struct interval, unmapping, 10240); /* by pid_tgid */
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);

/* ---- Helpers ---- */

static inline void lose(u32 what)
{
	u64 *count = losses.lookup(&what);
	if (count)
		__sync_fetch_and_add(count, 1);
}

static inline void head(struct event *event, u32 type, u32 tgid, u64 start_time_ns)
{
	event->time_ns = bpf_ktime_get_ns();
	event->start_time_ns = start_time_ns;
	event->tgid = tgid;
	event->type = type;
}

static inline u64 now_us(void)
{
	return (bpf_ktime_get_ns() - T0_NS) / 1000;
}

/* The command line as /proc shows it, cut; 0 bytes where the address space is gone. */
static inline u32 read_title(u64 task, char *title)
{
	u64 mm = RD(u64, task, OFF_TASK_MM);
	u64 start = mm ? RD(u64, mm, OFF_MM_ARG_START) : 0;
	u64 bytes = start ? RD(u64, mm, OFF_MM_ARG_END) - start : 0;
	if (!bytes)
		return 0;
	if (bytes > TITLE_BYTES)
		bytes = TITLE_BYTES;
	/* the mask is for the verifier: the length is at most TITLE_BYTES already */
	if (probe_read_user(title, ((bytes - 1) & (TITLE_BYTES - 1)) + 1, (void *)start))
		return 0;
	return bytes;
}

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

/* The space whose ranges count for the current process; what vfork lends is the parent's. */
static inline struct space *current_space(void)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct space *space = spaces.lookup(&tgid);
	if (space && space->lender) {
		tgid = space->lender;
		space = spaces.lookup(&tgid);
	}
	return space;
}

/* ---- The ledger ---- */

static inline struct block *block_of(u32 region, u64 index)
{
	struct block_key key = {.region = region, .block = index / BLOCK_PAGES};
	struct block *block = ledger.lookup(&key);
	u32 zero = 0;
	if (block)
		return block;
	struct block *blank = blank_block.lookup(&zero);
	if (!blank)
		return NULL;
	ledger.insert(&key, blank); /* BPF_NOEXIST: of two CPUs one wins, and both find its block */
	return ledger.lookup(&key);
}

static inline struct usage *usage_of(u32 region, u32 tgid, u64 start_time_ns)
{
	struct usage_key key = {.region = region, .tgid = tgid, .start_time_ns = start_time_ns};
	struct usage *usage = usages.lookup(&key);
	struct usage none = {};
	if (usage)
		return usage;
	usages.insert(&key, &none);
	usage = usages.lookup(&key);
	if (!usage) {
		lose(LOST_USAGE);
		return NULL;
	}
	if (!start_time_ns)
		return usage;
	struct event_touch *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return usage;
	}
	head(&event->event, EVENT_TOUCH, tgid, start_time_ns);
	event->id = region;
	events.ringbuf_submit(event, 0);
	return usage;
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

/* ---- Touched ---- */

/* The page of a region that an address is. The verifier must forget which slot it was, hence results by value. */
static inline bool find_page(struct space *space, u64 address, u32 *region, u64 *index)
{
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *range = &space->ranges[i];
		if (i >= space->nr_ranges)
			return false;
		if (address >= range->start && address < range->end) {
			*region = range->region;
			*index = range->first_index + ((address - range->start) >> PAGE_SHIFT);
			return true;
		}
	}
	return false;
}

/* A region that user space found has its mapping looked up when first needed. */
static inline u64 mapping_of(u32 region, u64 address)
{
	u64 *known = mappings.lookup(&region);
	if (known)
		return *known;
	u64 vma = vma_at(RD(u64, bpf_get_current_task(), OFF_TASK_MM), address);
	u64 file = vma ? RD(u64, vma, OFF_VMA_FILE) : 0;
	if (!file) {
		lose(LOST_MAPPINGS);
		return 0;
	}
	u64 mapping = RD(u64, RD(u64, file, OFF_FILE_INODE), OFF_INODE_MAPPING);
	mappings.update(&region, &mapping);
	return mapping;
}

/* exceptions:page_fault_{user,kernel}(address, regs, error_code); read(2) into a shared buffer faults in the kernel */
int page_fault(struct bpf_raw_tracepoint_args *ctx)
{
	u64 address = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct space *process = spaces.lookup(&tgid);
	struct space *space = process;
	u32 region = 0;
	u64 index = 0;
	if (!process) /* most of the host's faults end here */
		return 0;
	if (process->lender) {
		u32 lender = process->lender;
		space = spaces.lookup(&lender);
		if (!space)
			return 0;
	}
	if (!find_page(space, address, &region, &index))
		return 0;

	struct usage *usage = usage_of(region, tgid, process->start_time_ns);
	if (usage)
		__sync_fetch_and_add(&usage->faults, 1);
	struct block *block = block_of(region, index);
	u64 *word = block ? &block->words[index % BLOCK_PAGES] : NULL;
	u64 before = word ? *word : WORD_ABSENT;
	if (before != WORD_ABSENT && before != WORD_FREED)
		return 0; /* it is there, and its owner known, or known to be unknown */
	u64 mapping = mapping_of(region, address);
	if (!mapping)
		return 0;
	bool exists = page_exists(mapping, index);
	if (!word) {
		if (!exists)
			lose(LOST_PAGES);
	} else if (exists) {
		*word = before == WORD_ABSENT ? WORD_EXISTED : WORD_REAPPEARED;
	} else {
		*word = ((u64)tgid << WHEN_BITS) | now_us();
		if (usage)
			__sync_fetch_and_add(&usage->touched_pages, 1);
	}
	return 0;
}

/* ---- Freed: filemap:mm_filemap_delete_from_page_cache(folio), a page before v5.16 ---- */

static inline void free_page(struct block *block, u32 region, u64 index)
{
	u64 *word = &block->words[index % BLOCK_PAGES];
	u64 before = *word;
	u32 tgid = before >> WHEN_BITS;
	*word = WORD_FREED;
	if (!tgid)
		return;
	/* The word knows the tgid and when. If that tgid lives and is older than the word, it is the one. */
	struct space *space = spaces.lookup(&tgid);
	u64 when_ns = T0_BOOT_NS + (before & ((1ULL << WHEN_BITS) - 1)) * 1000;
	struct usage *usage =
		usage_of(region, tgid, space && space->start_time_ns <= when_ns + 1000 ? space->start_time_ns : 0);
	if (usage)
		__sync_fetch_and_add(&usage->freed_pages, 1);
}

int mm_filemap_delete_from_page_cache(struct bpf_raw_tracepoint_args *ctx)
{
	u64 folio = ctx->args[0];
	struct region_key key = {};
	if (!(RD(u64, folio, 0) & (1ULL << BIT_PG_SWAPBACKED))) /* a file's page: most end here */
		return 0;
	u64 inode = RD(u64, RD(u64, folio, OFF_FOLIO_MAPPING), OFF_MAPPING_HOST);
	key_of(inode, &key);
	struct region *region = regions.lookup(&key);
	if (!region)
		return 0;
	u64 index = RD(u64, folio, OFF_FOLIO_INDEX);
	u32 nr_pages = 1U << (folio_order(folio) & 31);
	/* The last reference is gone: this is the teardown, not pages given back. */
	bool teardown = RD(u32, inode, OFF_INODE_COUNT) == 0;
	if (teardown && !region->gone_us) {
		u64 info = inode - OFF_SHMEM_VFS_INODE;
		region->final_pages = RD(u64, info, OFF_SHMEM_ALLOCED);
		region->final_swapped = RD(u64, info, OFF_SHMEM_SWAPPED);
		region->gone_us = now_us();
		struct event_gone *event = events.ringbuf_reserve(sizeof(*event));
		if (event) {
			head(&event->event, EVENT_GONE, bpf_get_current_pid_tgid() >> 32, 0);
			event->key = key;
			event->id = region->id;
			events.ringbuf_submit(event, 0);
		} else {
			lose(LOST_EVENTS);
		}
	}
	if (teardown)
		region->torn_pages += nr_pages; /* by one task */
	if (nr_pages == 1 && !teardown) {
		struct block *block = block_of(region->id, index);
		if (block)
			free_page(block, region->id, index);
		return 0;
	}
	for (u32 i = 0; i < MAX_FOLIO_BLOCKS; i++) {
		struct block_key at = {.region = region->id, .block = index / BLOCK_PAGES + i};
		struct block *block = ledger.lookup(&at);
		u64 pages = nr_pages >= BLOCK_PAGES ? ~0ULL : ((1ULL << nr_pages) - 1) << (index % BLOCK_PAGES);
		if (i * BLOCK_PAGES >= nr_pages)
			break;
		if (block && teardown)
			block->torn |= pages;
		else if (block)
			for (u32 slot = 0; slot < BLOCK_PAGES; slot++)
				if (pages >> slot & 1)
					block->words[slot] = WORD_FREED;
	}
	return 0;
}

/* ---- Processes ---- */

/* task:task_newtask(task, clone_flags), in the parent, before the child runs */
int task_newtask(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u64 flags = ctx->args[1];
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	u32 tgid = RD(u32, task, OFF_TASK_TGID);
	u32 zero = 0;
	if (flags & CLONE_THREAD)
		return 0;
	struct space *parent = spaces.lookup(&parent_tgid);
	struct space *source = parent;
	u32 lender = parent_tgid;
	if (parent && parent->lender) {
		lender = parent->lender;
		source = spaces.lookup(&lender);
	}
#ifdef TRACE_ALL
	if (!source)
		source = blank_space.lookup(&zero);
#endif
	if (!source)
		return 0;
	spaces.update(&tgid, source);
	struct space *child = spaces.lookup(&tgid);
	if (!child) {
		lose(LOST_SPACES);
		return 0;
	}
	child->start_time_ns = RD(u64, task, OFF_TASK_START_BOOTTIME);
	child->lender = flags & CLONE_VM ? lender : 0;
	struct event_fork *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return 0;
	}
	head(&event->event, EVENT_FORK, tgid, child->start_time_ns);
	event->parent_start_time_ns = parent ? parent->start_time_ns : 0;
	event->parent_tgid = parent_tgid;
	event->shares_memory = !!(flags & CLONE_VM);
	bpf_probe_read_kernel(event->comm, COMM_BYTES, (void *)(task + OFF_TASK_COMM));
	events.ringbuf_submit(event, 0);
	return 0;
}

/* sched:sched_process_exec(task, old_pid, bprm): the old memory is gone, and with it every range */
int sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct space *space = spaces.lookup(&tgid);
	bool tracked = space;
	u32 zero = 0;
#ifdef WATCH_EXEC
	if (!space) {
		struct space *blank = blank_space.lookup(&zero);
		if (blank)
			spaces.update(&tgid, blank);
		space = spaces.lookup(&tgid);
		if (!space)
			lose(LOST_SPACES);
	}
#endif
	if (!space)
		return 0;
	space->lender = 0;
	space->nr_ranges = 0;
	for (u32 i = 0; i < MAX_RANGES; i++)
		space->ranges[i].end = 0;
	space->start_time_ns = RD(u64, RD(u64, task, OFF_TASK_GROUP_LEADER), OFF_TASK_START_BOOTTIME);
	struct event_exec *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return 0;
	}
	head(&event->event, EVENT_EXEC, tgid, space->start_time_ns);
	event->tracked = tracked;
	bpf_get_current_comm(event->comm, COMM_BYTES);
	event->title_bytes = read_title(task, event->title);
	events.ringbuf_submit(event, 0);
	return 0;
}

/* sched:sched_process_exit(task): of the last thread */
int sched_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct space *space = spaces.lookup(&tgid);
	if (!space || RD(u32, RD(u64, task, OFF_TASK_SIGNAL), OFF_SIGNAL_LIVE))
		return 0;
	struct event_exit *event = events.ringbuf_reserve(sizeof(*event));
	if (event) {
		head(&event->event, EVENT_EXIT, tgid, space->start_time_ns);
		bpf_get_current_comm(event->comm, COMM_BYTES);
		event->title_bytes = read_title(task, event->title);
		events.ringbuf_submit(event, 0);
	} else {
		lose(LOST_EVENTS);
	}
	spaces.delete(&tgid);
	return 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The exact tier: pages, at the kernel functions that add them, in whatever way and for whatever process. Compiled
 * after inodes.c.
 *
 * All pages pass through shmem_add_to_page_cache(), except those that collapse_file() fills in. The program at its
 * entry writes the page's word; its return is not needed. If there is a word already, look for the page. If the page
 * exists, this addition will fail, and the word stays. If several threads add a page at the same moment, the last one
 * that saw it absent becomes the owner: all of them touched it then. An addition that fails for lack of memory leaves a
 * word without a page, which user space ignores.
 */

#define PF_KTHREAD 0x00200000

#ifdef ARG_ADDING_PAGE /* before folios: in v5.15, not in v6.1 */
#define ARG_ADDING_FOLIO ARG_ADDING_PAGE
#endif

/* What was last looked up on a CPU, to avoid a lookup for each page. */
struct last {
	u64 thread;   /* pid_tgid, known to have a usage of the region */
	u64 nr_lives; /* of struct state at that time; if it has changed, the PID may have another owner */
	u32 region;
	u32 borrows; /* a kernel thread in another's address space */
	struct last_block block;
	u64 holes;	     /* scratch space of write_large() */
	u64 nobody;	     /* pid_tgid of a thread that is not of the tree */
	u64 nr_lives_nobody; /* of struct state at that time */
};
BPF_TABLE("array", u32, struct last, lasts, NR_CPUS);

static inline struct last *last_here(void)
{
	u32 cpu = bpf_get_smp_processor_id();
	return lasts.lookup(&cpu);
}

#ifdef HAVE_MM_OWNER
BPF_TABLE("hash", struct made_for_key, u64, made_for, NR_USAGES);
/* pages; tells user space whether made_for has changed */
BPF_F_TABLE("array", u32, u64, nr_made_for, 1, BPF_F_MMAPABLE);

/* The owner of an address space. */
static inline void note_owner(u64 mm, u32 *tgid, u64 *start_time_ns)
{
	u64 owner = mm ? RD(u64, mm, OFF_MM_OWNER) : 0;
	*tgid = owner ? RD(u32, owner, OFF_TASK_TGID) : 0;
	*start_time_ns = owner ? RD(u64, RD(u64, owner, OFF_TASK_GROUP_LEADER), OFF_TASK_START_BOOTTIME) : 0;
}

static inline void count_made_for(u32 region, u32 tgid, u32 for_tgid, u64 for_start_time_ns, u32 nr_pages)
{
	struct process *process = process_of(tgid);
	u64 none = 0;
	if (!process || !for_tgid || for_tgid == tgid)
		return;
	struct made_for_key key = {.region = region, .tgid = tgid, .for_tgid = for_tgid};
	key.start_time_ns = process->start_time_ns;
	key.for_start_time_ns = for_start_time_ns;
	u64 *pages = made_for.lookup_or_try_init(&key, &none);
	u32 zero = 0;
	u64 *all = nr_made_for.lookup(&zero);
	if (pages && all) {
		__sync_fetch_and_add(pages, nr_pages);
		__sync_fetch_and_add(all, nr_pages);
	} else {
		lose(LOST_USAGE);
	}
}

/*
 * Count a page that is made in an address space other than the acting thread's (process_vm_writev, ptrace,
 * /proc/PID/mem, userfaultfd, khugepaged), or by a kernel thread that has borrowed one (io_uring before v5.12, vhost).
 */
static inline void on_behalf(u32 region, u32 tgid, u64 for_mm, u32 nr_pages)
{
	u64 task = bpf_get_current_task();
	u64 own_mm = RD(u64, task, OFF_TASK_MM);
	u32 for_tgid = 0;
	u64 for_start_time_ns = 0;
	if (!for_mm || for_mm == own_mm)
		for_mm = RD(u32, task, OFF_TASK_FLAGS) & PF_KTHREAD ? own_mm : 0;
	note_owner(for_mm, &for_tgid, &for_start_time_ns);
	count_made_for(region, tgid, for_tgid, for_start_time_ns, nr_pages);
}
#else
#define note_owner(mm, tgid, start_time_ns)
#define count_made_for(region, tgid, for_tgid, for_start_time_ns, nr_pages)
#define on_behalf(region, tgid, for_mm, nr_pages)
#endif

/* ---- For whom: noted when a thread starts to work in another's address space, and looked up while any does ---- */

BPF_TABLE("hash", u64, u64, abroad, 4096); /* by pid_tgid: the other process's mm */

static inline u64 mm_abroad(struct state *state)
{
	if (!state->nr_abroad)
		return 0;
	u64 thread = bpf_get_current_pid_tgid();
	u64 *mm = abroad.lookup(&thread);
	return mm ? *mm : 0;
}

static inline int go_abroad(u64 mm)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct state *state = state_now();
	if (state && !abroad.insert(&thread, &mm))
		__sync_fetch_and_add(&state->nr_abroad, 1);
	return 0;
}

static inline int come_back(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct state *state = state_now();
	if (state && !abroad.delete(&thread))
		__sync_fetch_and_add(&state->nr_abroad, -1);
	return 0;
}

#ifdef ARG_GETTING_MM
int getting(ENTRY *ctx)
{
	return go_abroad(ARG(ctx, ARG_GETTING_MM));
}

int got(RETURN *ctx)
{
	return come_back();
}
#endif

#ifdef ARG_PINNING_MM
int pinning(ENTRY *ctx)
{
	return go_abroad(ARG(ctx, ARG_PINNING_MM));
}

int pinned(RETURN *ctx)
{
	return come_back();
}
#endif

#ifdef ARG_FILLING_DST_VMA /* until v7.2, which has another function for it */
#define ARG_FILLING_VMA ARG_FILLING_DST_VMA
#endif
#ifdef ARG_FILLING_VMA
/* userfaultfd: a handler resolves another process's fault */
int filling(ENTRY *ctx)
{
	return go_abroad(RD(u64, ARG(ctx, ARG_FILLING_VMA), OFF_VMA_MM));
}

int filled(RETURN *ctx)
{
	return come_back();
}
#endif

/* ---- The page ---- */

/* The word for a page that this thread makes now. */
static inline u64 new_word(u32 reader, struct last *last, struct state *state, u32 id)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 tgid = thread >> 32;
	u64 us = since_us(state);
	label_touch(reader, tgid, us);
	if (last->thread == thread && last->region == id && last->nr_lives == state->nr_lives)
		return word_of(tgid, us);
	struct process *process = current_process(OUTSIDE_TREE);
	if (process && usage_of(id, tgid, process->start_time_ns)) {
		last->thread = thread;
		last->region = id;
		last->nr_lives = state->nr_lives;
		last->borrows = !!(RD(u32, bpf_get_current_task(), OFF_TASK_FLAGS) & PF_KTHREAD);
	}
	return word_of(tgid, us);
}

static inline void count(u32 reader, void *ctx, struct last *last, u32 id, u64 word, u64 for_mm, u32 nr_pages)
{
	if (for_mm || last->borrows)
		on_behalf(id, word >> WHEN_BITS, for_mm, nr_pages);
	count_stack(reader, ctx, id, word >> WHEN_BITS, nr_pages);
}

/* Write the words of a large folio's pages that do not exist. If one exists, this addition will fail. */
static inline void write_large(struct last *last, struct region *region, u64 index, u32 nr_pages, u64 word)
{
	if (nr_pages > MAX_FOLIO_BLOCKS * BLOCK_PAGES)
		lose(LOST_PAGES);
	for (u32 i = 0; i < MAX_FOLIO_BLOCKS; i++) {
		if (i * BLOCK_PAGES >= nr_pages)
			break;
		u64 first = index + i * BLOCK_PAGES;
		u64 pages = pages_in_block(index, nr_pages);
		struct block *block = block_of(region->id, first, true);
		if (!block) {
			lose(LOST_PAGES);
			continue;
		}
		mark_holes(region->mapping, first - first % BLOCK_PAGES, &last->holes);
		pages &= last->holes;
		/* without this, clang jumps to the loop's own head, which v5.10 takes for an endless loop */
#pragma clang loop unroll(disable)
		for (u32 slot = 0; slot < BLOCK_PAGES; slot++, pages >>= 1)
			if (pages & 1)
				block->words[slot] = word;
		has_changed(block);
	}
}

#ifdef ARG_ADDING_CHARGE_MM
#define FOR_MM(ctx, state) ARG(ctx, ARG_ADDING_CHARGE_MM)
#else
#define FOR_MM(ctx, state) mm_abroad(state)
#endif

/* The dentry of an inode; of several links the last one made. 0: it has none. */
static inline u64 dentry_of(u64 inode)
{
	u64 alias = RD(u64, inode, OFF_INODE_DENTRY);
	return alias ? alias - OFF_DENTRY_ALIAS : 0;
}

/*
 * A file that the tree writes becomes a region with its first page, if it is none yet. It need never be mapped. NULL:
 * this thread is not of the tree.
 */
static inline struct region *written_region(struct last *last, struct state *state, u64 mapping)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 nr_lives = state->nr_lives;
	u32 id = 0;
	if (last->nobody == thread && last->nr_lives_nobody == nr_lives)
		return NULL; /* most of the host's shared memory that is not traced ends here */
	struct process *process = current_process(OF_TREE);
	if (!process || process->kind == OUTSIDE_TREE) {
		last->nobody = thread;
		last->nr_lives_nobody = nr_lives;
		return NULL;
	}
	return enter_region(RD(u64, mapping, OFF_MAPPING_HOST), TMPFS_MAGIC, &id);
}

/* Report a file of the tree that got a page before any process has mapped it. */
static inline void tell_written(struct region *region, u64 mapping)
{
	u64 dentry = dentry_of(RD(u64, mapping, OFF_MAPPING_HOST));
	struct process *process = tracked(bpf_get_current_pid_tgid() >> 32);
	if (region->created_ns) /* the page may be that of a process outside the tree */
		tell_region(region, dentry, region->creator_tgid, region->creator_start_time_ns);
	else if (process)
		tell_region(region, dentry, process->tgid, process->start_time_ns);
}

int adding(ENTRY *ctx)
{
	if (ARG(ctx, ARG_ADDING_EXPECTED)) /* the page is swapped in, and keeps its owner */
		return 0;
	u64 mapping = POINTER(ctx, ARG_ADDING_MAPPING);
	struct last *last = last_here();
	struct state *state = state_now();
	if (!last || !state)
		return 0;
	struct region *region = region_on(mapping);
	if (!region)
		region = written_region(last, state, mapping);
	if (!region || region->gone_us) /* or another inode is at this address already */
		return 0;
	if (!region->used_ns)
		tell_written(region, mapping);
	u64 index = ARG(ctx, ARG_ADDING_INDEX);
	u32 order = index & 1 ? 0 : ORDER_OF(ctx, ARG_ADDING_FOLIO) & 31; /* large folios are aligned to their size */
	struct block *block = NULL;
	u32 id = region->id;
	if (!order) {
		block = same_block(&last->block, id, index);
		if (!block) {
			lose(LOST_PAGES);
			return 0;
		}
		u64 was = block->words[index % BLOCK_PAGES];
		if (was >= FIRST_OWNED) {
			if (page_exists(region->mapping, index))
				return 0;
			if (outlived(region, was))
				freed(id, was, 1);
		}
	}
	u64 word = new_word(AT_ENTRY, last, state, id);
	if (block) {
		block->words[index % BLOCK_PAGES] = word;
		has_changed(block);
	} else {
		write_large(last, region, index, 1U << order, word);
	}
	count(AT_ENTRY, ctx, last, id, word, FOR_MM(ctx, state), 1U << order);
	return 0;
}

#ifdef ARG_HUGETLB_ADDING_MAPPING
#ifdef ARG_HUGETLB_ADDING_PAGE /* before folios */
#define ARG_HUGETLB_ADDING_FOLIO ARG_HUGETLB_ADDING_PAGE
#endif
/*
 * hugetlbfs adds pages in a function of its own, and counts them in units of their size. So does the ledger of such a
 * region. Pages are added one at a time under a lock, so none exists yet.
 */
int hugetlb_adding(ENTRY *ctx)
{
	struct region *region = region_on(POINTER(ctx, ARG_HUGETLB_ADDING_MAPPING));
	if (!region || region->gone_us)
		return 0;
	u64 index = ARG(ctx, ARG_HUGETLB_ADDING_IDX);
	region->order = folio_order(ARG(ctx, ARG_HUGETLB_ADDING_FOLIO)) & 31;
	struct block *block = block_of(region->id, index, true);
	struct last *last = last_here();
	struct state *state = state_now();
	if (!block)
		lose(LOST_PAGES);
	if (!block || !last || !state)
		return 0;
	u64 word = new_word(AT_HUGETLB, last, state, region->id);
	block->words[index % BLOCK_PAGES] = word;
	has_changed(block);
	count(AT_HUGETLB, ctx, last, region->id, word, 0, 1U << region->order);
	return 0;
}
#endif

#ifdef NARGS_COLLAPSED
/* ---- khugepaged, MADV_COLLAPSE: a huge page replaces small ones, and fills the holes between them ---- */

struct collapse {
	u64 mapping;
	u64 start;
	u64 for_start_time_ns;	     /* of the owner of the memory, who may be gone at the end */
	u64 holes[MAX_FOLIO_BLOCKS]; /* one bit per page: it did not exist before */
	u64 still;		     /* the same after the call, for the current block */
	u32 for_tgid;
	u32 filled;
	u32 region;
	u32 reserved;
};
BPF_TABLE("hash", u64, struct collapse, collapses, 256); /* by pid_tgid */
BPF_TABLE("array", u32, struct collapse, no_collapse, 1);

int collapsing(ENTRY *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 inode = RD(u64, ARG(ctx, ARG_COLLAPSING_FILE), OFF_FILE_INODE);
	u64 mapping = inode + OFF_INODE_DATA;
	u64 start = ARG(ctx, ARG_COLLAPSING_START);
	u32 id = 0;
	u32 zero = 0;
	struct collapse *none = no_collapse.lookup(&zero);
	if (!region_at(mapping, &id) || !none)
		return 0;
	collapses.update(&thread, none);
	struct collapse *collapse = collapses.lookup(&thread);
	if (!collapse)
		return 0;
	collapse->mapping = mapping;
	collapse->start = start;
	note_owner(ARG(ctx, ARG_COLLAPSING_MM), &collapse->for_tgid, &collapse->for_start_time_ns);
	collapse->region = id;
	for (u32 i = 0; i < MAX_FOLIO_BLOCKS; i++)
		mark_holes(mapping, start + i * BLOCK_PAGES, &collapse->holes[i]);
	return 0;
}

int collapsed(RETURN *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct collapse *collapse = collapses.lookup(&thread);
	if (!collapse)
		return 0;
	struct region *region = region_by_id(collapse->region);
	struct last *last = last_here();
	struct state *state = state_now();
	if (!region || !last || !state)
		return 0;
	u64 word = new_word(AT_COLLAPSE, last, state, region->id);
	for (u32 i = 0; i < MAX_FOLIO_BLOCKS; i++) {
		u64 first = collapse->start + i * BLOCK_PAGES;
		struct block *block = collapse->holes[i] ? block_of(region->id, first, true) : NULL;
		if (!block)
			continue;
		mark_holes(collapse->mapping, first, &collapse->still);
		u64 filled = collapse->holes[i] & ~collapse->still;
		for (u32 slot = 0; slot < BLOCK_PAGES; slot++) {
			u64 *at = &block->words[slot];
			u64 was = *at;
			if (!(filled >> slot & 1))
				continue;
			if (was >= FIRST_OWNED && (was & (FIRST_OWNED - 1)) >= region->punched_us)
				continue; /* added by another thread meanwhile */
			*at = word;
			collapse->filled++;
		}
		has_changed(block);
	}
	if (collapse->filled) {
		u32 tgid = word >> WHEN_BITS;
		count_made_for(region->id, tgid, collapse->for_tgid, collapse->for_start_time_ns, collapse->filled);
		count_stack(AT_COLLAPSE, ctx, region->id, tgid, collapse->filled);
	}
	collapses.delete(&thread);
	return 0;
}
#endif

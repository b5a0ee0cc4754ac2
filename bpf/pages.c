// SPDX-License-Identifier: GPL-2.0-only
/*
 * The exact tier: pages, at the kernel functions that make them, by whatever path and for whomever; after inodes.c, which
 * says what ARG() and RESULT() are.
 *
 * shmem_add_to_page_cache() is the one funnel of all pages but those that collapse_file() fills in. Its entry writes the
 * ledger word, so a return that is missed costs nothing; the return settles who it was of several that wanted the same
 * page, takes back an addition that failed, and where it is told the arguments too makes up for an entry missed.
 */

#define PF_KTHREAD 0x00200000
#define NR_ADDITIONS 16384 /* threads that ever added a page to a region, until they end */

#ifdef ARG_ADDING_PAGE /* before folios: in v5.15, not in v6.1 */
#define ARG_ADDING_FOLIO ARG_ADDING_PAGE
#endif

/* What a thread is about to add; the page may be for another's address space. */
struct addition {
	u64 word;
	u64 index;
	u64 for_mm;
	u64 for_index;			 /* the page that is for it */
	u64 was;			 /* its word, of one page */
	u64 was_freed[MAX_FOLIO_BLOCKS]; /* of more: bit per page, it had been given back */
	u32 region;
	u32 nr_pages; /* 0: nothing */
};
BPF_TABLE("hash", u64, struct addition, additions, NR_ADDITIONS); /* by pid_tgid */

static inline struct addition *addition_of(u64 thread)
{
	struct addition *addition = additions.lookup(&thread);
	struct addition none = {};
	if (addition)
		return addition;
	additions.update(&thread, &none);
	return additions.lookup(&thread);
}

/* Who makes the page, entered as a stranger if it is not of the tree. */
static inline struct process *toucher(u32 tgid)
{
	struct process *process = processes.lookup(&tgid);
	struct process stranger = {.stranger = 1};
	if (process)
		return process;
	u64 leader = RD(u64, bpf_get_current_task(), OFF_TASK_GROUP_LEADER);
	stranger.start_time_ns = RD(u64, leader, OFF_TASK_START_BOOTTIME);
	processes.insert(&tgid, &stranger);
	process = processes.lookup(&tgid);
	if (!process)
		lose(LOST_PROCESSES);
	return process;
}

#ifdef HAVE_MM_OWNER
BPF_TABLE("hash", struct behalf_key, u64, behalves, NR_USAGES);

/*
 * A page may be made in an address space that is not the acting thread's (process_vm_writev, ptrace, /proc/PID/mem,
 * userfaultfd, khugepaged), or by a kernel thread that has borrowed one (io_uring before v5.12, vhost).
 */
static inline void on_behalf(u32 region, struct process *process, u32 tgid, u64 for_mm, u32 nr_pages)
{
	u64 task = bpf_get_current_task();
	u64 own_mm = RD(u64, task, OFF_TASK_MM);
	struct behalf_key key = {.region = region, .tgid = tgid, .start_time_ns = process->start_time_ns};
	u64 none = 0;
	if (!for_mm || for_mm == own_mm) /* no process of the tree is a kernel thread */
		for_mm = process->stranger && RD(u32, task, OFF_TASK_FLAGS) & PF_KTHREAD ? own_mm : 0;
	if (!for_mm)
		return;
	u64 owner = RD(u64, for_mm, OFF_MM_OWNER);
	key.for_tgid = owner ? RD(u32, owner, OFF_TASK_TGID) : 0;
	if (!key.for_tgid || key.for_tgid == tgid)
		return;
	key.for_start_time_ns = RD(u64, RD(u64, owner, OFF_TASK_GROUP_LEADER), OFF_TASK_START_BOOTTIME);
	u64 *pages = behalves.lookup_or_try_init(&key, &none);
	if (pages)
		__sync_fetch_and_add(pages, nr_pages);
	else
		lose(LOST_USAGE);
}
#else
#define on_behalf(region, process, tgid, for_mm, nr_pages)
#endif

/* Pages are there, and this thread made them; word is theirs. */
static inline void count(void *ctx, u32 region, u64 word, u64 for_mm, u32 nr_pages)
{
	u32 tgid = word >> WHEN_BITS;
	struct process *process = toucher(tgid);
	if (!process)
		return;
	struct usage *usage = usage_of(region, tgid, process->start_time_ns);
	if (usage)
		__sync_fetch_and_add(&usage->touched_pages, nr_pages);
	on_behalf(region, process, tgid, for_mm, nr_pages);
	count_stack(ctx, region, tgid, process->start_time_ns, nr_pages);
}

/*
 * Whose address space the page at an index is for, where only a caller of the funnel knows; nothing where that is the
 * thread's own, as it nearly always is. What is remembered of a page that could not be had is for no other page.
 */
static inline int remember_mm(u64 mapping, u64 index, u64 mm)
{
	u64 thread = bpf_get_current_pid_tgid();
	if (!mm || mm == RD(u64, bpf_get_current_task(), OFF_TASK_MM) || !ids.lookup(&mapping))
		return 0;
	struct addition *addition = addition_of(thread);
	if (addition) {
		addition->for_mm = mm;
		addition->for_index = index;
	}
	return 0;
}

#ifdef ARG_ALLOCATING_INODE
int allocating(ENTRY *ctx)
{
	return remember_mm(ARG(ctx, ARG_ALLOCATING_INODE) + OFF_INODE_DATA, ARG(ctx, ARG_ALLOCATING_INDEX),
			   ARG(ctx, ARG_ALLOCATING_FAULT_MM));
}
#endif

#ifdef ARG_FILLING_DST_VMA /* until v7.2 had another function for it */
#define ARG_FILLING_VMA ARG_FILLING_DST_VMA
#define ARG_FILLING_ADDR ARG_FILLING_DST_ADDR
#endif
#ifdef ARG_FILLING_VMA
/* userfaultfd: a handler resolves another's fault */
int filling(ENTRY *ctx)
{
	u64 vma = ARG(ctx, ARG_FILLING_VMA);
	u64 inode = RD(u64, RD(u64, vma, OFF_VMA_FILE), OFF_FILE_INODE);
	u64 offset = ARG(ctx, ARG_FILLING_ADDR) - RD(u64, vma, OFF_VMA_START);
	return remember_mm(inode + OFF_INODE_DATA, RD(u64, vma, OFF_VMA_PGOFF) + (offset >> PAGE_SHIFT),
			   RD(u64, vma, OFF_VMA_MM));
}
#endif

/* What the thread is about to add, if it is to a region. */
static inline struct addition *new_addition(u32 reader, u64 mapping, u64 index, u64 folio)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 id = 0;
	struct region *region = region_at(mapping, &id);
	if (!region)
		return NULL;
	struct addition *addition = addition_of(thread);
	if (!addition) {
		lose(LOST_PAGES);
		return NULL;
	}
	u32 order = folio_order(folio) & 31;
	if (region->huge)
		region->order = order;
	u64 us = now_us();
	label_touch(reader, thread >> 32, us);
	addition->word = (thread >> 32) << WHEN_BITS | us;
	addition->index = index;
	addition->region = id;
	addition->nr_pages = 1U << order;
	return addition;
}

/* Of shmem: and its word is written, if the page has none. */
static inline struct addition *begin_addition(u32 reader, u64 mapping, u64 index, u64 folio, u64 expected,
					      u64 charge_mm)
{
	if (expected) /* it is swapped in, and keeps its owner */
		return NULL;
	struct addition *addition = new_addition(reader, mapping, index, folio);
	if (!addition)
		return NULL;
#ifdef ARG_ADDING_CHARGE_MM
	addition->for_mm = charge_mm;
	addition->for_index = index;
#endif
	u64 word = addition->word;
	u32 id = addition->region;
	u32 nr_pages = addition->nr_pages;
	if (nr_pages == 1) {
		struct block *block = block_of(id, index);
		if (!block)
			return addition;
		u64 *at = &block->words[index % BLOCK_PAGES];
		u64 was = *at;
		addition->was = was;
		if (was >= FIRST_OWNED) {
			struct region *region = regions.lookup(&id);
			if (!region || !outlived(region, was)) /* another is about to make it too: see added() */
				return addition;
			freed(id, was, 1);
		}
		*at = word;
		return addition;
	}
	for (u32 i = 0; i < MAX_FOLIO_BLOCKS; i++) {
		if (i * BLOCK_PAGES >= nr_pages)
			break;
		struct block *block = block_of(id, index + i * BLOCK_PAGES);
		u64 pages = pages_in_block(index, nr_pages);
		addition->was_freed[i] = 0; /* in the map's memory at once, see mark_holes() */
		if (!block)
			continue;
		for (u32 slot = 0; slot < BLOCK_PAGES; slot++) {
			u64 *at = &block->words[slot];
			if (!(pages >> slot & 1) || *at >= FIRST_OWNED)
				continue;
			if (*at == WORD_FREED)
				addition->was_freed[i] |= 1ULL << slot;
			*at = word;
		}
	}
	return addition;
}

#ifdef ARG_ADDING_CHARGE_MM
#define CHARGE_MM(ctx, argument) argument(ctx, ARG_ADDING_CHARGE_MM)
#else
#define CHARGE_MM(ctx, argument) 0
#endif
#define BEGIN_ADDITION(reader, ctx, argument)                                                                          \
	begin_addition(reader, argument(ctx, ARG_ADDING_MAPPING), argument(ctx, ARG_ADDING_INDEX),                     \
		       argument(ctx, ARG_ADDING_FOLIO), argument(ctx, ARG_ADDING_EXPECTED), CHARGE_MM(ctx, argument))

int adding(ENTRY *ctx)
{
	BEGIN_ADDITION(AT_ENTRY, ctx, ARG);
	return 0;
}

int added(RETURN *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct addition *addition = additions.lookup(&thread);
#ifdef BY_FEXIT
	/*
	 * The kernel may have skipped the entry's program: fentry's where it was running on this CPU already, a kprobe's
	 * where some program or bpf(2) was (bpf_prog_active), which a preemptible kernel lets last. Here is all it knew.
	 */
	if (!addition || !addition->nr_pages || addition->index != TRACING_ARG(ctx, ARG_ADDING_INDEX))
		addition = BEGIN_ADDITION(AT_RETURN, ctx, TRACING_ARG);
#endif
	if (!addition || !addition->nr_pages)
		return 0;
	bool failed = (int)RESULT(ctx, NARGS_ADDED);
	u32 id = addition->region;
	u32 nr_pages = addition->nr_pages;
	u64 index = addition->index;
	u64 word = addition->word;
	u64 for_mm = addition->for_index - index < nr_pages ? addition->for_mm : 0;
	addition->nr_pages = 0;
	addition->for_mm = 0;
	if (!failed)
		count(ctx, id, word, for_mm, nr_pages);
	if (nr_pages == 1) {
		struct block *block = block_of(id, index);
		if (!block) {
			if (!failed)
				lose(LOST_PAGES);
			return 0;
		}
		u64 *at = &block->words[index % BLOCK_PAGES];
		if (failed != (*at == word)) /* it is this thread's, and there; or neither */
			return 0;
		struct region *region = regions.lookup(&id);
		if (!region)
			return 0;
		u64 was = addition->was;
		if (!failed) {
			overwrite(region, id, at, word);
		} else if (was >= FIRST_OWNED) { /* it is still there: it was another range that was given back */
			freed(id, was, -1);
			*at = was;
		} else if (!page_exists(region->mapping, index)) {
			/* if it exists, who made it settles it, or is a thread of this process in the same microsecond */
			*at = was;
		}
		return 0;
	}
	for (u32 i = 0; i < MAX_FOLIO_BLOCKS; i++) {
		if (i * BLOCK_PAGES >= nr_pages)
			break;
		struct block *block = block_of(id, index + i * BLOCK_PAGES);
		u64 pages = pages_in_block(index, nr_pages);
		u64 was_freed = addition->was_freed[i];
		if (!block)
			continue;
		for (u32 slot = 0; slot < BLOCK_PAGES; slot++) {
			u64 *at = &block->words[slot];
			if (!(pages >> slot & 1))
				continue;
			if (!failed)
				*at = word;
			else if (*at == word)
				*at = was_freed >> slot & 1 ? WORD_FREED : WORD_ABSENT;
		}
	}
	return 0;
}

#ifdef ARG_HUGETLB_ADDING_MAPPING
#ifdef ARG_HUGETLB_ADDING_PAGE /* before folios */
#define ARG_HUGETLB_ADDING_FOLIO ARG_HUGETLB_ADDING_PAGE
#endif
/* hugetlbfs has a funnel of its own, and numbers its pages by their size. So does the ledger of such a region. */
int hugetlb_adding(ENTRY *ctx)
{
	new_addition(AT_HUGETLB, ARG(ctx, ARG_HUGETLB_ADDING_MAPPING), ARG(ctx, ARG_HUGETLB_ADDING_IDX),
		     ARG(ctx, ARG_HUGETLB_ADDING_FOLIO));
	return 0;
}

/* Huge pages come one at a time under a lock: here the return alone writes. */
int hugetlb_added(RETURN *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct addition *addition = additions.lookup(&thread);
	if (!addition || !addition->nr_pages)
		return 0;
	u32 nr_pages = addition->nr_pages;
	addition->nr_pages = 0;
	if ((int)RESULT(ctx, NARGS_HUGETLB_ADDED))
		return 0;
	count(ctx, addition->region, addition->word, 0, nr_pages);
	struct block *block = block_of(addition->region, addition->index);
	if (block)
		block->words[addition->index % BLOCK_PAGES] = addition->word;
	else
		lose(LOST_PAGES);
	return 0;
}
#endif

/* A thread that ends leaves nothing under way. Attached beside processes.c's. */
int thread_gone(struct bpf_raw_tracepoint_args *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	additions.delete(&thread);
	segments.delete(&thread);
	return 0;
}

#ifdef NARGS_COLLAPSED
/* ---- khugepaged, MADV_COLLAPSE: a huge page takes the place of small ones, and fills the holes between them ---- */

struct collapse {
	u64 mapping;
	u64 start;
	u64 mm;
	u64 holes[MAX_FOLIO_BLOCKS]; /* bit per page: it does not exist before */
	u64 still;		     /* nor after, of the block in hand */
	u32 filled;
	u32 region;
};
BPF_TABLE("hash", u64, struct collapse, collapses, 256); /* by pid_tgid */
BPF_TABLE("array", u32, struct collapse, no_collapse, 1);

/*
 * Set a bit for each page of a block that does not exist. A bit goes to the map's memory at once, which the verifier does
 * not follow: a value that it knows makes every path through the loop another one to it.
 */
static inline void mark_holes(u64 mapping, u64 first, u64 *holes)
{
	u64 entry = xa_descend(mapping, first);
	if (!xa_is_node(entry)) {
		*holes = entry ? 0 : ~0ULL;
		return;
	}
	for (u32 i = 0; i < BLOCK_PAGES; i++)
		if (!RD(u64, entry - 2, OFF_XA_NODE_SLOTS + i * 8))
			*holes |= 1ULL << i;
}

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
	collapse->mm = ARG(ctx, ARG_COLLAPSING_MM);
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
	struct region *region = regions.lookup(&collapse->region);
	if (!region)
		return 0;
	u64 us = now_us();
	label_touch(AT_COLLAPSE, thread >> 32, us);
	u64 word = (thread >> 32) << WHEN_BITS | us;
	for (u32 i = 0; i < MAX_FOLIO_BLOCKS; i++) {
		u64 first = collapse->start + i * BLOCK_PAGES;
		struct block *block = collapse->holes[i] ? block_of(collapse->region, first) : NULL;
		if (!block)
			continue;
		collapse->still = 0;
		mark_holes(collapse->mapping, first, &collapse->still);
		u64 filled = collapse->holes[i] & ~collapse->still;
		for (u32 slot = 0; slot < BLOCK_PAGES; slot++) {
			u64 *at = &block->words[slot];
			u64 was = *at;
			if (!(filled >> slot & 1))
				continue;
			if (was >= FIRST_OWNED && (was & (FIRST_OWNED - 1)) >= region->punched_us)
				continue; /* made meanwhile */
			*at = word;
			collapse->filled++;
		}
	}
	if (collapse->filled)
		count(ctx, collapse->region, word, collapse->mm, collapse->filled);
	collapses.delete(&thread);
	return 0;
}
#endif

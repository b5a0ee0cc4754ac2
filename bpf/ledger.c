// SPDX-License-Identifier: GPL-2.0-only
/* The ledger: who first touched each page, and which pages were given back. */

#define FIRST_OWNED (1ULL << WHEN_BITS)
#define LAST_US (FIRST_OWNED - 1) /* 50.9 days */
#define READ_AT_ONCE 8		  /* words; reading them takes hardly longer than reading one */

/* The word of a page that a process makes. A trace may last for longer than a word has room for: its times end then. */
static inline u64 word_of(u32 tgid, u64 us)
{
	return (u64)tgid << WHEN_BITS | (us < LAST_US ? us : LAST_US);
}

/* Add a block for a part of a region, unless another CPU is faster. */
static inline void add_block(struct part *part)
{
	u32 taken = 0;
	if (free_blocks.pop(&taken))
		return;
	count_room(ROOM_FREE + FREE_BLOCK, -1);
	struct block *block = ledger.lookup(&taken);
	if (!block)
		return;
	block->part = *part;
	block->number = taken;
	if (parts.insert(part, &taken)) { /* BPF_NOEXIST: one of two CPUs wins, and both find its block */
		block->part.region = 0;
		block->number = 0;
		give_back(FREE_BLOCK, taken);
	}
}

/* The number of the block with a page's word; 0: there is none, or no room for one. */
static inline u32 find_block(u32 region, u64 index, bool make)
{
	struct part part = {.region = region, .number = index / BLOCK_PAGES};
	u32 *known = parts.lookup(&part);
	if (!known && make) {
		add_block(&part);
		known = parts.lookup(&part);
	}
	return known ? *known : 0;
}

static inline struct block *block_of(u32 region, u64 index, bool make)
{
	u32 number = find_block(region, index, make);
	return number ? ledger.lookup(&number) : NULL;
}

/* The block last used on a CPU, which saves the lookup for most pages. */
struct last_block {
	struct part part;
	u64 number; /* of this part */
};

/* The block of a page, mostly the same as for the page before. */
static inline struct block *same_block(struct last_block *last, u32 id, u64 index)
{
	u32 number = last->number;
	if (last->part.region != id || last->part.number != (u32)(index / BLOCK_PAGES)) {
		last->part.region = 0;
		last->number = number = find_block(id, index, true);
		last->part.number = index / BLOCK_PAGES;
		last->part.region = number ? id : 0;
	}
	return number ? ledger.lookup(&number) : NULL;
}

/*
 * Read the names of a process that touches a region for the first time. When it exits it may be too late: before v6.16
 * the address space is gone at sched_process_exit.
 */
static inline void name_toucher(u32 tgid, struct usage *usage)
{
	u64 task = bpf_get_current_task();
	struct process *process = process_of(tgid);
	if (!process)
		return;
	if (tgid == bpf_get_current_pid_tgid() >> 32) {
		read_comm(task, process);
		read_title(task, process);
		tell_process(process);
	}
	if (usage->key.start_time_ns != process->start_time_ns)
		return;
	use(process);
	usage->kind = process->kind;
	__builtin_memcpy(usage->comm, process->comm, COMM_BYTES);
}

/* The number of the usage of a region by a process, added if it is new; 0: no room. */
static inline u32 usage_of(u32 region, u32 tgid, u64 start_time_ns)
{
	struct usage_key key = {.region = region, .tgid = tgid, .start_time_ns = start_time_ns};
	u32 *known = usage_numbers.lookup(&key);
	u32 number = 0;
	if (known)
		return *known;
	if (free_usages.pop(&number)) {
		lose(LOST_USAGE);
		return 0;
	}
	count_room(ROOM_FREE + FREE_USAGE, -1);
	if (usage_numbers.insert(&key, &number)) { /* another CPU was faster */
		give_back(FREE_USAGE, number);
		known = usage_numbers.lookup(&key);
		return known ? *known : 0;
	}
	struct usage *usage = usages.lookup(&number);
	if (!usage)
		return 0;
	usage->key = key;
	name_toucher(tgid, usage);
	tell(usage_changes.lookup(&number));
	return number;
}

/* ---- Pages given back: filemap:mm_filemap_delete_from_page_cache(folio), a page before v5.16 ---- */

/* Count pages that were given back, for the owner that their word names. -1: one was not given back after all. */
static inline void freed(u32 region, u64 word, s64 nr_pages)
{
	u32 tgid = word >> WHEN_BITS;
	if (!tgid)
		return;
	/* The word has the tgid and a time. If a process with that tgid runs and started before, it is the owner. */
	struct process *process = process_of(tgid);
	struct state *state = state_now();
	u64 when_ns = (state ? state->began_boot_ns : 0) + (word & ((1ULL << WHEN_BITS) - 1)) * 1000;
	bool same = process && process->start_time_ns <= when_ns + 1000;
	u32 number = usage_of(region, tgid, same ? process->start_time_ns : 0);
	struct usage *usage = number ? usages.lookup(&number) : NULL;
	if (usage)
		__sync_fetch_and_add(&usage->freed_pages, nr_pages);
}

/* Mark one page as given back, which counts as nr_pages small ones. */
static inline void free_page(struct block *block, u32 region, u64 index, u32 nr_pages)
{
	u64 *word = &block->words[index % BLOCK_PAGES];
	u64 was = *word;
	*word = WORD_FREED;
	has_changed(block);
	freed(region, was, nr_pages);
}

/* Mark the pages of a folio in this block as given back; `pages` has a bit for each. All of them have one owner. */
static inline void free_folio(struct block *block, u32 region, u64 pages)
{
	u64 was = 0;
	u64 nr_owned = 0;
#pragma clang loop unroll(disable)
	for (u32 slot = 0; slot < BLOCK_PAGES; slot++, pages >>= 1) {
		u64 *word = &block->words[slot];
		u64 is_owned = (pages & 1) & ~is_zero(*word >> WHEN_BITS);
		was |= *word & -(is_owned & is_zero(nr_owned));
		nr_owned += is_owned;
		if (pages & 1)
			*word = WORD_FREED;
	}
	has_changed(block);
	freed(region, was, nr_owned);
}

/* Which pages of a block a folio covers, one bit each. */
static inline u64 pages_in_block(u64 index, u32 nr_pages)
{
	return nr_pages >= BLOCK_PAGES ? ~0ULL : ((1ULL << nr_pages) - 1) << (index % BLOCK_PAGES);
}

/*
 * Set a bit for each page of a block that does not exist. The result is in a map, whose values the verifier does not
 * track.
 */
static inline void mark_holes(u64 mapping, u64 first, u64 *holes)
{
	u64 entry = xa_descend(mapping, first);
	/* no node: nothing, a large folio, or all that there is is the page of index 0 */
	if (!xa_is_node(entry)) {
		bool is_alone = entry == RD(u64, mapping, OFF_MAPPING_XA_HEAD);
		*holes = !entry ? ~0ULL : is_alone ? ~1ULL : 0;
		return;
	}
	u64 slot = entry - 2 + OFF_XA_NODE_SLOTS;
	u64 absent = 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < BLOCK_PAGES; i += READ_AT_ONCE, slot += READ_AT_ONCE * sizeof(slot)) {
		u64 entries[READ_AT_ONCE];
		bpf_probe_read_kernel(entries, sizeof(entries), (void *)slot);
		for (u32 j = 0; j < READ_AT_ONCE; j++)
			absent |= is_zero(entries[j]) << (i + j);
	}
	*holes = absent;
}

/* Record that pages [first, end) were given back but keep their words. User space ignores words older than this. */
static inline void punch(struct region *region, u32 id, u64 first, u64 end)
{
	region->punched_us = now_us();
	struct event_punch *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return;
	}
	head(&event->event, EVENT_PUNCH);
	event->id = id;
	event->first = first;
	event->end = end;
	events.ringbuf_submit(event, 0);
}

/*
 * Whether a word belongs to a page that was given back and kept its word. A word younger than the last punch is from a
 * thread that is also about to add this page.
 */
static inline bool outlived(struct region *region, u64 word)
{
	return word >= FIRST_OWNED && (word & (FIRST_OWNED - 1)) < region->punched_us;
}

static inline void overwrite(struct region *region, u32 id, u64 *at, u64 word)
{
	if (outlived(region, *at))
		freed(id, *at, 1);
	*at = word;
}

int mm_filemap_delete_from_page_cache(struct bpf_raw_tracepoint_args *ctx)
{
	u64 folio = ctx->args[0];
	u32 id = 0;
	/*
	 * shmem pages are swap-backed, hugetlb pages compound; pages of ordinary files are neither, and most calls end
	 * here
	 */
	if (!(RD(u64, folio, 0) & (1ULL << BIT_PG_SWAPBACKED | 1ULL << BIT_PG_HEAD)))
		return 0;
	u64 mapping = RD(u64, folio, OFF_FOLIO_MAPPING);
	struct region *region = region_at(mapping, &id);
	if (!region)
		return 0;
	u64 inode = RD(u64, mapping, OFF_MAPPING_HOST);
	u64 index = RD(u64, folio, OFF_FOLIO_INDEX);
	u32 order = folio_order(folio) & 31;
	u32 nr_pages = 1U << order;
	/*
	 * Without references to the inode this is its teardown, which a single task does. Otherwise pages are given
	 * back.
	 */
	bool teardown = RD(u32, inode, OFF_INODE_COUNT) == 0;
	if (teardown) {
		begin_teardown(region, inode);
		region->torn_pages += nr_pages;
	}
	u64 swapped = teardown ? region->last.swapped : region->now.swapped;
	u64 pages_now = RD(u64, mapping, OFF_MAPPING_NRPAGES) + swapped; /* this folio still counts */
	if (!region->huge && pages_now > region->peak_pages)
		region->peak_pages = pages_now;
	if (region->huge)
		index = hugetlb_index(index, order);
	if (nr_pages > BLOCK_PAGES && !region->huge && !teardown) {
		/* too many words for the verifier: user space handles them */
		punch(region, id, index, index + nr_pages);
		return 0;
	}
	if (!teardown) {
		struct block *block = block_of(id, index, true);
		if (block && (region->huge || nr_pages == 1))
			free_page(block, id, index, nr_pages);
		else if (block)
			free_folio(block, id, pages_in_block(index, nr_pages));
		return 0;
	}
	if (region->huge)
		nr_pages = 1;
	for (u32 i = 0; i < MAX_FOLIO_BLOCKS; i++) {
		if (i * BLOCK_PAGES >= nr_pages)
			break;
		struct block *block = block_of(id, index + i * BLOCK_PAGES, false);
		if (block)
			block->torn |= pages_in_block(index, nr_pages);
	}
	return 0;
}

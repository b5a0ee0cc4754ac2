// SPDX-License-Identifier: GPL-2.0-only
/* Pages: touched, and given back. */

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
	u32 region = 0;
	u64 index = 0;
	if (!process) /* most of the host's faults end here */
		return 0;
	struct space *space = lent_space(process);
	if (!space || !find_page(space, address, &region, &index))
		return 0;

	struct usage *usage = usage_of(region, tgid, process->start_time_ns);
	if (usage)
		__sync_fetch_and_add(&usage->faults, 1);
	u64 mapping = mapping_of(region, address);
	if (!mapping)
		return 0;
	struct block *block = block_of(region, index);
	/*
	 * Only the region itself knows whether this fault makes the page or maps one that is there. A word alone does
	 * not: its fault may have failed (no permission, beyond the end, no room), its page may be gone unseen.
	 */
	bool exists = page_exists(mapping, index);
	if (!block) {
		if (!exists)
			lose(LOST_PAGES);
		return 0;
	}
	u64 *word = &block->words[index % BLOCK_PAGES];
	if (!exists) {
		*word = ((u64)tgid << WHEN_BITS) | now_us();
		if (usage)
			__sync_fetch_and_add(&usage->touched_pages, 1);
	} else if (*word == WORD_ABSENT) {
		*word = WORD_EXISTED;
	} else if (*word == WORD_FREED) {
		*word = WORD_REAPPEARED;
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

/* What it has now is its last account; the pages go next, one by one. */
static inline void begin_teardown(struct region *region, struct region_key *key, u64 inode)
{
	u64 info = inode - OFF_SHMEM_VFS_INODE;
	region->final_pages =
		region->huge ? RD(u64, inode, OFF_INODE_BLOCKS) / (PAGE_SIZE / 512) : RD(u64, info, OFF_SHMEM_ALLOCED);
	region->final_swapped = region->huge ? 0 : RD(u64, info, OFF_SHMEM_SWAPPED);
	region->gone_us = now_us();
	struct event_gone *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return;
	}
	head(&event->event, EVENT_GONE, bpf_get_current_pid_tgid() >> 32, 0);
	event->key = *key;
	event->id = region->id;
	events.ringbuf_submit(event, 0);
}

int mm_filemap_delete_from_page_cache(struct bpf_raw_tracepoint_args *ctx)
{
	u64 folio = ctx->args[0];
	struct region_key key = {};
	/* shmem is swap-backed, hugetlb a compound page; an ordinary file's page is neither, and most end here */
	if (!(RD(u64, folio, 0) & (1ULL << BIT_PG_SWAPBACKED | 1ULL << BIT_PG_HEAD)))
		return 0;
	u64 inode = RD(u64, RD(u64, folio, OFF_FOLIO_MAPPING), OFF_MAPPING_HOST);
	key_of(inode, &key);
	struct region *region = regions.lookup(&key);
	if (!region)
		return 0;
	u64 index = RD(u64, folio, OFF_FOLIO_INDEX);
	u32 nr_pages = 1U << (folio_order(folio) & 31);
	/* The last reference is gone: this is the teardown, not pages given back. It is one task's work. */
	bool teardown = RD(u32, inode, OFF_INODE_COUNT) == 0;
	if (teardown && !region->gone_us)
		begin_teardown(region, &key, inode);
	if (teardown)
		region->torn_pages += nr_pages;
	if (region->huge)
		return 0;
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

// SPDX-License-Identifier: GPL-2.0-only
/* Regions: adding, measuring and forgetting them. */

static inline void key_of(u64 inode, struct region_key *key)
{
	key->ino = RD(u64, inode, OFF_INODE_INO);
	key->generation = RD(u32, inode, OFF_INODE_GENERATION);
	key->dev = RD(u32, RD(u64, inode, OFF_INODE_SB), OFF_SB_DEV);
}

/* Compare a region with an inode. SysV sets the inode number after creation; hugetlbfs has no generations. */
static inline bool is_of(struct region *region, u64 inode)
{
	u32 generation = RD(u32, inode, OFF_INODE_GENERATION);
	return region->key.generation == generation && (generation || region->key.ino == RD(u64, inode, OFF_INODE_INO));
}

static inline u32 place_of(u32 id)
{
	return id & ((1 << SLOT_BITS) - 1);
}

static inline struct region *region_by_id(u32 id)
{
	u32 place = place_of(id);
	struct region *region = regions.lookup(&place);
	return region && id && region->id == id ? region : NULL;
}

static inline struct filter *filter_of(u64 mapping)
{
	u32 hash = (mapping * 0x9e3779b97f4a7c15ULL) >> (64 - FILTER_BITS);
	return filters.lookup(&hash);
}

/*
 * The region of an address space, if it is known. Most shared memory of the host is not, and takes the first return.
 * This does not check that the address still belongs to the same inode.
 */
static inline struct region *region_on(u64 mapping)
{
	struct filter *filter = filter_of(mapping);
	if (!filter)
		return NULL;
	if (filter->mapping == mapping) {
		struct region *region = region_by_id(filter->region);
		if (region && region->mapping == mapping)
			return region;
	} else if (!filter->more) {
		return NULL;
	}
	u32 *id = ids.lookup(&mapping);
	return id ? region_by_id(*id) : NULL;
}

/* Make region_on() find the region. */
static inline void let_through(u64 mapping, u32 id)
{
	struct filter *filter = filter_of(mapping);
	u64 what = (u64)filter; /* an address that no other claim uses */
	if (!filter)
		return;
	if (!filter->mapping && claim(what, &id)) {
		bool free = !*(volatile u64 *)&filter->mapping;
		if (free) {
			filter->region = id;
			barrier();
			filter->mapping = mapping;
		}
		claims.delete(&what);
		if (free)
			return;
	}
	__sync_fetch_and_add(&filter->more, 1);
}

static inline void keep_out(u64 mapping)
{
	struct filter *filter = filter_of(mapping);
	if (!filter || ids.delete(&mapping)) /* another thread has removed it */
		return;
	if (filter->mapping == mapping)
		filter->mapping = 0;
	else
		__sync_fetch_and_add(&filter->more, -1);
}

/* The region of an address space, if it is known and still has the same inode. */
static inline struct region *region_at(u64 mapping, u32 *id)
{
	struct region *region = region_on(mapping);
	if (!region)
		return NULL;
	*id = region->id;
	if (is_of(region, RD(u64, mapping, OFF_MAPPING_HOST)))
		return region;
	keep_out(mapping); /* the inode is gone, and its memory was reused for another */
	return NULL;
}

static inline u32 magic_of(u64 inode)
{
	u32 magic = RD(u64, RD(u64, inode, OFF_INODE_SB), OFF_SB_MAGIC);
	return magic == TMPFS_MAGIC || magic == HUGETLBFS_MAGIC ? magic : 0;
}

static inline void measure_inode(struct region *region, u64 inode, struct measured *into)
{
	into->size_bytes = RD(u64, inode, OFF_INODE_SIZE);
	if (region->huge) {
		into->pages = RD(u64, inode, OFF_INODE_BLOCKS) / (PAGE_SIZE / 512);
		return;
	}
	/* as in shmem_recalc_inode(): clean pages may have been dropped without updating i_blocks */
	into->swapped = RD(u64, inode - OFF_SHMEM_VFS_INODE, OFF_SHMEM_SWAPPED);
	into->pages = RD(u64, region->mapping, OFF_MAPPING_NRPAGES) + into->swapped;
}

/* Call this when a process's mappings change, or the region they belong to: cached mappings become invalid. */
static inline void mappings_changed(void)
{
	struct state *state = state_now();
	if (state)
		__sync_fetch_and_add(&state->nr_mappings, 1);
}

/* The region of an inode, added if it is new. */
static inline struct region *enter_region(u64 inode, u32 magic, u32 *id)
{
	u64 mapping = RD(u64, inode, OFF_INODE_MAPPING);
	struct region *region = region_at(mapping, id);
	struct state *state = state_now();
	if (region)
		return region;
	if (!state || (state->only_dev && state->only_dev != RD(u32, RD(u64, inode, OFF_INODE_SB), OFF_SB_DEV)))
		return NULL;
	if (free_regions.pop(id)) {
		lose(LOST_REGIONS);
		return NULL;
	}
	count_room(ROOM_FREE + FREE_REGION, -1);
	u32 place = place_of(*id);
	region = regions.lookup(&place);
	if (!region)
		return NULL;
	__builtin_memset(region, 0, sizeof(*region));
	key_of(inode, &region->key);
	region->mapping = mapping;
	region->huge = magic == HUGETLBFS_MAGIC;
	measure_inode(region, inode, &region->now);
	region->start_pages = region->now.pages;
	barrier();
	region->id = *id;
	if (ids.insert(&mapping, id)) { /* another thread was faster, or the map is full */
		region->id = 0;
		give_back(FREE_REGION, *id);
		u32 *other = ids.lookup(&mapping);
		if (!other) {
			lose(LOST_REGIONS);
			return NULL;
		}
		*id = *other;
		return region_by_id(*id);
	}
	let_through(mapping, *id);
	mappings_changed(); /* a private mapping of it belonged to no region until now */
	return region;
}

static inline void created_by(struct region *region, struct process *process)
{
	region->created_ns = bpf_ktime_get_ns();
	region->creator_tgid = process->tgid;
	region->creator_start_time_ns = process->start_time_ns;
	use(process);
}

/* The region of a file that the process has just created. */
static inline struct region *enter_made(u64 file, struct process *process, u32 *id)
{
	u64 inode = RD(u64, file, OFF_FILE_INODE);
	u32 magic = magic_of(inode);
	struct region *region = magic ? enter_region(inode, magic, id) : NULL;
	if (region)
		created_by(region, process);
	return region;
}

static inline void tell_of(struct region *region)
{
	u32 place = place_of(region->id);
	tell(region_changes.lookup(&place));
}

/* Report a region when the first process of the tree has created, mapped or written it. */
static inline void tell_region(struct region *region, u64 dentry, u32 tgid, u64 start_time_ns)
{
	if (region->used_ns)
		return;
	region->used_ns = bpf_ktime_get_ns();
	region->user_tgid = tgid;
	region->user_start_time_ns = start_time_ns;
	struct process *user = process_of(tgid);
	region->user_kind = user ? user->kind : OUTSIDE_TREE;
	if (user)
		use(user);
	u64 parent = RD(u64, dentry, OFF_DENTRY_PARENT);
	region->deep = RD(u64, parent, OFF_DENTRY_PARENT) != parent;
	long bytes = bpf_probe_read_kernel_str(region->name, NAME_BYTES, (void *)RD(u64, dentry, OFF_DENTRY_NAME));
	region->name_bytes = bytes > 0 ? bytes - 1 : 0;
	tell_of(region);
}

static inline void tell_file(struct region *region, u64 file, struct process *process)
{
	tell_region(region, RD(u64, file, OFF_FILE_DENTRY), process->tgid, process->start_time_ns);
}

/* Take the final measurement. From here on the pages go, one by one. */
static inline void begin_teardown(struct region *region, u64 inode)
{
	if (region->gone_us)
		return;
	measure_inode(region, inode, &region->last);
	if (!region->last.size_bytes) /* shmem_evict_inode() has set it to 0 */
		region->last.size_bytes = region->now.size_bytes;
	region->gone_us = now_us();
	tell_of(region);
}

/* ---- Programs that user space runs (BPF_PROG_TEST_RUN). It knows descriptors and ids, but no addresses. ---- */

static inline u64 file_at(u64 fd)
{
	u64 files = RD(u64, bpf_get_current_task(), OFF_TASK_FILES);
	u64 table = RD(u64, files, OFF_FILES_FDT);
	return fd < RD(u32, table, OFF_FDT_MAX_FDS) ? RD(u64, RD(u64, table, OFF_FDT_FD), fd * 8) : 0;
}

/* The id of the region that a descriptor of the caller refers to, added if it is new; 0: no room. */
int adopt(struct bpf_raw_tracepoint_args *ctx)
{
	u64 inode = RD(u64, file_at(ctx->args[0]), OFF_FILE_INODE);
	u32 magic = magic_of(inode);
	u32 id = 0;
	struct region *region = magic ? enter_region(inode, magic, &id) : NULL;
	if (!region)
		return 0;
	region->used_ns = bpf_ktime_get_ns();
	return id;
}

/* The inode of a region; 0: the region no longer exists. */
static inline u64 inode_of(struct region *region)
{
	u64 inode = RD(u64, region->mapping, OFF_MAPPING_HOST);
	return is_of(region, inode) && RD(u32, inode, OFF_INODE_COUNT) ? inode : 0;
}

/* Measure a region again. Returns whether it still exists. */
int measure(struct bpf_raw_tracepoint_args *ctx)
{
	struct region *region = region_by_id(ctx->args[0]);
	u64 inode = region && !region->gone_us ? inode_of(region) : 0;
	if (!inode)
		return 0;
	measure_inode(region, inode, &region->now);
	return 1;
}

static inline void forget_region(struct region *region)
{
	u64 mapping = region->mapping;
	u32 *known = ids.lookup(&mapping);
	if (known && *known == region->id) /* otherwise another region is at that address now */
		keep_out(mapping);
}

/* Make a region impossible to find. User space empties it once no program uses it any more. */
int forget(struct bpf_raw_tracepoint_args *ctx)
{
	struct region *region = region_by_id(ctx->args[0]);
	if (region)
		forget_region(region);
	return 0;
}

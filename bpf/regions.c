// SPDX-License-Identifier: GPL-2.0-only
/* Regions: met, measured, gone. */

static inline void key_of(u64 inode, struct region_key *key)
{
	key->ino = RD(u64, inode, OFF_INODE_INO);
	key->generation = RD(u32, inode, OFF_INODE_GENERATION);
	key->dev = RD(u32, RD(u64, inode, OFF_INODE_SB), OFF_SB_DEV);
}

/* SysV numbers its inode anew once it is made, and hugetlbfs knows no generations. */
static inline bool is_of(struct region *region, u64 inode)
{
	u32 generation = RD(u32, inode, OFF_INODE_GENERATION);
	return region->key.generation == generation && (generation || region->key.ino == RD(u64, inode, OFF_INODE_INO));
}

/* The region of an address space, if it is known. Most of the host's shared memory is not, and ends at the first line. */
static inline struct region *region_at(u64 mapping, u32 *id)
{
	u32 *known = ids.lookup(&mapping);
	if (!known)
		return NULL;
	*id = *known;
	struct region *region = regions.lookup(id);
	if (region && is_of(region, RD(u64, mapping, OFF_MAPPING_HOST)))
		return region;
	ids.delete(&mapping); /* the inode has gone, and another has come to its place */
	return NULL;
}

static inline u32 magic_of(u64 inode)
{
	u32 magic = RD(u64, RD(u64, inode, OFF_INODE_SB), OFF_SB_MAGIC);
	return magic == TMPFS_MAGIC || magic == HUGETLBFS_MAGIC ? magic : 0;
}

static inline void measure_inode(struct region *region, u64 inode)
{
	region->size_bytes = RD(u64, inode, OFF_INODE_SIZE);
	if (region->huge) {
		region->pages = RD(u64, inode, OFF_INODE_BLOCKS) / (PAGE_SIZE / 512);
		return;
	}
	/* as shmem_recalc_inode() would have it: clean pages may have been dropped behind the back of i_blocks */
	region->swapped = RD(u64, inode - OFF_SHMEM_VFS_INODE, OFF_SHMEM_SWAPPED);
	region->pages = RD(u64, region->mapping, OFF_MAPPING_NRPAGES) + region->swapped;
}

/* The region of an inode, entered if it is new. */
static inline struct region *enter_region(u64 inode, u32 magic, u32 *id)
{
	u64 mapping = RD(u64, inode, OFF_INODE_MAPPING);
	struct region fresh = {};
	struct region *region = region_at(mapping, id);
	u32 zero = 0;
	if (region)
		return region;
	u32 *last = last_id.lookup(&zero);
	if (!last)
		return NULL;
	*last += 1;
	*id = *last * NR_CPUS + bpf_get_smp_processor_id();
	key_of(inode, &fresh.key);
	fresh.mapping = mapping;
	fresh.huge = magic == HUGETLBFS_MAGIC;
	measure_inode(&fresh, inode);
	fresh.start_pages = fresh.pages;
	if (regions.insert(id, &fresh)) {
		lose(LOST_REGIONS);
		return NULL;
	}
	if (ids.insert(&mapping, id)) { /* another thread was first, or there is no room */
		regions.delete(id);
		u32 *other = ids.lookup(&mapping);
		if (!other) {
			lose(LOST_REGIONS);
			return NULL;
		}
		*id = *other;
	}
	return regions.lookup(id);
}

static inline void made_by(struct region *region, struct process *process)
{
	region->made_ns = bpf_ktime_get_ns();
	region->maker_tgid = bpf_get_current_pid_tgid() >> 32;
	region->maker_start_time_ns = process->start_time_ns;
}

/* The region of a file that the process has just made. */
static inline struct region *enter_made(u64 file, struct process *process, u32 *id)
{
	u64 inode = RD(u64, file, OFF_FILE_INODE);
	u32 magic = magic_of(inode);
	struct region *region = magic ? enter_region(inode, magic, id) : NULL;
	if (region)
		made_by(region, process);
	return region;
}

/* Tell user space of a region, once. */
static inline void tell(struct region *region, u32 id, u64 file, struct process *process)
{
	if (region->told)
		return;
	region->told = 1;
	struct event_region *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return;
	}
	head(&event->event, EVENT_REGION, bpf_get_current_pid_tgid() >> 32, process->start_time_ns);
	event->key = region->key;
	event->size_bytes = region->size_bytes;
	event->made_ns = region->made_ns;
	event->maker_start_time_ns = region->maker_start_time_ns;
	event->maker_tgid = region->maker_tgid;
	event->id = id;
	event->magic = region->huge ? HUGETLBFS_MAGIC : TMPFS_MAGIC;
	u64 dentry = RD(u64, file, OFF_FILE_DENTRY);
	long bytes = bpf_probe_read_kernel_str(event->name, NAME_BYTES, (void *)RD(u64, dentry, OFF_DENTRY_NAME));
	event->name_bytes = bytes > 0 ? bytes - 1 : 0;
	events.ringbuf_submit(event, 0);
}

/* What it has now is its last account; the pages go next, one by one. */
static inline void begin_teardown(struct region *region, u32 id, u64 inode)
{
	if (region->gone_us)
		return;
	u64 size_bytes = region->size_bytes;
	measure_inode(region, inode);
	if (!region->size_bytes) /* shmem_evict_inode() has taken it away */
		region->size_bytes = size_bytes;
	region->gone_us = now_us();
	struct event_gone *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return;
	}
	head(&event->event, EVENT_GONE, bpf_get_current_pid_tgid() >> 32, 0);
	event->key = region->key;
	event->id = id;
	events.ringbuf_submit(event, 0);
}

/* ---- What user space runs itself (BPF_PROG_TEST_RUN): it knows descriptors and numbers, not addresses ---- */

static inline u64 file_at(u64 fd)
{
	u64 files = RD(u64, bpf_get_current_task(), OFF_TASK_FILES);
	u64 table = RD(u64, RD(u64, files, OFF_FILES_FDT), OFF_FDT_FD);
	return RD(u64, table, fd * 8);
}

/* The id of the region that a descriptor of the caller's is of, entered if it is new; 0: there is no room. */
int adopt(struct bpf_raw_tracepoint_args *ctx)
{
	u64 inode = RD(u64, file_at(ctx->args[0]), OFF_FILE_INODE);
	u32 magic = magic_of(inode);
	u32 id = 0;
	struct region *region = magic ? enter_region(inode, magic, &id) : NULL;
	if (!region)
		return 0;
	region->told = 1;
	return id;
}

/* Bring what is known of a region up to date: whether it is still there. */
int measure(struct bpf_raw_tracepoint_args *ctx)
{
	u32 id = ctx->args[0];
	struct region *region = regions.lookup(&id);
	if (!region || region->gone_us)
		return 0;
	u64 inode = RD(u64, region->mapping, OFF_MAPPING_HOST);
	if (!is_of(region, inode) || !RD(u32, inode, OFF_INODE_COUNT))
		return 0;
	measure_inode(region, inode);
	return 1;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults tier: who first touched each page, by tracepoints alone.
 *
 * A page fault says an address and a process. The ranges a process has of regions turn the address into (region, page
 * index); the region's own XArray says whether that page is there already. Where it is not, this fault is what makes it.
 */

/* What was last found on a CPU, so that it is not looked up for each fault. */
struct last {
	u64 nr_changes; /* of ranges, by then: the next one ends it */
	u32 nobody;	/* a process that has no ranges */
	u32 tgid;	/* one that has this */
	struct range range;
	u32 usage; /* of the process and the region: its number */
	u32 reserved;
	struct last_block block; /* with it, a cache line */
};
BPF_TABLE("array", u32, struct last, lasts, NR_CPUS);

/* The range that has an address. The verifier must forget which slot it was, hence the copy. */
static inline bool find_range(struct ranges *all, u64 address, struct range *found)
{
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *range = &all->slot[i];
		if (i >= all->count)
			return false;
		if (address >= range->start && address < range->end) {
			*found = *range;
			return true;
		}
	}
	return false;
}

/* The same by the kernel's own tree, of a process that maps more than there are slots for. */
static inline bool find_range_by_vma(u64 address, struct range *found)
{
	u64 vma = vma_at(RD(u64, bpf_get_current_task(), OFF_TASK_MM), address);
	u64 file = vma ? RD(u64, vma, OFF_VMA_FILE) : 0;
	if (!file)
		return false;
	struct region *region = region_at(RD(u64, RD(u64, file, OFF_FILE_INODE), OFF_INODE_MAPPING), &found->region);
	if (!region || region->huge)
		return false;
	found->first_index = RD(u64, vma, OFF_VMA_PGOFF);
	found->start = RD(u64, vma, OFF_VMA_START);
	found->end = RD(u64, vma, OFF_VMA_END);
	return true;
}

/* Whether an address is of a region that the process maps: it is in the range that was last found, then. */
static inline bool in_range(struct last *last, u32 tgid, u64 address)
{
	if (last->tgid == tgid && address >= last->range.start && address < last->range.end)
		return true;
	struct process *process = tracked(tgid);
	struct ranges *all = process ? ranges_of(tgid, process) : NULL;
	if (!all) {
		last->nobody = tgid;
		return false;
	}
	last->tgid = last->usage = 0;
	if (!find_range(all, address, &last->range) && !(all->more && find_range_by_vma(address, &last->range)))
		return false;
	last->tgid = tgid;
	return true;
}

static inline void count_fault(struct last *last, u32 tgid)
{
	struct process *process = last->usage ? NULL : tracked(tgid);
	if (process)
		last->usage = usage_of(last->range.region, tgid, process->start_time_ns);
	struct usage *usage = usages.lookup(&last->usage);
	if (usage && usage->key.region == last->range.region) /* user space may have taken it */
		__sync_fetch_and_add(&usage->faults, 1);
}

/*
 * Whoever walks a stack, or copies in NMI, has faults disabled: such a one fails, and makes no page. To read the counter
 * disables them once more (copy_from_kernel_nofault).
 */
static inline bool may_fault(u64 error_code)
{
	return is_user_fault(error_code) || RD(u32, bpf_get_current_task(), OFF_TASK_PAGEFAULT_DISABLED) <= 1;
}

/* exceptions:page_fault_{user,kernel}(address, regs, error_code); read(2) into a shared buffer faults in the kernel */
int page_fault(struct bpf_raw_tracepoint_args *ctx)
{
	u64 address = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u32 cpu = bpf_get_smp_processor_id();
	u32 zero = 0;
	struct last *last = lasts.lookup(&cpu);
	u64 *changes = nr_range_changes.lookup(&zero);
	if (!last || !changes)
		return 0;
	u64 nr_changes = *(volatile u64 *)changes;		    /* before what they are changes of is looked at */
	if (last->nr_changes == nr_changes && last->nobody == tgid) /* most of the host's faults end here */
		return 0;
	if (!may_fault(ctx->args[2]))
		return 0;
	if (last->nr_changes != nr_changes) {
		last->nobody = last->tgid = 0;
		last->nr_changes = nr_changes;
	}
	if (!in_range(last, tgid, address))
		return 0;
	u32 id = last->range.region;
	u64 index = last->range.first_index + ((address - last->range.start) >> PAGE_SHIFT);
	struct region *region = region_by_id(id);
	if (!region)
		return 0;

	count_fault(last, tgid);
	struct block *block = same_block(&last->block, id, index);
	/*
	 * Only the region itself knows whether this fault makes the page or maps one that is there. A word alone does
	 * not: its fault may have failed (no permission, beyond the end, no room), its page may be gone unseen.
	 */
	bool exists = page_exists(region->mapping, index);
	if (!block) {
		if (!exists)
			lose(LOST_PAGES);
		return 0;
	}
	u64 *word = &block->words[index % BLOCK_PAGES];
	if (!exists) {
		u64 us = now_us();
		label_touch(AT_ENTRY, tgid, us);
		overwrite(region, id, word, (u64)tgid << WHEN_BITS | us);
		count_stack(AT_ENTRY, ctx, id, tgid, 1);
	} else if (*word == WORD_ABSENT) {
		*word = WORD_EXISTED;
	} else if (*word == WORD_FREED) {
		*word = WORD_REAPPEARED;
	} else {
		return 0;
	}
	has_changed(block->number);
	return 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults tier: who first touched each page, by tracepoints alone.
 *
 * A page fault says an address and a process. The ranges a process has of regions turn the address into (region, page
 * index); the region's own XArray says whether that page is there already. Where it is not, this fault is what makes it.
 */

/* The page of a region that an address is. The verifier must forget which slot it was, hence results by value. */
static inline bool find_page(struct ranges *all, u64 address, u32 *region, u64 *index)
{
	for (u32 i = 0; i < MAX_RANGES; i++) {
		struct range *range = &all->slot[i];
		if (i >= all->count)
			return false;
		if (address >= range->start && address < range->end) {
			*region = range->region;
			*index = range->first_index + ((address - range->start) >> PAGE_SHIFT);
			return true;
		}
	}
	return false;
}

/* The same by the kernel's own tree, of a process that maps more than there are slots for. */
static inline bool find_page_by_vma(u64 address, u32 *region, u64 *index)
{
	u64 vma = vma_at(RD(u64, bpf_get_current_task(), OFF_TASK_MM), address);
	u64 file = vma ? RD(u64, vma, OFF_VMA_FILE) : 0;
	if (!file)
		return false;
	struct region *found = region_at(RD(u64, RD(u64, file, OFF_FILE_INODE), OFF_INODE_MAPPING), region);
	if (!found || found->huge)
		return false;
	*index = RD(u64, vma, OFF_VMA_PGOFF) + ((address - RD(u64, vma, OFF_VMA_START)) >> PAGE_SHIFT);
	return true;
}

/* exceptions:page_fault_{user,kernel}(address, regs, error_code); read(2) into a shared buffer faults in the kernel */
int page_fault(struct bpf_raw_tracepoint_args *ctx)
{
	u64 address = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process *process = tracked(tgid);
	u32 id = 0;
	u64 index = 0;
	if (!process) /* most of the host's faults end here */
		return 0;
	struct ranges *all = ranges_of(tgid, process);
	if (!all)
		return 0;
	if (!find_page(all, address, &id, &index) && !(all->more && find_page_by_vma(address, &id, &index)))
		return 0;
	/*
	 * Whoever walks a stack, or copies in NMI, has faults disabled: such a one fails, and makes no page. To read the
	 * counter disables them once more (copy_from_kernel_nofault).
	 */
	if (RD(u32, bpf_get_current_task(), OFF_TASK_PAGEFAULT_DISABLED) > 1)
		return 0;
	struct region *region = region_by_id(id);
	if (!region)
		return 0;

	struct usage *usage = usage_of(id, tgid, process->start_time_ns);
	if (usage)
		__sync_fetch_and_add(&usage->faults, 1);
	struct block *block = block_of(id, index, true);
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
		count_stack(ctx, id, tgid, 1);
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

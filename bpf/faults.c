// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults tier: who first touched each page, using tracepoints only.
 *
 * A page fault gives an address and a process. The process's VMA tree turns the address into (region, page index). The
 * region's XArray says whether the page exists. If not, this fault makes it.
 */

/* A mapping [start, end), where start maps page first_index of the region. */
struct mapping {
	u64 start;
	u64 end;
	u64 first_index;
};

/* What was last looked up on a CPU, to avoid a lookup for each fault. */
struct last {
	u64 nr_lives; /* of struct state at that time; the cached values are valid until these change */
	u64 nr_mappings;
	u32 nobody; /* tgid of a process that is not of the tree */
	u32 tgid;   /* tgid of a tracked process, which has these mappings: */
	struct mapping shared;
	struct mapping other; /* of no region */
	u32 region;	      /* the region of `shared` */
	u32 usage;	      /* number of the usage of this region by this process */
	struct last_block block;
	u64 padding[2]; /* two full cache lines */
};
BPF_TABLE("array", u32, struct last, lasts, NR_CPUS);

static inline bool is_in(struct mapping *mapping, u64 address)
{
	return address >= mapping->start && address < mapping->end;
}

static inline void recall(struct last *last, struct state *state)
{
	u64 nr_lives = *(volatile u64 *)&state->nr_lives; /* read before the data whose changes it counts */
	u64 nr_mappings = *(volatile u64 *)&state->nr_mappings;
	if (last->nr_lives != nr_lives)
		last->nobody = 0;
	if (last->nr_lives != nr_lives || last->nr_mappings != nr_mappings)
		last->tgid = 0;
	last->nr_lives = nr_lives;
	last->nr_mappings = nr_mappings;
}

/* Whether the address is in a mapping of a region. If so, `last` describes it. */
static inline bool maps_region(struct last *last, u32 tgid, u64 address)
{
	if (last->tgid == tgid && is_in(&last->shared, address))
		return true;
	if (last->tgid == tgid && is_in(&last->other, address))
		return false;
	struct process *process = current_process(OF_TREE);
	if (!process || process->kind == OUTSIDE_TREE) {
		last->nobody = tgid;
		return false;
	}
	if (last->tgid != tgid) {
		last->shared.end = last->other.end = 0;
		last->tgid = tgid;
	}
	u64 vma = vma_at(RD(u64, bpf_get_current_task(), OFF_TASK_MM), address);
	if (!vma) /* the fault will grow a stack, or fail */
		return false;
	struct mapping mapping = {.start = RD(u64, vma, OFF_VMA_START), .end = RD(u64, vma, OFF_VMA_END)};
	u32 id = 0;
	struct region *region = mapped_region(vma, process, false, &id);
	if (!region || region->huge) { /* regions of huge pages are listed without their pages */
		last->other = mapping;
		return false;
	}
	mapping.first_index = RD(u64, vma, OFF_VMA_PGOFF);
	last->shared = mapping;
	last->region = id;
	last->usage = 0;
	return true;
}

static inline void count_fault(struct last *last, u32 tgid)
{
	struct process *process = last->usage ? NULL : tracked(tgid);
	if (process)
		last->usage = usage_of(last->region, tgid, process->start_time_ns);
	struct usage *usage = usages.lookup(&last->usage);
	if (usage && usage->key.region == last->region) /* user space may have emptied it */
		__sync_fetch_and_add(&usage->faults, 1);
}

/*
 * Whether a fault can make a page. Code that walks a stack or copies in NMI disables page faults; such a fault fails.
 * Reading the counter disables them once more (copy_from_kernel_nofault).
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
	struct last *last = lasts.lookup(&cpu);
	struct state *state = state_now();
	if (!last || !state)
		return 0;
	if (last->nr_lives == *(volatile u64 *)&state->nr_lives && last->nobody == tgid)
		return 0; /* most faults of the host end here */
	if (!may_fault(ctx->args[2]))
		return 0;
	recall(last, state);
	if (!maps_region(last, tgid, address))
		return 0;
	u32 id = last->region;
	u64 index = last->shared.first_index + ((address - last->shared.start) >> PAGE_SHIFT);
	struct region *region = region_by_id(id);
	if (!region)
		return 0;

	struct block *block = same_block(&last->block, id, index);
	/*
	 * Only the region's XArray tells whether this fault makes the page or maps an existing one. The word does not:
	 * an earlier fault may have failed (no permission, beyond the end, no memory), or the page may be gone unseen.
	 */
	bool exists = page_exists(region->mapping, index);
	if (!exists || !state->armed) /* armed, there must be room for who makes pages, for weeks */
		count_fault(last, tgid);
	if (!block) {
		if (!exists)
			lose(LOST_PAGES);
		return 0;
	}
	u64 *word = &block->words[index % BLOCK_PAGES];
	if (!exists) {
		u64 us = now_us();
		label_touch(AT_ENTRY, tgid, us);
		overwrite(region, id, word, word_of(tgid, us));
		count_stack(AT_ENTRY, ctx, id, tgid, 1);
	} else if (*word == WORD_ABSENT) {
		*word = WORD_EXISTED;
	} else if (*word == WORD_FREED) {
		*word = WORD_REAPPEARED;
	} else {
		return 0;
	}
	has_changed(block);
	return 0;
}

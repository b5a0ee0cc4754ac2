// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults tier: pages that fallocate(2) allocates in a tmpfs, without page faults.
 *
 * At the start of the call, note which pages of its range are absent. When it has succeeded, these pages are the
 * caller's. A page that another thread has added meanwhile by a fault has a word younger than the start.
 */

#define FALLOC_FL_KEEP_SIZE 1
/*
 * Limited by the verifier. For more, a program calls itself, at most 32 times (64 MiB) or 33, depending on the kernel.
 */
#define BLOCKS_AT_ONCE 8

struct enter { /* syscalls:sys_enter_*: /sys/kernel/tracing/events/syscalls/sys_enter_fallocate/format */
	u64 common;
	u64 number;
	u64 args[6];
};

struct allocation {
	u64 mapping;
	u64 first; /* page index, like the next two */
	u64 end;
	u64 at;	  /* all pages before this one are done */
	u64 word; /* of the pages that the call adds */
	u64 since_us;
	u64 nr_made;
	/* for the current block, one bit per page; kept here because the verifier does not track map values */
	u64 asked_for;
	u64 absent;
	u32 region;
	u32 under_way; /* the program has called itself */
};
BPF_TABLE("hash", u64, struct allocation, allocations, 1024); /* by pid_tgid */
BPF_TABLE("array", u32, u64, holes, NR_BLOCKS); /* by block number, one bit per page: absent at the start of the call */
BPF_PROG_ARRAY(again, 2);			/* the two programs, in this order */

/* Which pages of the block are in the range. */
static inline void look_at(struct allocation *asked, u64 first)
{
	asked->asked_for = ~0ULL;
	if (asked->first > first)
		asked->asked_for <<= asked->first - first;
	if (asked->end < first + BLOCK_PAGES)
		asked->asked_for &= (1ULL << (asked->end - first)) - 1;
}

/* Assign the pages that were absent. The call has added them all, or it fails; a faster fault keeps its word. */
static inline void take_made(struct allocation *asked, struct block *block, u64 made)
{
#pragma clang loop unroll(disable)
	for (u32 slot = 0; slot < BLOCK_PAGES; slot++, made >>= 1) {
		/* true also for a word without an owner */
		u64 is_older = ((block->words[slot] & (FIRST_OWNED - 1)) - asked->since_us) >> 63;
		if (!(made & is_older))
			continue;
		block->words[slot] = asked->word;
		asked->nr_made++;
	}
	has_changed(block);
}

/* Handle the next blocks, at the start or the end of the call. Returns whether there are more. */
static inline bool walk(struct allocation *asked, bool after)
{
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < BLOCKS_AT_ONCE; i++) {
		u64 first = asked->at & ~(BLOCK_PAGES - 1ULL);
		if (asked->at >= asked->end)
			return false;
		u32 number = find_block(asked->region, first, !after);
		struct block *block = ledger.lookup(&number);
		u64 *noted = holes.lookup(&number);
		asked->at = first + BLOCK_PAGES;
		if (!number || !block || !noted) {
			if (after)
				lose(LOST_PAGES);
			continue;
		}
		look_at(asked, first);
		if (after)
			take_made(asked, block, *noted & asked->asked_for);
		else
			mark_holes(asked->mapping, first, &asked->absent);
		*noted = (*noted & ~asked->asked_for) | (asked->absent & asked->asked_for);
	}
	return asked->at < asked->end;
}

static inline void begin_allocation(struct enter *ctx, u64 thread)
{
	struct allocation asked = {};
	struct process *process = tracked(thread >> 32);
	u64 bytes = ctx->args[3];
	if (!process || ctx->args[1] & ~FALLOC_FL_KEEP_SIZE || (s64)bytes <= 0 || (s64)ctx->args[2] < 0)
		return;
	u64 inode = RD(u64, file_at((u32)ctx->args[0]), OFF_FILE_INODE);
	if (magic_of(inode) != TMPFS_MAGIC || !enter_region(inode, TMPFS_MAGIC, &asked.region))
		return;
	asked.mapping = RD(u64, inode, OFF_INODE_MAPPING);
	asked.first = asked.at = ctx->args[2] >> PAGE_SHIFT;
	asked.end = (ctx->args[2] + bytes + PAGE_SIZE - 1) >> PAGE_SHIFT;
	asked.since_us = now_us();
	allocations.update(&thread, &asked);
}

/* fallocate(fd, mode, offset, bytes) */
int sys_enter_fallocate(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct allocation *asked = allocations.lookup(&thread);
	if (!asked || !asked->under_way) {
		allocations.delete(&thread); /* of an earlier call whose end was not seen */
		begin_allocation(ctx, thread);
		asked = allocations.lookup(&thread);
	}
	if (!asked)
		return 0;
	asked->under_way = walk(asked, false);
	if (asked->under_way)
		again.call(ctx, 0);
	asked->end = asked->at < asked->end ? asked->at : asked->end; /* the limit of calls to itself is reached */
	asked->at = asked->first;
	asked->under_way = 0;
	return 0;
}

int sys_exit_fallocate(struct leave *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 tgid = thread >> 32;
	struct process *process = tracked(tgid);
	struct allocation *asked = allocations.lookup(&thread);
	if (!asked)
		return 0;
	if (!process || ctx->result) {
		allocations.delete(&thread);
		return 0;
	}
	if (!asked->word) {
		u64 us = now_us();
		label_touch(AT_FALLOCATE, tgid, us);
		asked->word = (u64)tgid << WHEN_BITS | us;
	}
	if (walk(asked, true))
		again.call(ctx, 1);
	if (asked->nr_made) {
		usage_of(asked->region, tgid, process->start_time_ns);
		count_stack(AT_FALLOCATE, ctx, asked->region, tgid, asked->nr_made);
	}
	allocations.delete(&thread);
	return 0;
}

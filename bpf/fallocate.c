// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults tier: the pages that fallocate(2) makes in a tmpfs, without a fault.
 *
 * When it begins it is noted which pages of its interval are not there; once it has done its work they are, and are its
 * own. What other threads may have made meanwhile by a fault has a word that is younger than the beginning.
 */

#define FALLOC_FL_KEEP_SIZE 1
/* That the verifier follows. For more, a program calls itself, as often as the kernel lets it: 32 times (64 MiB), or 33. */
#define BLOCKS_AT_ONCE 8

struct enter { /* of syscalls:sys_enter_*: /sys/kernel/tracing/events/syscalls/sys_enter_fallocate/format */
	u64 common;
	u64 number;
	u64 args[6];
};

struct allocation {
	u64 mapping;
	u64 first; /* page, and so on */
	u64 end;
	u64 at;	  /* all before are done with */
	u64 word; /* of the pages it makes */
	u64 since_us;
	u64 nr_made;
	/* of the block in hand, a bit per page: here the verifier does not follow what they may be */
	u64 asked_for;
	u64 absent;
	u32 region;
	u32 under_way; /* the program has called itself */
};
BPF_TABLE("hash", u64, struct allocation, allocations, 1024); /* by pid_tgid */
BPF_TABLE("array", u32, u64, holes, NR_BLOCKS); /* by number of the block, bit per page: not there when one began */
BPF_PROG_ARRAY(again, 2);			/* the two programs, in their order */

/* Which pages of the block are asked for. */
static inline void look_at(struct allocation *asked, u64 first)
{
	asked->asked_for = ~0ULL;
	if (asked->first > first)
		asked->asked_for <<= asked->first - first;
	if (asked->end < first + BLOCK_PAGES)
		asked->asked_for &= (1ULL << (asked->end - first)) - 1;
}

/* The call has made them all, else it fails; they are another's if a fault was faster. */
static inline void take_made(struct allocation *asked, struct block *block, u64 made)
{
#pragma clang loop unroll(disable)
	for (u32 slot = 0; slot < BLOCK_PAGES; slot++, made >>= 1) {
		/* nobody's is older, too */
		u64 is_older = ((block->words[slot] & (FIRST_OWNED - 1)) - asked->since_us) >> 63;
		if (!(made & is_older))
			continue;
		block->words[slot] = asked->word;
		asked->nr_made++;
	}
	has_changed(block);
}

/* The next blocks, before the call or after it. Whether there are more. */
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
		allocations.delete(&thread); /* one whose end was not seen */
		begin_allocation(ctx, thread);
		asked = allocations.lookup(&thread);
	}
	if (!asked)
		return 0;
	asked->under_way = walk(asked, false);
	if (asked->under_way)
		again.call(ctx, 0);
	asked->end = asked->at < asked->end ? asked->at : asked->end; /* it may call itself no more */
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

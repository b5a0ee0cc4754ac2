// SPDX-License-Identifier: GPL-2.0-only
/*
 * The maps, and what all programs use.
 *
 * bcc compiles one text: this file, then those that the tier names (tracer/kernel.py). Both tiers: processes.c, regions.c,
 * ledger.c, labels.c, stacks.c. Then the exact tier: inodes.c, pages.c; the faults tier: ranges.c, faults.c,
 * fallocate.c. All are attached by tracer/probes.py, never by bcc's magic prefixes.
 *
 * Knobs (-D): T0_NS, T0_BOOT_NS, NR_BLOCKS, NR_PROCESSES, NR_REGIONS, NR_USAGES, EVENT_PAGES; TRACE_ALL: every process
 * is tracked; WATCH_EXEC: tell of every exec on the host, and track it until user space says no; STACKS: count pages by
 * user stack.
 */
#define PAGE_SIZE 4096
#define PAGE_SHIFT 12
#include "wire.h"
#include "compat.h"

#define CLONE_VM 0x00000100
#define CLONE_THREAD 0x00010000
#define VM_MAYSHARE 0x00000080 /* MAP_SHARED, read-only mappings too: those have no VM_SHARED */
#define TMPFS_MAGIC 0x01021994
#define HUGETLBFS_MAGIC 0x958458f6
#define MAX_FOLIO_BLOCKS 8 /* 2 MiB */
#define FILTER_BITS 16
#ifndef BPF_F_MMAPABLE
#define BPF_F_MMAPABLE (1U << 10)
#endif
#define barrier() __asm__ __volatile__("" ::: "memory")

/* ---- Maps ---- */

/* Which user space maps, and reads in place. */
BPF_F_TABLE("array", u32, struct block, ledger, NR_BLOCKS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, changes, NR_BLOCKS, BPF_F_MMAPABLE); /* by number of the block: it has changed */
BPF_F_TABLE("array", u32, struct region, regions, NR_REGIONS, BPF_F_MMAPABLE); /* by the place in its id */
BPF_F_TABLE("array", u32, struct usage, usages, NR_USAGES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, losses, NR_LOSSES, BPF_F_MMAPABLE);
/* Where in the arrays what is, and which places are free. Number 0 is none. */
BPF_TABLE("hash", struct part, u32, parts, NR_BLOCKS);
BPF_TABLE("hash", struct usage_key, u32, usage_numbers, NR_USAGES);
BPF_QUEUE(free_blocks, u32, NR_BLOCKS);
BPF_QUEUE(free_regions, u32, NR_REGIONS); /* ids */
BPF_QUEUE(free_usages, u32, NR_USAGES);
BPF_TABLE("array", u32, struct filter, filters, 1 << FILTER_BITS);
BPF_TABLE("hash", u64, u32, ids, NR_REGIONS); /* by the address of its struct address_space */
BPF_TABLE("hash", u64, u32, claims, 1024);    /* what is being written, for one CPU at a time: see claim() */
BPF_TABLE("hash", u32, struct process, processes, NR_PROCESSES); /* by tgid */
struct tally {
	u64 nr_ended;  /* processes, so far */
	s64 nr_abroad; /* threads now at work in another's address space */
};
BPF_TABLE("array", u32, struct tally, tallies, 1);
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);

/* ---- What all use ---- */

static inline void lose(u32 what)
{
	u64 *count = losses.lookup(&what);
	if (count)
		__sync_fetch_and_add(count, 1);
}

static inline void head(struct event *event, u32 type, u32 tgid, u64 start_time_ns)
{
	event->time_ns = bpf_ktime_get_ns();
	event->start_time_ns = start_time_ns;
	event->tgid = tgid;
	event->type = type;
}

/* The process, if it is of the tree. */
static inline struct process *tracked(u32 tgid)
{
	struct process *process = processes.lookup(&tgid);
	return process && !process->stranger ? process : NULL;
}

static inline u64 now_us(void)
{
	return (bpf_ktime_get_ns() - T0_NS) / 1000;
}

#ifdef BY_FENTRY
/*
 * The verifier knows what such a program's arguments point to, and lets nobody hash a pointer. A pointer less another is a
 * number to it; the other one's own number is what it points to.
 */
BPF_TABLE("array", u32, u64, anchors, 1);

int anchor(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	u64 *anchor = anchors.lookup(&zero);
	if (anchor)
		*anchor = (u64)anchor;
	return 0;
}

static inline u64 number_of(u64 pointer)
{
	u32 zero = 0;
	u64 *anchor = anchors.lookup(&zero);
	if (!anchor)
		return 0;
	asm volatile("%0 -= %1" : "+r"(pointer) : "r"(anchor)); /* clang might add first, and take away then */
	return pointer + *anchor;
}
#endif

/*
 * Whoever gets it may write what the claim is of, if that is still as it was; then it lets go. BPF has no compare and
 * exchange before v5.12, and no lock for programs like these.
 */
static inline bool claim(u64 what, u32 *number)
{
	return !claims.insert(&what, number);
}

/*
 * ---- What is free. User space runs these (BPF_PROG_TEST_RUN), and takes nothing out of a map itself: while it is in bpf(2)
 * to do that, or to look something up, the kernel skips kprobes on that CPU (bpf_prog_active), and if it is preempted there
 * all of them that come meanwhile.
 */
#define FILLED_AT_ONCE 1024

static inline void give_back(u32 kind, u32 number)
{
	if (kind == FREE_BLOCK)
		free_blocks.push(&number, 0);
	else if (kind == FREE_REGION)
		free_regions.push(&number, 0);
	else
		free_usages.push(&number, 0);
}

/* To begin with, (kind, first, end). */
int fill(struct bpf_raw_tracepoint_args *ctx)
{
	u32 number = ctx->args[1];
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < FILLED_AT_ONCE; i++, number++) {
		if (number >= (u32)ctx->args[2])
			break;
		give_back(ctx->args[0], number);
	}
	return 0;
}

/* (kind, number), which has been read, and which nobody is at any more. */
int empty(struct bpf_raw_tracepoint_args *ctx)
{
	u32 kind = ctx->args[0];
	u32 number = ctx->args[1];
	u32 place = number & ((1 << SLOT_BITS) - 1);
	struct block *block = kind == FREE_BLOCK ? ledger.lookup(&number) : NULL;
	struct region *region = kind == FREE_REGION ? regions.lookup(&place) : NULL;
	struct usage *usage = kind == FREE_USAGE ? usages.lookup(&number) : NULL;
	if (block) {
		struct part part = block->part;
		parts.delete(&part);
		__builtin_memset(block, 0, sizeof(*block));
	}
	if (region) {
		__builtin_memset(region, 0, sizeof(*region));
		number += 1 << SLOT_BITS; /* another id for the next */
	}
	if (usage) {
		struct usage_key key = usage->key;
		usage_numbers.delete(&key);
		__builtin_memset(usage, 0, sizeof(*usage));
	}
	give_back(kind, number);
	return 0;
}

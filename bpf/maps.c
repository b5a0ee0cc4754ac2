// SPDX-License-Identifier: GPL-2.0-only
/*
 * The maps, and functions that all programs use.
 *
 * bcc compiles one text: this file, then the files of the tier (tracer/kernel/tiers.py). Both tiers use processes.c,
 * oom.c, regions.c, ledger.c, labels.c and stacks.c. The exact tier adds inodes.c and pages.c; the faults tier adds
 * mappings.c, faults.c and calls.c. All programs are attached by tracer/kernel/probes.py, none by bcc's name
 * prefixes.
 *
 * Defines (-D): NR_… stands for map sizes that user space sets when it creates the maps. EVENT_BYTES, LABEL_BYTES: ring
 * buffer sizes. STACKS: count pages by user stack. Whatever differs between traces is in struct state.
 */
#define PAGE_SIZE (1UL << PAGE_SHIFT) /* PAGE_SHIFT is one of the defines */
#include "wire.h"
#include "compat.h"

#define CLONE_THREAD 0x00010000
#define VM_MAYSHARE 0x00000080 /* MAP_SHARED; unlike VM_SHARED it is also set for read-only mappings */
#define TMPFS_MAGIC 0x01021994
#define HUGETLBFS_MAGIC 0x958458f6
/*
 * What a huge page covers where a page table is one page: 512 pages of 4 KiB, 2048 of 16 KiB. 8192 of 64 KiB would be
 * too many for the verifier, and since v6.10 no folio has more than 2048 (MAX_PAGECACHE_ORDER).
 */
#if PAGE_SHIFT == 12
#define MAX_FOLIO_BLOCKS 8
#else
#define MAX_FOLIO_BLOCKS 32
#endif
#define S_IFMT 0170000
#define S_IFREG 0100000
#define FILTER_BITS 16
#ifndef BPF_F_MMAPABLE
#define BPF_F_MMAPABLE (1U << 10)
#endif
#define barrier() __asm__ __volatile__("" ::: "memory")

/* ---- Maps ---- */

/* Arrays that user space mmaps and reads in place. */
BPF_F_TABLE("array", u32, struct block, ledger, NR_BLOCKS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct process, processes, NR_PROCESSES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct region, regions, NR_REGIONS, BPF_F_MMAPABLE); /* by the place in its id */
BPF_F_TABLE("array", u32, struct usage, usages, NR_USAGES, BPF_F_MMAPABLE);
/* Change flags of these arrays, cleared by user space before it reads; `told`: an event about changes was sent. */
BPF_F_TABLE("array", u32, u64, block_changes, NR_BLOCKS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, process_changes, NR_PROCESSES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, region_changes, NR_REGIONS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, usage_changes, NR_USAGES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, told, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, losses, NR_LOSSES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, room, NR_ROOM, BPF_F_MMAPABLE);
/* Indexes into the arrays, and queues of free places. Number 0 means none. */
BPF_TABLE("hash", struct part, u32, parts, NR_BLOCKS);
BPF_TABLE("hash", u32, u32, process_numbers, NR_PROCESSES); /* by tgid, of running processes */
BPF_TABLE("hash", struct usage_key, u32, usage_numbers, NR_USAGES);
BPF_QUEUE(free_blocks, u32, NR_BLOCKS);
BPF_QUEUE(free_processes, u32, NR_PROCESSES);
BPF_QUEUE(free_regions, u32, NR_REGIONS); /* ids */
BPF_QUEUE(free_usages, u32, NR_USAGES);
/* By a hash of the address_space's address: the first region with this hash, and how many more have it. */
struct filter {
	u64 mapping;
	u32 region;
	u32 more;
};
BPF_TABLE("array", u32, struct filter, filters, 1 << FILTER_BITS);
BPF_TABLE("hash", u64, u32, ids, NR_REGIONS); /* by the address of the struct address_space */
BPF_TABLE("hash", u64, u32, claims, 1024);    /* entries being written, by one CPU at a time: see claim() */
BPF_TABLE("array", u32, struct state, states, 1);
BPF_TABLE("array", u32, struct wanted, wanted, 1);
BPF_RINGBUF_OUTPUT(events, EVENT_BYTES / PAGE_SIZE);

/* ---- What all use ---- */

/* 1 if the value is 0, else 0. Without a branch, since the verifier follows each branch separately. */
static inline u64 is_zero(u64 value)
{
	u64 sign = ~(value | -value);
	OPAQUE(sign);
	return sign >> 63;
}

static inline void lose(u32 what)
{
	u64 *count = losses.lookup(&what);
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Add to one of enum room. */
static inline void count_room(u32 what, s64 more)
{
	u64 *count = room.lookup(&what);
	if (count)
		__sync_fetch_and_add(count, more);
}

static inline void head(struct event *event, u32 type)
{
	event->time_ns = bpf_ktime_get_ns();
	event->tgid = bpf_get_current_pid_tgid() >> 32;
	event->type = type;
}

static inline struct state *state_now(void)
{
	u32 zero = 0;
	return states.lookup(&zero);
}

/* Call this after writing a word. User space clears the flag before it reads. */
static inline void has_changed(struct block *block)
{
	u32 number = block->number;
	u64 *change = block_changes.lookup(&number);
	if (change)
		*change = 1;
}

/* Set a change flag, and send user space an event about it, unless one was sent since user space last looked. */
static inline void tell(u64 *change)
{
	u32 zero = 0;
	u64 *is_told = told.lookup(&zero);
	if (change)
		*change = 1;
	if (!is_told || *is_told)
		return;
	*is_told = 1;
	struct event *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) /* the buffer is full, so user space will read anyway */
		return;
	head(event, EVENT_NEWS);
	events.ringbuf_submit(event, 0);
}

static inline void tell_process(struct process *process)
{
	u32 number = process->number;
	tell(process_changes.lookup(&number));
}

/* The running process with this PID, if it is known. */
static inline struct process *process_of(u32 tgid)
{
	u32 *number = process_numbers.lookup(&tgid);
	return number ? processes.lookup(number) : NULL;
}

/* Likewise, if it is of the tree or a candidate. */
static inline struct process *tracked(u32 tgid)
{
	struct process *process = process_of(tgid);
	return process && process->kind != OUTSIDE_TREE ? process : NULL;
}

static inline u64 since_us(struct state *state)
{
	return (bpf_ktime_get_ns() - state->began_ns) / 1000;
}

static inline u64 now_us(void)
{
	struct state *state = state_now();
	return state ? since_us(state) : 0;
}

#ifdef BY_FENTRY
/*
 * The verifier tracks the types of pointers that an fentry program gets, and does not allow hashing them. The
 * difference of two pointers is a number to it. So subtract the address of this map value, and add that address as the
 * number stored in the value.
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
	/* in assembly, since clang might reorder the addition and the subtraction */
	asm volatile("%0 -= %1" : "+r"(pointer) : "r"(anchor));
	return pointer + *anchor;
}
#endif

/*
 * A lock per address: whoever inserts the claim may write, if the value has not changed since, and then deletes the
 * claim. BPF has no compare-and-exchange before v5.12, and no spin lock in programs of these types.
 */
static inline bool claim(u64 what, u32 *number)
{
	return !claims.insert(&what, number);
}

/*
 * ---- Free places ----
 *
 * User space runs these programs (BPF_PROG_TEST_RUN) and deletes no map entries itself. During bpf(2) calls that delete
 * or look up entries, the kernel skips kprobes on that CPU (bpf_prog_active). If such a call is preempted, all kprobes
 * on the CPU are skipped meanwhile.
 */
#define FILLED_AT_ONCE 128
#define EMPTIED_AT_ONCE 10 /* a program takes 12 arguments (MAX_BPF_FUNC_ARGS) */

static inline void give_back(u32 kind, u32 number)
{
	if (kind == FREE_BLOCK)
		free_blocks.push(&number, 0);
	else if (kind == FREE_PROCESS)
		free_processes.push(&number, 0);
	else if (kind == FREE_REGION)
		free_regions.push(&number, 0);
	else
		free_usages.push(&number, 0);
	count_room(ROOM_FREE + kind, 1);
}

/*
 * Fill a queue: (kind, first, end). One loop per kind: with the choice inside a single loop, verification took five
 * times as long.
 */
int fill(struct bpf_raw_tracepoint_args *ctx)
{
	u32 kind = ctx->args[0];
	u32 number = ctx->args[1];
	u32 end = ctx->args[2];
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < FILLED_AT_ONCE && kind == FREE_BLOCK && number < end; i++, number++)
		free_blocks.push(&number, 0);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < FILLED_AT_ONCE && kind == FREE_PROCESS && number < end; i++, number++)
		free_processes.push(&number, 0);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < FILLED_AT_ONCE && kind == FREE_REGION && number < end; i++, number++)
		free_regions.push(&number, 0);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < FILLED_AT_ONCE && kind == FREE_USAGE && number < end; i++, number++)
		free_usages.push(&number, 0);
	return 0;
}

static inline void empty_block(struct block *block, u32 number)
{
	struct part part = block->part;
	parts.delete(&part);
	__builtin_memset(block, 0, sizeof(*block));
	give_back(FREE_BLOCK, number);
}

static inline void empty_process(struct process *process, u32 number)
{
	__builtin_memset(process, 0, sizeof(*process));
	give_back(FREE_PROCESS, number);
}

static inline void empty_region(struct region *region, u32 id)
{
	__builtin_memset(region, 0, sizeof(*region));
	give_back(FREE_REGION, id + (1 << SLOT_BITS)); /* the next region here gets another id */
}

static inline void empty_usage(struct usage *usage, u32 number)
{
	struct usage_key key = usage->key;
	usage_numbers.delete(&key);
	__builtin_memset(usage, 0, sizeof(*usage));
	give_back(FREE_USAGE, number);
}

static inline void empty_one(u32 kind, u32 number)
{
	u32 place = number & ((1 << SLOT_BITS) - 1);
	struct block *block = kind == FREE_BLOCK ? ledger.lookup(&number) : NULL;
	struct process *process = kind == FREE_PROCESS ? processes.lookup(&number) : NULL;
	struct region *region = kind == FREE_REGION ? regions.lookup(&place) : NULL;
	struct usage *usage = kind == FREE_USAGE ? usages.lookup(&number) : NULL;
	if (block)
		empty_block(block, number);
	if (process)
		empty_process(process, number);
	if (region)
		empty_region(region, number);
	if (usage)
		empty_usage(usage, number);
}

/* Empty places: (kind, up to EMPTIED_AT_ONCE numbers, 0). They have been read, and no program uses them any more. */
int empty(struct bpf_raw_tracepoint_args *ctx)
{
	u64 numbers[EMPTIED_AT_ONCE];
	__builtin_memcpy(numbers, &ctx->args[1], sizeof(numbers));
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < EMPTIED_AT_ONCE; i++)
		if (numbers[i])
			empty_one(ctx->args[0], numbers[i]);
	return 0;
}

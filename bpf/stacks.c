// SPDX-License-Identifier: GPL-2.0-only
/* With STACKS: count the pages that each user stack made. Without: nothing. */

#ifdef STACKS
#define USER_STACK (1ULL << 8) /* BPF_F_USER_STACK */
#define NO_USER_STACK -14      /* EFAULT: a kernel thread has no user stack */
#define NR_STACKS 16384	       /* 17 MiB */

/*
 * Not bpf_get_stackid(): its table has one place per hash, and a stack is lost if another has its place. Of 1000 stacks
 * in 16384 places, about 30 would be lost.
 */
static long (*get_stack)(void *ctx, void *to, u32 bytes, u64 flags) = (void *)67;

BPF_TABLE("hash", u64, struct stack, stacks, NR_STACKS);	/* by stack number */
BPF_TABLE("hash", struct stacked_key, u64, stacked, NR_USAGES); /* pages ever made, including those given back */
/* Scratch space, one per reader: an fentry program can be preempted by others on its CPU, but not by itself. */
BPF_TABLE("percpu_array", u32, struct stack, walked, NR_READERS);

/* The number of the current stack: a hash seeded with the tgid, so that no process can forge another's. */
static inline u64 stack_of(u32 reader, void *ctx, u32 tgid)
{
	u64 number = tgid;
	struct stack *stack = walked.lookup(&reader);
	if (!stack)
		return NO_STACK;
	long bytes = get_stack(ctx, stack->addresses, STACK_DEPTH * sizeof(u64), USER_STACK);
	if (bytes <= 0) {
		if (bytes != NO_USER_STACK)
			lose(LOST_STACKS);
		return NO_STACK;
	}
	stack->count = bytes / sizeof(u64);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < STACK_DEPTH; i++) {
		if (i >= stack->count)
			break;
		number = (number ^ stack->addresses[i]) * 0x9e3779b97f4a7c15ULL;
		number ^= number >> 32;
	}
	number |= !number; /* never NO_STACK */
	if (!stacks.lookup(&number) && stacks.insert(&number, stack) && !stacks.lookup(&number)) {
		lose(LOST_STACKS);
		return NO_STACK;
	}
	return number;
}

static inline void count_stack(u32 reader, void *ctx, u32 region, u32 tgid, u32 nr_pages)
{
	struct stacked_key key = {.region = region, .tgid = tgid};
	struct process *process = process_of(tgid);
	u64 none = 0;
	if (!process)
		return;
	key.start_time_ns = process->start_time_ns;
	key.stack = stack_of(reader, ctx, tgid);
	u64 *pages = stacked.lookup_or_try_init(&key, &none);
	if (pages)
		__sync_fetch_and_add(pages, nr_pages);
	else
		lose(LOST_STACKS);
}
#else
#define count_stack(reader, ctx, region, tgid, nr_pages)
#endif

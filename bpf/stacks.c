// SPDX-License-Identifier: GPL-2.0-only
/* With STACKS: which code made the pages, by user stack; without, nothing. */

#ifdef STACKS
#define USER_STACK (1ULL << 8) /* BPF_F_USER_STACK */
#define NO_USER_STACK -14      /* EFAULT: a kernel thread has none */
#define NR_STACKS 16384	       /* a bucket each: of 1000 stacks, 30 find theirs taken */

struct stack {
	u64 addresses[STACK_DEPTH]; /* the innermost first; 0: there are no more */
};
BPF_TABLE("stacktrace", int, struct stack, stacks, NR_STACKS);
BPF_TABLE("hash", struct stacked_key, u64, stacked, NR_USAGES); /* pages ever made */

/*
 * Without BPF_F_REUSE_STACKID: the stack that a bucket has is that of pages counted by it, and one that comes to the same
 * bucket is lost.
 */
static inline void count_stack(void *ctx, u32 region, u32 tgid, u64 start_time_ns, u32 nr_pages)
{
	struct stacked_key key = {.region = region, .tgid = tgid, .start_time_ns = start_time_ns};
	u64 none = 0;
	int stack = stacks.get_stackid(ctx, USER_STACK);
	if (stack < 0 && stack != NO_USER_STACK)
		lose(LOST_STACKS);
	key.stack = stack < 0 ? NO_STACK : stack;
	u64 *pages = stacked.lookup_or_try_init(&key, &none);
	if (pages)
		__sync_fetch_and_add(pages, nr_pages);
	else
		lose(LOST_STACKS);
}
#else
#define count_stack(ctx, region, tgid, start_time_ns, nr_pages)
#endif

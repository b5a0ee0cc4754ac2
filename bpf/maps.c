// SPDX-License-Identifier: GPL-2.0-only
/*
 * The maps, and what all programs use.
 *
 * bcc compiles one text: this file, then those that the tier names (tracer/kernel.py). The exact tier: regions.c,
 * ledger.c, labels.c, stacks.c, inodes.c, pages.c, processes.c. The faults tier: regions.c, ledger.c, labels.c, stacks.c,
 * ranges.c, faults.c, processes.c. All are attached by tracer/probes.py, never by bcc's magic prefixes.
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
#define barrier() __asm__ __volatile__("" ::: "memory")

/* ---- Maps ---- */

BPF_TABLE("hash", struct block_key, struct block, ledger, NR_BLOCKS);
BPF_TABLE("hash", u32, struct process, processes, NR_PROCESSES); /* by tgid */
BPF_TABLE("hash", u32, struct region, regions, NR_REGIONS);	 /* by its id */
BPF_TABLE("hash", u64, u32, ids, NR_REGIONS);			 /* by the address of its struct address_space */
BPF_TABLE("hash", struct usage_key, struct usage, usages, NR_USAGES);
BPF_TABLE("array", u32, u64, losses, NR_LOSSES);
BPF_TABLE("percpu_array", u32, u32, last_id, 1);
BPF_TABLE("array", u32, struct block, blank_block, 1);
BPF_TABLE("array", u32, u64, rounds, 1);	     /* of user space's: how often it has asked what has changed */
BPF_QUEUE(changed, struct block_key, 2 * NR_BLOCKS); /* since it last asked, each block once a round */
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

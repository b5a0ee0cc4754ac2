// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults tier: who made each region and who first touched each page, by tracepoints alone.
 *
 * A page fault says an address and a process. The ranges a process has of tracked regions turn the address into
 * (region, page index); the region's own XArray says whether that page is there already. Where it is not, this fault
 * is what makes it, and the ledger word is written, once. No event is sent for a page, so none can be lost.
 *
 * bcc compiles one text: maps.c (knobs, maps, what all use), regions.c (made, mapped, unmapped), pages.c (touched, given
 * back), processes.c (fork, exec, exit), in this order. Probes carry the names of their tracepoints; all are attached
 * by tracer/probes.py, never by bcc's magic prefixes.
 *
 * Knobs (-D): T0_NS, NR_CPUS, NR_BLOCKS, NR_SPACES, NR_REGIONS, NR_USAGES, EVENT_PAGES; TRACE_ALL: every process is
 * tracked; WATCH_EXEC: tell of every exec on the host, and track it until user space says no.
 */
#define PAGE_SIZE 4096
#define PAGE_SHIFT 12
#include "wire.h"
#include "compat.h"

#define CLONE_VM 0x00000100
#define CLONE_THREAD 0x00010000
#define VM_SHARED 0x00000008
#define TMPFS_MAGIC 0x01021994
#define HUGETLBFS_MAGIC 0x958458f6
#define MAX_FOLIO_BLOCKS 8 /* 2 MiB */
#define barrier() __asm__ __volatile__("" ::: "memory")

/* ---- Maps ---- */

BPF_TABLE("hash", struct block_key, struct block, ledger, NR_BLOCKS);
BPF_TABLE("hash", u32, struct space, spaces, NR_SPACES); /* by tgid */
BPF_TABLE("hash", struct region_key, struct region, regions, NR_REGIONS);
BPF_TABLE("hash", u32, u64, mappings, NR_REGIONS); /* by region: the kernel's address of its struct address_space */
BPF_TABLE("hash", struct usage_key, struct usage, usages, NR_USAGES);
BPF_TABLE("array", u32, u64, losses, NR_LOSSES);
BPF_TABLE("percpu_array", u32, u32, last_id, 1);
BPF_TABLE("array", u32, struct block, blank_block, 1);
BPF_TABLE("array", u32, struct space, blank_space, 1);
/* What a thread's system call unmaps, [start, end), between its enter and its exit. */
struct interval {
	u64 start;
	u64 end;
};
BPF_TABLE("lru_hash", u64, struct interval, unmapping, 10240); /* by pid_tgid */
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

static inline u64 now_us(void)
{
	return (bpf_ktime_get_ns() - T0_NS) / 1000;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kills by the OOM killer, of any process of the host. The last ones stay in the map, so it does not matter how late
 * user space reads. The kernel marks one victim at a time (oom_lock in mm/oom_kill.c), so nothing here is raced for.
 */

/* enum mm_counter of include/linux/mm_types_task.h; that enum has no name, nor these another value since v4.5 */
#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SHMEMPAGES 3

BPF_F_TABLE("array", u32, struct oom, ooms, NR_OOMS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, nr_ooms, 1, BPF_F_MMAPABLE); /* all of them, also those that ooms has no more */

#ifndef HAVE_VICTIM_TASK
/*
 * Before Linux kernel commit 72ba14deb40a ("mm: update mark_victim tracepoints fields") (in v6.9, and in stable
 * kernels) the tracepoint gives a thread's PID alone. Find its task as find_task_by_pid_ns() in kernel/pid.c does: the
 * PIDs of the initial namespace, which numbers[0] of every struct pid refers to, are in an XArray.
 */
static inline u64 task_of(u32 tid)
{
#ifdef HAVE_PIDS
	u64 namespace = RD(u64, RD(u64, bpf_get_current_task(), OFF_TASK_PID), OFF_PID_NAMESPACE);
	u64 entry = namespace ? xa_descend(namespace + OFF_NAMESPACE_PIDS - OFF_MAPPING_XA_HEAD, tid) : 0;
	if (xa_is_node(entry))
		entry = RD(u64, entry - 2, OFF_XA_NODE_SLOTS + (tid & 63) * 8);
	u64 link = entry ? RD(u64, entry, OFF_PID_TASKS) : 0;
	return link ? link - OFF_TASK_PID_LINKS : 0;
#else
	return 0;
#endif
}
#endif

/* One of enum mm_counter, as the kernel's log shows it: up to a batch per CPU may not be added up yet. */
static inline s64 rss_pages(u64 mm, u32 counter)
{
#ifdef HAVE_RSS
#ifdef HAVE_RSS_BY_CPU
	/* Linux kernel commit f1a7941243c1 ("mm: convert mm's rss stats into percpu_counter") (in v6.2) */
	s64 pages = RD(s64, mm, OFF_MM_RSS + counter * SIZE_PERCPU_COUNTER);
#else
	s64 pages = RD(s64, mm, OFF_MM_RSS + counter * 8);
#endif
	return pages < 0 ? 0 : pages;
#else
	return UNKNOWN_PAGES;
#endif
}

#if defined(HAVE_MEMCG) && defined(MEMORY_CGROUPS)
#define MEMCG_DEPTH 32
#define FULL_PAGES 64 /* a charge that fails leaves less: MEMCG_CHARGE_BATCH in include/linux/memcontrol.h */

/* How many pages a struct page_counter still has room for. */
static inline s64 room_of(u64 counter)
{
	return RD(s64, counter, OFF_COUNTER_MAX) - RD(s64, counter, OFF_COUNTER_USAGE);
}

static inline u64 cgroup_of(u64 state)
{
	return RD(u64, RD(u64, RD(u64, state, OFF_STATE_CGROUP), OFF_CGROUP_NODE), OFF_NODE_ID);
}

/*
 * The task's memory cgroup, and that whose limit is reached: of it and those above, the one with the least room. The
 * kernel kills when a charge finds none (mem_cgroup_out_of_memory() in mm/memcontrol.c).
 */
static inline void find_limit(struct oom *oom, u64 task)
{
	u64 state = RD(u64, RD(u64, task, OFF_TASK_CGROUPS), OFF_CGROUPS_STATES + MEMORY_CGROUPS * 8);
	s64 least = FULL_PAGES;
	u64 full = 0;
	if (state)
		oom->cgroup = cgroup_of(state);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < MEMCG_DEPTH && state; i++) {
		u64 memcg = state - OFF_MEMCG_STATE;
		u64 memory = memcg + OFF_MEMCG_MEMORY;
		u64 both = memcg + OFF_MEMCG_MEMSW; /* memory and swap in cgroup v1; in v2 this counts swap alone */
		bool is_v1 = RD(u64, both, OFF_COUNTER_USAGE) >= RD(u64, memory, OFF_COUNTER_USAGE);
		s64 room = room_of(memory);
		if (room < least) {
			least = room;
			full = state;
			oom->limit_pages = RD(u64, memory, OFF_COUNTER_MAX);
		}
		room = room_of(both);
		if (is_v1 && room < least) {
			least = room;
			full = state;
			oom->limit_pages = RD(u64, both, OFF_COUNTER_MAX);
		}
		state = RD(u64, state, OFF_STATE_PARENT);
	}
	if (full)
		oom->limit_cgroup = cgroup_of(full);
}
#else
static inline void find_limit(struct oom *oom, u64 task)
{
}
#endif

/* oom:mark_victim(task, uid), or (pid): when the signal has been sent, and before the victim has done anything about it */
int mark_victim(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	u64 *count = nr_ooms.lookup(&zero);
	u32 place = count ? *count % NR_OOMS : 0;
	struct oom *oom = ooms.lookup(&place);
	if (!count || !oom)
		return 0;
#ifdef HAVE_VICTIM_TASK
	u64 task = ctx->args[0];
	u32 tid = 0;
#else
	u32 tid = ctx->args[0];
	u64 task = task_of(tid);
#endif
	u64 leader = task ? RD(u64, task, OFF_TASK_GROUP_LEADER) : 0;
	u64 mm = leader ? RD(u64, RD(u64, task, OFF_TASK_SIGNAL), OFF_SIGNAL_OOM_MM) : 0;
	oom->number = 0; /* whoever reads it meanwhile can tell */
	barrier();
	oom->cgroup = oom->limit_cgroup = oom->limit_pages = 0;
	__builtin_memset(oom->comm, 0, COMM_BYTES);
	oom->time_ns = bpf_ktime_get_ns();
	oom->tgid = leader ? RD(u32, leader, OFF_TASK_TGID) : tid;
	oom->start_time_ns = leader ? RD(u64, leader, OFF_TASK_START_BOOTTIME) : 0;
	oom->file_pages = mm ? rss_pages(mm, MM_FILEPAGES) : UNKNOWN_PAGES;
	oom->anon_pages = mm ? rss_pages(mm, MM_ANONPAGES) : UNKNOWN_PAGES;
	oom->shmem_pages = mm ? rss_pages(mm, MM_SHMEMPAGES) : UNKNOWN_PAGES;
	if (task)
		find_limit(oom, task);
	if (leader)
		bpf_probe_read_kernel(oom->comm, COMM_BYTES, (void *)(leader + OFF_TASK_COMM));
	barrier();
	oom->number = *count + 1;
	barrier();
	*count = oom->number;
	tell(NULL); /* the count tells what is new */
	return 0;
}

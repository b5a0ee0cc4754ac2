// SPDX-License-Identifier: GPL-2.0-only
/* The processes of the tree: fork, exec, exit. */

#define NR_ANCESTORS 16

/* The command line as /proc shows it, cut. How long it is: 0 bytes where the address space is gone. */
static inline u32 read_title(u64 task, char *title)
{
	u64 mm = RD(u64, task, OFF_TASK_MM);
	u64 start = mm ? RD(u64, mm, OFF_MM_ARG_START) : 0;
	u64 bytes = start ? RD(u64, mm, OFF_MM_ARG_END) - start : 0;
	if (!bytes)
		return 0;
	u64 shown = bytes > TITLE_BYTES ? TITLE_BYTES : bytes;
	/* the mask is for the verifier: the length is at most TITLE_BYTES already */
	if (probe_read_user(title, ((shown - 1) & (TITLE_BYTES - 1)) + 1, (void *)start))
		return 0;
	return bytes > 0xffffffff ? 0xffffffff : bytes;
}

/* Tell of a child of the tree; parent: who is of it, and its parent or, where that one's beginning was not seen, next of kin. */
static inline void tell_fork(u64 task, u32 tgid, struct process *child, u64 time_ns, u32 parent_tgid,
			     u64 parent_start_time_ns)
{
	struct event_fork *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return;
	}
	head(&event->event, EVENT_FORK, tgid, child->start_time_ns);
	event->event.time_ns = time_ns;
	event->parent_start_time_ns = parent_start_time_ns;
	event->parent_tgid = parent_tgid;
	event->shares_memory = !!child->lender;
	bpf_probe_read_kernel(event->comm, COMM_BYTES, (void *)(task + OFF_TASK_COMM));
	events.ringbuf_submit(event, 0);
}

/* The nearest ancestor of a process that is known, if it is of the tree; else 0. */
static inline u32 kin_of_tree(u64 leader)
{
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < NR_ANCESTORS; i++) {
		leader = RD(u64, leader, OFF_TASK_REAL_PARENT);
		u32 tgid = RD(u32, leader, OFF_TASK_TGID);
		struct process *process = processes.lookup(&tgid);
		if (process)
			return process->stranger ? 0 : tgid;
		if (tgid < 2)
			break;
	}
	return 0;
}

/*
 * A process that nobody saw begin is of the tree, if its kin is: since v7.0 the kernel skips a program where another task
 * stands preempted in it, a fork's too.
 */
static inline struct process *enter_child(u32 tgid, u64 leader)
{
	u32 parent_tgid = kin_of_tree(leader);
	struct process *parent = parent_tgid ? processes.lookup(&parent_tgid) : NULL;
	struct process child = {.start_time_ns = RD(u64, leader, OFF_TASK_START_BOOTTIME)};
	if (!parent)
		return NULL;
	if (processes.insert(&tgid, &child)) { /* another thread of it was first, or there is no room */
		struct process *entered = tracked(tgid);
		if (!entered)
			lose(LOST_PROCESSES);
		return entered;
	}
	tell_fork(leader, tgid, &child, child.start_time_ns - T0_BOOT_NS + T0_NS, parent_tgid, parent->start_time_ns);
	return tracked(tgid);
}

/* task:task_newtask(task, clone_flags), in the parent, before the child runs */
int task_newtask(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u64 flags = ctx->args[1];
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	u32 tgid = RD(u32, task, OFF_TASK_TGID);
	if (flags & CLONE_THREAD)
		return 0;
	struct process *parent = tracked(parent_tgid);
#ifndef TRACE_ALL
	if (!parent)
		return 0;
#endif
	struct process child = {.start_time_ns = RD(u64, task, OFF_TASK_START_BOOTTIME)};
	if (flags & CLONE_VM)
		child.lender = parent && parent->lender ? parent->lender : parent_tgid;
	if (processes.update(&tgid, &child)) {
		lose(LOST_PROCESSES);
		return 0;
	}
	tell_fork(task, tgid, &child, bpf_ktime_get_ns(), parent_tgid, parent ? parent->start_time_ns : 0);
	return 0;
}

/* sched:sched_process_exec(task, old_pid, bprm): the old memory is gone, and with it every range */
int sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process *process = tracked(tgid);
	if (!process && !processes.lookup(&tgid))
		process = enter_child(tgid, RD(u64, task, OFF_TASK_GROUP_LEADER));
	bool was_tracked = process;
#ifdef WATCH_EXEC
	if (!process) {
		struct process fresh = {};
		if (processes.update(&tgid, &fresh))
			lose(LOST_PROCESSES);
		process = tracked(tgid);
	}
#endif
	if (!process)
		return 0;
	process->lender = 0;
	if (!was_tracked) /* else it has the one it is known by, and keeps it */
		process->start_time_ns = RD(u64, RD(u64, task, OFF_TASK_GROUP_LEADER), OFF_TASK_START_BOOTTIME);
	struct event_exec *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return 0;
	}
	head(&event->event, EVENT_EXEC, tgid, process->start_time_ns);
	event->tracked = was_tracked;
	bpf_get_current_comm(event->comm, COMM_BYTES);
	event->title_bytes = read_title(task, event->title);
	events.ringbuf_submit(event, 0);
	return 0;
}

/* sched:sched_process_exit(task): of the last thread */
int sched_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process *process = processes.lookup(&tgid);
	if (!process || RD(u32, RD(u64, task, OFF_TASK_SIGNAL), OFF_SIGNAL_LIVE))
		return 0;
	struct event_exit *event = events.ringbuf_reserve(sizeof(*event));
	if (event) {
		head(&event->event, EVENT_EXIT, tgid, process->start_time_ns);
		bpf_get_current_comm(event->comm, COMM_BYTES);
		event->title_bytes = read_title(task, event->title);
		events.ringbuf_submit(event, 0);
	} else {
		lose(LOST_EVENTS);
	}
	processes.delete(&tgid);
	u32 zero = 0;
	struct tally *tally = tallies.lookup(&zero);
	if (tally)
		__sync_fetch_and_add(&tally->nr_ended, 1);
	return 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/* The processes of the tree: fork, exec, exit. */

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
	struct event_fork *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return 0;
	}
	head(&event->event, EVENT_FORK, tgid, child.start_time_ns);
	event->parent_start_time_ns = parent ? parent->start_time_ns : 0;
	event->parent_tgid = parent_tgid;
	event->shares_memory = !!(flags & CLONE_VM);
	bpf_probe_read_kernel(event->comm, COMM_BYTES, (void *)(task + OFF_TASK_COMM));
	events.ringbuf_submit(event, 0);
	return 0;
}

/* sched:sched_process_exec(task, old_pid, bprm): the old memory is gone, and with it every range */
int sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process *process = tracked(tgid);
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
	return 0;
}

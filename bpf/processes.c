// SPDX-License-Identifier: GPL-2.0-only
/* The processes of the tree: fork, exec, exit. */

/* The command line as /proc shows it, cut; 0 bytes where the address space is gone. */
static inline u32 read_title(u64 task, char *title)
{
	u64 mm = RD(u64, task, OFF_TASK_MM);
	u64 start = mm ? RD(u64, mm, OFF_MM_ARG_START) : 0;
	u64 bytes = start ? RD(u64, mm, OFF_MM_ARG_END) - start : 0;
	if (!bytes)
		return 0;
	if (bytes > TITLE_BYTES)
		bytes = TITLE_BYTES;
	/* the mask is for the verifier: the length is at most TITLE_BYTES already */
	if (probe_read_user(title, ((bytes - 1) & (TITLE_BYTES - 1)) + 1, (void *)start))
		return 0;
	return bytes;
}

/* task:task_newtask(task, clone_flags), in the parent, before the child runs */
int task_newtask(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u64 flags = ctx->args[1];
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	u32 tgid = RD(u32, task, OFF_TASK_TGID);
	u32 zero = 0;
	if (flags & CLONE_THREAD)
		return 0;
	struct space *parent = spaces.lookup(&parent_tgid);
	struct space *source = parent;
	u32 lender = parent_tgid;
	if (parent && parent->lender) {
		lender = parent->lender;
		source = spaces.lookup(&lender);
	}
#ifdef TRACE_ALL
	if (!source)
		source = blank_space.lookup(&zero);
#endif
	if (!source)
		return 0;
	spaces.update(&tgid, source);
	struct space *child = spaces.lookup(&tgid);
	if (!child) {
		lose(LOST_SPACES);
		return 0;
	}
	child->start_time_ns = RD(u64, task, OFF_TASK_START_BOOTTIME);
	child->lender = flags & CLONE_VM ? lender : 0;
	struct event_fork *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return 0;
	}
	head(&event->event, EVENT_FORK, tgid, child->start_time_ns);
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
	struct space *space = spaces.lookup(&tgid);
	bool tracked = space;
	u32 zero = 0;
#ifdef WATCH_EXEC
	if (!space) {
		struct space *blank = blank_space.lookup(&zero);
		if (blank)
			spaces.update(&tgid, blank);
		space = spaces.lookup(&tgid);
		if (!space)
			lose(LOST_SPACES);
	}
#endif
	if (!space)
		return 0;
	space->lender = 0;
	space->nr_ranges = 0;
	for (u32 i = 0; i < MAX_RANGES; i++)
		space->ranges[i].end = 0;
	if (!tracked) /* else it has the one it is known by, and keeps it */
		space->start_time_ns = RD(u64, RD(u64, task, OFF_TASK_GROUP_LEADER), OFF_TASK_START_BOOTTIME);
	struct event_exec *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOST_EVENTS);
		return 0;
	}
	head(&event->event, EVENT_EXEC, tgid, space->start_time_ns);
	event->tracked = tracked;
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
	struct space *space = spaces.lookup(&tgid);
	if (!space || RD(u32, RD(u64, task, OFF_TASK_SIGNAL), OFF_SIGNAL_LIVE))
		return 0;
	struct event_exit *event = events.ringbuf_reserve(sizeof(*event));
	if (event) {
		head(&event->event, EVENT_EXIT, tgid, space->start_time_ns);
		bpf_get_current_comm(event->comm, COMM_BYTES);
		event->title_bytes = read_title(task, event->title);
		events.ringbuf_submit(event, 0);
	} else {
		lose(LOST_EVENTS);
	}
	spaces.delete(&tgid);
	return 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Processes: fork, exec and exit. What is known of a process stays in the map until user space has read its end, so it
 * does not matter how late user space reads.
 */

#define SIGNAL_GROUP_EXIT 4 /* include/linux/sched/signal.h */
#define NR_ANCESTORS 16
#define TICK_NS 10000000 /* the resolution of start times in /proc (USER_HZ) */

/* Read the name as /proc/PID/comm shows it: that of the first thread. */
static inline void read_comm(u64 task, struct process *process)
{
	u64 leader = RD(u64, task, OFF_TASK_GROUP_LEADER);
	bpf_probe_read_kernel(process->comm, COMM_BYTES, (void *)(leader + OFF_TASK_COMM));
}

/* Read the command line as /proc shows it, cut. Returns its whole size; 0: there is none. */
static inline u64 read_arguments(u64 task, char *title, bool *failed)
{
	u64 mm = RD(u64, task, OFF_TASK_MM);
	u64 start = mm ? RD(u64, mm, OFF_MM_ARG_START) : 0;
	u64 bytes = start ? RD(u64, mm, OFF_MM_ARG_END) - start : 0;
	if (!bytes)
		return 0;
	u64 shown = bytes > TITLE_BYTES ? TITLE_BYTES : bytes;
	/* the mask is for the verifier: the length is at most TITLE_BYTES already */
	*failed = probe_read_user(title, ((shown - 1) & (TITLE_BYTES - 1)) + 1, (void *)start);
	return bytes;
}

/* If the memory is gone, what was read before stays. */
static inline void read_title(u64 task, struct process *process)
{
	bool failed = false;
	u64 bytes = read_arguments(task, process->title, &failed);
	if (bytes)
		process->title_bytes = failed ? 0 : bytes > 0xffffffff ? 0xffffffff : bytes;
}

/* Whether a process started at this time. Of those that user space added, only the tick is known. */
static inline bool began_at(struct process *process, u64 start_time_ns)
{
	return start_time_ns - process->start_time_ns < TICK_NS;
}

/* Call this when a PID changes its owner or is tracked or dropped: what was cached about processes becomes invalid. */
static inline void lives_changed(void)
{
	struct state *state = state_now();
	if (state)
		__sync_fetch_and_add(&state->nr_lives, 1);
}

/* Mark a process as ended. Only user space finds it after this. */
static inline void end(struct process *process, u32 tgid)
{
	u32 *number = process_numbers.lookup(&tgid);
	if (number && *number == process->number)
		process_numbers.delete(&tgid);
	lives_changed();
	process->ended_ns = bpf_ktime_get_ns();
	tell_process(process);
}

/* Note that a child, a region or a usage names the process: recycle() keeps it as long as it can. */
static inline void use(struct process *process)
{
	__sync_fetch_and_add(&process->nr_uses, 1);
}

static inline void enter_parent(struct process *child, struct process *parent)
{
	child->parent_start_time_ns = parent->start_time_ns;
	child->parent_place = parent->number;
	use(parent);
}

/* Take a free place for a process. */
static inline struct process *new_process(u32 tgid, u64 start_time_ns, u32 kind)
{
	u32 number = 0;
	if (free_processes.pop(&number)) {
		lose(LOST_PROCESSES);
		return NULL;
	}
	count_room(ROOM_FREE + FREE_PROCESS, -1);
	struct process *process = processes.lookup(&number);
	if (!process)
		return NULL;
	process->number = number;
	process->tgid = tgid;
	process->start_time_ns = start_time_ns;
	process->kind = kind;
	return process;
}

/* Make a process findable. If another thread was faster, return the process that it added. */
static inline struct process *enter_process(struct process *process)
{
	u32 tgid = process->tgid;
	u32 number = process->number;
	struct process *other = process_of(tgid);
	if (other && !began_at(other, process->start_time_ns)) /* its exit was not seen */
		end(other, tgid);
	if (process_numbers.insert(&tgid, &number)) {
		__builtin_memset(process, 0, sizeof(*process));
		give_back(FREE_PROCESS, number);
		return process_of(tgid);
	}
	lives_changed();
	return process;
}

/* Fill in what the kernel knows, for a process that user space has not added. */
static inline void describe(struct process *process, u64 task)
{
	process->began_ns = bpf_ktime_get_ns();
	read_comm(task, process);
}

/* The nearest known ancestor, if it is tracked. */
static inline struct process *kin_of_tree(u64 leader)
{
	/*
	 * a single exit: of several, LLVM 21 makes a register that is read before it is written, which the verifier
	 * refuses
	 */
	struct process *process = NULL;
	u32 tgid = 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < NR_ANCESTORS && !process; i++) {
		leader = RD(u64, leader, OFF_TASK_REAL_PARENT);
		tgid = RD(u32, leader, OFF_TASK_TGID);
		process = process_of(tgid);
		if (tgid < 2)
			break;
	}
	return process && process->kind != OUTSIDE_TREE ? process : NULL;
}

/*
 * The current process, added if it is new. If its fork was missed, it gets the kind of its nearest known ancestor:
 * since v7.0 the kernel skips a program while another task is preempted inside it, also the one for forks. Without a
 * tracked ancestor it gets `kind`, or is ignored if that is OF_TREE.
 */
static inline struct process *current_process(u32 kind)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 leader = RD(u64, bpf_get_current_task(), OFF_TASK_GROUP_LEADER);
	u64 start_time_ns = RD(u64, leader, OFF_TASK_START_BOOTTIME);
	struct process *known = process_of(tgid);
	if (known && began_at(known, start_time_ns))
		return known;
	struct process *kin = kin_of_tree(leader);
	if (!kin && kind == OF_TREE)
		return NULL;
	struct process *process = new_process(tgid, start_time_ns, kin ? kin->kind : kind);
	if (!process)
		return NULL;
	describe(process, leader);
	process->parent_tgid = kin ? kin->tgid : RD(u32, RD(u64, leader, OFF_TASK_REAL_PARENT), OFF_TASK_TGID);
	process->parent_start_time_ns = 0;
	if (kin)
		enter_parent(process, kin);
	process = enter_process(process);
	if (process)
		tell_process(process);
	return process;
}

/* task:task_newtask(task, clone_flags) runs in the parent, before the child runs */
int task_newtask(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u64 flags = ctx->args[1];
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	if (flags & CLONE_THREAD)
		return 0;
	struct process *parent = tracked(parent_tgid);
	struct state *state = state_now();
	if (!parent && !(state && state->everything))
		return 0;
	struct process *child = new_process(RD(u32, task, OFF_TASK_TGID), RD(u64, task, OFF_TASK_START_BOOTTIME),
					    parent ? parent->kind : OF_TREE);
	if (!child)
		return 0;
	describe(child, task);
	child->parent_tgid = parent_tgid;
	if (parent)
		enter_parent(child, parent);
	if (enter_process(child))
		tell_process(child);
	return 0;
}

/*
 * A process may execute several programs before user space has read about the first, whose name may be the one that -p
 * asks for. So the first unread exec is kept.
 */
static inline void keep_name(struct process *process)
{
	if (!process->executed_ns || process->earlier_ns > process->read_ns)
		return;
	process->earlier_ns = process->executed_ns;
	__builtin_memcpy(process->earlier_comm, process->comm, COMM_BYTES);
	__builtin_memcpy(process->earlier_title, process->title, EARLIER_BYTES);
}

/* The names of a program, to look for letters in. */
struct names {
	char comm[COMM_BYTES];
	char title[TITLE_BYTES];
	u64 end; /* a look at the last letter reads 8 bytes */
};
BPF_TABLE("percpu_array", u32, struct names, names, 1);

/* Whether user space may want the program that has just been executed, by its name or its first argument. */
static inline bool may_be_wanted(u64 task)
{
	u32 zero = 0;
	struct wanted *asked = wanted.lookup(&zero);
	struct names *found = names.lookup(&zero);
	bool failed = false;
	u64 hits = 0;
	if (!asked || !found || !asked->count)
		return true;
	__builtin_memset(found, 0, sizeof(*found));
	bpf_probe_read_kernel(found->comm, COMM_BYTES, (void *)(task + OFF_TASK_COMM));
	read_arguments(task, found->title, &failed);
	if (failed)
		return true;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < MAX_WANTED; i++) {
		u64 letters = asked->letters[i];
		u64 mask = asked->mask[i];
		u64 some = 0;
		u64 is_first = 1; /* no argument has ended yet */
#pragma clang loop unroll(disable)
		for (u32 at = 0; at < COMM_BYTES; at++)
			some |= is_zero((*(u64 *)(found->comm + at) ^ letters) & mask);
#pragma clang loop unroll(disable)
		for (u32 at = 0; at < TITLE_BYTES; at++) {
			some |= is_zero((*(u64 *)(found->title + at) ^ letters) & mask) & is_first;
			is_first &= ~is_zero(found->title[at] & 0xff);
		}
		hits |= some & ~is_zero(mask);
	}
	return hits & 1;
}

/* sched:sched_process_exec(task, old_pid, bprm): the old memory and all its mappings are gone */
int sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct state *state = state_now();
	bool watches = state && state->watches_execs && may_be_wanted(ctx->args[0]);
	struct process *process = current_process(watches ? WATCHED : OF_TREE);
	if (process && process->kind == OUTSIDE_TREE && watches)
		process->kind = WATCHED;
	if (!process || process->kind == OUTSIDE_TREE)
		return 0;
	lives_changed();
	keep_name(process);
	process->executed_ns = bpf_ktime_get_ns();
	read_comm(ctx->args[0], process);
	process->title_bytes = 0;
	read_title(ctx->args[0], process);
	tell_process(process);
	return 0;
}

/* As wait_task_zombie() in kernel/exit.c tells it. oom_mm is set for victims: mark_oom_victim() in mm/oom_kill.c. */
static inline u32 exit_status(u64 task)
{
	u64 signal = RD(u64, task, OFF_TASK_SIGNAL);
	u32 flags = EXITED | (RD(u64, signal, OFF_SIGNAL_OOM_MM) ? OOM_KILLED : 0);
	if (RD(u32, signal, OFF_SIGNAL_FLAGS) & SIGNAL_GROUP_EXIT)
		return flags | (RD(u32, signal, OFF_SIGNAL_GROUP_EXIT_CODE) & (EXITED - 1));
	return flags | (RD(u32, RD(u64, task, OFF_TASK_GROUP_LEADER), OFF_TASK_EXIT_CODE) & (EXITED - 1));
}

/* sched:sched_process_exit(task), for the last thread */
int sched_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process *process = process_of(tgid);
	if (!process || RD(u32, RD(u64, task, OFF_TASK_SIGNAL), OFF_SIGNAL_LIVE))
		return 0;
	read_comm(task, process);
	read_title(task, process);
	process->exit_status = exit_status(task);
	end(process, tgid);
	return 0;
}

/* ---- Programs that user space runs, with (tgid, start time) ---- */

/* Add an existing process to the tree. Returns its number; 0: no room. */
int enter(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = ctx->args[0];
	struct process *process = process_of(tgid);
	if (!process || !began_at(process, ctx->args[1] + TICK_NS - 1)) {
		process = new_process(tgid, ctx->args[1], OF_TREE);
		process = process ? enter_process(process) : NULL;
	}
	if (!process)
		return 0;
	process->kind = OF_TREE;
	use(process); /* by user space, which has entered it in its capture */
	lives_changed();
	return process->number;
}

/* Mark a process as ended whose exit was not seen. */
int leave(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = ctx->args[0];
	struct process *process = process_of(tgid);
	if (process && process->start_time_ns == ctx->args[1])
		end(process, tgid);
	return 0;
}

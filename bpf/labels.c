// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a process is doing when it makes a page: texts in its own memory, read when it does, told when they have changed.
 *
 * Knobs: NR_TEXTS, how many; not defined: there are no labels, and nothing of this is loaded. LABEL_FILES: the last text
 * is the PHP file that is being compiled, which an uprobe notes.
 */
/* The programs that read them: each may be preempted by another on its CPU, but not by itself, and has its own scratch. */
enum reader { AT_ENTRY, AT_HUGETLB, AT_COLLAPSE, AT_FALLOCATE, NR_READERS };

#ifdef NR_TEXTS

BPF_TABLE("hash", u32, struct label, labels, NR_ALIVE); /* by tgid; of those whose memory has a label */
BPF_TABLE("array", u32, struct label, no_label, 1);
BPF_TABLE("percpu_array", u32, struct texts, texts_now, NR_READERS);
BPF_RINGBUF_OUTPUT(label_events, LABEL_PAGES);

/* So many are told a second, by each CPU: more would keep user space from all else, and fill the capture. */
#define MAX_TOLD 10000
struct told {
	u64 second;
	u64 count;
};
BPF_TABLE("percpu_array", u32, struct told, told_now, 1);

static inline bool may_tell(u64 us)
{
	u32 zero = 0;
	u64 second = us / 1000000;
	struct told *told = told_now.lookup(&zero);
	if (!told)
		return false;
	if (told->second != second) {
		told->second = second;
		told->count = 0;
	}
	return told->count++ < MAX_TOLD;
}

/* bpf_probe_read_user_str by its number, as probe_read_user in compat.h. */
static long (*probe_read_user_str)(void *to, u32 bytes, const void *from) = (void *)114;

static inline void read_string(struct texts *texts, u32 i, u64 address)
{
	/* reads no further than a page that is in memory: to fault is not for a program */
	long bytes =
		address ? probe_read_user_str(texts->text + i * TEXT_BYTES, TEXT_BYTES, (void *)address) : TEXT_NONE;
	texts->bytes[i] = bytes < 0 && address ? TEXT_UNREADABLE : bytes;
}

static inline void read_text(struct texts *texts, u32 i, struct label *label)
{
	u64 address = label->address[i];
	u64 pointer = 0;
	switch (label->how[i]) {
	case TEXT_IN_PLACE:
		read_string(texts, i, address);
		break;
	case TEXT_POINTED_TO:
		if (probe_read_user(&pointer, sizeof(pointer), (void *)address))
			texts->bytes[i] = TEXT_UNREADABLE;
		else
			read_string(texts, i, pointer);
		break;
	case TEXT_TITLE:
		read_string(texts, i, RD(u64, RD(u64, bpf_get_current_task(), OFF_TASK_MM), OFF_MM_ARG_START));
		break;
	case TEXT_NOTED:
		texts->bytes[i] = label->noted_bytes;
		__builtin_memcpy(texts->text + i * TEXT_BYTES, label->noted, TEXT_BYTES);
		break;
	}
}

/*
 * A page comes into being, made by this process, at this microsecond. Whoever writes its word calls this first, so that
 * no word is of a label that was not told.
 */
static inline void label_touch(u32 reader, u32 tgid, u64 us)
{
	struct label *label = labels.lookup(&tgid);
	struct texts *now = label ? texts_now.lookup(&reader) : NULL;
	u64 changed = 0;
	if (!now)
		return;
	__builtin_memset(now, 0, sizeof(*now)); /* what comes after a text's end is compared too */
#pragma unroll
	for (u32 i = 0; i < NR_TEXTS; i++)
		read_text(now, i, label);
	u64 *a = (u64 *)now, *b = (u64 *)&label->last;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < sizeof(*now) / 8; i++)
		changed |= a[i] ^ b[i];
	if (label->told && !changed && !label->lost_us)
		return;
	struct event_label *event = may_tell(us) ? label_events.ringbuf_reserve(sizeof(*event)) : NULL;
	if (!event) { /* from now on it is not known, until it can be told again */
		lose(LOST_LABELS);
		if (!label->lost_us)
			label->lost_us = us;
		return;
	}
	head(&event->event, EVENT_LABEL);
	event->since_us = us;
	event->lost_us = label->lost_us;
	event->texts = *now;
	label_events.ringbuf_submit(event, 0);
	label->last = *now;
	label->lost_us = 0;
	label->told = 1;
}

/* ---- fork, exec, exit: after those of processes.c, which are attached before these ---- */

/* A child has its parent's memory, and has told nothing yet. */
int fork_label(struct bpf_raw_tracepoint_args *ctx)
{
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	u32 tgid = RD(u32, ctx->args[0], OFF_TASK_TGID);
	u32 zero = 0;
	struct label *parent = tgid == parent_tgid ? NULL : labels.lookup(&parent_tgid);
	struct label *none = no_label.lookup(&zero);
	if (!parent || !none || labels.update(&tgid, none))
		return 0;
	struct label *child = labels.lookup(&tgid);
	if (!child)
		return 0;
	__builtin_memcpy(child->address, parent->address, sizeof(child->address));
	__builtin_memcpy(child->how, parent->how, sizeof(child->how));
	child->file_is_string = parent->file_is_string;
	child->noted_bytes = TEXT_NONE;
	return 0;
}

int exec_label(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	labels.delete(&tgid);
	return 0;
}

/* Since when something was lost is kept for user space, which then takes the entry away. */
int exit_label(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct label *label = process_of(tgid) ? NULL : labels.lookup(&tgid);
	if (label && !label->lost_us)
		labels.delete(&tgid);
	return 0;
}

#ifdef LABEL_FILES
/*
 * compile_file(zend_file_handle *, int): a file that PHP includes, or begins with. All pages it takes in the opcache come
 * after this has returned, so it is noted until the next one, or the end of the request.
 */
#define FILE_HANDLE_FILENAME 40 /* Zend/zend_stream.h: after a union of 5 words, in PHP 7.4 to 8.4 */
#define ZEND_STRING_VAL 24	/* Zend/zend_types.h */

int php_compiling(struct pt_regs *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct label *label = labels.lookup(&tgid);
	u64 name = 0;
	if (!label)
		return 0;
	__builtin_memset(label->noted, 0, sizeof(label->noted));
	label->noted_bytes = TEXT_UNREADABLE;
	if (probe_read_user(&name, sizeof(name), (void *)(FIRST_ARGUMENT(ctx) + FILE_HANDLE_FILENAME)) || !name)
		return 0;
	long bytes = probe_read_user_str(label->noted, TEXT_BYTES,
					 (void *)(name + (label->file_is_string ? ZEND_STRING_VAL : 0)));
	if (bytes >= 0)
		label->noted_bytes = bytes;
	return 0;
}

/* php_request_shutdown(void *) */
int php_request_over(struct pt_regs *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct label *label = labels.lookup(&tgid);
	if (label) {
		__builtin_memset(label->noted, 0, sizeof(label->noted));
		label->noted_bytes = TEXT_NONE;
	}
	return 0;
}
#endif

#else
#define label_touch(reader, tgid, us)
#endif

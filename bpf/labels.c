// SPDX-License-Identifier: GPL-2.0-only
/*
 * Labels: texts in a process's memory that say what it is doing. They are read when it makes a page, and reported when
 * they have changed.
 *
 * Defines: NR_TEXTS: how many; if it is not defined, nothing of this is compiled. LABEL_FILES: the last text is the PHP
 * file being compiled, which a uprobe notes.
 */
/*
 * The programs that read labels. Others may preempt each on its CPU, but not itself, so each has its own scratch space.
 */
enum reader { AT_ENTRY, AT_HUGETLB, AT_COLLAPSE, AT_CALL, NR_READERS };

#ifdef NR_TEXTS

BPF_TABLE("hash", u32, struct label, labels, NR_ALIVE); /* by tgid, of processes whose program has labels */
BPF_TABLE("array", u32, struct label, no_label, 1);
BPF_TABLE("percpu_array", u32, struct texts, texts_now, NR_READERS);
BPF_RINGBUF_OUTPUT(label_events, LABEL_BYTES / PAGE_SIZE);

/* Labels reported per second and CPU: more would keep user space from other work, and fill the capture. */
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

/* bpf_probe_read_user_str by its number, like probe_read_user in compat.h. */
static long (*probe_read_user_str)(void *to, u32 bytes, const void *from) = (void *)114;

static inline void read_string(struct texts *texts, u32 i, u64 address)
{
	/* the helper cannot fault, so it stops where a page is not in memory */
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
 * This process makes a page at this microsecond. Call this before writing the page's word, so that every word has a
 * label that was reported before.
 */
static inline void label_touch(u32 reader, u32 tgid, u64 us)
{
	struct label *label = labels.lookup(&tgid);
	struct texts *now = label ? texts_now.lookup(&reader) : NULL;
	u64 changed = 0;
	if (!now)
		return;
	__builtin_memset(now, 0, sizeof(*now)); /* clear, since the bytes after a text's end are compared too */
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
	if (!event) { /* the label is unknown from now on, until one can be reported again */
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

/* ---- fork, exec, exit: attached after the programs of processes.c ---- */

/* A child has its parent's memory, and has reported nothing yet. */
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

/* If a label was lost, keep the time for user space, which then deletes the entry. */
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
 * compile_file(zend_file_handle *, int): PHP starts to compile a file, the script or an included one. Its pages in the
 * opcache are made after this returns, so the name stays noted until the next file or the end of the request.
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

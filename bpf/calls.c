// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults tier: pages that system calls make in a tmpfs without page faults: fallocate(2), write(2) and their kin.
 *
 * At the start of the call, note which pages of its range are absent. When it has succeeded, these pages are the
 * caller's. A page that another thread has added meanwhile by a fault has a word younger than the start.
 */

#define FALLOC_FL_KEEP_SIZE 1
#define O_APPEND 02000
#define MAX_IOVECS 16	    /* of writev(2), counted */
#define AT_POSITION (~0ULL) /* instead of an offset: at the file's own position */
/*
 * Limited by the verifier. For more, a program calls itself: the kernel allows 32 calls (64 MiB) or 33.
 */
#define BLOCKS_AT_ONCE 8

struct enter { /* syscalls:sys_enter_*: /sys/kernel/tracing/events/syscalls/sys_enter_fallocate/format */
	u64 common;
	u64 number;
	u64 args[6];
};

/* A call that makes pages. */
struct making {
	u64 mapping;
	u64 dentry;
	u64 offset;
	u64 first; /* page index, like the next two */
	u64 end;
	u64 at;	  /* all pages before this one are done */
	u64 word; /* of the pages that the call adds */
	u64 since_us;
	u64 nr_made;
	/* for the current block, one bit per page; kept here because the verifier does not track map values */
	u64 asked_for;
	u64 absent;
	u64 any_absent; /* of all blocks */
	u32 region;
	u32 reserved;
};
BPF_TABLE("hash", u64, struct making, makings, 1024); /* by pid_tgid */
BPF_TABLE("array", u32, u64, holes, NR_BLOCKS); /* by block number, one bit per page: absent at the start of the call */
BPF_PROG_ARRAY(parts_of_calls, 2);
enum part_of_call { NOTE, TAKE }; /* note_absent and take_made: the only programs with a loop over blocks */

/* Which pages of the block are in the range. */
static inline void look_at(struct making *asked, u64 first)
{
	asked->asked_for = ~0ULL;
	if (asked->first > first)
		asked->asked_for <<= asked->first - first;
	if (asked->end < first + BLOCK_PAGES)
		asked->asked_for &= (1ULL << (asked->end - first)) - 1;
}

/* Assign the pages that were absent. The call has added them all, or it fails; a faster fault keeps its word. */
static inline void take_block(struct making *asked, struct block *block, u64 made)
{
#pragma clang loop unroll(disable)
	for (u32 slot = 0; slot < BLOCK_PAGES; slot++, made >>= 1) {
		/* true also for a word without an owner */
		u64 is_older = ((block->words[slot] & (FIRST_OWNED - 1)) - asked->since_us) >> 63;
		if (!(made & is_older))
			continue;
		block->words[slot] = asked->word;
		asked->nr_made++;
	}
	has_changed(block);
}

/* Handle the next blocks, at the start or the end of the call. Returns whether there are more. */
static inline bool walk(struct making *asked, bool after)
{
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < BLOCKS_AT_ONCE; i++) {
		u64 first = asked->at & ~(BLOCK_PAGES - 1ULL);
		if (asked->at >= asked->end)
			return false;
		u32 number = find_block(asked->region, first, !after);
		struct block *block = ledger.lookup(&number);
		u64 *noted = holes.lookup(&number);
		asked->at = first + BLOCK_PAGES;
		if (!number || !block || !noted) {
			if (after)
				lose(LOST_PAGES);
			continue;
		}
		look_at(asked, first);
		if (after)
			take_block(asked, block, *noted & asked->asked_for);
		else
			mark_holes(asked->mapping, first, &asked->absent);
		*noted = (*noted & ~asked->asked_for) | (asked->absent & asked->asked_for);
		asked->any_absent |= *noted & asked->asked_for;
	}
	return asked->at < asked->end;
}

/* ---- The start of a call ---- */

/* Note which pages of the range are absent. */
int note_absent(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct making *asked = makings.lookup(&thread);
	if (!asked)
		return 0;
	u64 inode = RD(u64, asked->mapping, OFF_MAPPING_HOST);
	if (!asked->region && !enter_region(inode, TMPFS_MAGIC, &asked->region)) {
		makings.delete(&thread);
		return 0;
	}
	if (walk(asked, false))
		parts_of_calls.call(ctx, NOTE);
	asked->end = asked->at < asked->end ? asked->at : asked->end; /* the limit of calls to itself is reached */
	asked->at = asked->first;
	return 0;
}

/*
 * The file of a descriptor, if a process of the tree calls and the file is on a tmpfs; 0: there is nothing to see. What
 * an earlier call has left, whose end was not seen, is forgotten.
 */
static inline u64 called_on(u64 thread, u32 fd)
{
	if (!tracked(thread >> 32))
		return 0;
	makings.delete(&thread);
	u64 file = file_at(fd);
	u64 inode = RD(u64, file, OFF_FILE_INODE);
	/* what is written to a FIFO or a device is not in the tmpfs */
	return magic_of(inode) == TMPFS_MAGIC && (RD(u16, inode, OFF_INODE_MODE) & S_IFMT) == S_IFREG ? file : 0;
}

/* A call makes the pages of [offset, offset + bytes) of a file, as far as they are absent. */
static inline int begin(struct enter *ctx, u64 thread, u64 file, u64 offset, u64 bytes)
{
	struct making asked = {};
	if ((s64)offset < 0 || (s64)bytes <= 0)
		return 0;
	asked.mapping = RD(u64, RD(u64, file, OFF_FILE_INODE), OFF_INODE_MAPPING);
	asked.dentry = RD(u64, file, OFF_FILE_DENTRY);
	asked.offset = offset;
	asked.first = asked.at = offset >> PAGE_SHIFT;
	asked.end = (offset + bytes + PAGE_SIZE - 1) >> PAGE_SHIFT;
	asked.since_us = now_us();
	makings.update(&thread, &asked);
	parts_of_calls.call(ctx, NOTE);
	return 0;
}

/* fallocate(fd, mode, offset, bytes) */
int sys_enter_fallocate(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 file = called_on(thread, ctx->args[0]);
	if (!file || ctx->args[1] & ~FALLOC_FL_KEEP_SIZE)
		return 0;
	return begin(ctx, thread, file, ctx->args[2], ctx->args[3]);
}

/* Where a call writes that was given an offset, or AT_POSITION. */
static inline u64 place(u64 file, u64 offset)
{
	if (RD(u32, file, OFF_FILE_FLAGS) & O_APPEND)
		return RD(u64, RD(u64, file, OFF_FILE_INODE), OFF_INODE_SIZE);
	return offset == AT_POSITION ? RD(u64, file, OFF_FILE_POS) : offset;
}

/* write(fd, text, bytes) */
int sys_enter_write(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 file = called_on(thread, ctx->args[0]);
	return file ? begin(ctx, thread, file, place(file, AT_POSITION), ctx->args[2]) : 0;
}

/* pwrite64(fd, text, bytes, offset) */
int sys_enter_pwrite64(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 file = called_on(thread, ctx->args[0]);
	return file ? begin(ctx, thread, file, place(file, ctx->args[3]), ctx->args[2]) : 0;
}

struct iovec {
	u64 base;
	u64 bytes;
};

/* Without a branch, since v5.10 follows each to the end of the program. */
static inline u64 bytes_of(u64 iovecs, u64 count)
{
	u64 bytes = 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < MAX_IOVECS; i++) {
		struct iovec iovec = {};
		u64 is_counted = (s64)(i - count) >> 63;
		OPAQUE(is_counted);
		probe_read_user(&iovec, sizeof(iovec), (void *)(iovecs + i * sizeof(iovec)));
		bytes += iovec.bytes & is_counted;
	}
	return bytes;
}

/* writev(fd, iovecs, count) */
int sys_enter_writev(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 file = called_on(thread, ctx->args[0]);
	if (!file)
		return 0;
	return begin(ctx, thread, file, place(file, AT_POSITION), bytes_of(ctx->args[1], ctx->args[2]));
}

/* pwritev(fd, iovecs, count, offset), and pwritev2, whose offset may be AT_POSITION */
int sys_enter_pwritev(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 file = called_on(thread, ctx->args[0]);
	if (!file)
		return 0;
	return begin(ctx, thread, file, place(file, ctx->args[3]), bytes_of(ctx->args[1], ctx->args[2]));
}

/* How much a call can copy at most: callers often ask for more than the file has. */
static inline u64 copied(u32 from, u64 bytes)
{
	u64 size_bytes = RD(u64, RD(u64, file_at(from), OFF_FILE_INODE), OFF_INODE_SIZE);
	return bytes < size_bytes ? bytes : size_bytes;
}

/* sendfile64(to, from, &offset, bytes) */
int sys_enter_sendfile64(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 file = called_on(thread, ctx->args[0]);
	if (!file)
		return 0;
	return begin(ctx, thread, file, place(file, AT_POSITION), copied(ctx->args[1], ctx->args[3]));
}

/* copy_file_range(from, &offset, to, &offset, bytes) */
int sys_enter_copy_file_range(struct enter *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 file = called_on(thread, ctx->args[2]);
	u64 offset = AT_POSITION;
	if (!file)
		return 0;
	if (ctx->args[3])
		probe_read_user(&offset, sizeof(offset), (void *)ctx->args[3]);
	return begin(ctx, thread, file, place(file, offset), copied(ctx->args[0], ctx->args[4]));
}

/* ---- Its end ---- */

/* Assign what the call has made. */
int take_made(struct leave *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 tgid = thread >> 32;
	struct process *process = tracked(tgid);
	struct making *asked = makings.lookup(&thread);
	if (!asked)
		return 0;
	if (!process) {
		makings.delete(&thread);
		return 0;
	}
	if (!asked->word) {
		u64 us = now_us();
		label_touch(AT_CALL, tgid, us);
		asked->word = word_of(tgid, us);
	}
	if (walk(asked, true))
		parts_of_calls.call(ctx, TAKE);
	struct region *region = asked->nr_made ? region_by_id(asked->region) : NULL;
	if (region) {
		region->now.size_bytes = RD(u64, RD(u64, asked->mapping, OFF_MAPPING_HOST), OFF_INODE_SIZE);
		tell_region(region, asked->dentry, tgid, process->start_time_ns);
		usage_of(asked->region, tgid, process->start_time_ns);
		count_stack(AT_CALL, ctx, asked->region, tgid, asked->nr_made);
	}
	makings.delete(&thread);
	return 0;
}

/* A call has made no page, or those before the byte `end`. */
static inline int finish(struct leave *ctx, u64 thread, struct making *asked, u64 end)
{
	u64 end_page = (end + PAGE_SIZE - 1) >> PAGE_SHIFT;
	asked->end = end_page < asked->end ? end_page : asked->end;
	if (asked->any_absent && asked->first < asked->end)
		parts_of_calls.call(ctx, TAKE);
	makings.delete(&thread);
	return 0;
}

/* 0: it has made all of the range */
int sys_exit_fallocate(struct leave *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct making *asked = makings.lookup(&thread);
	return asked ? finish(ctx, thread, asked, ctx->result ? 0 : -1ULL << PAGE_SHIFT) : 0;
}

/* All others return how many bytes they have written. */
int sys_exit_write(struct leave *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct making *asked = makings.lookup(&thread);
	return asked ? finish(ctx, thread, asked, ctx->result > 0 ? asked->offset + ctx->result : 0) : 0;
}

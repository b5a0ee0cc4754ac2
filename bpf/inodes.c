// SPDX-License-Identifier: GPL-2.0-only
/*
 * The exact tier: regions, at the kernel functions that create, map and drop their inodes, for all processes; and the
 * titles of processes that exit.
 *
 * ARG() and RESULT() depend on how programs attach (compat.h). The positions of arguments come from the kernel's BTF
 * (ARG_…, NARGS_…, from tracer/kernel/tiers.py).
 */

#define MAX_INDEX (1ULL << 40)
#define MAX_ERROR 4095UL
#define IS_ERROR(pointer) (!(pointer) || (pointer) >= (u64) - MAX_ERROR)

/* ---- Regions made and mapped ---- */

#ifdef NARGS_INODE_MADE
/* A new tmpfs inode becomes a region here, not when it is mapped: what is written to it before counts. */
int inode_made(RETURN *ctx)
{
	u64 inode = RESULT(ctx, NARGS_INODE_MADE);
	u32 id = 0;
	if (IS_ERROR(inode) || (RD(u16, inode, OFF_INODE_MODE) & S_IFMT) != S_IFREG)
		return 0;
	/*
	 * separate, after a call: clang merges two conditions into one value, which the verifier of v5.10 cannot track
	 */
	struct process *process = tracked(bpf_get_current_pid_tgid() >> 32);
	if (!process)
		return 0;
	struct region *region = enter_region(inode, TMPFS_MAGIC, &id);
	if (region)
		created_by(region, process);
	return 0;
}
#endif

BPF_TABLE("lru_hash", u64, u64, segments, 1024); /* by pid_tgid: the file of a SysV segment being created */

static inline int file_made(u64 file)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 id = 0;
	if (IS_ERROR(file))
		return 0;
	struct process *process = tracked(thread >> 32);
	if (!process)
		return 0;
	struct region *region = enter_made(file, process, &id);
	if (!region)
		return 0;
	u32 name = RD(u32, RD(u64, RD(u64, file, OFF_FILE_DENTRY), OFF_DENTRY_NAME), 0);
	if (name == 0x56535953) /* "SYSV": it has no inode number yet */
		segments.update(&thread, &file);
	else
		tell_file(region, file, process);
	return 0;
}

/* Anonymous shared memory, memfd, SysV. */
int shmem_file_made(RETURN *ctx)
{
	return file_made(RESULT(ctx, NARGS_SHMEM_FILE_MADE));
}

#ifdef NARGS_HUGETLB_FILE_MADE
int hugetlb_file_made(RETURN *ctx)
{
	return file_made(RESULT(ctx, NARGS_HUGETLB_FILE_MADE));
}
#endif

#ifdef NARGS_SEGMENT_MADE
/* newseg() has set the inode number of the segment, as /proc shows it. */
int segment_made(RETURN *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct process *process = tracked(thread >> 32);
	u32 id = 0;
	if (!process)
		return 0;
	u64 *file = segments.lookup(&thread);
	if (!file)
		return 0;
	u64 inode = RD(u64, *file, OFF_FILE_INODE);
	struct region *region = region_at(RD(u64, inode, OFF_INODE_MAPPING), &id);
	if (region) {
		region->key.ino = RD(u64, inode, OFF_INODE_INO);
		tell_file(region, *file, process);
	}
	segments.delete(&thread);
	return 0;
}
#endif

/* A file that the tree maps shared is a region; private mappings are ignored. */
static inline int file_mapped(u64 file, u64 flags)
{
	struct process *process = tracked(bpf_get_current_pid_tgid() >> 32);
	u32 id = 0;
	if (!process)
		return 0;
	u64 inode = RD(u64, file, OFF_FILE_INODE);
	u32 magic = magic_of(inode);
	if (!magic || !(flags & VM_MAYSHARE))
		return 0;
	struct region *region = enter_region(inode, magic, &id);
	if (region) {
		region->now.size_bytes = RD(u64, inode, OFF_INODE_SIZE);
		tell_file(region, file, process);
	}
	return 0;
}

#ifdef HAVE_DESC
/* Since v6.16 a file may be asked to map before the VMA exists (see DESC in tracer/kernel/fields.py). */
static inline int area_described(u64 desc)
{
	return file_mapped(RD(u64, desc, OFF_DESC_FILE), RD(u64, desc, OFF_DESC_FLAGS));
}
#endif

#ifdef ARG_SHMEM_MAPPED_DESC
int shmem_mapped(ENTRY *ctx)
{
	return area_described(ARG(ctx, ARG_SHMEM_MAPPED_DESC));
}
#else
int shmem_mapped(ENTRY *ctx)
{
	return file_mapped(ARG(ctx, ARG_SHMEM_MAPPED_FILE), RD(u64, ARG(ctx, ARG_SHMEM_MAPPED_VMA), OFF_VMA_FLAGS));
}
#endif

#if defined(ARG_HUGETLB_MAPPED_DESC)
int hugetlb_mapped(ENTRY *ctx)
{
	return area_described(ARG(ctx, ARG_HUGETLB_MAPPED_DESC));
}
#elif defined(ARG_HUGETLB_MAPPED_VMA)
int hugetlb_mapped(ENTRY *ctx)
{
	return file_mapped(ARG(ctx, ARG_HUGETLB_MAPPED_FILE), RD(u64, ARG(ctx, ARG_HUGETLB_MAPPED_VMA), OFF_VMA_FLAGS));
}
#endif

/* ---- Regions gone ---- */

static inline int inode_gone(u64 inode)
{
	u32 id = 0;
	struct region *region = region_at(inode + OFF_INODE_DATA, &id);
	if (region)
		begin_teardown(region, inode);
	return 0;
}

int shmem_inode_gone(ENTRY *ctx)
{
	return inode_gone(POINTER(ctx, ARG_SHMEM_INODE_GONE_INODE));
}

#ifdef NARGS_HUGETLB_INODE_GONE
int hugetlb_inode_gone(ENTRY *ctx)
{
	return inode_gone(POINTER(ctx, ARG_HUGETLB_INODE_GONE_INODE));
}
#endif

/* Swapped pages that are given back pass no probe. So report the range; user space applies it to the words. */
int punching(ENTRY *ctx)
{
	u64 inode = POINTER(ctx, ARG_PUNCHING_INODE);
	u64 last = ARG(ctx, ARG_PUNCHING_LEND);
	u32 id = 0;
	struct region *region = region_at(inode + OFF_INODE_DATA, &id);
	/* unfalloc: a failed fallocate gives back its own pages, which are not swapped */
	if (!region || region->gone_us || (ARG(ctx, ARG_PUNCHING_UNFALLOC) & 1))
		return 0;
	if (!RD(u64, inode - OFF_SHMEM_VFS_INODE, OFF_SHMEM_SWAPPED))
		return 0;
	u64 first = (ARG(ctx, ARG_PUNCHING_LSTART) + PAGE_SIZE - 1) >> PAGE_SHIFT;
	punch(region, id, first, last + 1 > last ? (last + 1) >> PAGE_SHIFT : MAX_INDEX);
	return 0;
}

/* ---- Processes ---- */

#ifdef NARGS_EXITING
/* do_group_exit(), before the address space goes: exit(2) and fatal signals */
int exiting(ENTRY *ctx)
{
	struct process *process = process_of(bpf_get_current_pid_tgid() >> 32);
	if (process)
		read_title(bpf_get_current_task(), process);
	return 0;
}
#endif

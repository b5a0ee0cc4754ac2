// SPDX-License-Identifier: GPL-2.0-only
/* The faults tier: regions, found by mappings of processes and by the system calls that create and map them. */

/* Whether a file is anonymous: "dev/zero", which no real file can be named, or "anon_hugepage" for huge pages. */
static inline bool is_nameless(u64 file)
{
	u64 name = RD(u64, RD(u64, RD(u64, file, OFF_FILE_DENTRY), OFF_DENTRY_NAME), 0);
	return name == 0x6f72657a2f766564 || name == 0x6775685f6e6f6e61; /* the first 8 letters */
}

/* The region behind a VMA, added if it is new; NULL: none. `maps`: the process is just creating this mapping. */
static inline struct region *mapped_region(u64 vma, struct process *process, bool maps, u32 *id)
{
	u64 file = RD(u64, vma, OFF_VMA_FILE);
	if (!file)
		return NULL;
	u64 inode = RD(u64, file, OFF_FILE_INODE);
	u32 magic = magic_of(inode);
	if (!magic)
		return NULL;
	struct region *region = region_at(RD(u64, inode, OFF_INODE_MAPPING), id);
	if (!region) {
		/* private mappings are ignored, although reading a hole through one makes a page */
		if (!(RD(u64, vma, OFF_VMA_FLAGS) & VM_MAYSHARE))
			return NULL;
		region = enter_region(inode, magic, id);
		/* an anonymous region cannot be opened by name: whoever maps an unknown one has just created it */
		if (region && maps && is_nameless(file))
			created_by(region, process);
	}
	if (region)
		tell_file(region, file, process);
	return region;
}

/* ---- The system calls ---- */

struct leave { /* syscalls:sys_exit_*: /sys/kernel/tracing/events/syscalls/sys_exit_mmap/format */
	u64 common;
	u64 number;
	long result;
};

/* mmap, mremap and shmat return an address */
int sys_exit_mmap(struct leave *ctx)
{
	u32 id = 0;
	struct process *process = tracked(bpf_get_current_pid_tgid() >> 32);
	if (!process || ctx->result <= 0)
		return 0;
	mappings_changed();
	u64 vma = vma_at(RD(u64, bpf_get_current_task(), OFF_TASK_MM), ctx->result);
	if (!vma) {
		lose(LOST_MAPPINGS);
		return 0;
	}
	struct region *region = mapped_region(vma, process, true, &id);
	if (region) /* the file may have been resized since the region was met */
		region->now.size_bytes = RD(u64, RD(u64, region->mapping, OFF_MAPPING_HOST), OFF_INODE_SIZE);
	return 0;
}

/* munmap and shmdt */
int sys_exit_munmap(struct leave *ctx)
{
	if (!ctx->result && tracked(bpf_get_current_pid_tgid() >> 32))
		mappings_changed();
	return 0;
}

/* A memfd's creator is the process that called memfd_create(), whichever process maps it. */
int sys_exit_memfd_create(struct leave *ctx)
{
	struct process *process = tracked(bpf_get_current_pid_tgid() >> 32);
	u32 id = 0;
	if (!process || ctx->result < 0)
		return 0;
	u64 file = file_at(ctx->result);
	struct region *region = enter_made(file, process, &id);
	if (region)
		tell_file(region, file, process);
	return 0;
}

/* The first shmget() of a segment creates it. Its inode number will be the shmid. */
BPF_TABLE("lru_hash", u32, struct asker, askers, 4096); /* by shmid */

int sys_exit_shmget(struct leave *ctx)
{
	struct process *process = tracked(bpf_get_current_pid_tgid() >> 32);
	u32 shmid = ctx->result;
	if (!process || ctx->result < 0)
		return 0;
	struct asker asker = {.start_time_ns = process->start_time_ns, .tgid = process->tgid};
	askers.insert(&shmid, &asker);
	return 0;
}

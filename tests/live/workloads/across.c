// SPDX-License-Identifier: GPL-2.0-only
/* Pages made by one process in the memory of another. They belong to the process that acts. */
#include "workload.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>

/* P only waits; others write to its memory. */
static pid_t start_paused(void)
{
	pid_t child = fork();
	if (child < 0)
		die("fork");
	if (!child)
		while (true)
			pause();
	note_process("P", child);
	return child;
}

static void end_paused(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

/* Main pokes into 9 pages of P. B makes 11 more. */
static void poked(void)
{
	char *pool = map_anon(53);
	pid_t child = start_paused();
	if (ptrace(PTRACE_ATTACH, child, NULL, NULL)) {
		end_paused(child);
		note_absent("ptrace");
	}
	if (waitpid(child, NULL, 0) != child)
		die("waitpid");
	for (size_t page = 1; page < 28; page += 3)
		if (ptrace(PTRACE_POKEDATA, child, pool + page * PAGE, 1))
			die("PTRACE_POKEDATA");
	end_paused(child);
	CHILD("B")
		write_pages(pool, 0, 17);
	note_region("pool", pool);
}

/* Main writes 14 pages into the memory of P as a file. B makes 6 more. */
static void mem_written(void)
{
	static char bytes[14 * PAGE];
	char *pool = map_anon(53), path[32];
	pid_t child = start_paused();
	snprintf(path, sizeof(path), "/proc/%d/mem", child);
	int memory = open(path, O_RDWR | O_CLOEXEC);
	if (memory < 0 || pwrite(memory, bytes, sizeof(bytes), (uintptr_t)(pool + 6 * PAGE)) != sizeof(bytes))
		die(path);
	close(memory);
	end_paused(child);
	CHILD("B")
		write_pages(pool, 3, 23);
	note_region("pool", pool);
}

/* W writes 15 pages of its sibling P. B makes 10 more. */
static void written_across_child(void)
{
	static char bytes[15 * PAGE];
	char *pool = map_anon(53);
	pid_t child = start_paused();
	CHILD("W") {
		struct iovec from = {bytes, sizeof(bytes)}, to = {pool + 7 * PAGE, sizeof(bytes)};
		if (process_vm_writev(child, &from, 1, &to, 1, 0) != sizeof(bytes))
			die("process_vm_writev");
	}
	end_paused(child);
	CHILD("B")
		write_pages(pool, 0, 25);
	note_region("pool", pool);
}

/* -1 where this kernel has no userfaultfd for shared memory. */
static int open_userfaults(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (faults >= 0 && !ioctl(faults, UFFDIO_API, &api) && api.features & UFFD_FEATURE_MISSING_SHMEM)
		return faults;
	close(faults);
	return -1;
}

/* The first 8 of 13 faults get a page with content, the others an empty one. */
static void resolve(int faults)
{
	static char bytes[PAGE];
	for (int i = 0; i < 13; i++) {
		struct uffd_msg message;
		if (read(faults, &message, sizeof(message)) != sizeof(message) || message.event != UFFD_EVENT_PAGEFAULT)
			die("a fault");
		uintptr_t page = message.arg.pagefault.address & ~(PAGE - 1);
		struct uffdio_range hole = {page, PAGE};
		struct uffdio_copy copy = {.dst = page, .src = (uintptr_t)bytes, .len = PAGE};
		struct uffdio_zeropage zero = {.range = hole};
		if (i < 8 ? ioctl(faults, UFFDIO_COPY, &copy) : ioctl(faults, UFFDIO_ZEROPAGE, &zero))
			die("a page for a fault");
	}
}

/* H makes the 13 pages that F faults on, while F waits. B makes 10 more. */
static void uffd_copied(void)
{
	int probe = open_userfaults();
	if (probe < 0)
		note_absent("userfaultfd for shared memory");
	close(probe);
	char *pool = map_anon(53);
	CHILD("F") {
		int faults = open_userfaults();
		struct uffdio_range pages = {(uintptr_t)pool, 53 * PAGE};
		struct uffdio_register all = {.range = pages, .mode = UFFDIO_REGISTER_MODE_MISSING};
		if (ioctl(faults, UFFDIO_REGISTER, &all))
			die("UFFDIO_REGISTER");
		START("H")
			resolve(faults);
		alarm(20); /* in case H has died */
		write_pages(pool, 5, 18);
		join_all();
	}
	CHILD("B")
		write_pages(pool, 0, 23);
	note_region("pool", pool);
}

const struct workload across[] = {
	{"poked", poked},
	{"mem_written", mem_written},
	{"written_across_child", written_across_child},
	{"uffd_copied", uffd_copied},
	{},
};

// SPDX-License-Identifier: GPL-2.0-only
/* Ways to make and lose pages of a region that several processes share. */
#include "workload.h"

#include <sched.h>
#include <sys/mount.h>

/* Every seventh page by A; of every fifth, B gets those that are not A's. */
static void strided(void)
{
	char *pool = map_anon(301);
	CHILD("A")
		for (size_t page = 0; page < 301; page += 7)
			write_pages(pool, page, page + 1);
	CHILD("B")
		for (size_t page = 0; page < 301; page += 5)
			write_pages(pool, page, page + 1);
	note_region("pool", pool);
}

static void reversed(void)
{
	char *pool = map_anon(211);
	CHILD("A")
		for (size_t page = 211; page-- > 100;)
			write_pages(pool, page, page + 1);
	note_region("pool", pool);
}

static void overlapping(void)
{
	char *pool = map_anon(53);
	CHILD("A")
		write_pages(pool, 0, 23);
	CHILD("B")
		write_pages(pool, 17, 41);
	note_region("pool", pool);
}

/* To read a hole makes a page, and to write it then makes none. */
static void reads(void)
{
	char *pool = map_anon(53);
	CHILD("A")
		read_pages(pool, 0, 13);
	CHILD("B")
		read_pages(pool, 5, 31);
	CHILD("C")
		write_pages(pool, 0, 38);
	note_region("pool", pool);
}

/* Fault-around maps what is there, sixteen pages a fault, and makes nothing. */
static void fault_around(void)
{
	char *pool = map_anon(53);
	write_pages(pool, 0, 37);
	CHILD("A")
		read_pages(pool, 0, 37);
	CHILD("B")
		read_pages(pool, 0, 47);
	note_region("pool", pool);
}

/* The kernel faults when it copies: into the buffer of a read, out of the buffer of a write. */
static void kernel_faults(void)
{
	char *pool = map_anon(53);
	CHILD("A") {
		int zeros = open("/dev/zero", O_RDONLY);
		if (read(zeros, pool + 3 * PAGE, 29 * PAGE) != (ssize_t)(29 * PAGE))
			die("read");
	}
	CHILD("B") {
		int ends[2];
		if (pipe(ends) || write(ends[1], pool + 30 * PAGE, 13 * PAGE) != (ssize_t)(13 * PAGE))
			die("write");
	}
	CHILD("C") {
		int program = open("/proc/self/exe", O_RDONLY);
		for (size_t page = 45; page < 48; page++)
			if (pread(program, pool + page * PAGE, 100, 0) != 100)
				die("pread");
	}
	note_region("pool", pool);
}

/* B gives pages of A back; C makes some of them anew. */
static void removed(void)
{
	char *pool = map_anon(53);
	CHILD("A")
		write_pages(pool, 0, 41);
	CHILD("B")
		if (madvise(pool + 10 * PAGE, 11 * PAGE, MADV_REMOVE))
			die("MADV_REMOVE");
	CHILD("C")
		write_pages(pool, 12, 17);
	note_region("pool", pool);
}

/* The same process gives pages back and makes them again, repeatedly. */
static void removed_by_owner(void)
{
	char *pool = map_anon(53);
	CHILD("A")
		for (int round = 0; round < 19; round++) {
			write_pages(pool, 0, 41);
			if (madvise(pool + 11 * PAGE, 30 * PAGE, MADV_REMOVE))
				die("MADV_REMOVE");
		}
	note_region("pool", pool);
}

static void truncated(void)
{
	int fd = make_memfd("pool", 61);
	char *pool = map_file(fd, 0, 61, RW);
	CHILD("A")
		write_pages(pool, 0, 61);
	if (ftruncate(fd, 29 * PAGE) || ftruncate(fd, 61 * PAGE))
		die("ftruncate");
	CHILD("B")
		write_pages(pool, 20, 51);
	note_file("pool", fd);
}

/* MADV_DONTNEED unmaps and gives nothing back. */
static void unmapped_not_freed(void)
{
	char *pool = map_anon(53);
	CHILD("A") {
		write_pages(pool, 0, 19);
		madvise(pool, 53 * PAGE, MADV_DONTNEED);
		write_pages(pool, 0, 19);
	}
	CHILD("B") {
		madvise(pool, 53 * PAGE, MADV_DONTNEED);
		write_pages(pool, 11, 31);
	}
	note_region("pool", pool);
}

/* A page that was only ever read is clean: reclaim drops it, and whoever comes next makes it. */
static void reclaimed(void)
{
	char *pool = map_anon(53);
	CHILD("A") {
		stay_on_this_cpu();
		read_pages(pool, 0, 7);
		write_pages(pool, 7, 16);
		if (madvise(pool, 7 * PAGE, MADV_PAGEOUT))
			die("MADV_PAGEOUT");
	}
	note_region("reclaimed", pool);
	CHILD("B")
		write_pages(pool, 3, 9);
	note_region("pool", pool);
}

/* Four processes at once, from both ends and with different strides: each page has one owner, whichever it is. */
static void contended(void)
{
	enum { PAGES = 5003 };
	char *pool = map_anon(PAGES);
	static const size_t strides[] = {1, PAGES - 1, 1777, PAGES - 1777};
	for (int i = 0; i < 4; i++) {
		char name[] = {'A' + i, 0};
		START(name)
			for (size_t n = 0, page = 0; n < PAGES; n++, page = (page + strides[i]) % PAGES)
				write_pages(pool, page, page + 1);
	}
	join_all();
	note_region("pool", pool);
}

/* A write that the mapping forbids makes no page: A owns nothing. */
static void forbidden(void)
{
	char *pool = map_anon(53);
	CHILD("A") {
		mprotect(pool, 53 * PAGE, PROT_READ);
		if (!write_faults(pool + 5 * PAGE))
			die("no SIGSEGV");
	}
	CHILD("B")
		write_pages(pool, 0, 7);
	note_region("pool", pool);
}

/* Neither does a write beyond the end of the file. */
static void beyond_end(void)
{
	int fd = make_memfd("pool", 7);
	char *pool = map_file(fd, 0, 23, RW);
	CHILD("A")
		if (!write_faults(pool + 12 * PAGE))
			die("no SIGBUS");
	CHILD("B")
		write_pages(pool, 0, 7);
	note_file("short", fd);
	if (ftruncate(fd, 23 * PAGE))
		die("ftruncate");
	CHILD("C")
		write_pages(pool, 10, 15);
	note_file("pool", fd);
}

/* Neither does a write to a full file system. */
static void full(void)
{
	char directory[] = "/tmp/workload.XXXXXX", path[64];
	if (!mkdtemp(directory) || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", directory, "tmpfs", 0, "nr_blocks=9"))
		die("mount");
	snprintf(path, sizeof(path), "%s/pool", directory);
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, 31 * PAGE))
		die(path);
	char *pool = map_file(fd, 0, 31, RW);
	CHILD("A")
		write_pages(pool, 2, 10);
	CHILD("B") {
		write_pages(pool, 10, 11);
		if (!write_faults(pool + 11 * PAGE))
			die("no SIGBUS");
	}
	if (ftruncate(fd, 4 * PAGE) || ftruncate(fd, 31 * PAGE))
		die("ftruncate");
	CHILD("C")
		write_pages(pool, 10, 14);
	note_file("pool", fd);
	if (umount2(directory, MNT_DETACH) || rmdir(directory))
		die(directory);
}

/* One byte makes a huge page where the kernel is told to use huge ones. Those that fill no page table are since v6.11. */
static void huge(void)
{
	char knob[96];
	snprintf(knob, sizeof(knob), "/sys/kernel/mm/transparent_hugepage/hugepages-%lukB/shmem_enabled",
		 HUGE * PAGE >> 10);
	if (HUGE < TABLE && access(knob, F_OK))
		note_absent("huge pages of shared memory");
	size_t bytes = 3 * HUGE * PAGE;
	char *whole = map_anon(4 * HUGE);
	char *pool = (char *)(((uintptr_t)whole + HUGE * PAGE - 1) & ~(HUGE * PAGE - 1));
	if (madvise(pool, bytes, MADV_HUGEPAGE))
		note_absent("MADV_HUGEPAGE");
	CHILD("A")
		write_pages(pool, 13, 14);
	CHILD("B")
		write_pages(pool, HUGE - 12, HUGE + 18);
	note_region("pool", pool);
}

const struct workload touching[] = {
	{"strided", strided},
	{"reversed", reversed},
	{"overlapping", overlapping},
	{"reads", reads},
	{"fault_around", fault_around},
	{"kernel_faults", kernel_faults},
	{"removed", removed},
	{"removed_by_owner", removed_by_owner},
	{"truncated", truncated},
	{"unmapped_not_freed", unmapped_not_freed},
	{"reclaimed", reclaimed},
	{"contended", contended},
	{"forbidden", forbidden},
	{"beyond_end", beyond_end},
	{"full", full},
	{"huge", huge},
	{},
};

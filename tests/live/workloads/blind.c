// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages that come into being without a page fault. Where only faults are seen these have no owner, and keep none when
 * another process faults on them later.
 */
#include "workload.h"

static void fallocated(void)
{
	int fd = make_memfd("pool", 53);
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("A")
		if (fallocate(fd, 0, 0, 23 * PAGE))
			die("fallocate");
	CHILD("B")
		write_pages(pool, 17, 31);
	note_file("pool", fd);
}

static void written(void)
{
	int fd = make_memfd("pool", 53);
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("A") {
		static char bytes[19 * PAGE];
		memset(bytes, 1, sizeof(bytes));
		if (write(fd, bytes, sizeof(bytes)) != sizeof(bytes))
			die("write");
	}
	CHILD("B")
		write_pages(pool, 0, 21);
	note_file("pool", fd);
}

/* Before the region is mapped by anybody at all. */
static void written_first(void)
{
	int fd = make_memfd("pool", 53);
	for (off_t page = 0; page < 37; page += 3)
		if (pwrite(fd, "x", 1, page * PAGE) != 1)
			die("pwrite");
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("A")
		write_pages(pool, 0, 41);
	note_file("pool", fd);
}

static void populated(void)
{
	char *pool = map_anon(53);
	if (madvise(pool, 0, MADV_POPULATE_WRITE))
		note_absent("no MADV_POPULATE_WRITE");
	CHILD("A")
		if (madvise(pool, 17 * PAGE, MADV_POPULATE_WRITE))
			die("MADV_POPULATE_WRITE");
	CHILD("B")
		write_pages(pool, 0, 21);
	note_region("pool", pool);
}

static void mapped_populated(void)
{
	char *pool = mmap(NULL, 29 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (pool == MAP_FAILED)
		die("mmap");
	CHILD("A")
		write_pages(pool, 0, 29);
	note_region("pool", pool);
}

/* mlock also cuts the mapping in two. */
static void locked(void)
{
	char *pool = map_anon(53);
	CHILD("A")
		if (mlock(pool + 7 * PAGE, 11 * PAGE))
			die("mlock");
	CHILD("B")
		write_pages(pool, 0, 31);
	note_region("pool", pool);
}

/* One process writes another's memory. */
static void written_across(void)
{
	char *pool = map_anon(53);
	pid_t child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	note_process("P", child);
	static char bytes[13 * PAGE];
	struct iovec from = {bytes, sizeof(bytes)}, to = {pool + 2 * PAGE, sizeof(bytes)};
	if (process_vm_writev(child, &from, 1, &to, 1, 0) != sizeof(bytes))
		die("process_vm_writev");
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	CHILD("B")
		write_pages(pool, 0, 19);
	note_region("pool", pool);
}

/* Seen, given back, made again unseen, and then faulted on by another: B made none of them. */
static void remade_unseen(void)
{
	int fd = make_memfd("pool", 53);
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("A")
		write_pages(pool, 0, 31);
	if (madvise(pool + 5 * PAGE, 20 * PAGE, MADV_REMOVE) || fallocate(fd, 0, 10 * PAGE, 11 * PAGE))
		die("remake");
	CHILD("B")
		write_pages(pool, 8, 23);
	note_file("pool", fd);
}

const struct workload blind[] = {
	{"fallocated", fallocated},
	{"written", written},
	{"written_first", written_first},
	{"populated", populated},
	{"mapped_populated", mapped_populated},
	{"locked", locked},
	{"written_across", written_across},
	{"remade_unseen", remade_unseen},
	{},
};

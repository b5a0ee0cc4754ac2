// SPDX-License-Identifier: GPL-2.0-only
/* More ways to make pages without a page fault. All of them belong to the process that acts. */
#include "workload.h"

#include <errno.h>
#include <sys/sendfile.h>

/* A splices 7 pages in through a pipe, B sends 11 in from another file, C faults on 26 and makes 10. */
static void spliced(void)
{
	int fd = make_memfd("pool", 53), source = make_memfd("source", 11);
	char *pool = map_file(fd, 0, 53, RW);
	put_pages(source, 0, 11);
	CHILD("A") {
		static char bytes[7 * PAGE];
		memset(bytes, 1, sizeof(bytes));
		struct iovec from = {bytes, sizeof(bytes)};
		off_t at = 3 * PAGE;
		int ends[2];
		if (pipe(ends) || vmsplice(ends[1], &from, 1, 0) != sizeof(bytes))
			die("vmsplice");
		if (splice(ends[0], NULL, fd, &at, sizeof(bytes), 0) != sizeof(bytes))
			die("splice");
	}
	CHILD("B") {
		off_t from = 0;
		lseek(fd, 17 * PAGE, SEEK_SET);
		if (sendfile(fd, source, &from, 11 * PAGE) != 11 * PAGE)
			die("sendfile");
	}
	CHILD("C")
		write_pages(pool, 5, 31);
	note_file("pool", fd);
	note_file("source", source);
}

/* A copies 13 pages in from another memfd, B makes 9 more. */
static void copied(void)
{
	int fd = make_memfd("pool", 53), source = make_memfd("source", 19), probe = make_memfd("probe", 1);
	char *pool = map_file(fd, 0, 53, RW);
	put_pages(source, 0, 19);
	off_t from = 0, to = 0;
	if (copy_file_range(source, &from, probe, &to, 1, 0) != 1)
		note_absent("copy_file_range between memfds");
	CHILD("A") {
		from = 5 * PAGE, to = 11 * PAGE;
		if (copy_file_range(source, &from, fd, &to, 13 * PAGE, 0) != 13 * PAGE)
			die("copy_file_range");
	}
	CHILD("B")
		write_pages(pool, 9, 31);
	note_file("pool", fd);
	note_file("source", source);
}

/* A has 19 pages made by reading holes that it never reads, B makes 6 more. */
static void populate_read(void)
{
	static char probe;
	char *pool = map_anon(53), *page = (char *)((uintptr_t)&probe & ~(PAGE - 1));
	if (madvise(page, PAGE, MADV_POPULATE_READ))
		note_absent("MADV_POPULATE_READ");
	CHILD("A")
		if (madvise(pool + 4 * PAGE, 19 * PAGE, MADV_POPULATE_READ))
			die("MADV_POPULATE_READ");
	CHILD("B")
		write_pages(pool, 2, 27);
	note_region("pool", pool);
}

/* Main makes 7 pages, A 24 by locking all it has mapped, B 13 more. */
static void locked_all(void)
{
	int fd = make_memfd("pool", 53);
	put_pages(fd, 0, 7);
	CHILD("A") {
		map_file(fd, 0, 31, RW);
		if (mlockall(MCL_CURRENT))
			die("mlockall");
	}
	CHILD("B")
		write_pages(map_file(fd, 0, 53, RW), 29, 44);
	note_file("pool", fd);
}

/* A makes 23 pages by mapping them, B 14 more. */
static void map_locked(void)
{
	int fd = make_memfd("pool", 53);
	CHILD("A")
		if (mmap(NULL, 23 * PAGE, RW, MAP_SHARED | MAP_LOCKED, fd, 5 * PAGE) == MAP_FAILED)
			die("MAP_LOCKED");
	CHILD("B")
		write_pages(map_file(fd, 0, 53, RW), 0, 37);
	note_file("pool", fd);
}

/*
 * Main makes 11 pages. A asks for 37 and gets 30 of them before the room is out, so that all 30 are taken back. B makes
 * 7 where those were, C 4 elsewhere.
 */
static void fallocated_rolled_back(void)
{
	int fd = make_private_file("nr_blocks=41", 61);
	if (fd < 0)
		die("tmpfs");
	char *pool = map_file(fd, 0, 61, RW);
	write_pages(pool, 0, 11);
	CHILD("A")
		if (!fallocate(fd, 0, 20 * PAGE, 37 * PAGE) || errno != ENOSPC)
			die("fallocate with no room");
	if (held_pages(fd) != 11)
		die("fallocate is not taken back");
	CHILD("B")
		write_pages(pool, 20, 27);
	CHILD("C")
		write_pages(pool, 5, 15);
	note_file("pool", fd);
}

/*
 * A reads 17 pages of holes, and some kernels make them for it: "pages A" says how many. B makes the others of 29.
 */
static void read_from_hole(void)
{
	int fd = make_memfd("pool", 53), null = open("/dev/null", O_WRONLY);
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("A") {
		off_t from = 5 * PAGE;
		if (sendfile(null, fd, &from, 17 * PAGE) != 17 * PAGE)
			die("sendfile");
	}
	note_pages("A", held_pages(fd));
	CHILD("B")
		write_pages(pool, 0, 29);
	note_file("pool", fd);
}

const struct workload beyond[] = {
	{"spliced", spliced},
	{"copied", copied},
	{"populate_read", populate_read},
	{"locked_all", locked_all},
	{"map_locked", map_locked},
	{"fallocated_rolled_back", fallocated_rolled_back},
	{"read_from_hole", read_from_hole},
	{},
};

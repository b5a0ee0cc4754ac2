// SPDX-License-Identifier: GPL-2.0-only
/* Regions and pages that exist before the trace. Each workload runs step by step; attach at "running". */
#include "workload.h"

#include <errno.h>
#include <sys/prctl.h>

/* Every third of 39 pages exists before. A is forked later; B runs already, and waits. */
static void grown(void)
{
	char *pool = map_anon(97), byte;
	int gate[2];
	if (pipe(gate))
		die("pipe");
	CHILD("P")
		for (size_t page = 0; page < 39; page += 3)
			write_pages(pool, page, page + 1);
	START("B") {
		close(gate[1]);
		if (read(gate[0], &byte, 1))
			die("gate");
		write_pages(pool, 25, 41);
	}
	close(gate[0]);
	step("running");
	CHILD("A")
		write_pages(pool, 5, 30);
	close(gate[1]);
	join_all();
	write_pages(pool, 40, 44);
	note_region("pool", pool);
	step("grown");
}

/* Pages from before are given back, and made again by A. */
static void given_back(void)
{
	char *pool = map_anon(97);
	write_pages(pool, 0, 41);
	step("running");
	if (madvise(pool + 10 * PAGE, 20 * PAGE, MADV_REMOVE))
		die("MADV_REMOVE");
	CHILD("A")
		write_pages(pool, 5, 17);
	note_region("pool", pool);
	step("grown");
}

/* Several views are there already: whole, a tail of it, and a split one. */
static void viewed(void)
{
	int fd = make_memfd("pool", 97);
	char *pool = map_file(fd, 0, 97, RW);
	char *tail = map_file(fd, 31, 66, RW);
	mprotect(pool + 64 * PAGE, 33 * PAGE, PROT_READ);
	write_pages(pool, 0, 5);
	write_pages(tail, 0, 4);
	step("running");
	CHILD("A")
		write_pages(tail, 2, 15);
	CHILD("B") {
		write_pages(pool, 3, 40);
		read_pages(pool, 60, 72);
	}
	note_file("pool", fd);
	step("grown");
}

/* The last user releases the region during the capture. */
static void let_go(void)
{
	char *pool = map_anon(97);
	write_pages(pool, 0, 13);
	step("running");
	CHILD("A")
		write_pages(pool, 7, 30);
	note_region("pool", pool);
	munmap(pool, 97 * PAGE);
	step("gone");
}

/* A memfd that nobody has mapped yet, with pages in it. */
static void unmapped(void)
{
	int fd = make_memfd("pool", 53);
	for (off_t page = 0; page < 9; page++)
		if (pwrite(fd, "x", 1, page * PAGE) != 1)
			die("pwrite");
	step("running");
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("A")
		write_pages(pool, 0, 16);
	note_file("pool", fd);
	step("grown");
}

/* Makes its region only after the trace has started. */
static void idle(void)
{
	step("running");
	char *pool = map_anon(53);
	CHILD("A")
		write_pages(pool, 0, 23);
	note_region("pool", pool);
	step("grown");
}

/* A and B write the same pages at once, right after attaching. Which one wins is open, the sum is known. */
static void rounds(void)
{
	enum { PAGES = 2503 };
	char *pool = map_anon(PAGES);
	write_pages(pool, 0, 101);
	step("running");
	for (int round = 0; round < 7; round++) {
		START("A")
			write_pages(pool, round * 300, round * 300 + 331);
		START("B")
			write_pages(pool, round * 300 + 17, round * 300 + 303);
		join_all();
	}
	note_region("pool", pool);
	step("grown");
}

/* Has other names than its program's: comm is $COMM, and the title, written over the first argument, is $TITLE. */
static void named(void)
{
	const char *comm = getenv("COMM"), *title = getenv("TITLE");
	if (title)
		strncpy(program_invocation_name, title, strlen(program_invocation_name));
	if (comm)
		prctl(PR_SET_NAME, comm);
	char *pool = map_anon(53);
	write_pages(pool, 0, 5);
	step("running");
	CHILD("A")
		write_pages(pool, 0, 22);
	note_region("pool", pool);
	step("grown");
}

/* Always busy: A and B touch and give back pages while main runs. */
static void restless(void)
{
	enum { PAGES = 4099 };
	char *pool = map_anon(PAGES);
	for (size_t part = 0; part < 2; part++) {
		START(part ? "B" : "A") {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (size_t page = part; true; page = (page + 2) % PAGES) {
				write_pages(pool, page, page + 1);
				if (page % 97 == 0)
					madvise(pool + page / 2 * PAGE, 31 * PAGE, MADV_REMOVE);
			}
		}
	}
	note_region("pool", pool);
	step("running");
}

const struct workload existing[] = {
	{"grown", grown},
	{"given_back", given_back},
	{"viewed", viewed},
	{"let_go", let_go},
	{"unmapped", unmapped},
	{"idle", idle},
	{"rounds", rounds},
	{"named", named},
	{"restless", restless},
	{},
};

// SPDX-License-Identifier: GPL-2.0-only
/* Pages that are swapped out and keep their owner. */
#include "workload.h"

#include <errno.h>

static void need_swap(void)
{
	char line[256];
	FILE *swaps = fopen("/proc/swaps", "r");
	bool any = swaps && fgets(line, sizeof(line), swaps) && fgets(line, sizeof(line), swaps);
	if (!any)
		note_absent("swap");
	fclose(swaps);
}

/* From smaps, which counts the region's own swap entries. */
static size_t swapped_pages(const char *pool)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[512];
	unsigned long start, end, kilobytes = 0;
	bool here = false;
	if (!smaps)
		die("/proc/self/smaps");
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == (uintptr_t)pool;
		else if (here && sscanf(line, "Swap: %lu kB", &kilobytes) == 1)
			break;
	}
	fclose(smaps);
	return kilobytes * 1024 / PAGE;
}

static void must_be_swapped(const char *pool, size_t pages)
{
	errno = EBUSY;
	if (swapped_pages(pool) != pages)
		die("swapped pages");
}

/* Make the pages. The kernel only swaps out pages that a single process maps and that are not about to be used. */
static void swap_out(char *pool, size_t pages)
{
	stay_on_this_cpu();
	for (int tries = 0; tries < 1000; tries++) {
		write_pages(pool, 0, pages);
		if (madvise(pool, pages * PAGE, MADV_PAGEOUT))
			die("MADV_PAGEOUT");
		if (swapped_pages(pool) == pages)
			return;
		usleep(2000);
	}
	must_be_swapped(pool, pages);
}

/* A makes 41 pages, and they are swapped out. B has 13 of them back in and makes 7 of its own. */
static char *make_swapped(void)
{
	need_swap();
	char *pool = map_anon(53);
	CHILD("A")
		swap_out(pool, 41);
	must_be_swapped(pool, 41);
	CHILD("B") {
		read_pages(pool, 10, 23);
		write_pages(pool, 41, 48);
	}
	must_be_swapped(pool, 28);
	return pool;
}

/* Main has all of them back in at the end. */
static void back(void)
{
	char *pool = make_swapped();
	read_pages(pool, 0, 48);
	must_be_swapped(pool, 0);
	note_region("pool", pool);
}

/* Of A's 41, 28 are swapped out when the region goes. */
static void at_end(void)
{
	note_region("pool", make_swapped());
}

/* Of A's 41, main gives 17 back while they are swapped out; B makes 5 of these anew. */
static char *make_punched(void)
{
	need_swap();
	char *pool = map_anon(53);
	CHILD("A")
		swap_out(pool, 41);
	must_be_swapped(pool, 41);
	if (madvise(pool + 5 * PAGE, 17 * PAGE, MADV_REMOVE))
		die("MADV_REMOVE");
	must_be_swapped(pool, 24);
	CHILD("B")
		write_pages(pool, 8, 13);
	return pool;
}

/* Main has A's other 24 back in at the end. */
static void punched(void)
{
	char *pool = make_punched();
	read_pages(pool, 0, 5);
	read_pages(pool, 22, 41);
	must_be_swapped(pool, 0);
	note_region("pool", pool);
}

/* A's other 24 are swapped out when the region goes. */
static void punched_at_end(void)
{
	char *pool = make_punched();
	must_be_swapped(pool, 24);
	note_region("pool", pool);
}

const struct workload swapped[] = {
	{"swapped", back},
	{"swapped_at_end", at_end},
	{"swapped_punched", punched},
	{"swapped_punched_at_end", punched_at_end},
	{},
};

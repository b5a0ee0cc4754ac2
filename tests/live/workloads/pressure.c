// SPDX-License-Identifier: GPL-2.0-only
/* More pages than memory, in a cgroup with little room, so that the kernel swaps heavily. */
#include "workload.h"

#include <errno.h>

enum { MAKERS = 8, BLOCK = 13, BLOCKS = 521, FEW = 89, ADDITIONS = 125000 };
#define ROOM "100663296"       /* bytes; less than half the size of the region */
#define SWAP_KB (256UL * 1024) /* more than the whole region */

static char group[256], root[192];
static bool enabled;
static pid_t made_by;

static void remove_group(void)
{
	char path[256];
	if (getpid() != made_by)
		return;
	for (int tries = 0; rmdir(group) && errno == EBUSY && tries < 100; tries++)
		usleep(2000);
	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", root);
	if (enabled)
		put_text(path, "-memory");
}

static bool in_group(const char *file, const char *text)
{
	char path[300];
	snprintf(path, sizeof(path), "%s/%s", group, file);
	return put_text(path, text);
}

/* Where cgroup2 is mounted. */
static bool find_root(void)
{
	char line[512], type[32];
	FILE *mounts = fopen("/proc/self/mounts", "r");
	bool found = false;
	while (!found && mounts && fgets(line, sizeof(line), mounts))
		found = sscanf(line, "%*s %191s %31s", root, type) == 2 && !strcmp(type, "cgroup2");
	if (mounts)
		fclose(mounts);
	return found;
}

static void make_group(void)
{
	char path[256];
	if (!find_root())
		note_absent("cgroup2");
	made_by = getpid();
	snprintf(group, sizeof(group), "%s/workload.%d", root, getpid());
	if (mkdir(group, 0755))
		note_absent("a control group of its own");
	atexit(remove_group);
	if (!in_group("memory.max", ROOM)) {
		snprintf(path, sizeof(path), "%s/cgroup.subtree_control", root);
		enabled = put_text(path, "+memory");
		if (!enabled || !in_group("memory.max", ROOM))
			note_absent("memory.max of cgroup2");
	}
}

static void need_swap(void)
{
	char line[256];
	unsigned long kilobytes = 0;
	FILE *meminfo = fopen("/proc/meminfo", "r");
	while (meminfo && fgets(line, sizeof(line), meminfo) && sscanf(line, "SwapFree: %lu kB", &kilobytes) != 1)
		;
	if (meminfo)
		fclose(meminfo);
	if (kilobytes < SWAP_KB)
		note_absent("256 MiB of free swap");
}

/* A maker first fills its blocks in turn. After that, of each four visits one goes on round all, three round a few. */
static size_t visited(size_t visit)
{
	return visit < BLOCKS ? visit : visit % 4 ? visit % FEW : visit / 4 % BLOCKS;
}

/* One block of each 8 is this maker's. It gives back what it finds there and makes it again. */
static void make(char *pool, size_t maker, size_t additions)
{
	for (size_t visit = 0, made = 0; made < additions; visit++) {
		size_t block = (visited(visit) * MAKERS + maker) * BLOCK;
		size_t pages = additions - made < BLOCK ? additions - made : BLOCK;
		if (visit >= BLOCKS && madvise(pool + block * PAGE, BLOCK * PAGE, MADV_REMOVE))
			die("MADV_REMOVE");
		write_pages(pool, block, block + pages);
		made += pages;
		if (visit >= BLOCKS && visit % 12 == 0) { /* a page that was swapped out long ago */
			block = ((visited(visit) + BLOCKS / 2) % BLOCKS * MAKERS + maker) * BLOCK;
			read_pages(pool, block, block + 1);
		}
	}
}

/*
 * A million pages and more: A makes 125000, B 125101, C 125202, … H 125707. What is left to each at the end is its 521
 * blocks, the last it came to not in full: A 6765, B 6762, C 6772, D 6769, E 6766, F 6763, G 6773, H 6770.
 */
static void pressed(void)
{
	char *pool = map_anon(MAKERS * BLOCK * BLOCKS);
	need_swap();
	make_group();
	for (int i = 0; i < MAKERS; i++) {
		char name[] = {'A' + i, 0};
		START(name) {
			if (!in_group("cgroup.procs", "0"))
				die("cgroup.procs");
			make(pool, i, ADDITIONS + i * 101);
		}
	}
	join_all();
	note_region("pool", pool);
}

const struct workload pressure[] = {
	{"pressure", pressed},
	{},
};

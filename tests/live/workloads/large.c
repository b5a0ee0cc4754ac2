// SPDX-License-Identifier: GPL-2.0-only
/* Pages made 512 at a time, or more where they are larger. Each such range is mapped so that it can be one huge page. */
#include "workload.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <time.h>

static char *map_ranges(int fd, size_t ranges)
{
	char *room = mmap(NULL, (ranges + 1) * HUGE * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (room == MAP_FAILED)
		die("mmap");
	char *place = (char *)(((uintptr_t)room + HUGE * PAGE - 1) & ~(HUGE * PAGE - 1));
	if (mmap(place, ranges * HUGE * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) != place)
		die("mmap");
	return place;
}

/*
 * A makes two huge pages by a byte in each. Main gives back 100 pages out of the second, which the kernel takes apart for
 * it; B makes 40 of them anew.
 */
static void huge_punched(void)
{
	int fd = make_memfd("pool", 2 * HUGE);
	char *pool = map_ranges(fd, 2);
	if (madvise(pool, 2 * HUGE * PAGE, MADV_HUGEPAGE))
		note_absent("MADV_HUGEPAGE");
	CHILD("A") {
		write_pages(pool, 13, 14);
		write_pages(pool, HUGE + 77, HUGE + 78);
	}
	if (held_pages(fd) != 2 * HUGE)
		note_absent("huge pages for a memfd (shmem_enabled, or free memory)");
	if (madvise(pool + (HUGE + 88) * PAGE, 100 * PAGE, MADV_REMOVE))
		die("MADV_REMOVE");
	if (held_pages(fd) != 2 * HUGE - 100)
		die("the huge page stays whole");
	CHILD("B")
		write_pages(pool, HUGE + 68, HUGE + 128);
	note_file("pool", fd);
}

/*
 * A asks for 18 pages more than a huge one has, and gets two huge ones. B writes to 41 that are there, and to 7 of a
 * third: it makes all of that.
 */
static void huge_fallocated(void)
{
	int fd = make_private_file("huge=always", 3 * HUGE);
	if (fd < 0)
		note_absent("a tmpfs with huge=always");
	char *pool = map_ranges(fd, 3);
	CHILD("A")
		if (fallocate(fd, 0, 0, (HUGE + 18) * PAGE))
			die("fallocate");
	if (held_pages(fd) != 2 * HUGE)
		note_absent("huge pages for fallocate");
	CHILD("B")
		write_pages(pool, 2 * HUGE - 41, 2 * HUGE + 7);
	if (held_pages(fd) != 3 * HUGE)
		note_absent("huge pages for a tmpfs with huge=always");
	note_file("pool", fd);
}

/* 37 pages of one range. */
static void scatter(char *pool)
{
	for (size_t page = 0; page < 37 * 13; page += 13)
		write_pages(pool, page, page + 1);
}

/* A makes 37 pages, B the others by collapsing all into one, C 11 in the next range. */
static void collapsed(void)
{
	int fd = make_memfd("pool", 2 * HUGE);
	char *pool = map_ranges(fd, 2);
	CHILD("A")
		scatter(pool);
	if (held_pages(fd) != 37)
		note_absent("small pages (shmem_enabled gives huge ones unasked)");
	CHILD("B")
		for (int tries = 0; madvise(pool, HUGE * PAGE, MADV_COLLAPSE) && errno == EAGAIN && tries < 50; tries++)
			usleep(5000);
	if (held_pages(fd) != HUGE) /* 6.1 does it and still returns EINVAL */
		note_absent("MADV_COLLAPSE of shared memory");
	CHILD("C")
		write_pages(pool, HUGE - 10, HUGE + 11);
	note_file("pool", fd);
}

/* Make khugepaged work fast. The old values are restored at the end. */
#define KNOBS "/sys/kernel/mm/transparent_hugepage/khugepaged/"
static struct knob {
	const char *path, *eager;
	char before[32];
} knobs[] = {
	{KNOBS "pages_to_scan",		"100000", ""},
	{KNOBS "alloc_sleep_millisecs", "10",     ""},
	{KNOBS "scan_sleep_millisecs",  "1",	    ""}, /* last, since it wakes khugepaged */
};
static pid_t turned_by;

static void turn_back(void)
{
	for (size_t i = 0; getpid() == turned_by && i < sizeof(knobs) / sizeof(*knobs); i++)
		if (*knobs[i].before)
			put_text(knobs[i].path, knobs[i].before);
}

static void turn_knobs(void)
{
	turned_by = getpid();
	atexit(turn_back);
	for (size_t i = 0; i < sizeof(knobs) / sizeof(*knobs); i++) {
		int fd = open(knobs[i].path, O_RDONLY);
		if (fd < 0 || read(fd, knobs[i].before, sizeof(knobs[i].before) - 1) <= 0)
			note_absent("khugepaged");
		close(fd);
		if (!put_text(knobs[i].path, knobs[i].eager))
			note_absent("the knobs of khugepaged");
	}
}

static void note_kernel_thread(const char *name)
{
	DIR *processes = opendir("/proc");
	if (!processes)
		die("/proc");
	for (struct dirent *each; (each = readdir(processes));) {
		char path[300], comm[32] = "";
		snprintf(path, sizeof(path), "/proc/%s/comm", each->d_name);
		int fd = isdigit(*each->d_name) ? open(path, O_RDONLY) : -1;
		if (fd >= 0 && read(fd, comm, sizeof(comm) - 1) > 0 && !strncmp(comm, name, strlen(name)))
			note_process(name, atoi(each->d_name));
		close(fd);
	}
	closedir(processes);
}

/* A makes 37 pages, and the kernel thread khugepaged makes the others. B makes 11 in the next range. */
static void khugepaged(void)
{
	int fd = make_memfd("pool", 2 * HUGE);
	char *pool = map_ranges(fd, 2);
	CHILD("A")
		scatter(pool);
	if (held_pages(fd) != 37)
		note_absent("small pages (shmem_enabled gives huge ones unasked)");
	note_kernel_thread("khugepaged");
	turn_knobs();
	for (int i = 0; i < 2;
	     i++) /* some kernels check what the mapping was before, and collapse only on the second look */
		if (madvise(pool, HUGE * PAGE, MADV_HUGEPAGE))
			note_absent("MADV_HUGEPAGE");
	/* st_blocks has them as soon as khugepaged begins, and no longer if it fails: the first hole tells */
	for (time_t end = time(NULL) + 10; lseek(fd, 0, SEEK_HOLE) != HUGE * PAGE;) {
		if (time(NULL) > end)
			note_absent("khugepaged does not come");
		usleep(5000);
	}
	CHILD("B")
		write_pages(pool, HUGE - 10, HUGE + 11);
	note_file("pool", fd);
}

const struct workload large[] = {
	{"huge_punched", huge_punched},
	{"huge_fallocated", huge_fallocated},
	{"collapsed", collapsed},
	{"khugepaged", khugepaged},
	{},
};

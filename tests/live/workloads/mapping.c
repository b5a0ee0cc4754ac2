// SPDX-License-Identifier: GPL-2.0-only
/* Mappings of a region that move, split, overlap, come and go. */
#include "workload.h"

/* Private memory in place of a part of a region. What is written there must not count. */
static void put_private(char *address, size_t pages)
{
	if (mmap(address, pages * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != address)
		die("mmap");
	write_pages(address, 0, pages);
}

/* An address range that stays free of other mappings, to put views in. */
static char *reserve(size_t pages)
{
	char *map = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		die("mmap");
	return map;
}

static void put_view(char *address, int fd, size_t first, size_t pages)
{
	if (mmap(address, pages * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, first * PAGE) != address)
		die("mmap");
}

static void moved(void)
{
	char *pool = map_anon(61);
	write_pages(pool, 0, 11);
	CHILD("A") {
		char *there = mremap(pool, 61 * PAGE, 61 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, reserve(61));
		if (there == MAP_FAILED)
			die("mremap");
		put_private(pool, 61);
		write_pages(there, 5, 31);
	}
	CHILD("B")
		write_pages(pool, 23, 40);
	note_region("pool", pool);
}

/* mremap grows a view of a larger file, moves a part of it, and with an old size of 0 makes a second one. */
static void resized(void)
{
	int fd = make_memfd("pool", 97);
	char *place = reserve(97);
	put_view(place, fd, 0, 23);
	munmap(place + 23 * PAGE, 74 * PAGE);
	CHILD("A") {
		char *all = mremap(place, 23 * PAGE, 71 * PAGE, MREMAP_MAYMOVE);
		if (all == MAP_FAILED)
			die("mremap");
		write_pages(all, 20, 71);
	}
	CHILD("B") {
		char *part = mremap(place + 10 * PAGE, 7 * PAGE, 7 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, reserve(7));
		if (part == MAP_FAILED)
			die("mremap");
		put_private(place + 10 * PAGE, 7);
		write_pages(part, 0, 5);
		write_pages(place, 0, 3);
	}
	CHILD("C") {
		char *again = mremap(place, 0, 23 * PAGE, MREMAP_MAYMOVE);
		if (again == MAP_FAILED)
			die("mremap");
		write_pages(again, 0, 8);
		write_pages(place, 0, 9);
	}
	note_file("pool", fd);
}

/* A hole in the middle of the view, with private memory in it. */
static void holed(void)
{
	char *pool = map_anon(61);
	CHILD("A") {
		munmap(pool + 20 * PAGE, 19 * PAGE);
		put_private(pool + 20 * PAGE, 19);
		write_pages(pool, 0, 61);
	}
	note_region("pool", pool);
	CHILD("B") {
		munmap(pool, 13 * PAGE);
		munmap(pool + 57 * PAGE, 4 * PAGE);
		write_pages(pool, 13, 57);
	}
	note_region("pool", pool);
}

/* Another region over part of the first, without an munmap. */
static void replaced(void)
{
	char *pool = map_anon(61);
	int fd = make_memfd("other", 23);
	write_pages(pool, 0, 7);
	put_view(pool + 20 * PAGE, fd, 3, 19);
	CHILD("A")
		write_pages(pool, 0, 61);
	CHILD("B")
		write_pages(map_file(fd, 0, 23, RW), 0, 23);
	note_region("pool", pool);
	note_file("other", fd);
}

/* The same memfd whole and from its 17th page on. */
static void twice(void)
{
	int fd = make_memfd("pool", 51);
	char *pool = map_file(fd, 0, 51, RW);
	char *tail = map_file(fd, 17, 34, RW);
	CHILD("A")
		write_pages(tail, 0, 12);
	CHILD("B")
		write_pages(pool, 0, 25);
	CHILD("C")
		write_pages(map_file(fd, 20, 31, RW), 0, 31);
	note_file("pool", fd);
}

/* mprotect makes one range three, and one again. */
static void protected(void)
{
	char *pool = map_anon(61);
	mprotect(pool + 10 * PAGE, 10 * PAGE, PROT_READ);
	CHILD("A") {
		write_pages(pool, 0, 10);
		read_pages(pool, 10, 15);
		write_pages(pool, 20, 34);
	}
	mprotect(pool, 61 * PAGE, PROT_NONE);
	mprotect(pool, 61 * PAGE, RW);
	CHILD("B")
		write_pages(pool, 0, 43);
	note_region("pool", pool);
}

static void read_only_view(void)
{
	int fd = make_memfd("pool", 53);
	char *pool = map_file(fd, 0, 53, RW);
	const char *view = map_file(fd, 0, 53, PROT_READ);
	CHILD("A")
		read_pages(view, 7, 21);
	CHILD("B")
		write_pages(pool, 0, 24);
	note_file("pool", fd);
}

/* A maps it first, by a descriptor that is for reading: 23 holes. B makes 7 more. */
static void read_only_first(void)
{
	int fd = make_memfd("pool", 53);
	CHILD("A") {
		char path[32];
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		read_pages(map_file(open(path, O_RDONLY), 0, 53, PROT_READ), 11, 34);
	}
	CHILD("B")
		write_pages(map_file(fd, 0, 53, RW), 4, 29);
	note_file("pool", fd);
}

/* As opcache with its JIT: one inode, data read-write and code read-execute, which each writer opens for a moment. */
static void write_code(char *code, size_t first, size_t end)
{
	mprotect(code, 37 * PAGE, RW);
	write_pages(code, first, end);
	mprotect(code, 37 * PAGE, PROT_READ | PROT_EXEC);
}

static void jit(void)
{
	char *pool = map_anon(101);
	char *code = pool + 64 * PAGE;
	mprotect(code, 37 * PAGE, PROT_READ | PROT_EXEC);
	write_code(code, 0, 2);
	CHILD("A") {
		write_pages(pool, 0, 11);
		write_code(code, 0, 7);
	}
	CHILD("B") {
		write_pages(pool, 9, 20);
		write_code(code, 4, 17);
	}
	note_region("pool", pool);
}

/* A private mapping of a region makes the pages of the region that it copies from. */
static void private_view(void)
{
	int fd = make_memfd("pool", 53);
	char *pool = map_file(fd, 0, 53, RW);
	char *copy = mmap(NULL, 53 * PAGE, RW, MAP_PRIVATE, fd, 0);
	write_pages(pool, 0, 11);
	CHILD("A")
		write_pages(copy, 5, 21);
	CHILD("B")
		read_pages(copy, 15, 24);
	CHILD("C")
		write_pages(pool, 0, 30);
	note_file("pool", fd);
}

/* A region of i + 1 pages each, filled by A where i is even and by B where it is odd. */
static void many_regions(void)
{
	enum { REGIONS = 45 };
	char *pools[REGIONS], name[16];
	for (size_t i = 0; i < REGIONS; i++)
		pools[i] = map_anon(i + 1);
	CHILD("A")
		for (size_t i = 0; i < REGIONS; i += 2)
			write_pages(pools[i], 0, i + 1);
	CHILD("B")
		for (size_t i = 1; i < REGIONS; i += 2)
			write_pages(pools[i], 0, i + 1);
	for (size_t i = 0; i < REGIONS; i++) {
		snprintf(name, sizeof(name), "pool-%zu", i);
		note_region(name, pools[i]);
	}
}

/* Views of three pages, a gap after each, so that none can merge. */
static void touch_views(size_t views)
{
	int fd = make_memfd("pool", views * 3);
	char *place = reserve(views * 4);
	for (size_t i = 0; i < views; i++)
		put_view(place + i * 4 * PAGE, fd, i * 3, 3);
	CHILD("A")
		for (size_t i = 0; i < views; i++)
			write_pages(place + i * 4 * PAGE, 0, 3);
	note_file("pool", fd);
}

static void ranges_64(void)
{
	touch_views(64);
}

static void ranges_80(void)
{
	touch_views(80);
}

/* As uWSGI: 40 processes with 256 mappings each, the workers' pages next to each other's. */
static void views_256(void)
{
	enum { VIEWS = 256, WORKERS = 40 };
	int fd = make_memfd("pool", VIEWS * WORKERS);
	for (size_t worker = 0; worker < WORKERS; worker++) {
		char name[16];
		snprintf(name, sizeof(name), "worker-%zu", worker);
		START(name) {
			char *place = reserve(VIEWS * (WORKERS + 1));
			for (size_t i = 0; i < VIEWS; i++)
				put_view(place + i * (WORKERS + 1) * PAGE, fd, i * WORKERS, WORKERS);
			for (size_t i = 0; i < VIEWS; i++)
				write_pages(place + i * (WORKERS + 1) * PAGE, worker, worker + 1);
		}
	}
	join_all();
	note_file("pool", fd);
}

/* 1499 regions of 1 to 3 pages, each gone before the next. The account of the last one must still be exact. */
static void churned(void)
{
	for (size_t i = 0; i < 1499; i++) {
		char *pool = map_anon(3);
		write_pages(pool, 0, i % 3 + 1);
		munmap(pool, 3 * PAGE);
	}
	char *pool = map_anon(53);
	CHILD("A")
		write_pages(pool, 0, 23);
	note_region("pool", pool);
}

const struct workload mapping[] = {
	{"moved", moved},
	{"resized", resized},
	{"holed", holed},
	{"replaced", replaced},
	{"twice", twice},
	{"protected", protected},
	{"read_only_view", read_only_view},
	{"read_only_first", read_only_first},
	{"jit", jit},
	{"private_view", private_view},
	{"many_regions", many_regions},
	{"ranges_64", ranges_64},
	{"ranges_80", ranges_80},
	{"views_256", views_256},
	{"churned", churned},
	{},
};

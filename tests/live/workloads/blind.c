// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages made without a page fault. Where only faults are traced, these have no owner, and get none when another process
 * faults on them later.
 */
#include "workload.h"

#include <errno.h>

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

/* As PostgreSQL reserves a segment, before it maps it: all of it is main's. A makes 7 more behind it. */
static void reserved(void)
{
	char name[32];
	snprintf(name, sizeof(name), "/workload.%d", getpid());
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || posix_fallocate(fd, 0, 83 * PAGE) || ftruncate(fd, 97 * PAGE))
		die(name);
	char *pool = map_file(fd, 0, 97, RW);
	shm_unlink(name);
	CHILD("A")
		write_pages(pool, 61, 90);
	note_file("pool", fd);
}

/* Main faults 5 pages in and writes 3, A reserves the 143 around them, beyond the end too, B faults on 21 and makes 2. */
static void reserved_around(void)
{
	int fd = make_memfd("pool", 131);
	char *pool = map_file(fd, 0, 131, RW);
	write_pages(pool, 11, 16);
	put_pages(fd, 70, 73);
	CHILD("A")
		if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 2 * PAGE + 1, 151 * PAGE - 2))
			die("fallocate");
	CHILD("B")
		write_pages(pool, 0, 21);
	note_file("pool", fd);
}

/*
 * A private mapping of what nobody maps shared: the 5 pages read before it is a region are unseen, the 3 reserved and
 * the 7 read after them are main's.
 */
static void reserved_between(void)
{
	char name[32];
	snprintf(name, sizeof(name), "/workload.%d", getpid());
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, 53 * PAGE))
		die(name);
	char *copy = mmap(NULL, 53 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	shm_unlink(name);
	read_pages(copy, 0, 5);
	if (fallocate(fd, 0, 10 * PAGE, 3 * PAGE))
		die("fallocate");
	read_pages(copy, 20, 27);
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("B")
		write_pages(pool, 25, 31);
	note_file("pool", fd);
}

/* More pages than one run of the program handles. A's are 3001, B's 7. */
static void reserved_large(void)
{
	int fd = make_memfd("pool", 3307);
	char *pool = map_file(fd, 0, 3307, RW);
	CHILD("A")
		if (fallocate(fd, 0, 101 * PAGE, 3001 * PAGE))
			die("fallocate");
	CHILD("B")
		write_pages(pool, 3095, 3109);
	note_file("pool", fd);
}

/* A's reservation fails for lack of room and leaves nothing. 5 of its pages are written to, unseen. */
static void reserved_in_vain(void)
{
	int fd = make_private_file("nr_blocks=41", 61);
	if (fd < 0)
		die("tmpfs");
	char *pool = map_file(fd, 0, 61, RW);
	CHILD("A")
		if (!fallocate(fd, 0, 0, 59 * PAGE) || errno != ENOSPC)
			die("fallocate with no room");
	put_pages(fd, 50, 55);
	CHILD("B")
		write_pages(pool, 47, 61);
	note_file("pool", fd);
}

/* Pages were seen and given back; then main reserves, which makes 11 of the 20 again. */
static void remade(void)
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

/* Pages made before any process maps the region. */
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

/* A file that nobody maps, in a tmpfs: main makes 1 page, A 22, B appends 5 and a bit, C reserves 7. */
static void never_mapped(void)
{
	static char bytes[5 * PAGE];
	int fd = make_private_file("nr_blocks=256", 0);
	if (fd < 0)
		die("tmpfs");
	put_pages(fd, 0, 1);
	CHILD("A")
		put_pages(fd, 0, 23);
	CHILD("B") {
		struct iovec parts[] = {
			{bytes, sizeof(bytes)},
			{bytes, 100	   }
		    };
		int end = open("/mnt/pool", O_WRONLY | O_APPEND);
		if (end < 0 || writev(end, parts, 2) != sizeof(bytes) + 100)
			die("writev");
	}
	CHILD("C")
		if (fallocate(fd, 0, 40 * PAGE, 7 * PAGE))
			die("fallocate");
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

/* Pages were seen, given back and made again unseen. Then another process faults on them, but made none of them. */
static void remade_unseen(void)
{
	int fd = make_memfd("pool", 53);
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("A")
		write_pages(pool, 0, 31);
	if (madvise(pool + 5 * PAGE, 20 * PAGE, MADV_REMOVE))
		die("MADV_REMOVE");
	if (mmap(NULL, 11 * PAGE, RW, MAP_SHARED | MAP_POPULATE, fd, 10 * PAGE) == MAP_FAILED)
		die("MAP_POPULATE");
	CHILD("B")
		write_pages(pool, 8, 23);
	note_file("pool", fd);
}

const struct workload blind[] = {
	{"fallocated", fallocated},
	{"reserved", reserved},
	{"reserved_around", reserved_around},
	{"reserved_between", reserved_between},
	{"reserved_large", reserved_large},
	{"reserved_in_vain", reserved_in_vain},
	{"remade", remade},
	{"written", written},
	{"written_first", written_first},
	{"never_mapped", never_mapped},
	{"populated", populated},
	{"mapped_populated", mapped_populated},
	{"locked", locked},
	{"written_across", written_across},
	{"remade_unseen", remade_unseen},
	{},
};

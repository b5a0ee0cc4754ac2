// SPDX-License-Identifier: GPL-2.0-only
/* The ways to create a region. Main creates each; A makes 13 pages, then B 6 more. */
#include "workload.h"

#include <errno.h>
#include <sys/ipc.h>
#include <sys/shm.h>

static void fill(char *pool)
{
	CHILD("A")
		write_pages(pool, 0, 13);
	CHILD("B")
		write_pages(pool, 9, 19);
	note_region("pool", pool);
}

static void anon(void)
{
	fill(map_anon(31));
}

static void dev_zero(void)
{
	fill(map_file(open("/dev/zero", O_RDWR), 0, 31, RW));
}

static void memfd(void)
{
	fill(map_file(make_memfd("a memfd: (deleted)", 31), 0, 31, RW));
}

static int make_sysv(void)
{
	int id = shmget(IPC_PRIVATE, 31 * PAGE, IPC_CREAT | 0600);
	if (id < 0)
		die("shmget");
	return id;
}

static char *attach(int id, int flags)
{
	char *pool = shmat(id, NULL, flags);
	if (pool == (void *)-1)
		die("shmat");
	return pool;
}

static void sysv(void)
{
	int id = make_sysv();
	char *pool = attach(id, 0);
	shmctl(id, IPC_RMID, NULL);
	fill(pool);
}

/* Main creates it without attaching; a child detaches it in between and attaches it at another address. */
static void sysv_detached(void)
{
	int id = make_sysv();
	CHILD("A") {
		char *pool = attach(id, 0);
		write_pages(pool, 0, 13);
		shmdt(pool);
		if (mmap(pool, 31 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != pool)
			die("mmap");
		write_pages(pool, 0, 31);
		write_pages(attach(id, 0), 11, 17);
	}
	CHILD("B") {
		read_pages(attach(id, SHM_RDONLY), 15, 20);
		char *pool = attach(id, 0);
		note_region("pool", pool);
	}
	shmctl(id, IPC_RMID, NULL);
}

/* A attaches it first, for reading: 23 holes. B makes 7 more. */
static void sysv_read_only(void)
{
	int id = make_sysv();
	CHILD("A")
		read_pages(attach(id, SHM_RDONLY), 5, 28);
	CHILD("B") {
		char *pool = attach(id, 0);
		write_pages(pool, 1, 31);
		note_region("pool", pool);
	}
	shmctl(id, IPC_RMID, NULL);
}

static void posix(void)
{
	char name[32];
	snprintf(name, sizeof(name), "/workload.%d", getpid());
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, 31 * PAGE))
		die(name);
	char *pool = map_file(fd, 0, 31, RW);
	shm_unlink(name);
	fill(pool);
}

/* The name stays while the region is used, as PostgreSQL does it. */
static void posix_named(void)
{
	char name[32];
	snprintf(name, sizeof(name), "/workload.%d", getpid());
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, 31 * PAGE))
		die(name);
	char *pool = map_file(fd, 0, 31, RW);
	close(fd);
	fill(pool);
	shm_unlink(name);
}

/* Two huge pages of three, of the size that all machines have. */
static void hugetlb(void)
{
	size_t huge = 2 << 20;
	char *pool = mmap(NULL, 3 * huge, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT, -1, 0);
	if (pool == MAP_FAILED)
		die("MAP_HUGETLB");
	CHILD("A")
		pool[0] = pool[huge] = 1;
	note_region("pool", pool);
}

/* A SysV segment's inode number is its id, on the same device as anonymous regions: here both have the same number. */
static void twins(void)
{
	struct stat inode;
	int fd = make_memfd("pool", 31);
	char *pool = map_file(fd, 0, 31, RW);
	fstat(fd, &inode);
	int next = open("/proc/sys/kernel/shm_next_id", O_WRONLY);
	if (next < 0 || dprintf(next, "%lu", inode.st_ino) < 0)
		die("shm_next_id");
	int id = make_sysv();
	if ((ino_t)id != inode.st_ino) {
		errno = EEXIST;
		die("shmget");
	}
	char *twin = attach(id, 0);
	shmctl(id, IPC_RMID, NULL);
	CHILD("A") {
		write_pages(pool, 0, 13);
		write_pages(twin, 0, 5);
	}
	CHILD("B") {
		write_pages(pool, 9, 19);
		write_pages(twin, 0, 8);
	}
	note_region("pool", pool);
	note_region("twin", twin);
}

const struct workload kinds[] = {
	{"anon", anon},
	{"dev_zero", dev_zero},
	{"memfd", memfd},
	{"sysv", sysv},
	{"sysv_detached", sysv_detached},
	{"sysv_read_only", sysv_read_only},
	{"posix", posix},
	{"posix_named", posix_named},
	{"hugetlb", hugetlb},
	{"twins", twins},
	{},
};

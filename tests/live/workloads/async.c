// SPDX-License-Identifier: GPL-2.0-only
/* Reads and writes requested by a process and done by others: a worker of io_uring, or a block device. */
#include "workload.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

static int open_ring(struct io_uring_params *about)
{
	return syscall(SYS_io_uring_setup, 1, about);
}

static void need_ring(void)
{
	struct io_uring_params about = {};
	int ring = open_ring(&about);
	if (ring < 0)
		note_absent("io_uring");
	close(ring);
}

static void *map_ring(int ring, size_t bytes, off_t offset)
{
	void *map = mmap(NULL, bytes, RW, MAP_SHARED | MAP_POPULATE, ring, offset);
	if (map == MAP_FAILED)
		die("a ring of io_uring");
	return map;
}

/* Submit one request, always through a worker, and wait for its end. */
static void request(unsigned char opcode, int fd, off_t offset, char *address, size_t bytes)
{
	struct io_uring_params about = {};
	int ring = open_ring(&about);
	if (ring < 0 || !(about.features & IORING_FEAT_SINGLE_MMAP))
		die("io_uring_setup");
	char *queues =
		map_ring(ring, about.cq_off.cqes + about.cq_entries * sizeof(struct io_uring_cqe), IORING_OFF_SQ_RING);
	struct io_uring_sqe *entry = map_ring(ring, sizeof(*entry), IORING_OFF_SQES);
	struct io_uring_cqe *end = (void *)(queues + about.cq_off.cqes);
	entry->opcode = opcode;
	entry->flags = IOSQE_ASYNC;
	entry->fd = fd;
	entry->off = offset;
	entry->addr = (uintptr_t)address;
	entry->len = bytes;
	((unsigned *)(queues + about.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(queues + about.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		die("io_uring_enter");
	errno = end->res < 0 ? -end->res : EIO;
	if (__atomic_load_n((unsigned *)(queues + about.cq_off.tail), __ATOMIC_ACQUIRE) != 1 || end->res != (int)bytes)
		die("a request of io_uring");
}

/* A's worker writes 19 pages: a kernel thread with A's memory on 5.10, a thread of A later. B makes 4 more. */
static void uring_written(void)
{
	need_ring();
	int fd = make_memfd("pool", 53);
	char *pool = map_file(fd, 0, 53, RW);
	CHILD("A") {
		static char bytes[19 * PAGE];
		memset(bytes, 1, sizeof(bytes));
		request(IORING_OP_WRITE, fd, 6 * PAGE, bytes, sizeof(bytes));
	}
	CHILD("B")
		write_pages(pool, 4, 27);
	note_file("pool", fd);
}

/* A's worker reads 11 pages into the region, and faults on them. B makes 9 more. */
static void uring_read(void)
{
	need_ring();
	int source = make_memfd("source", 11);
	put_pages(source, 0, 11);
	char *pool = map_anon(53);
	CHILD("A")
		request(IORING_OP_READ, source, 0, pool + 8 * PAGE, 11 * PAGE);
	CHILD("B")
		write_pages(pool, 3, 23);
	note_region("pool", pool);
	note_file("source", source);
}

/* A block device with a file's content; it is removed when it is closed. */
static int open_loop(int file)
{
	struct loop_config config = {.fd = file, .info = {.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR}};
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		note_absent("/dev/loop-control");
	for (int tries = 0; tries < 20; tries++) {
		char path[32];
		snprintf(path, sizeof(path), "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
		int device = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
		if (device < 0)
			note_absent("a free loop device");
		if (!ioctl(device, LOOP_CONFIGURE, &config)) {
			close(control);
			return device;
		}
		if (errno != EBUSY)
			note_absent("LOOP_CONFIGURE");
		close(device);
	}
	die("LOOP_CONFIGURE");
}

/* The device reads into 13 pages that the kernel made for A beforehand, without a fault. B makes 8 more. */
static void direct_read(void)
{
	int source = make_memfd("source", 17);
	put_pages(source, 0, 17);
	int device = open_loop(source);
	char *pool = map_anon(53);
	CHILD("A")
		if (pread(device, pool + 7 * PAGE, 13 * PAGE, 2 * PAGE) != 13 * PAGE)
			die("pread");
	CHILD("B")
		write_pages(pool, 2, 23);
	note_region("pool", pool);
	note_file("source", source);
	close(device);
}

const struct workload async[] = {
	{"uring_written", uring_written},
	{"uring_read", uring_read},
	{"direct_read", direct_read},
	{},
};

// SPDX-License-Identifier: GPL-2.0-only
/* Processes in cgroups of their own. The test has made these; $GROUP_A and $GROUP_B are their cgroup.procs. */
#include "workload.h"

#include <sched.h>
#include <sys/socket.h>

static void enter(const char *group)
{
	const char *path = getenv(group);
	if (path && !put_text(path, "0"))
		die(path);
}

/* Children forked from here on are in a PID namespace of their own. */
static void contain(const char *group)
{
	enter(group);
	if (unshare(CLONE_NEWPID | CLONE_NEWNS))
		die("unshare");
}

union message {
	struct cmsghdr head;
	char room[CMSG_SPACE(sizeof(int))];
};

static void send_file(int socket, int fd)
{
	union message message = {
		.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}
	       };
	struct iovec byte = {"x", 1};
	struct msghdr whole = {
		.msg_iov = &byte, .msg_iovlen = 1, .msg_control = &message, .msg_controllen = sizeof(message)};
	memcpy(CMSG_DATA(&message.head), &fd, sizeof(fd));
	if (sendmsg(socket, &whole, 0) != 1)
		die("sendmsg");
}

static int receive_file(int socket)
{
	union message message;
	char letter;
	int fd;
	struct iovec byte = {&letter, 1};
	struct msghdr whole = {
		.msg_iov = &byte, .msg_iovlen = 1, .msg_control = &message, .msg_controllen = sizeof(message)};
	if (recvmsg(socket, &whole, 0) != 1)
		die("recvmsg");
	memcpy(&fd, CMSG_DATA(&message.head), sizeof(fd));
	return fd;
}

static void tell(int end)
{
	if (write(end, "x", 1) != 1)
		die("write");
}

/* For who tells, or for all others to close it. */
static void wait_for(int end)
{
	char byte;
	if (read(end, &byte, 1) < 0)
		die("read");
}

/*
 * Two containers and one memfd, which goes from the one to the other through a socket: A, 1 in its PID namespace, makes
 * it and 23 pages; B, 2 in its own, reads these and makes 7 more.
 */
static void contained(void)
{
	int sockets[2], grown[2], gate[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || pipe(grown) || pipe(gate))
		die("socketpair");
	step("running");
	START("starts_A") {
		close(gate[1]);
		contain("GROUP_A");
		CHILD("A") {
			int fd = make_memfd("pool", 53);
			write_pages(map_file(fd, 0, 53, RW), 0, 23);
			send_file(sockets[0], fd);
			wait_for(gate[0]);
		}
	}
	START("starts_B") {
		close(gate[1]);
		contain("GROUP_B");
		CHILD("1")
			CHILD("B") {
				int fd = receive_file(sockets[1]);
				char *pool = map_file(fd, 0, 53, RW);
				read_pages(pool, 0, 23);
				write_pages(pool, 23, 30);
				note_file("pool", fd);
				tell(grown[1]);
				wait_for(gate[0]);
			}
	}
	wait_for(grown[0]);
	step("grown");
	close(gate[1]);
	join_all();
}

/*
 * Private memory: 2003 pages, which 3 processes that are forked later share with who made them, but for 101 pages that
 * each of them writes to; and 41 pages of shared memory.
 */
static void forked(void)
{
	int gate[2], grown[2];
	enter("GROUP_A");
	if (pipe(gate) || pipe(grown))
		die("pipe");
	char *own = mmap(NULL, 2003 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *pool = map_anon(53);
	if (own == MAP_FAILED || madvise(own, 2003 * PAGE, MADV_NOHUGEPAGE))
		die("mmap");
	write_pages(own, 0, 2003);
	step("running");
	for (size_t child = 0; child < 3; child++)
		START("child") {
			close(gate[1]);
			write_pages(own, 0, 101);
			if (child == 0)
				write_pages(pool, 0, 41);
			tell(grown[1]);
			wait_for(gate[0]);
		}
	for (size_t child = 0; child < 3; child++)
		wait_for(grown[0]);
	note_region("pool", pool);
	step("grown");
	close(gate[1]);
	join_all();
}

const struct workload places[] = {
	{"contained", contained},
	{"forked", forked},
	{},
};

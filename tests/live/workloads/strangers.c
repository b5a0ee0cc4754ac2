// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two programs, started apart: one lends its memfd to the other over a socket. Its name comes from the path of the notes,
 * which both must be given.
 */
#include "workload.h"

#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { PATIENCE_MS = 30000 };

/* One byte, and room for one descriptor with it. */
struct message {
	char byte;
	struct iovec bytes;
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr header;
};

static void prepare(struct message *message)
{
	*message = (struct message){
		.bytes = {&message->byte, 1}
	    };
	message->header.msg_iov = &message->bytes;
	message->header.msg_iovlen = 1;
	message->header.msg_control = &message->control;
	message->header.msg_controllen = sizeof(message->control);
}

static void send_fd(int peer, int fd)
{
	struct message message;
	prepare(&message);
	message.control.head = (struct cmsghdr){CMSG_LEN(sizeof(fd)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(&message.control.head), &fd, sizeof(fd));
	if (sendmsg(peer, &message.header, 0) != 1)
		die("sendmsg");
}

static int receive_fd(int peer)
{
	struct message message;
	int fd;
	prepare(&message);
	if (recvmsg(peer, &message.header, MSG_CMSG_CLOEXEC) != 1 || message.control.head.cmsg_type != SCM_RIGHTS)
		die("recvmsg");
	memcpy(&fd, CMSG_DATA(&message.control.head), sizeof(fd));
	return fd;
}

/* An abstract name: no file is left behind. */
static socklen_t meeting_place(struct sockaddr_un *place)
{
	uint64_t hash = 0xcbf29ce484222325;
	for (const char *each = notes_path; *each; each++)
		hash = (hash ^ (unsigned char)*each) * 0x100000001b3;
	*place = (struct sockaddr_un){.sun_family = AF_UNIX};
	int length = snprintf(place->sun_path + 1, sizeof(place->sun_path) - 1, "workload.%016lx", hash);
	return offsetof(struct sockaddr_un, sun_path) + 1 + length;
}

static void await(int fd)
{
	struct pollfd ready = {.fd = fd, .events = POLLIN};
	if (poll(&ready, 1, PATIENCE_MS) != 1)
		die("nobody comes");
}

/* Main makes 7 pages and hands the region over; the stranger makes 13; main 20 more. */
static void host_of_stranger(void)
{
	struct sockaddr_un place;
	socklen_t length = meeting_place(&place);
	int fd = make_memfd("pool", 61), listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char *pool = map_file(fd, 0, 61, RW), answer;
	write_pages(pool, 0, 7);
	if (bind(listener, (struct sockaddr *)&place, length) || listen(listener, 1))
		die("bind");
	step("listening");
	await(listener);
	int peer = accept(listener, NULL, NULL);
	send_fd(peer, fd);
	await(peer);
	if (read(peer, &answer, 1) != 1)
		die("the stranger");
	write_pages(pool, 5, 40);
	note_file("pool", fd);
}

/* S makes 9 pages by faults and 4 by write(2). It is a child, for its parent plays main, and that the host does too. */
static void stranger(void)
{
	struct sockaddr_un place;
	socklen_t length = meeting_place(&place);
	int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	for (int waited = 0; connect(peer, (struct sockaddr *)&place, length); waited += 2) {
		if (waited > PATIENCE_MS)
			die("connect");
		usleep(2000);
	}
	int fd = receive_fd(peer);
	CHILD("S") {
		write_pages(map_file(fd, 0, 61, RW), 10, 19);
		put_pages(fd, 30, 34);
	}
	close(fd);
	if (write(peer, "x", 1) != 1)
		die("the host");
}

const struct workload strangers[] = {
	{"host_of_stranger", host_of_stranger},
	{"stranger", stranger},
	{},
};

// SPDX-License-Identifier: GPL-2.0-only
/* Who touches pages: forks, threads, vfork, exec, short lives, and a reused PID. */
#include "workload.h"

#include <errno.h>
#include <sys/prctl.h>

#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>

static void hundred(void)
{
	char *pool = map_anon(751);
	write_pages(pool, 740, 743);
	for (size_t i = 0; i < 100; i++) {
		char name[16];
		snprintf(name, sizeof(name), "child-%zu", i);
		CHILD(name)
			write_pages(pool, i * 7, i * 7 + 7);
	}
	note_region("pool", pool);
}

/* Children that only touch pages: most live less than a millisecond. */
static void brief(void)
{
	enum { CHILDREN = 1009 };
	char *pool = map_anon(CHILDREN);
	static pid_t children[CHILDREN];
	for (size_t i = 0; i < CHILDREN; i++) {
		children[i] = fork();
		if (!children[i]) {
			write_pages(pool, i, i + 1);
			_exit(0);
		}
		join(children[i]);
	}
	for (size_t i = 0; i < CHILDREN; i++) {
		char name[16];
		snprintf(name, sizeof(name), "brief-%zu", i);
		note_process(name, children[i]);
	}
	note_region("pool", pool);
}

/* Six parents on one CPU fork 70 children each; a kernel that preempts programs keeps some of these forks from them. */
static void crowded(void)
{
	enum { PARENTS = 6, CHILDREN = 70, PAGES = 5 };
	char *pool = map_anon(PARENTS * CHILDREN * PAGES);
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(sysconf(_SC_NPROCESSORS_ONLN) - 1, &one);
	pid_t parents[PARENTS];
	for (size_t i = 0; i < PARENTS; i++) {
		parents[i] = fork();
		if (parents[i])
			continue;
		sched_setaffinity(0, sizeof(one), &one);
		for (size_t j = 0; j < CHILDREN; j++) {
			size_t first = (i * CHILDREN + j) * PAGES;
			pid_t child = fork();
			if (!child) {
				write_pages(pool, first, first + PAGES);
				_exit(0);
			}
			join(child);
		}
		_exit(0);
	}
	for (size_t i = 0; i < PARENTS; i++)
		join(parents[i]);
	note_region("pool", pool);
}

static void generations(void)
{
	char *pool = map_anon(53);
	write_pages(pool, 0, 3);
	CHILD("child") {
		write_pages(pool, 1, 8);
		CHILD("grandchild") {
			write_pages(pool, 2, 15);
			CHILD("greatgrandchild")
				write_pages(pool, 0, 26);
		}
	}
	note_region("pool", pool);
}

/* A child that outlives its parent still belongs to the tree. */
static void orphaned(void)
{
	char *pool = map_anon(53);
	int gate[2], done[2];
	char byte;
	if (pipe(gate) || pipe(done))
		die("pipe");
	CHILD("parent") {
		write_pages(pool, 0, 5);
		START("orphan") {
			close(gate[1]);
			close(done[0]);
			if (read(gate[0], &byte, 1))
				die("gate");
			write_pages(pool, 3, 16);
		}
	}
	close(gate[1]);
	close(done[1]);
	if (read(done[0], &byte, 1))
		die("done");
	note_region("pool", pool);
}

struct part {
	char *pool;
	size_t first, end;
};

static void *touch_part(void *argument)
{
	struct part *part = argument;
	write_pages(part->pool, part->first, part->end);
	return NULL;
}

static void in_threads(char *pool, size_t first)
{
	pthread_t threads[4];
	struct part parts[4];
	for (size_t i = 0; i < 4; i++) {
		parts[i] = (struct part){pool, first + i * 13, first + (i + 1) * 13};
		if (pthread_create(&threads[i], NULL, touch_part, &parts[i]))
			die("pthread_create");
	}
	for (size_t i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

/* A thread is its process, whichever of them maps the region and whichever touches it. */
static void *map_a_pool(void *pool)
{
	*(char **)pool = map_anon(131);
	return NULL;
}

static void threads(void)
{
	pthread_t mapper;
	char *pool;
	if (pthread_create(&mapper, NULL, map_a_pool, &pool) || pthread_join(mapper, NULL))
		die("pthread");
	in_threads(pool, 0);
	CHILD("A")
		in_threads(pool, 45);
	note_region("pool", pool);
}

/* A vfork child touches its parent's memory: the pages are the child's, the mapping stays the parent's. */
static void lent(void)
{
	char *pool = map_anon(53);
	pid_t child = vfork();
	if (!child) {
		write_pages(pool, 0, 5);
		_exit(0);
	}
	join(child);
	note_process("V", child);
	write_pages(pool, 3, 14);
	child = vfork();
	if (!child) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	join(child);
	write_pages(pool, 10, 23);
	CHILD("A")
		write_pages(pool, 20, 30);
	note_region("pool", pool);
}

static void spawned(void)
{
	char *pool = map_anon(53);
	char *arguments[] = {"true", NULL};
	for (size_t i = 0; i < 7; i++) {
		pid_t child;
		if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, NULL))
			die("posix_spawn");
		write_pages(pool, i * 3, i * 3 + 3);
		join(child);
	}
	note_region("pool", pool);
}

static char *shared_with_clone;

static int in_clone(void *pool)
{
	shared_with_clone = map_anon(31);
	write_pages(shared_with_clone, 0, 6);
	write_pages(pool, 0, 4);
	return 0;
}

/* CLONE_VM without CLONE_THREAD: separate processes with the same mappings. */
static void sharing(void)
{
	static char stack[64 * 1024] __attribute__((aligned(16)));
	char *pool = map_anon(53);
	pid_t child = clone(in_clone, stack + sizeof(stack), CLONE_VM | SIGCHLD, pool);
	join(child);
	note_process("C", child);
	write_pages(pool, 2, 13);
	write_pages(shared_with_clone, 4, 19);
	note_region("pool", pool);
	note_region("made", shared_with_clone);
}

#define OLD_PLACE ((char *)0x7e0000000000)

static char *map_at_old_place(int flags)
{
	char *map = mmap(OLD_PLACE, 53 * PAGE, RW, flags | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (map != OLD_PLACE)
		die("mmap");
	return map;
}

static void exec_workload(const char *name)
{
	execl("/proc/self/exe", "workload", name, notes_path, (char *)NULL);
	die("exec");
}

/* exec drops the region. Private memory at its address does not count, a new region does. */
static void after_exec(void)
{
	write_pages(map_at_old_place(MAP_PRIVATE), 0, 53);
	char *fresh = map_anon(31);
	write_pages(fresh, 0, 19);
	CHILD("B")
		write_pages(fresh, 17, 24);
	note_region("fresh", fresh);
}

static void exec(void)
{
	char *pool = map_at_old_place(MAP_SHARED);
	write_pages(pool, 0, 3);
	CHILD("A") {
		write_pages(pool, 0, 8);
		exec_workload("after_exec");
	}
	note_region("pool", pool);
}

/* A memfd goes through exec as descriptor number 11. */
static void inheritor(void)
{
	char *pool = map_file(11, 0, 53, RW);
	write_pages(pool, 5, 14);
}

static void inherited(void)
{
	if (dup2(make_memfd("pool", 53), 11) != 11)
		die("dup2");
	char *pool = map_file(11, 0, 53, RW);
	write_pages(pool, 0, 7);
	CHILD("A")
		exec_workload("inheritor");
	note_file("pool", 11);
}

static pid_t fork_numbered(pid_t tgid)
{
	struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&tgid, .set_tid_size = 1};
	pid_t child = syscall(SYS_clone3, &arguments, sizeof(arguments));
	if (child < 0)
		die("clone3");
	return child;
}

/* Three processes with the same PID: 5 pages, then 9, then 2. */
static void reused(void)
{
	char *pool = map_anon(53);
	static const size_t ends[] = {5, 14, 16};
	pid_t tgid = fork();
	for (int life = 0; life < 3; life++) {
		if (life)
			fork_numbered(tgid);
		if (!tgid || getpid() == tgid) {
			write_pages(pool, 0, ends[life]);
			_exit(0);
		}
		join(tgid);
		usleep(30000); /* start times are shown in ticks of 10 ms */
	}
	note_process("R", tgid);
	note_region("pool", pool);
}

/* As setproctitle(3) does it: over the program's own arguments. */
static void take_title(const char *title)
{
	char arguments[4096];
	int fd = open("/proc/self/cmdline", O_RDONLY);
	ssize_t bytes = read(fd, arguments, sizeof(arguments));
	close(fd);
	if (bytes <= (ssize_t)strlen(title))
		die("title");
	strncpy(program_invocation_name, title, bytes);
}

/* A, B and C rename themselves, and end within a millisecond: with status 0, with status 3, and by SIGKILL. */
static void renamed(void)
{
	char *pool = map_anon(53);
	START("A") {
		prctl(PR_SET_NAME, "renamed-3");
		write_pages(pool, 0, 3);
	}
	wait(NULL);
	START("B") {
		take_title("pool: five");
		write_pages(pool, 3, 8);
		_exit(3);
	}
	wait(NULL);
	START("C") {
		write_pages(pool, 8, 15);
		take_title("pool: seven");
		kill(getpid(), SIGKILL);
	}
	wait(NULL);
	note_region("pool", pool);
}

const struct workload processes[] = {
	{"hundred", hundred},
	{"brief", brief},
	{"crowded", crowded},
	{"generations", generations},
	{"orphaned", orphaned},
	{"threads", threads},
	{"lent", lent},
	{"spawned", spawned},
	{"sharing", sharing},
	{"exec", exec},
	{"after_exec", after_exec},
	{"inherited", inherited},
	{"inheritor", inheritor},
	{"reused", reused},
	{"renamed", renamed},
	{},
};

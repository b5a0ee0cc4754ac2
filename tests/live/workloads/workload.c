// SPDX-License-Identifier: GPL-2.0-only
/*
 * workload NAME NOTES: runs one workload and appends what it notes to the file NOTES.
 */
#include "workload.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sysmacros.h>

static const struct workload *const families[] = {touching, processes, mapping,	 kinds,	 blind,
						  existing, beyond,    async,	 across, strangers,
						  large,    swapped,   pressure, saying, places};

const char *notes_path;
static int notes;
static sigjmp_buf fault;

void die(const char *what)
{
	fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
	exit(1);
}

void note_process(const char *name, pid_t tgid)
{
	dprintf(notes, "process %s %d\n", name, tgid);
}

void note_self(const char *name)
{
	prctl(PR_SET_NAME, name);
	note_process(name, getpid());
}

/* The inode number of a region can come again, its generation does not. hugetlbfs gives none. */
static unsigned int generation_of(int fd)
{
	union {
		struct file_handle handle;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} file = {.handle.handle_bytes = MAX_HANDLE_SZ};
	int mount;
	unsigned int generation;
	if (name_to_handle_at(fd, "", &file.handle, &mount, AT_EMPTY_PATH))
		return 0;
	memcpy(&generation, file.handle.f_handle, sizeof(generation));
	return generation;
}

static size_t data_pages(int fd)
{
	size_t pages = 0;
	off_t data = lseek(fd, 0, SEEK_DATA);
	while (data >= 0) {
		off_t hole = lseek(fd, data, SEEK_HOLE);
		pages += (hole - data + PAGE - 1) / PAGE;
		data = lseek(fd, hole, SEEK_DATA);
	}
	return pages;
}

size_t held_pages(int fd)
{
	struct stat inode;
	if (fstat(fd, &inode))
		die("fstat");
	return inode.st_blocks * 512 / PAGE;
}

void stay_on_this_cpu(void)
{
	cpu_set_t here;
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	if (sched_setaffinity(0, sizeof(here), &here))
		die("sched_setaffinity");
}

void note_file(const char *name, int fd)
{
	struct stat inode;
	if (fstat(fd, &inode))
		die("fstat");
	dprintf(notes, "region %s %x:%x %lu %u %lu %lu\n", name, major(inode.st_dev), minor(inode.st_dev), inode.st_ino,
		generation_of(fd), held_pages(fd), data_pages(fd));
}

void note_region(const char *name, const void *address)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char *line = NULL, path[64];
	size_t room = 0;
	unsigned long start = 0, end = 0;
	if (!maps)
		die("/proc/self/maps");
	while (getline(&line, &room, maps) > 0)
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && (uintptr_t)address >= start &&
		    (uintptr_t)address < end)
			break;
	free(line);
	fclose(maps);
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", start, end);
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		die(path);
	note_file(name, fd);
	close(fd);
}

void note_pages(const char *name, size_t pages)
{
	dprintf(notes, "pages %s %lu\n", name, pages);
}

void note_absent(const char *why)
{
	dprintf(notes, "absent %s\n", why);
	exit(0);
}

void step(const char *name)
{
	char go;
	dprintf(notes, "ready %s\n", name);
	if (read(STDIN_FILENO, &go, 1) < 0)
		die("standard input");
}

void join(pid_t child)
{
	int status;
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	if (status) {
		fprintf(stderr, "workload: child %d ended with status %#x\n", child, status);
		exit(1);
	}
}

void join_all(void)
{
	int status;
	while (wait(&status) > 0)
		if (status)
			exit(1);
}

bool in_child(const char *name, bool wait_for_it)
{
	pid_t child = fork();
	if (child < 0)
		die("fork");
	if (!child)
		note_self(name);
	else if (wait_for_it)
		join(child);
	return !child;
}

static char *checked(char *map)
{
	if (map == MAP_FAILED)
		die("mmap");
	return map;
}

char *map_anon(size_t pages)
{
	return checked(mmap(NULL, pages * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

char *map_file(int fd, size_t first, size_t pages, int protection)
{
	return checked(mmap(NULL, pages * PAGE, protection, MAP_SHARED, fd, first * PAGE));
}

int make_memfd(const char *name, size_t pages)
{
	int fd = memfd_create(name, 0);
	if (fd < 0 || ftruncate(fd, pages * PAGE))
		die("memfd");
	return fd;
}

int make_private_file(const char *options, size_t pages)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		die("mount");
	if (mount("tmpfs", "/mnt", "tmpfs", 0, options))
		return -1;
	int fd = open("/mnt/pool", O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, pages * PAGE))
		die("/mnt/pool");
	return fd;
}

bool put_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0)
		return false;
	ssize_t bytes = write(fd, text, strlen(text));
	close(fd);
	return bytes == (ssize_t)strlen(text);
}

void write_pages(char *map, size_t first, size_t end)
{
	for (size_t page = first; page < end; page++)
		((volatile char *)map)[page * PAGE + page % PAGE] = 1;
}

void read_pages(const char *map, size_t first, size_t end)
{
	for (size_t page = first; page < end; page++)
		(void)((const volatile char *)map)[page * PAGE + page % PAGE];
}

void put_pages(int fd, size_t first, size_t end)
{
	static char bytes[PAGE];
	memset(bytes, 1, sizeof(bytes));
	for (size_t page = first; page < end; page++)
		if (pwrite(fd, bytes, sizeof(bytes), page * PAGE) != sizeof(bytes))
			die("pwrite");
}

static void on_fault(int number)
{
	siglongjmp(fault, number);
}

bool write_faults(char *address)
{
	struct sigaction action = {.sa_handler = on_fault};
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	if (sigsetjmp(fault, 1))
		return true;
	*(volatile char *)address = 1;
	return false;
}

static const struct workload *find(const char *name)
{
	for (size_t family = 0; family < sizeof(families) / sizeof(*families); family++)
		for (const struct workload *each = families[family]; each->name; each++)
			if (!strcmp(each->name, name))
				return each;
	fprintf(stderr, "workload: no workload is named %s\n", name);
	exit(2);
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: workload NAME NOTES\n");
		return 2;
	}
	const struct workload *workload = find(argv[1]);
	notes_path = argv[2];
	notes = open(notes_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (notes < 0)
		die(notes_path);
	note_self("main");
	workload->run();
	return 0;
}

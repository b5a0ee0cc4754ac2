/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every workload is written with. A workload makes regions and pages whose owners are known beforehand; it notes
 * which process plays which part and what the kernel says a region holds, and leaves the expected figures to the test.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PAGE
#define PAGE 4096UL
#endif
/* Pages of a page table, itself a page of 8 bytes an entry; and of a huge page: more than 2048 the page cache never has. */
#define TABLE (PAGE / 8)
#define HUGE (TABLE < 2048 ? TABLE : 2048)
#define RW (PROT_READ | PROT_WRITE)

/* Younger than the headers of Debian 11. */
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

struct workload {
	const char *name;
	void (*run)(void);
};

/* The families, each ended by an empty entry. */
extern const struct workload touching[], processes[], mapping[], kinds[], blind[], existing[];
extern const struct workload beyond[], async[], across[], strangers[], large[], swapped[], pressure[], saying[],
	places[];

extern const char *notes_path; /* to hand to a program that takes over by exec */

void die(const char *what) __attribute__((noreturn));

/* "process NAME PID": who is who. note_self also takes the name as its own comm. */
void note_process(const char *name, pid_t tgid);
void note_self(const char *name);

/* "region NAME DEV INO GENERATION PAGES DATA": what the kernel says a region is, and holds, by st_blocks and SEEK_DATA. */
void note_region(const char *name, const void *address);
void note_file(const char *name, int fd);

size_t held_pages(int fd); /* by st_blocks */

/*
 * MADV_PAGEOUT passes over a page that waits to be put on the LRU list by another CPU, and that one may have no reason to
 * ever do it: who pages out what it has made stays on the CPU it is on (measured: made on the other one, up to 14 of 41
 * pages were there still after 200 tries; on the same, none after the first).
 */
void stay_on_this_cpu(void);

/* "pages NAME PAGES": how many a part was found to have made, where that cannot be foretold. */
void note_pages(const char *name, size_t pages);

/* "absent WHY", to the end of the line: the kernel lacks what the workload is about. It ends there, and well. */
void note_absent(const char *why) __attribute__((noreturn));

/* "ready STEP", and waits until the test says go, a byte on standard input; without one there it goes on. */
void step(const char *name);

/* The block after it runs in a child process of that name: CHILD waits for its end, START does not (see join). */
#define CHILD(name) for (bool inside_ = in_child(name, true); inside_; _exit(0))
#define START(name) for (bool inside_ = in_child(name, false); inside_; _exit(0))
bool in_child(const char *name, bool wait_for_it);
void join(pid_t child); /* it must end well */
void join_all(void);

char *map_anon(size_t pages);
char *map_file(int fd, size_t first, size_t pages, int protection);
int make_memfd(const char *name, size_t pages);

/* In a tmpfs that only this process and its children see, and that goes with them; -1 if it cannot have the options. */
int make_private_file(const char *options, size_t pages);

bool put_text(const char *path, const char *text);

/* One byte of each page in [first, end). */
void write_pages(char *map, size_t first, size_t end);
void read_pages(const char *map, size_t first, size_t end);

/* The same by write(2), and whole pages. */
void put_pages(int fd, size_t first, size_t end);

/* Writes a byte, and says whether that raised SIGBUS or SIGSEGV instead. */
bool write_faults(char *address);

#endif

// SPDX-License-Identifier: GPL-2.0-only
/*
 * storm shared|private MIB RESULT: touches each page of fresh memory once, on the last CPU, and appends to the file
 * RESULT how many nanoseconds of that CPU a page took: what else ran there meanwhile is not the page's cost.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef PAGE
#define PAGE 4096UL
#endif

const char *volatile doing = "touching one page after the other"; /* for --label */

static double now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	size_t bytes = strtoul(argv[2], NULL, 10) << 20;
	int sharing = strcmp(argv[1], "shared") ? MAP_PRIVATE : MAP_SHARED;
	cpu_set_t cpu;
	CPU_ZERO(&cpu);
	CPU_SET(sysconf(_SC_NPROCESSORS_ONLN) - 1, &cpu);
	sched_setaffinity(0, sizeof(cpu), &cpu);
	volatile char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	madvise((void *)memory, bytes, MADV_NOHUGEPAGE);
	usleep(300000); /* shmtrace learns of a new program, and where its label is, five times a second */
	double start = now_ns();
	for (size_t at = 0; at < bytes; at += PAGE)
		memory[at] = 1;
	double end = now_ns();
	FILE *result = fopen(argv[3], "a");
	if (!result)
		return 1;
	fprintf(result, "%.1f\n", (end - start) / (bytes / PAGE));
	return fclose(result);
}

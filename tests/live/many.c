// SPDX-License-Identifier: GPL-2.0-only
/*
 * many RESULT WHAT NUMBER...: makes a large number of something, with a known number of pages.
 *
 *     burst COUNT PER_SECOND           regions of 13 pages, made, filled and dropped by four processes
 *     at_once COUNT                    regions of 5 pages that exist together, two pages touched of each
 *     mapped REGIONS PROCESSES         a page of each region by each process, all of which map all regions
 *     forks COUNT PER_SECOND SECONDS   children that touch 3 pages each of one region, and run for SECONDS
 *     churn SECONDS                    regions of a page, as many as possible; the last 16 exist together
 *     touch PAGES PROCESSES TURN SECONDS  one region, by turns of so many pages, spread over the time
 *     sparse GIB PAGES                 one region, with so many pages spread over it
 *     pinned PROCESSES PAGES           of one region, so many pages each, all on one CPU
 *     unheard REGIONS IDLE             beside so many idle processes: first 12,000 children, more than there are events
 *                                      for, then some that have seven regions each, and touch a page of each
 *
 * PER_SECOND 0: as fast as possible. The program starts when a line comes on standard input, or at its end, and runs
 * until standard input ends. RESULT has lines "NAME VALUE": "ready" is the first, and "ended", by CLOCK_MONOTONIC, the
 * last.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static FILE *result;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double seconds(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void sleep_until(double when_s)
{
	struct timespec when = {.tv_sec = when_s, .tv_nsec = (when_s - (long)when_s) * 1e9};
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
}

/* Wait until the next of these events is due. */
static void keep_pace(double start_s, size_t done, size_t per_second)
{
	if (per_second)
		sleep_until(start_s + (double)done / per_second);
}

static char *map(size_t pages)
{
	char *region =
		mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (region == MAP_FAILED)
		die("mmap");
	return region;
}

static void touch(char *region, size_t first, size_t end)
{
	for (size_t page = first; page < end; page++)
		*(volatile char *)(region + page * PAGE) = 1;
}

static pid_t make_child(void)
{
	pid_t child = fork();
	if (child < 0)
		die("fork");
	return child;
}

static void join_all(void)
{
	int status;
	while (wait(&status) > 0)
		if (status)
			die("a child has failed");
}

static void burst(size_t count, size_t per_second)
{
	enum { PROCESSES = 4, PAGES = 13 };
	double start_s = seconds(CLOCK_MONOTONIC);
	for (size_t process = 0; process < PROCESSES; process++) {
		if (make_child())
			continue;
		for (size_t number = process; number < count; number += PROCESSES) {
			keep_pace(start_s, number, per_second);
			char *region = map(PAGES);
			touch(region, 0, PAGES);
			munmap(region, PAGES * PAGE);
		}
		_exit(0);
	}
	join_all();
	fprintf(result, "took %.3f\n", seconds(CLOCK_MONOTONIC) - start_s);
}

static void at_once(size_t count)
{
	char **regions = calloc(count, sizeof(*regions));
	for (size_t number = 0; number < count; number++)
		regions[number] = map(5);
	for (size_t number = 0; number < count; number++) {
		touch(regions[number], 0, 1);
		touch(regions[number], 3, 4);
	}
}

static void mapped(size_t count, size_t processes)
{
	char **regions = calloc(count, sizeof(*regions));
	for (size_t number = 0; number < count; number++)
		regions[number] = map(processes + 1);
	for (size_t process = 0; process < processes; process++) {
		if (make_child())
			continue;
		for (size_t number = 0; number < count; number++)
			touch(regions[number], process, process + 1);
		_exit(0);
	}
	join_all();
}

static void forks(size_t count, size_t per_second, size_t live_s)
{
	enum { PAGES = 3 };
	char *region = map(count * PAGES + 1);
	double start_s = seconds(CLOCK_MONOTONIC);
	signal(SIGCHLD, SIG_IGN);
	for (size_t number = 0; number < count; number++) {
		keep_pace(start_s, number, per_second);
		if (make_child())
			continue;
		touch(region, number * PAGES, (number + 1) * PAGES);
		sleep_until(seconds(CLOCK_MONOTONIC) + live_s);
		_exit(0);
	}
	fprintf(result, "took %.3f\n", seconds(CLOCK_MONOTONIC) - start_s);
	join_all();
}

static void churn(size_t for_s)
{
	enum { KEPT = 16 };
	char *kept[KEPT] = {};
	double end_s = seconds(CLOCK_MONOTONIC) + for_s;
	size_t made = 0;
	for (; seconds(CLOCK_MONOTONIC) < end_s; made++) {
		char **at = &kept[made % KEPT];
		if (*at)
			munmap(*at, PAGE);
		*at = map(1);
		touch(*at, 0, 1);
	}
	fprintf(result, "made %zu\n", made);
}

static void touch_by_turns(size_t pages, size_t processes, size_t turn, size_t for_s)
{
	char *region = map(pages + 1);
	int pipes[2];
	double cpu_s, sum_s = 0, start_s = seconds(CLOCK_MONOTONIC);
	if (pipe(pipes))
		die("pipe");
	for (size_t process = 0; process < processes; process++) {
		if (make_child())
			continue;
		cpu_s = 0;
		for (size_t first = process * turn; first < pages; first += processes * turn) {
			sleep_until(start_s + (double)for_s * first / pages);
			double before_s = seconds(CLOCK_THREAD_CPUTIME_ID);
			touch(region, first, first + turn < pages ? first + turn : pages);
			cpu_s += seconds(CLOCK_THREAD_CPUTIME_ID) - before_s;
		}
		_exit(write(pipes[1], &cpu_s, sizeof(cpu_s)) != sizeof(cpu_s));
	}
	join_all();
	close(pipes[1]);
	while (read(pipes[0], &cpu_s, sizeof(cpu_s)) == sizeof(cpu_s))
		sum_s += cpu_s;
	sleep_until(start_s + for_s);
	fprintf(result, "cpu %.6f\n", sum_s);
}

static void pinned(size_t processes, size_t pages)
{
	char *region = map(processes * pages + 1);
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(sysconf(_SC_NPROCESSORS_ONLN) - 1, &one);
	for (size_t process = 0; process < processes; process++) {
		if (make_child())
			continue;
		sched_setaffinity(0, sizeof(one), &one);
		for (size_t page = process; page < processes * pages; page += processes)
			touch(region, page, page + 1);
		_exit(0);
	}
	join_all();
}

/* These exist before the line comes. */
static void make_idle(size_t count)
{
	while (count--)
		if (!make_child()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			pause();
		}
}

static void unheard(size_t count)
{
	enum { MAKERS = 3, EACH = 7, BEFORE = 4000, PAGES = 2 };
	pid_t makers[MAKERS];
	for (size_t maker = 0; maker < MAKERS; maker++) {
		makers[maker] = make_child();
		if (makers[maker])
			continue;
		signal(SIGCHLD, SIG_IGN);
		for (size_t number = 0; number < BEFORE + count / (MAKERS * EACH); number++) {
			if (make_child())
				continue;
			for (size_t region = 0; number >= BEFORE && region < EACH; region++)
				touch(map(PAGES), 0, 1);
			_exit(0);
		}
		join_all();
		_exit(0);
	}
	for (size_t maker = 0; maker < MAKERS; maker++)
		waitpid(makers[maker], NULL, 0);
}

/* A line, or the end. */
static void wait_for_line(void)
{
	char byte = 0;
	while (byte != '\n' && read(STDIN_FILENO, &byte, 1) == 1)
		;
}

int main(int argc, char **argv)
{
	size_t numbers[4] = {};
	if (argc < 4 || argc > 7)
		return 2;
	const char *what = argv[2];
	for (int i = 3; i < argc; i++)
		numbers[i - 3] = strtoul(argv[i], NULL, 10);
	result = fopen(argv[1], "w");
	if (!result)
		die(argv[1]);
	size_t pages = strcmp(what, "sparse") ? 0 : numbers[0] << 18;
	char *region = pages ? map(pages) : NULL;
	if (!strcmp(what, "unheard"))
		make_idle(numbers[1]);
	fprintf(result, "ready 1\n");
	fflush(result);
	wait_for_line();
	if (!strcmp(what, "burst"))
		burst(numbers[0], numbers[1]);
	else if (!strcmp(what, "at_once"))
		at_once(numbers[0]);
	else if (!strcmp(what, "mapped"))
		mapped(numbers[0], numbers[1]);
	else if (!strcmp(what, "forks"))
		forks(numbers[0], numbers[1], numbers[2]);
	else if (!strcmp(what, "churn"))
		churn(numbers[0]);
	else if (!strcmp(what, "touch"))
		touch_by_turns(numbers[0], numbers[1], numbers[2], numbers[3]);
	else if (!strcmp(what, "pinned"))
		pinned(numbers[0], numbers[1]);
	else if (!strcmp(what, "unheard"))
		unheard(numbers[0]);
	else if (region)
		for (size_t page = 0; page < numbers[1]; page++)
			touch(region, page * (pages / numbers[1]), page * (pages / numbers[1]) + 1);
	else
		return 2;
	fprintf(result, "ended %.6f\n", seconds(CLOCK_MONOTONIC));
	fflush(result);
	wait_for_line();
	return 0;
}

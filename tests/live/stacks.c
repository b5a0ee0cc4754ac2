// SPDX-License-Identifier: GPL-2.0-only
/*
 * stacks calls|fork|garbage|steps, stacks exec PROGRAM: makes pages of a region by known functions once a line comes on
 * standard input, and runs until standard input ends. The program of exec makes its own pages by `stacks calls`. In
 * steps, alpha makes its pages; with the next line they are given back, gamma_ makes its own, and alpha the same again.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PAGE
#define PAGE 4096UL
#endif
#define PAGES 512
#define CALLED __attribute__((noinline, noclone, used))

static char *region;

CALLED static void touch(size_t first, size_t pages)
{
	for (size_t page = first; page < first + pages; page++)
		*(volatile char *)(region + page * PAGE) = 1;
	/* else gcc makes no frame for a function that calls no other, and its caller is missing, whatever the flags */
	__asm__ volatile("" ::"r"(__builtin_frame_address(0)));
}

CALLED static void alpha(void)
{
	touch(0, 23);
	__asm__ volatile("");
}

CALLED void beta(void)
{
	touch(23, 101);
	__asm__ volatile("");
}

CALLED static void gamma_(void)
{
	touch(124, 7);
	__asm__ volatile("");
}

CALLED void all(void)
{
	alpha();
	beta();
	gamma_();
	__asm__ volatile("");
}

static void wait_for_a_line(void)
{
	char byte = 0;
	while (byte != '\n' && read(0, &byte, 1) == 1)
		;
}

CALLED static void steps(void)
{
	alpha();
	wait_for_a_line();
	madvise(region, 23 * PAGE, MADV_REMOVE);
	gamma_();
	alpha();
	__asm__ volatile("");
}

/* Store a byte at %0 with %1 as the frame pointer. */
#ifdef __aarch64__
#define STORE_BY "mov x19, x29\n\tmov x29, %1\n\tstrb w19, [%0]\n\tmov x29, x19"
#define KEEPS "x19"
#else
#define STORE_BY "mov %%rbp, %%r12\n\tmov %1, %%rbp\n\tmovb $1, (%0)\n\tmov %%r12, %%rbp"
#define KEEPS "r12"
#endif

/* Touch pages with this value as the frame pointer. */
CALLED static void touch_by(uintptr_t frame, char *first, size_t pages)
{
	for (size_t page = 0; page < pages; page++)
		__asm__ volatile(STORE_BY ::"r"(first + page * PAGE), "r"(frame) : KEEPS, "memory");
}

static void garbage(void)
{
	uintptr_t loop[] = {(uintptr_t)loop, (uintptr_t)all};
	uintptr_t data[] = {(uintptr_t)loop, 7};
	uintptr_t frames[] = {
		0,
		1,
		1UL << 63,			      /* not canonical */
		~0UL - 7,			      /* the kernel's */
		0xffffffffff600000UL,		      /* vsyscall */
		(uintptr_t)region + 300 * PAGE,	      /* a page that does not exist, and must not be made */
		(uintptr_t)region + PAGES * PAGE - 8, /* half of it beyond the end */
		(uintptr_t)loop,		      /* without end */
		(uintptr_t)loop + 1,
		(uintptr_t)data, /* returns to where no code is */
	};
	for (size_t i = 0; i < sizeof(frames) / sizeof(*frames); i++)
		touch_by(frames[i], region + i * 3 * PAGE, 3);
}

int main(int argc, char **argv)
{
	region = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (argc < 2 || region == MAP_FAILED)
		return 2;
	wait_for_a_line();
	if (!strcmp(argv[1], "garbage")) {
		garbage();
	} else if (!strcmp(argv[1], "steps")) {
		steps();
	} else if (!strcmp(argv[1], "fork")) {
		pid_t child = fork();
		if (!child) {
			all();
			_exit(0);
		}
		waitpid(child, NULL, 0);
	} else if (!strcmp(argv[1], "exec")) {
		alpha();
		wait_for_a_line();
		execl(argv[2], argv[2], "calls", NULL);
	} else {
		all();
	}
	wait_for_a_line();
	return 0;
}

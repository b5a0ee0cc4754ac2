// SPDX-License-Identifier: GPL-2.0-only
/* Processes that say in their own memory what they are doing, as php-fpm and PostgreSQL do. */
#include "workload.h"

#define HURRIED_PAGES 60000UL

const char *volatile doing;    /* a char *, as --label workload:doing reads it */
volatile char doing_here[136]; /* the characters themselves: --label workload:&doing_here */

static void say(const char *text)
{
	doing = text;
	strncpy((char *)doing_here, text, sizeof(doing_here) - 1);
}

/* A says what it does: 23, 7, 5, 11 and 3 pages; B is forked meanwhile and says it again, then another thing. */
static void labelled(void)
{
	char *pool = map_anon(100);
	char long_text[300], unended[2 * PAGE] __attribute__((aligned(4096)));
	note_self("A");
	step("ready");
	say("alpha");
	write_pages(pool, 0, 23);
	say("beta");
	write_pages(pool, 23, 30);
	CHILD("B") {
		write_pages(pool, 30, 32);
		say("gamma");
		write_pages(pool, 32, 49);
	}
	say("alpha");
	write_pages(pool, 49, 54);
	doing = NULL;
	doing_here[0] = '\0';
	write_pages(pool, 54, 65);
	memset(long_text, 'x', sizeof(long_text) - 1);
	memcpy(long_text, "long ", 5);
	long_text[sizeof(long_text) - 1] = '\0';
	say(long_text);
	write_pages(pool, 65, 68);
	say("\033[31m<b>\xff\n'");
	write_pages(pool, 68, 81);
	doing = (const char *)8; /* nothing is mapped there */
	write_pages(pool, 81, 90);
	memset(unended, 'y', sizeof(unended));
	doing = unended;
	write_pages(pool, 90, 94);
	note_region("pool", pool);
	step("done");
}

/* Another label for every page, as fast as they come. */
static void hurried(void)
{
	char *pool = map_anon(HURRIED_PAGES), text[2][16];
	note_self("A");
	step("ready");
	for (size_t page = 0; page < HURRIED_PAGES; page++) {
		snprintf(text[page & 1], sizeof(text[0]), "page %lu", page);
		doing = text[page & 1];
		pool[page * PAGE] = 1;
	}
	note_region("pool", pool);
	step("done");
}

const struct workload saying[] = {
	{"labelled", labelled},
	{"hurried", hurried},
	{},
};

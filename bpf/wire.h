/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel side and user space say to each other: plain C, the same under bcc, under cc (a test compares every
 * offset with tracer/events.py and tracer/ledger.py), and in the reader's head. Fields go by size: no padding.
 */
#ifndef SHMTRACE_WIRE_H
#define SHMTRACE_WIRE_H

#include <linux/types.h>

#define COMM_BYTES 16
#define TITLE_BYTES 256
#define EARLIER_BYTES 64
#define NAME_BYTES 64
#define BLOCK_PAGES 64
#define SLOT_BITS 16 /* of a region's id: its place among the regions; above, how many were there before it */
#define MAX_TEXTS 4
#define TEXT_BYTES 136 /* of a text of a label, its NUL included; more than SHOWN_BYTES: it is longer, and cut there */
#define TEXTS_BYTES (MAX_TEXTS * TEXT_BYTES)
#define SHOWN_BYTES 128
#define STACK_DEPTH 127 /* the kernel walks no further, unless told to (perf_event_max_stack) */
#define NO_STACK 0

/*
 * A page's word in the ledger: who first touched it and when, as tgid << WHEN_BITS | microseconds since the capture
 * began; or, below any owner's word, one of these.
 */
#define WHEN_BITS 42
#define WORD_ABSENT 0	  /* nothing seen */
#define WORD_EXISTED 1	  /* was there when first seen: from before the capture, or made unseen */
#define WORD_FREED 2	  /* given back */
#define WORD_REAPPEARED 3 /* given back, and there again by a path this tier does not see */

/* A region is one shmem inode. SysV numbers its inodes by shmid, so only the generation tells two apart. */
struct region_key {
	__u64 ino;
	__u32 generation;
	__u32 dev; /* the kernel's dev_t: major << 20 | minor */
};

struct region {
	struct region_key key;
	__u64 mapping;	   /* the kernel's address of its struct address_space */
	__u64 size_bytes;  /* when it was last measured */
	__u64 pages;	   /* what is allocated, swapped pages included: when it was last measured, or at its end */
	__u64 swapped;	   /* of those, swapped */
	__u64 peak_pages;  /* the most that it had whenever pages of it were given back */
	__u64 start_pages; /* when it was met */
	__u64 gone_us;	   /* when its last user let go of it, 0 while it lives */
	__u64 torn_pages;  /* of pages, seen torn down since; all but the swapped ones once it is over */
	__u64 punched_us;  /* when swapped pages of it were last given back */
	__u64 created_ns;	   /* CLOCK_MONOTONIC, 0 where nobody saw it made */
	__u64 creator_start_time_ns;
	__u64 mapped_ns; /* CLOCK_MONOTONIC: made, or first mapped, by the tree; 0: not yet */
	__u64 mapper_start_time_ns;
	__u32 creator_tgid;
	__u32 mapper_tgid;
	__u32 id;    /* 0: the place is free */
	__u32 huge;  /* on hugetlbfs */
	__u32 order; /* hugetlbfs: of its pages, by which its ledger counts; known by the first that is seen */
	__u32 name_bytes;
	char name[NAME_BYTES]; /* dentry: dev/zero, SYSV…, memfd:…, or a file's last part */
};

/* As many neighbouring pages of a region as a block of the ledger has words. */
struct part {
	__u32 region; /* its id */
	__u32 number; /* page index / BLOCK_PAGES */
};

struct block { /* number 0 is none */
	__u64 words[BLOCK_PAGES];
	__u64 torn;   /* bit per page: it was there when the region was torn down */
	__u64 number; /* its own */
	struct part part;
};

/* The trace itself. User space writes what comes first, before anything is attached. */
struct state {
	__u64 began_ns;	     /* of the capture: CLOCK_MONOTONIC */
	__u64 began_boot_ns; /* CLOCK_BOOTTIME */
	__u32 everything;    /* every process is tracked */
	__u32 watches_execs; /* tell of every exec on the host, and track it until user space says no */
	__u64 nr_lives;	     /* beginnings and ends of processes, so far */
	__u64 nr_mappings;   /* changes of what any maps (the faults tier) */
	__s64 nr_abroad;     /* threads now at work in another's address space */
};

enum process_kind {
	OF_TREE,
	WATCHED,  /* tracked since an exec, or as the child of one that is: until user space has said what it is */
	OUTSIDE_TREE, /* not tracked: it touched a region of the tree's, or user space has said no */
};

/* A process that is known, and until user space has taken it one that was. Times are CLOCK_MONOTONIC. */
struct process {
	__u64 start_time_ns;
	__u64 parent_start_time_ns; /* 0: it is not known whose child it is */
	__u64 began_ns;		    /* when it was entered; 0: user space did that */
	__u64 executed_ns;	    /* its last exec; 0: none was seen */
	__u64 ended_ns;		    /* 0: it lives */
	__u64 earlier_ns; /* an exec before the last, the first that user space may not have read of; 0: none */
	__u64 read_ns;	  /* user space writes this: of all that was executed by then it has read */
	__u32 number;	  /* its own; 0: the place is free */
	__u32 tgid;
	__u32 parent_tgid; /* or, where that one's beginning was not seen, its next of kin */
	__u32 kind;	   /* process_kind */
	__u32 title_bytes; /* of the whole command line at its last exec, or at its end; 0: not read */
	__u32 reserved;
	char comm[COMM_BYTES];
	char title[TITLE_BYTES]; /* its arguments, NUL after each, cut */
	char earlier_comm[COMM_BYTES];
	char earlier_title[EARLIER_BYTES];
};

/* Who was the first to ask for a SysV segment. */
struct asker {
	__u64 start_time_ns;
	__u64 tgid;
};

struct usage_key {
	__u32 region;
	__u32 tgid;
	__u64 start_time_ns; /* 0: an earlier life of this tgid, known only by the word it left */
};

struct usage {
	__u64 faults;
	__u64 freed_pages;    /* of the pages it touched first */
	struct usage_key key; /* of no region: the place is free */
};

/* Pages that one process made in, or for, another's address space. */
struct made_for_key {
	__u64 start_time_ns;
	__u64 for_start_time_ns;
	__u32 tgid;
	__u32 for_tgid;
	__u32 region;
	__u32 reserved;
};

/* Where a text of a label is in a process's memory. */
enum text_how {
	TEXT_IN_PLACE,	 /* at the address */
	TEXT_POINTED_TO, /* a char * is at the address */
	TEXT_TITLE,	 /* the process's title */
	TEXT_NOTED,	 /* where a file name was, when an uprobe saw it */
};

/* In place of a text's length. */
#define TEXT_NONE -1
#define TEXT_UNREADABLE -2

/* What a process is doing, in its own words. */
struct texts {
	__s64 bytes[MAX_TEXTS]; /* NUL included; by this width clang copies all of it, and calls no memcpy */
	char text[TEXTS_BYTES]; /* one after the other; bcc reads no array of arrays */
};

/* Where those of one process are, and what was told of them last. */
struct label {
	__u64 address[MAX_TEXTS];
	__u32 how[MAX_TEXTS]; /* text_how */
	__u64 lost_us;	      /* since when what it does could not be told; 0: it is told */
	struct texts last;
	char noted[TEXT_BYTES];
	__s32 noted_bytes;
	__u32 file_is_string; /* PHP's file handles name the file by a zend_string, else by a char * */
	__u32 told;
	__u32 reserved;
};

/* A user stack, the innermost address first. */
struct stack {
	__u64 addresses[STACK_DEPTH];
	__u64 count;
};

/* Pages that a process made of a region, by one stack. */
struct stacked_key {
	__u64 start_time_ns;
	__u64 stack; /* its number; NO_STACK: there is none, or it was lost */
	__u32 region;
	__u32 tgid;
};

/* What could not be written down, one counter each for the whole capture. */
enum loss {
	LOST_EVENTS,	/* the event buffer was full */
	LOST_PROCESSES, /* more processes than there was room for */
	LOST_REGIONS,	/* more regions */
	LOST_USAGE,	/* more (region, process) pairs: faults not counted */
	LOST_PAGES,	/* no room in the ledger */
	LOST_MAPPINGS,	/* a mapping the kernel's own tree did not show */
	LOST_LABELS,	/* more labels than there was room for, or than are told in a second */
	LOST_STACKS,	/* no room for a stack, or for another (region, process, stack) */
	NR_LOSSES
};

/* What user space gives back (bpf/maps.c). */
enum free {
	FREE_BLOCK,
	FREE_PROCESS,
	FREE_REGION,
	FREE_USAGE,
};

enum event_type {
	EVENT_NEWS = 1, /* no more than that: something has changed in the maps */
	EVENT_PUNCH,
	EVENT_LABEL,
};

/* Every event begins so: what happened, when, and in which process. One that is lost is only a delay, or is counted. */
struct event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 tgid;
	__u32 type;
};

struct event_label { /* what the process does from since_us on, and from when until then it is not known */
	struct event event;
	__u64 since_us;
	__u64 lost_us; /* 0: it is known */
	struct texts texts;
};

struct event_punch { /* pages [first, end) are given back, and keep their words: swapped ones, and large folios */
	struct event event;
	__u64 first;
	__u64 end;
	__u32 id;
	__u32 reserved;
};

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The structures shared between the BPF programs and user space: plain C, compiled by bcc and by cc. tracer/wire.py
 * mirrors them, and tests/test_wire.py compares every offset. Fields are ordered by size, so there is no padding.
 */
#ifndef SHMTRACE_WIRE_H
#define SHMTRACE_WIRE_H

#include <linux/types.h>

#define COMM_BYTES 16
#define TITLE_BYTES 256
#define EARLIER_BYTES 64
#define NAME_BYTES 64
#define MAX_WANTED 4
#define BLOCK_PAGES 64
#define EXITED (1 << 16)     /* in exit_status: it is known */
#define OOM_KILLED (1 << 17) /* likewise: the OOM killer has chosen it */
#define SLOT_BITS 16 /* low bits of a region's id: its place in the array; the high bits count earlier regions there */
#define MAX_TEXTS 4
#define TEXT_BYTES 136 /* of one text of a label, with NUL; more than SHOWN_BYTES, to see that a text is longer */
#define TEXTS_BYTES (MAX_TEXTS * TEXT_BYTES)
#define SHOWN_BYTES 128
#define NR_OOMS 64 /* the last kills of the OOM killer are kept */
#define UNKNOWN_PAGES -1
#define STACK_DEPTH 127 /* the kernel's default limit (perf_event_max_stack) */
#define NO_STACK 0

/*
 * A page's word in the ledger: who first touched it and when, as tgid << WHEN_BITS | microseconds since the capture
 * began. Values below any owner's word have these meanings.
 */
#define WHEN_BITS 42
#define WORD_ABSENT 0	  /* nothing seen */
#define WORD_EXISTED 1	  /* was there when first seen: from before the capture, or made unseen */
#define WORD_FREED 2	  /* given back */
#define WORD_REAPPEARED 3 /* given back, and then made again in a way that this tier does not see */

/* A region is one shmem inode. The inode number of a SysV segment is its shmid, so only the generation is unique. */
struct region_key {
	__u64 ino;
	__u32 generation;
	__u32 dev; /* the kernel's dev_t: major << 20 | minor */
};

/* What an inode says of itself. */
struct measured {
	__u64 size_bytes;
	__u64 pages;   /* allocated, including swapped pages */
	__u64 swapped; /* swapped pages among these */
};

struct region {
	struct region_key key;
	__u64 mapping; /* address of its struct address_space */
	struct measured now;
	__u64 peak_pages;  /* the largest count seen when pages were given back */
	__u64 start_pages; /* allocated when it was first met */
	__u64 gone_us;	   /* when its last user released it; 0: it exists */
	/* At its end. Not where measure() writes: that may be at work on another CPU, while its pages go already. */
	struct measured last;
	__u64 torn_pages; /* torn down since; in the end all but the swapped pages */
	__u64 punched_us; /* when swapped pages or a large folio of it were last given back */
	__u64 created_ns; /* CLOCK_MONOTONIC; 0: its creation was not seen */
	__u64 creator_start_time_ns;
	__u64 used_ns; /* CLOCK_MONOTONIC, when the tree created, mapped or wrote it first; 0: not yet */
	__u64 user_start_time_ns;
	__u32 creator_tgid;
	__u32 user_tgid;
	__u32 id;    /* 0: the place is free */
	__u32 huge;  /* on hugetlbfs */
	__u32 order; /* hugetlbfs: its ledger counts pages of 1 << order; set when the first page is seen */
	__u32 name_bytes;
	__u32 deep;	 /* it is not in the root directory of its file system */
	__u32 user_kind; /* enum process_kind of the user, when it was met; recycle() may have forgotten that process */
	char name[NAME_BYTES]; /* of the dentry: dev/zero, SYSV…, memfd:…, or a file's name */
};

/* A part of a region: BLOCK_PAGES consecutive pages, as in one block of the ledger. */
struct part {
	__u32 region; /* its id */
	__u32 number; /* page index / BLOCK_PAGES */
};

struct block { /* number 0 means none */
	__u64 words[BLOCK_PAGES];
	__u64 torn;   /* one bit per page: it existed when the region was torn down */
	__u64 number; /* its own number */
	struct part part;
};

/* The arrays whose places are taken, and given back through empty() or recycle(). */
enum free { FREE_BLOCK, FREE_PROCESS, FREE_REGION, FREE_USAGE, NR_FREE };

/* 64-bit counts of the map `room`. */
enum room {
	ROOM_FREE,			 /* free places, by enum free */
	ROOM_NEXT = ROOM_FREE + NR_FREE, /* where recycle() looks next, by enum free */
	ROOM_LEFT = ROOM_NEXT + NR_FREE, /* about how many blocks recycled regions have left behind */
	RECYCLED_PROCESSES,		 /* processes that touched pages, and are forgotten but for their comm */
	RECYCLED_REGIONS,		 /* regions that were gone, and are forgotten */
	RECYCLED_PAGES,			 /* what these had at their end */
	NR_ROOM
};

/* The state of the trace. User space writes all up to `few` before anything is attached. */
struct state {
	__u64 began_ns;	     /* CLOCK_MONOTONIC at the start of the capture */
	__u64 began_boot_ns; /* the same by CLOCK_BOOTTIME */
	__u32 everything;    /* track every process */
	__u32 watches_execs; /* report every exec on the host, and track the process until user space drops it */
	__u32 only_dev;	     /* only the regions of this device; 0: of all */
	__u32 armed;	     /* no user space gives back what is over: recycle() does */
	__u32 few[NR_FREE];  /* recycle what is over where no more places than this are free, by enum free */
	__u64 nr_lives;	     /* counts starts and ends of processes */
	__u64 nr_mappings;   /* counts changes of mappings (faults tier) */
	__s64 nr_abroad;     /* threads now working in another's address space */
};

/* The first letters of what -p asks for: user space decides only on programs whose name or title has one of these. */
struct wanted {
	__u64 letters[MAX_WANTED];
	__u64 mask[MAX_WANTED]; /* a byte 0xff for each letter; 0: this one is not used */
	__u64 count;		/* 0: all programs may be meant */
};

enum process_kind {
	OF_TREE,
	WATCHED, /* a candidate: it, or an ancestor, has executed a program that user space has not decided on yet */
	OUTSIDE_TREE, /* not tracked: it touched a region of the tree, or user space dropped it */
};

/* A process, until user space has read its end. Start times are CLOCK_BOOTTIME, other times CLOCK_MONOTONIC. */
struct process {
	__u64 start_time_ns;
	__u64 parent_start_time_ns; /* 0: the parent is not known */
	__u64 began_ns;		    /* when it was added; 0: user space added it */
	__u64 executed_ns;	    /* its last exec; 0: none was seen */
	__u64 ended_ns;		    /* 0: it is running */
	__u64 earlier_ns; /* the first exec that user space may not have read, if there was a later one; 0: none */
	__u64 read_ns;	  /* written by user space: it has read all execs up to this one */
	__u32 number;	  /* its own number; 0: the place is free */
	__u32 tgid;
	__u32 parent_tgid; /* or the nearest known ancestor, if the fork was not seen */
	__u32 kind;	   /* enum process_kind */
	__u32 title_bytes; /* size of the whole command line at its last exec, touch of a new region, or end; 0: not read */
	__u32 exit_status;  /* as wait(2) tells it, with EXITED and perhaps OOM_KILLED; 0: not known */
	__u32 nr_uses;	    /* what names it: children, regions it made or used, usages */
	__u32 parent_place; /* the parent's number, if that has the parent's start time; 0: not known */
	char comm[COMM_BYTES];
	char title[TITLE_BYTES]; /* arguments, each with its NUL, cut */
	char earlier_comm[COMM_BYTES];
	char earlier_title[EARLIER_BYTES];
};

/* A process that the OOM killer has chosen. The tracepoint may say so once for each of its threads. */
struct oom {
	__u64 time_ns;	     /* CLOCK_MONOTONIC */
	__u64 start_time_ns; /* 0: unknown */
	__u64 number;	     /* of all since the programs were loaded, the first is 1; 0: it is being written */
	__u64 cgroup;	     /* inode number of its directory in the memory controller's hierarchy; 0: unknown */
	__u64 limit_cgroup;  /* likewise of the cgroup whose limit was reached; 0: of none */
	__u64 limit_pages;
	__s64 anon_pages; /* in memory; UNKNOWN_PAGES */
	__s64 file_pages;
	__s64 shmem_pages;
	__u32 tgid; /* of a thread, if start_time_ns is unknown */
	__u32 reserved;
	char comm[COMM_BYTES];
};

/* The first process that called shmget() for a SysV segment. */
struct asker {
	__u64 start_time_ns;
	__u64 tgid;
};

struct usage_key {
	__u32 region;
	__u32 tgid;
	__u64 start_time_ns; /* 0: an earlier process with this tgid, known only from the words it left */
};

struct usage {
	__u64 faults;
	__u64 freed_pages;    /* of the pages it touched first */
	struct usage_key key; /* region 0: the place is free */
	__u32 kind;	      /* enum process_kind of the process, which recycle() may have forgotten */
	__u32 reserved;
	char comm[COMM_BYTES]; /* of the process, when it first touched the region */
};

/* Pages that one process made in another's address space, or for it. */
struct made_for_key {
	__u64 start_time_ns;
	__u64 for_start_time_ns;
	__u32 tgid;
	__u32 for_tgid;
	__u32 region;
	__u32 reserved;
};

/* How to find a text of a label in a process's memory. */
enum text_how {
	TEXT_IN_PLACE,	 /* it is at the address */
	TEXT_POINTED_TO, /* a char * to it is at the address */
	TEXT_TITLE,	 /* it is the process's title */
	TEXT_NOTED,	 /* a file name that a uprobe has copied */
};

/* Instead of a text's length. */
#define TEXT_NONE -1
#define TEXT_UNREADABLE -2

/* What a process says it is doing. */
struct texts {
	__s64 bytes[MAX_TEXTS]; /* with NUL; 64 bits wide, else clang copies the structure by memcpy */
	char text[TEXTS_BYTES]; /* one after the other, since bcc does not support arrays of arrays */
};

/* Where the texts of a process are, and which were reported last. */
struct label {
	__u64 address[MAX_TEXTS];
	__u32 how[MAX_TEXTS]; /* enum text_how */
	__u64 lost_us;	      /* since when labels could not be reported; 0: none was lost */
	struct texts last;
	char noted[TEXT_BYTES];
	__s32 noted_bytes;
	__u32 file_is_string; /* PHP's file handles name the file by a zend_string; otherwise by a char * */
	__u32 told;
	__u32 reserved;
};

/* A user stack, innermost address first. */
struct stack {
	__u64 addresses[STACK_DEPTH];
	__u64 count;
};

/* Pages of a region that a process made by one stack. */
struct stacked_key {
	__u64 start_time_ns;
	__u64 stack; /* its number; NO_STACK: there is none, or it was lost */
	__u32 region;
	__u32 tgid;
};

/* What could not be recorded: one counter each for the whole capture. */
enum loss {
	LOST_EVENTS,	/* the ring buffer was full */
	LOST_PROCESSES, /* no room for a process */
	LOST_REGIONS,	/* no room for a region */
	LOST_USAGE,	/* no room for a (region, process) pair: faults not counted */
	LOST_PAGES,	/* no room in the ledger */
	LOST_MAPPINGS,	/* a mapping that the kernel's VMA tree did not show */
	LOST_LABELS,	/* no room for a label, or more per second than are reported */
	LOST_STACKS,	/* no room for a stack, or for a (region, process, stack) */
	NR_LOSSES
};

enum event_type {
	EVENT_NEWS = 1, /* says only that something in the maps has changed */
	EVENT_PUNCH,
	EVENT_LABEL,
};

/* The start of every event. A lost event is only late, or is counted as a loss. */
struct event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 tgid;
	__u32 type;
};

struct event_label { /* the label of a process since since_us */
	struct event event;
	__u64 since_us;
	__u64 lost_us; /* labels since this time were lost; 0: none */
	struct texts texts;
};

struct event_punch { /* pages [first, end) were given back but keep their words: swapped pages, and large folios */
	struct event event;
	__u64 first;
	__u64 end;
	__u32 id;
	__u32 reserved;
};

#endif

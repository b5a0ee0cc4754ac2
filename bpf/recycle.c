// SPDX-License-Identifier: GPL-2.0-only
/*
 * An armed trace: no process of ours runs, and nobody gives back what is over. So this program does, a little at each
 * exit of any thread of the host. Processes that nothing names go first: they touched nothing. What else is over goes
 * only where room is short, the oldest first, and is counted. Places are given out in order, so an array's order is
 * nearly that of age.
 *
 * A region that is forgotten leaves blocks and usages that name an id which is no longer: these are found likewise.
 */

#define OLD_NS 50000000ULL /* no program that ran when something ended still runs after this */
#define LOOKED_AT_ONCE 8
#define SWEPT_AT_ONCE 64 /* blocks and usages, of which there are many */
#define RECYCLING 1	 /* as the address of a claim: no address has it */

static inline bool is_short(struct state *state, u32 kind)
{
	u32 what = ROOM_FREE + kind;
	u64 *nr_free = room.lookup(&what);
	return nr_free && *nr_free <= state->few[kind & (NR_FREE - 1)];
}

/* The next place of an array to look at. Place 0 is none, and has nothing in it. */
static inline u32 next_place(u32 kind)
{
	u32 what = ROOM_NEXT + kind;
	u64 *next = room.lookup(&what);
	if (!next)
		return 0;
	*next += 1;
	return *next;
}

/* The place is beyond the end of the array: begin anew. */
static inline void begin_anew(u32 kind)
{
	u32 what = ROOM_NEXT + kind;
	u64 *next = room.lookup(&what);
	if (next)
		*next = 0;
}

static inline void recycle_process(struct state *state, u64 now_ns)
{
	u32 number = next_place(FREE_PROCESS);
	struct process *process = processes.lookup(&number);
	if (!process)
		begin_anew(FREE_PROCESS);
	if (!process || !process->number || !process->ended_ns || now_ns - process->ended_ns < OLD_NS)
		return;
	if (process->nr_uses && !is_short(state, FREE_PROCESS))
		return;
	if (process->nr_uses)
		count_room(RECYCLED_PROCESSES, 1);
	u32 place = process->parent_place;
	struct process *parent = processes.lookup(&place);
	if (parent && place && parent->start_time_ns == process->parent_start_time_ns && parent->nr_uses)
		__sync_fetch_and_add(&parent->nr_uses, -1);
	empty_process(process, number);
}

static inline void recycle_region(struct state *state)
{
	u32 place = next_place(FREE_REGION);
	struct region *region = regions.lookup(&place);
	if (!region)
		begin_anew(FREE_REGION);
	if (!region || !region->id)
		return;
	if (!region->gone_us && !inode_of(region)) { /* it had no pages, so that its end was not seen */
		region->last = region->now;
		region->gone_us = since_us(state);
	}
	if (!region->gone_us || (since_us(state) - region->gone_us) * 1000 < OLD_NS)
		return;
	count_room(RECYCLED_REGIONS, 1);
	count_room(RECYCLED_PAGES, region->last.pages);
	count_room(ROOM_LEFT, region->last.pages / BLOCK_PAGES + 1);
	forget_region(region);
	empty_region(region, region->id);
}

static inline void recycle_block(void)
{
	u32 number = next_place(FREE_BLOCK);
	u32 what = ROOM_LEFT;
	u64 *left = room.lookup(&what);
	struct block *block = ledger.lookup(&number);
	if (!block && left) { /* all have been looked at: none is left */
		begin_anew(FREE_BLOCK);
		*left = 0;
	}
	if (!block || !block->number || !block->part.region || region_by_id(block->part.region))
		return;
	if (left && *left)
		*left -= 1;
	empty_block(block, number);
}

static inline void recycle_usage(void)
{
	u32 number = next_place(FREE_USAGE);
	struct usage *usage = usages.lookup(&number);
	if (!usage)
		begin_anew(FREE_USAGE);
	if (usage && usage->key.region && !region_by_id(usage->key.region))
		empty_usage(usage, number);
}

/* sched:sched_process_exit, of any thread of the host */
int recycle(struct bpf_raw_tracepoint_args *ctx)
{
	struct state *state = state_now();
	u64 claimed = RECYCLING;
	u32 what = ROOM_LEFT;
	u64 *left = room.lookup(&what);
	if (!state || !left || !claim(claimed, &what)) /* one CPU at a time */
		return 0;
	u64 now_ns = bpf_ktime_get_ns();
	bool needs_regions = is_short(state, FREE_REGION) || is_short(state, FREE_BLOCK) || is_short(state, FREE_USAGE);
	bool more = needs_regions && *left < state->few[FREE_BLOCK];
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < LOOKED_AT_ONCE; i++)
		recycle_process(state, now_ns);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < LOOKED_AT_ONCE && more; i++)
		recycle_region(state);
	more = *left > 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SWEPT_AT_ONCE && more; i++)
		recycle_block();
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SWEPT_AT_ONCE && more; i++)
		recycle_usage();
	claims.delete(&claimed);
	return 0;
}

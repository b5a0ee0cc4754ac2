/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Accessors for everything that differs between kernels. OFF_… are offsets from the running kernel's BTF, and HAVE_…
 * say what it has (tracer/kernel/fields.py uses the same names): never a version.
 */
#ifndef SHMTRACE_COMPAT_H
#define SHMTRACE_COMPAT_H

/* A field of a kernel structure; 0 if it cannot be read. */
#define RD(type, base, offset)                                                                                         \
	({                                                                                                             \
		type value_ = 0;                                                                                       \
		bpf_probe_read_kernel(&value_, sizeof(value_), (void *)((u64)(base) + (offset)));                      \
		value_;                                                                                                \
	})

/* Hide a value from the compiler. LLVM 21 recognizes a comparison in arithmetic on a sign bit, and makes it a branch. */
#define OPAQUE(value) __asm__ __volatile__("" : "+r"(value))

/*
 * bpf_probe_read_user by its number (include/uapi/linux/bpf.h). By name, bcc would search all of /proc/kallsyms for it,
 * which takes a fifth of the startup time (BTypeVisitor::VisitCallExpr, bcc 0.26).
 */
static long (*probe_read_user)(void *to, u32 bytes, const void *from) = (void *)112;

/* ---- Arguments and result of a kernel function, in programs at its entry and its return ---- */

/* The registers of the machine the programs will run on, which need not be the one they are compiled on. */
#if defined(HAVE_X86_64_REGISTERS)
struct pt_regs { /* arch/x86/include/asm/ptrace.h */
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#define REGISTER_ARG(ctx, number)                                                                                      \
	((number) == 0	 ? (ctx)->di                                                                                   \
	 : (number) == 1 ? (ctx)->si                                                                                   \
	 : (number) == 2 ? (ctx)->dx                                                                                   \
	 : (number) == 3 ? (ctx)->cx                                                                                   \
	 : (number) == 4 ? (ctx)->r8                                                                                   \
			 : (ctx)->r9)
#define REGISTER_RESULT(ctx) ((ctx)->ax)
#elif defined(HAVE_ARM64_REGISTERS)
struct pt_regs { /* struct user_pt_regs of arch/arm64/include/uapi/asm/ptrace.h; a kprobe program can read no more */
	unsigned long regs[31], sp, pc, pstate;
};
#define REGISTER_ARG(ctx, number) ((ctx)->regs[number])
#define REGISTER_RESULT(ctx) ((ctx)->regs[0])
#endif
#define FIRST_ARGUMENT(ctx) REGISTER_ARG(ctx, 0)
#ifdef BY_FENTRY
#define ENTRY struct bpf_raw_tracepoint_args
#define ARG(ctx, number) ((u64)(ctx)->args[number])
#define POINTER(ctx, number) number_of(ARG(ctx, number)) /* defined in maps.c */
#else
#define ENTRY struct pt_regs
#define ARG REGISTER_ARG
#define POINTER ARG
#endif
#ifdef BY_FEXIT
#define RETURN struct bpf_raw_tracepoint_args
#define RESULT(ctx, arguments) ((u64)(ctx)->args[arguments]) /* the result follows the arguments */
#else
#define RETURN struct pt_regs
#define RESULT(ctx, arguments) REGISTER_RESULT(ctx)
#endif

/* ---- The error code of a page fault ---- */

#ifdef HAVE_X86_64_REGISTERS
#define X86_PF_USER 4 /* arch/x86/include/asm/trap_pf.h */
#define is_user_fault(error_code) ((error_code) & X86_PF_USER)
#else
#define is_user_fault(error_code) false /* unknown: it may be one */
#endif

/* ---- The address space: the VMA that covers an address ---- */

#ifdef HAVE_MM_MT
/*
 * Linux kernel commit 524e00b36e8c ("mm: remove rb tree.") (in v6.1): VMAs are in a maple tree. A node's address has
 * its type in bits 3 to 6. A pivot is the last address of its slot; 0 ends the pivots (lib/maple_tree.c). Nodes are
 * freed after an RCU grace period, and BPF programs are RCU readers.
 */
#define MAPLE_LEAF_64 1
#define MAPLE_ARANGE_64 3
/* An inner node has 9. Slots follow them, whose values are kernel addresses: above any user address. */
#define MAPLE_PIVOTS 15
#define MAPLE_DEPTH 8

/* How many pivots are below an address. Without a branch, since the verifier follows each branch separately. */
static inline u64 pivots_below(u64 pivots, u64 address)
{
	u64 pivot[MAPLE_PIVOTS] = {};
	u64 is_below = 1;
	u64 count = 0;
	bpf_probe_read_kernel(pivot, sizeof(pivot), (void *)pivots);
	for (u32 i = 0; i < MAPLE_PIVOTS; i++) {
		u64 last = pivot[i] - 1; /* 0, which means none, becomes the highest value */
		u64 sign = (last - (address - 1)) & ~last;
		OPAQUE(sign);
		is_below &= sign >> 63;
		count += is_below;
	}
	return count;
}

static inline u64 vma_at(u64 mm, u64 address)
{
	u64 entry = RD(u64, mm, OFF_MM_MT_ROOT);
	for (int depth = 0; depth < MAPLE_DEPTH; depth++) {
		u64 node = entry & ~255ULL;
		u32 type = (entry >> 3) & 15;
		if (!node)
			return 0;
		bool inner = type == MAPLE_ARANGE_64;
		u64 slots = node + (inner ? OFF_MAPLE_ARANGE_SLOT : OFF_MAPLE_RANGE_SLOT);
		u64 pivots = node + (inner ? OFF_MAPLE_ARANGE_PIVOT : OFF_MAPLE_RANGE_PIVOT);
		entry = RD(u64, slots, pivots_below(pivots, address) * 8);
		if (type <= MAPLE_LEAF_64)
			break;
	}
	if (!entry || RD(u64, entry, OFF_VMA_START) > address || RD(u64, entry, OFF_VMA_END) <= address)
		return 0;
	return entry;
}
#else
/* Before v6.1 VMAs are in a red-black tree. Writers may rotate it during the walk, so check the result. */
#define RB_DEPTH 40

static inline u64 vma_at(u64 mm, u64 address)
{
	u64 node = RD(u64, mm, OFF_MM_RB);
	for (int depth = 0; depth < RB_DEPTH && node; depth++) {
		u64 vma = node - OFF_VMA_RB;
		if (address < RD(u64, vma, OFF_VMA_START))
			node = RD(u64, node, OFF_RB_LEFT);
		else if (address >= RD(u64, vma, OFF_VMA_END))
			node = RD(u64, node, OFF_RB_RIGHT);
		else
			return vma;
	}
	return 0;
}
#endif

/* ---- The page cache of one inode ---- */

#define XA_RETRY 1026 /* the node is being replaced: restart from the root (include/linux/xarray.h) */
#define XA_CHUNK_SHIFT 6
#define XA_DEPTH 12
#define xa_is_node(entry) (((entry) & 3) == 2 && (entry) > 4096)

/*
 * What the XArray has at an index: an entry, or the node of shift 0 whose slot has it. 0: nothing. The root node says
 * its shift; each node below has XA_CHUNK_SHIFT less. Computing it instead of reading it saves a third of the time.
 */
static inline u64 xa_descend(u64 mapping, u64 index)
{
	u64 root = mapping + OFF_MAPPING_XA_HEAD;
	u64 entry = RD(u64, root, 0);
	bool at_root = true;
	u32 shift = 0;
	for (int depth = 0; depth < XA_DEPTH; depth++) {
		if (entry == XA_RETRY) {
			entry = RD(u64, root, 0);
			at_root = true;
			continue;
		}
		if (!xa_is_node(entry))
			return at_root && index ? 0 : entry;
		u64 node = entry - 2;
		shift = (at_root ? RD(u8, node, OFF_XA_NODE_SHIFT) : shift - XA_CHUNK_SHIFT) & 63;
		u64 slot = index >> shift;
		if (at_root && slot > 63)
			return 0;
		if (!shift)
			return entry;
		entry = RD(u64, node, OFF_XA_NODE_SLOTS + (slot & 63) * 8);
		at_root = false;
	}
	return 0;
}

/* Whether the region has a page at an index, in memory or swapped out (a value entry). */
static inline bool page_exists(u64 mapping, u64 index)
{
	u64 entry = xa_descend(mapping, index);
	if (xa_is_node(entry))
		entry = RD(u64, entry - 2, OFF_XA_NODE_SLOTS + (index & 63) * 8);
	return entry;
}

/* ---- Folios that leave the page cache (pages before v5.16) ---- */

static inline u32 order_of_large(u64 folio)
{
#if defined(HAVE_FOLIO_ORDER)
	return RD(u8, folio, OFF_FOLIO_ORDER);
#elif defined(HAVE_FOLIO_FLAGS_1) /* had other uses while _folio_order existed */
	/* Linux kernel commit ebc1baf5c9b4 ("mm: free up a word in the first tail page") (in v6.6) */
	return RD(u64, folio, OFF_FOLIO_FLAGS_1) & 0xff;
#else
	return RD(u8, folio, SIZE_PAGE + OFF_PAGE_COMPOUND_ORDER); /* in the first tail page */
#endif
}

static inline u32 folio_order(u64 folio)
{
	return RD(u64, folio, 0) & (1ULL << BIT_PG_HEAD) ? order_of_large(folio) : 0;
}

/* The same for an argument: in fentry programs its flags can be read without a helper. */
#ifdef BY_FENTRY
#define ORDER_OF(ctx, number) (*(u64 *)ARG(ctx, number) & (1ULL << BIT_PG_HEAD) ? order_of_large(ARG(ctx, number)) : 0)
#else
#define ORDER_OF(ctx, number) folio_order(ARG(ctx, number))
#endif

/* The index of a hugetlb page in units of its own size. */
static inline u64 hugetlb_index(u64 index, u32 order)
{
#ifdef HAVE_HUGETLB_BASEPAGE_INDEX
	return index;
#else
	return index >> order;
#endif
}

#endif

"""The workloads with known answers: who owns how many pages of each of their regions."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

Pages = Mapping[str, int]
NOTHING: Pages = MappingProxyType({})
HUGE_PAGE = min(mmap.PAGESIZE // 8, 2048)  # pages: what a page table is for, and as many as the page cache has


class Answer(NamedTuple):
    """What a region must come to, in pages, by the parts that processes play."""

    touched: Pages
    by_faults: Pages | None = None
    """What the faults tier sees of `touched`, if not all. It shows the rest as unseen."""
    freed: Pages | None = NOTHING
    """None: unpredictable."""
    freed_by_faults: Pages | None = None
    """What the faults tier sees of `freed`, if not all."""
    creator: str = "main"
    kind: str = "anon"
    made_for: Mapping[str, Pages] = MappingProxyType({})
    """By part: how many pages it made in whose memory, as the exact tier sees it."""

    @property
    def pages(self) -> int:
        return sum(self.touched.values())

    def seen(self, tier: str) -> Pages:
        return self.by_faults if tier == "faults" and self.by_faults is not None else self.touched

    def given_back(self, tier: str) -> Pages | None:
        return self.freed_by_faults if tier == "faults" and self.freed_by_faults is not None else self.freed


def memfd(touched: Pages, by_faults: Pages | None = None, freed: Pages = NOTHING) -> Answer:
    return Answer(touched, by_faults, freed, kind="memfd")


TOUCHING = {
    "strided": {"pool": Answer({"A": 43, "B": 52})},
    "reversed": {"pool": Answer({"A": 111})},
    "overlapping": {"pool": Answer({"A": 23, "B": 18})},
    "reads": {"pool": Answer({"A": 13, "B": 18, "C": 7})},
    "fault_around": {"pool": Answer({"main": 37, "B": 10})},
    "kernel_faults": {"pool": Answer({"A": 29, "B": 11, "C": 3})},
    "removed": {"pool": Answer({"A": 30, "C": 5}, freed={"A": 11})},
    "removed_by_owner": {"pool": Answer({"A": 11}, freed={"A": 19 * 30})},
    "truncated": {"pool": memfd({"A": 29, "B": 22}, freed={"A": 32})},
    "unmapped_not_freed": {"pool": Answer({"A": 19, "B": 12})},
    "reclaimed": {"pool": Answer({"A": 9, "B": 4}, freed={"A": 7})},
    "forbidden": {"pool": Answer({"B": 7})},
    "beyond_end": {"pool": memfd({"B": 7, "C": 5})},
    # On some kernels the page that finds no room exists for a moment, and so counts as freed.
    "full": {"pool": Answer({"A": 2, "C": 4}, freed=None, kind="other")},
}

PROCESSES = {
    "hundred": {"pool": Answer({"main": 3, **{f"child-{number}": 7 for number in range(100)}})},
    "brief": {"pool": Answer({f"brief-{number}": 1 for number in range(1009)})},
    "generations": {"pool": Answer({"main": 3, "child": 5, "grandchild": 7, "greatgrandchild": 11})},
    "orphaned": {"pool": Answer({"parent": 5, "orphan": 11})},
    "threads": {"pool": Answer({"main": 52, "A": 45})},
    "lent": {"pool": Answer({"V": 5, "main": 18, "A": 7})},
    "spawned": {"pool": Answer({"main": 21})},
    "sharing": {"pool": Answer({"C": 4, "main": 9}), "made": Answer({"C": 6, "main": 13}, creator="C")},
    "exec": {"pool": Answer({"main": 3, "A": 5}), "fresh": Answer({"A": 19, "B": 5}, creator="A")},
    "inherited": {"pool": memfd({"main": 7, "A": 7})},
}

MAPPING = {
    "moved": {"pool": Answer({"main": 11, "A": 20, "B": 9})},
    "resized": {"pool": memfd({"A": 51, "B": 8, "C": 6})},
    "holed": {"pool": Answer({"A": 42, "B": 19})},
    "replaced": {"pool": Answer({"main": 7, "A": 35}), "other": memfd({"A": 19, "B": 4})},
    "twice": {"pool": memfd({"A": 12, "B": 17, "C": 22})},
    "protected": {"pool": Answer({"A": 29, "B": 14})},
    "read_only_view": {"pool": memfd({"A": 14, "B": 10})},
    "read_only_first": {"pool": memfd({"A": 23, "B": 7})},
    "jit": {"pool": Answer({"main": 2, "A": 16, "B": 19})},
    "private_view": {"pool": memfd({"main": 11, "A": 10, "B": 3, "C": 6})},
    "many_regions": {f"pool-{i}": Answer({"B" if i % 2 else "A": i + 1}) for i in range(45)},
    "ranges_64": {"pool": memfd({"A": 192})},
    "ranges_80": {"pool": memfd({"A": 240})},
    "views_256": {"pool": memfd({f"worker-{number}": 256 for number in range(40)})},
}

KINDS = {
    "anon": {"pool": Answer({"A": 13, "B": 6})},
    "dev_zero": {"pool": Answer({"A": 13, "B": 6})},
    "memfd": {"pool": memfd({"A": 13, "B": 6})},
    "sysv": {"pool": Answer({"A": 13, "B": 6}, kind="sysv")},
    "sysv_detached": {"pool": Answer({"A": 17, "B": 3}, kind="sysv")},
    "sysv_read_only": {"pool": Answer({"A": 23, "B": 7}, kind="sysv")},
    "posix": {"pool": Answer({"A": 13, "B": 6}, kind="posix")},
    "posix_named": {"pool": Answer({"A": 13, "B": 6}, kind="posix")},
    "twins": {"pool": memfd({"A": 13, "B": 6}), "twin": Answer({"A": 5, "B": 3}, kind="sysv")},
}

BLIND = {
    "fallocated": {"pool": memfd({"A": 23, "B": 8})},
    "reserved": {"pool": Answer({"main": 83, "A": 7}, kind="posix")},
    "reserved_around": {"pool": memfd({"main": 8, "A": 143, "B": 2})},
    "reserved_between": {"pool": Answer({"main": 15, "B": 4}, {"main": 10, "B": 4}, kind="posix")},
    "reserved_large": {"pool": memfd({"A": 3001, "B": 7})},
    # On some kernels the page that finds no room exists for a moment.
    "reserved_in_vain": {"pool": Answer({"main": 5, "B": 9}, freed=None, kind="other")},
    "remade": {"pool": memfd({"A": 11, "main": 11, "B": 4}, freed={"A": 20})},
    "written": {"pool": memfd({"A": 19, "B": 2})},
    "written_first": {"pool": memfd({"main": 13, "A": 28})},
    "never_mapped": {"pool": Answer({"main": 1, "A": 22, "B": 6, "C": 7}, kind="other")},
    "populated": {"pool": Answer({"A": 17, "B": 4}, {"B": 4})},
    "mapped_populated": {"pool": Answer({"main": 29}, {})},
    "locked": {"pool": Answer({"A": 11, "B": 20}, {"B": 20})},
    "written_across": {"pool": Answer({"main": 13, "B": 6}, {"B": 6}, made_for={"main": {"P": 13}})},
    "remade_unseen": {"pool": memfd({"A": 11, "main": 11, "B": 4}, {"A": 11, "B": 4}, freed={"A": 20})},
}

BEYOND = {
    "spliced": {"pool": memfd({"A": 7, "B": 11, "C": 10}, {"B": 11, "C": 10}), "source": memfd({"main": 11})},
    "copied": {"pool": memfd({"A": 13, "B": 9}), "source": memfd({"main": 19})},
    "populate_read": {"pool": Answer({"A": 19, "B": 6}, {"B": 6})},
    "locked_all": {"pool": memfd({"main": 7, "A": 24, "B": 13}, {"main": 7, "B": 13})},
    "map_locked": {"pool": memfd({"A": 23, "B": 14}, {"B": 14})},
    # A's last page finds no room. On some kernels it exists for a moment.
    "fallocated_rolled_back": {"pool": Answer({"main": 11, "B": 7, "C": 4}, freed=None, kind="other")},
    "uring_written": {"pool": memfd({"A": 19, "B": 4}, {"B": 4})},
    "uring_read": {"pool": Answer({"A": 11, "B": 9}), "source": memfd({"main": 11})},
    "direct_read": {"pool": Answer({"A": 13, "B": 8}, {"B": 8}), "source": memfd({"main": 17})},
}

ACROSS = {
    "poked": {"pool": Answer({"main": 9, "B": 11}, {"B": 11}, made_for={"main": {"P": 9}})},
    "mem_written": {"pool": Answer({"main": 14, "B": 6}, {"B": 6}, made_for={"main": {"P": 14}})},
    "written_across_child": {"pool": Answer({"W": 15, "B": 10}, {"B": 10}, made_for={"W": {"P": 15}})},
    # F faults while the page is absent, and H has made it by the end of the fault: page faults show no more than that.
    "uffd_copied": {"pool": Answer({"H": 13, "B": 10}, {"F": 13, "B": 10}, made_for={"H": {"F": 13}})},
}

LARGE = {
    "huge_punched": {
        "pool": Answer(
            {"A": 2 * HUGE_PAGE - 100, "B": 40},
            {"A": 2, "B": 40},
            freed={"A": 100},
            freed_by_faults=NOTHING,
            kind="memfd",
        )
    },
    "huge_fallocated": {
        "pool": Answer({"A": 2 * HUGE_PAGE, "B": HUGE_PAGE}, {"A": HUGE_PAGE + 18, "B": 1}, kind="other")
    },
    "collapsed": {"pool": memfd({"A": 37, "B": HUGE_PAGE - 37, "C": 11}, {"A": 37, "C": 11})},
    "khugepaged": {
        "pool": Answer(
            {"A": 37, "khugepaged": HUGE_PAGE - 37, "B": 11},
            {"A": 37, "B": 11},
            kind="memfd",
            made_for={"khugepaged": {"main": HUGE_PAGE - 37}},
        )
    },
}

SWAPPED = {
    "swapped": {"pool": Answer({"A": 41, "B": 7})},
    "swapped_at_end": {"pool": Answer({"A": 41, "B": 7})},
    # no tracepoint reports a page that is given back while it is swapped out
    "swapped_punched": {"pool": Answer({"A": 24, "B": 5}, freed={"A": 17}, freed_by_faults=NOTHING)},
    "swapped_punched_at_end": {"pool": Answer({"A": 24, "B": 5}, {"B": 5}, freed={"A": 17}, freed_by_faults=NOTHING)},
}

ANSWERS: dict[str, dict[str, Answer]] = {
    **TOUCHING,
    **PROCESSES,
    **MAPPING,
    **KINDS,
    **BLIND,
    **BEYOND,
    **ACROSS,
    **LARGE,
    **SWAPPED,
}

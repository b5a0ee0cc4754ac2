"""Accounts, read from captures that are made up: every page at one place, and the sum what the inode says."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import recorded
from tests.recorded import at
from tracer import account
from tracer.capture.capture import Capture
from tracer.model import ALL_TIME, Account, Creator, Label, Labelled, Parent, Process, Region, Session, Toucher, Window
from tracer.proc.shmem import PAGE_BYTES

SESSION = {
    "version": "0.1.0",
    "host": "web1",
    "kernel": "6.1.0-56-amd64",
    "page_bytes": PAGE_BYTES,
    "tier": "faults",
    "mechanism": "tracepoint",
    "blind_to": "write(2)\nhuge pages",
    "started_ns": 1_700_000_000_000_000_000,
    "ended_ns": 1_700_000_041_000_000_000,
    "complete": True,
    "sum_of_rss_bytes": 123 * PAGE_BYTES,
    "private_start_bytes": None,
    "private_peak_bytes": None,
    "private_end_bytes": None,
    "private_how": None,
    "shmem_total_bytes": 10_000 * PAGE_BYTES,
    "lost_events": 0,
    "lost_pages": 0,
    "lost_probes": 0,
    "warnings": "",
    "self_cpu_seconds": 0.41,
    "self_rss_bytes": 131_000_000,
    "attach_seconds": 0.31,
}
REGION = {
    "dev": 1,
    "ino": 1047,
    "generation": 5,
    "kind": "anon",
    "name": "/dev/zero",
    "size_bytes": 1000 * PAGE_BYTES,
    "start_bytes": 0,
}


@pytest.fixture
def capture() -> Iterator[Capture]:
    with Capture() as capture:
        yield capture


@pytest.fixture
def read(capture: Capture) -> Callable[..., Account]:
    def complete_and_read(**session: Any) -> Account:
        """The same of the extents and of their sums."""
        capture.insert("session", **{**SESSION, **session})
        found = account.read(capture)
        capture.sum_up(region.row for region in found.regions)
        capture.verify_sums()
        assert account.read(capture) == found
        return found

    return complete_and_read


def put_process(capture: Capture, tgid: int, **row: Any) -> int:
    return capture.insert("process", **{"tgid": tgid, "start_time_ns": tgid * 10, "comm": f"c{tgid}", **row})


def put_region(capture: Capture, pages: int, **row: Any) -> int:
    sizes = {"allocated_bytes": pages * PAGE_BYTES, "peak_bytes": pages * PAGE_BYTES}
    return capture.insert("region", **{**REGION, **sizes, **row})


def put_extents(capture: Capture, region: int, *extents: tuple[int, int, int | None]) -> None:
    """(start, end, process)"""
    for start, end, process in extents:
        if start == end:
            continue
        first_ns, last_ns = (None, None) if process is None else (1000 + start, 1000 + end)
        capture.insert(
            "extent", region=region, start=start, end=end, process=process, first_ns=first_ns, last_ns=last_ns
        )


def put_mapping(capture: Capture, region: int, process: int) -> None:
    """In two parts."""
    for page in (0, 7):
        capture.insert("mapping", region=region, process=process, address=page << 12, first_page=page, pages=7)


def known(row: int, tgid: int, **fields: Any) -> Process:
    return Process(row, tgid, tgid * 10, f"c{tgid}", None, None, None)._replace(**fields)


# ---- the balance ----


def test_an_account(capture: Capture, read: Callable[..., Account]) -> None:
    """All of one, with everything in it."""
    master = put_process(capture, 811, command="master", parent_tgid=1)
    worker = put_process(capture, 812, command="pool www", parent_tgid=811, parent=1, exited_ns=77)
    other = put_process(capture, 813, parent_tgid=811, parent=1)
    region = put_region(
        capture,
        100,
        created_ns=42,
        creator=master,
        creator_how="traced",
        parent=master,
        start_bytes=20 * PAGE_BYTES,
        peak_bytes=150 * PAGE_BYTES,
        resident_bytes=90 * PAGE_BYTES,
        swapped_bytes=10 * PAGE_BYTES,
        address=0x10000000,
    )
    put_extents(capture, region, (0, 10, None), (12, 17, None), (17, 40, worker), (41, 42, worker), (50, 90, other))
    capture.insert("usage", region=region, process=master, faults=7, freed_pages=0)
    put_mapping(capture, region, master)
    capture.insert("usage", region=region, process=worker, faults=30, freed_pages=3)
    capture.insert("usage", region=region, process=other, faults=None, freed_pages=0)
    put_mapping(capture, region, other)
    found = read()
    assert found == Account(
        Session(**{**SESSION, "blind_to": ["write(2)", "huge pages"], "warnings": []}),
        [
            Parent(
                known(1, 811, command="master", parent=1),
                [
                    Region(
                        row=1,
                        id="0:1/1047/00000005",
                        dev=1,
                        ino=1047,
                        generation=5,
                        kind="anon",
                        name="/dev/zero",
                        created_ns=42,
                        gone_ns=None,
                        size_bytes=1000 * PAGE_BYTES,
                        allocated_bytes=100 * PAGE_BYTES,
                        start_bytes=20 * PAGE_BYTES,
                        peak_bytes=150 * PAGE_BYTES,
                        resident_bytes=90 * PAGE_BYTES,
                        swapped_bytes=10 * PAGE_BYTES,
                        address=0x10000000,
                        creator=Creator(known(1, 811, command="master", parent=1), "traced"),
                        before_bytes=15 * PAGE_BYTES,
                        unseen_bytes=21 * PAGE_BYTES,
                        touchers=[
                            Toucher(known(3, 813, parent=811), 40 * PAGE_BYTES, 0, None, 1050, 1090),
                            Toucher(
                                known(2, 812, command="pool www", parent=811, exited_ns=77),
                                24 * PAGE_BYTES,
                                3 * PAGE_BYTES,
                                30,
                                1017,
                                1042,
                            ),
                            Toucher(known(1, 811, command="master", parent=1), 0, 0, 7, None, None),
                        ],
                        mappers=[811, 813],
                    )
                ],
            )
        ],
    )
    (region_found,) = found.regions
    assert region_found.touched_bytes == 64 * PAGE_BYTES
    assert region_found.grown_bytes == 80 * PAGE_BYTES


@pytest.mark.parametrize(
    ("allocated", "touched", "before", "unseen"),
    [(0, 0, 0, 0), (7, 7, 0, 0), (7, 0, 7, 0), (7, 0, 0, 7), (10, 2, 3, 5)],
)
def test_what_is_left_over_is_unseen(
    allocated: int, touched: int, before: int, unseen: int, capture: Capture, read: Callable[..., Account]
) -> None:
    region = put_region(capture, allocated)
    process = put_process(capture, 812)
    put_extents(capture, region, (0, touched, process), (touched, touched + before, None))
    (found,) = read().regions
    assert (found.touched_bytes, found.before_bytes, found.unseen_bytes) == (
        touched * PAGE_BYTES,
        before * PAGE_BYTES,
        unseen * PAGE_BYTES,
    )
    assert found.allocated_bytes == found.touched_bytes + found.before_bytes + found.unseen_bytes


def test_more_owners_than_pages(capture: Capture, read: Callable[..., Account]) -> None:
    """While it is written the size may be the older of the two; of a complete one it is told, and nothing is shifted to
    hide it."""
    region = put_region(capture, 7)
    put_extents(capture, region, (0, 8, put_process(capture, 812)), (8, 9, None))
    (found,) = read(complete=False).regions
    assert (found.allocated_bytes, found.peak_bytes, found.unseen_bytes) == (9 * PAGE_BYTES, 9 * PAGE_BYTES, 0)
    capture.update("session", 1, complete=True)
    account_of = account.read(capture)
    (found,) = account_of.regions
    assert (found.allocated_bytes, found.unseen_bytes) == (7 * PAGE_BYTES, -2 * PAGE_BYTES)
    assert account_of.session.warnings == [
        f"2 more pages were counted than are allocated: the figures of {found.id} are wrong"
    ]


def test_ids_of_regions(capture: Capture, read: Callable[..., Account]) -> None:
    """A second one of the same number and generation has another."""
    for dev, ino, generation in [(1, 1047, 5), (1, 1047, 0x3A9C21F0), (os.makedev(0x103, 26), 7, None)] * 2:
        put_region(capture, 1, dev=dev, ino=ino, generation=generation)
    first = ["0:1/1047/00000005", "0:1/1047/3a9c21f0", "103:1a/7/-"]
    found = {region.row: region.id for region in read().regions}
    assert found == dict(enumerate([*first, *(f"{name}/2" for name in first)], start=1))


def test_a_region_of_which_nothing_is_known(capture: Capture, read: Callable[..., Account]) -> None:
    capture.insert("region", dev=1, ino=2, kind="anon", name="")
    ((found,),) = (parent.regions for parent in read().parents)
    assert (found.allocated_bytes, found.unseen_bytes, found.peak_bytes, found.size_bytes) == (0, 0, 0, None)
    assert (found.generation, found.creator, found.touchers, found.mappers) == (None, None, [], [])


def test_no_region(read: Callable[..., Account]) -> None:
    found = read(warnings="one\ntwo", blind_to="", attach_seconds=None)
    assert (found.parents, found.regions) == ([], [])
    assert (found.session.warnings, found.session.blind_to) == (["one", "two"], [])
    assert found.shmem_unexplained_bytes == 10_000 * PAGE_BYTES


# ---- who ----


def test_touchers_are_in_order(capture: Capture, read: Callable[..., Account]) -> None:
    """By what they touched, then by their faults; who did neither is none."""
    region = put_region(capture, 60)
    rows = {tgid: put_process(capture, tgid) for tgid in (5, 4, 3, 2, 1, 6, 7)}
    put_extents(capture, region, (0, 10, rows[5]), (10, 30, rows[4]), (30, 40, rows[3]))
    for tgid, faults in {5: 10, 3: 90, 2: 1, 1: 8, 6: 0}.items():
        capture.insert("usage", region=region, process=rows[tgid], faults=faults, freed_pages=0)
        put_mapping(capture, region, rows[tgid])
    (found,) = read().regions
    assert [toucher.process.tgid for toucher in found.touchers] == [4, 3, 5, 1, 2]
    assert found.mappers == [1, 2, 3, 5, 6]


def test_two_lives_of_one_pid(capture: Capture, read: Callable[..., Account]) -> None:
    """The later one's name is not known, and of equals the earlier comes first."""
    region = put_region(capture, 20)
    later = put_process(capture, 812, start_time_ns=9000, comm=None)
    earlier = put_process(capture, 812, start_time_ns=100)
    put_extents(capture, region, (0, 10, later), (10, 20, earlier))
    (found,) = read().regions
    assert [(toucher.process.start_time_ns, toucher.process.comm) for toucher in found.touchers] == [
        (100, "c812"),
        (9000, None),
    ]


def test_what_was_freed_is_told(capture: Capture, read: Callable[..., Account]) -> None:
    """Of a process that has no page left, too."""
    region = put_region(capture, 0)
    capture.insert("usage", region=region, process=put_process(capture, 812), faults=None, freed_pages=9)
    (found,) = read().regions
    assert found.touchers == [Toucher(known(1, 812), 0, 9 * PAGE_BYTES, None, None, None)]


# ---- the exact tier ----


def test_an_exact_account(capture: Capture, read: Callable[..., Account]) -> None:
    """Nobody counts the faults, and whoever made a page is there, of the tree or not."""
    worker = put_process(capture, 812, command="pool www", parent_tgid=811)
    stranger = put_process(capture, 4711, command="cat", parent_tgid=1, outside_tree=1)
    region = put_region(capture, 50)
    put_extents(capture, region, (0, 10, worker), (10, 50, stranger))
    for process, freed_pages in (worker, 0), (stranger, 3):
        capture.insert("usage", region=region, process=process, faults=None, freed_pages=freed_pages)
    found = read(tier="exact", mechanism="fentry", blind_to="")
    assert (found.session.tier, found.session.mechanism, found.session.blind_to) == ("exact", "fentry", [])
    assert found.regions[0].touchers == [
        Toucher(
            known(2, 4711, command="cat", parent=1, outside_tree=True),
            40 * PAGE_BYTES,
            3 * PAGE_BYTES,
            None,
            1010,
            1050,
        ),
        Toucher(known(1, 812, command="pool www", parent=811), 10 * PAGE_BYTES, 0, None, 1000, 1010),
    ]


def test_who_only_mapped_it_touched_nothing(capture: Capture, read: Callable[..., Account]) -> None:
    region = put_region(capture, 0)
    capture.insert("usage", region=region, process=put_process(capture, 812), faults=None, freed_pages=0)
    put_mapping(capture, region, put_process(capture, 813))
    (found,) = read().regions
    assert (found.touchers, found.mappers) == ([], [813])


def test_for_whom_pages_were_made(capture: Capture, read: Callable[..., Account]) -> None:
    """By process and region, most first: as they were made, whatever is there of them now."""
    debugger, khugepaged, first, second = (put_process(capture, tgid) for tgid in (700, 39, 811, 812))
    region, other = put_region(capture, 60), put_region(capture, 7, ino=1048)
    put_extents(capture, region, (0, 20, debugger), (20, 60, first))
    put_extents(capture, other, (0, 7, debugger))
    capture.insert_all(
        "made_for",
        "region, process, for_process, pages",
        [
            (region, debugger, first, 5),
            (region, debugger, second, 500),
            (other, debugger, second, 7),
            (region, khugepaged, first, 100),
        ],
    )
    capture.insert("usage", region=region, process=khugepaged, faults=None, freed_pages=100)
    found, found_other = read().regions
    assert {toucher.process.tgid: toucher.made_for for toucher in found.touchers} == {
        811: (),
        700: [(known(4, 812), 500 * PAGE_BYTES), (known(3, 811), 5 * PAGE_BYTES)],
        39: [(known(3, 811), 100 * PAGE_BYTES)],
    }
    assert [toucher.made_for for toucher in found_other.touchers] == [[(known(4, 812), 7 * PAGE_BYTES)]]


# ---- parents ----


def test_parents_and_their_regions_are_in_order(capture: Capture, read: Callable[..., Account]) -> None:
    """Most allocated first, the living before the gone; a parent counts what is there."""
    small, big = put_process(capture, 700), put_process(capture, 811)
    put_region(capture, 7, ino=1, parent=small)
    put_region(capture, 500, ino=2, parent=small, gone_ns=99)
    put_region(capture, 10, ino=3, parent=big, start_bytes=4 * PAGE_BYTES)
    put_region(capture, 30, ino=4, parent=big, start_bytes=40 * PAGE_BYTES)
    put_region(capture, 8, ino=5)
    put_region(capture, 30, ino=6, parent=big)
    parents = read().parents
    assert [
        (
            parent.process.tgid if parent.process else None,
            [region.ino for region in parent.regions],
            parent.allocated_bytes // PAGE_BYTES,
            parent.grown_bytes // PAGE_BYTES,
        )
        for parent in parents
    ] == [(811, [4, 6, 3], 70, 26), (None, [5], 8, 8), (700, [1, 2], 7, 7)]


def test_a_parent_whose_regions_are_all_gone(capture: Capture, read: Callable[..., Account]) -> None:
    """What they had last is what there is to tell: the command has ended."""
    top = put_process(capture, 811, exited_ns=100)
    put_region(capture, 5, ino=1, parent=top, gone_ns=99)
    put_region(capture, 7, ino=2, parent=top, gone_ns=98)
    (parent,) = read().parents
    assert parent.allocated_bytes == parent.grown_bytes == 12 * PAGE_BYTES
    assert parent.current == parent.regions


def test_what_of_the_hosts_memory_is_of_no_region(capture: Capture, read: Callable[..., Account]) -> None:
    """Not counted: what is gone, what is swapped out, and huge pages, which are not in the host's figure."""
    put_region(capture, 100, ino=1)
    put_region(capture, 200, ino=2, gone_ns=99)
    put_region(capture, 300, ino=3, kind="hugetlb")
    put_region(capture, 400, ino=4, swapped_bytes=50 * PAGE_BYTES)
    found = read(shmem_total_bytes=1000 * PAGE_BYTES)
    assert found.shmem_unexplained_bytes == 550 * PAGE_BYTES


def test_the_hosts_figure_may_be_older(capture: Capture, read: Callable[..., Account]) -> None:
    put_region(capture, 100)
    assert read(shmem_total_bytes=99 * PAGE_BYTES).shmem_unexplained_bytes == 0


@pytest.mark.parametrize("window", [ALL_TIME, Window(1100, 1900)])
def test_many_extents_add_up_as_few_do(
    capture: Capture, read: Callable[..., Account], window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a region of some hundred they are summed in another way."""
    owners = [put_process(capture, 811), put_process(capture, 812), None]
    for pages in (2000, 3000):
        put_extents(
            capture, put_region(capture, pages), *((7 * n, 7 * n + 1 + n % 6, owners[n % 3]) for n in range(211))
        )
    read()
    few = account.read(capture, window)
    monkeypatch.setattr(account, "FEW", 0)
    assert account.read(capture, window) == few
    assert [toucher.touched_bytes > 0 for region in few.regions for toucher in region.touchers] == [True] * 4


@pytest.mark.parametrize(
    ("label", "kind", "depth", "text"),
    [
        (Label(script="/srv/www/app/index.php"), "directory", None, "/srv/www/app"),
        (Label(script="/srv/www/app/index.php"), "directory", 2, "/srv/www"),
        (Label(script="/srv/www/app/index.php"), "directory", 9, "/srv/www/app"),
        (Label(script="/index.php"), "directory", 1, "/"),
        (Label(), "directory", None, ""),
        (Label(query="SELECT 1"), "query", None, "SELECT ?"),
        (Label(query="SELECT 1"), "statement", None, "SELECT 1"),
        (Label(), "query", None, ""),
        (None, "query", None, None),
        (None, "directory", 1, None),
    ],
)
def test_what_a_label_is_grouped_by(label: Label | None, kind: str, depth: int | None, text: str | None) -> None:
    assert Labelled(label, known(1, 812), 0, 0, 0).text(kind, depth) == text


def test_labels_change_nothing_else(tmp_path: Path) -> None:
    """What a process touched for several things is still one figure; and what was touched for one, by many, too."""
    with (
        Capture.open(recorded.pool(tmp_path / "x")) as plain,
        Capture.open(recorded.with_labels(tmp_path / "y")) as told,
    ):
        without, read = account.read(plain), account.read(told)
        again = account.read(told, Window(until_ns=recorded.at(20)))
    assert [region._replace(labelled=()) for region in read.regions] == without.regions
    assert [
        [(labelled.label and labelled.label.file, labelled.process.tgid, labelled[2:]) for labelled in region.labelled]
        for region in read.regions
    ] == [
        [
            (None, 812, (9 * PAGE_BYTES, recorded.at(20.5), recorded.at(20.5))),
            ("/srv/www/vendor/autoload.php", 812, (14 * PAGE_BYTES, recorded.at(2.5), recorded.at(2.5))),
            ("/srv/www/index.php", 813, (7 * PAGE_BYTES, recorded.at(20.9), recorded.at(20.9))),
        ],
        [(None, 813, (5 * PAGE_BYTES, recorded.at(7), recorded.at(7)))],
    ]
    assert [labelled.touched_bytes for labelled in again.regions[0].labelled] == [14 * PAGE_BYTES]


def test_a_sum_by_label_and_process_takes_little_memory(tmp_path: Path) -> None:
    """There may be millions of them: a request each, say. As an object with its numbers each took 250 bytes."""
    peaks_bytes = []
    for number in (1000, 9000):
        path = recorded.with_labels(tmp_path / str(number))
        with Capture.open(path, whole=False) as capture:
            [[pool]] = capture.rows("SELECT id FROM region LIMIT 1")
        with contextlib.closing(sqlite3.connect(path)) as database:
            for row in range(1000, 1100):
                database.execute("INSERT INTO process (id, tgid, start_time_ns) VALUES (?, ?, 7)", (row, row))
                database.execute("INSERT INTO label (id, script) VALUES (?, '/x.php')", (row,))
            touched = ((pool, 1000 + each // 100, 1000 + each % 100, 1, at(1), at(2)) for each in range(number))
            database.executemany("INSERT INTO touched VALUES (?, ?, ?, ?, ?, ?)", touched)
            database.commit()
        with Capture.open(path) as capture:
            tracemalloc.start()
            read = account.read(capture)
            peaks_bytes.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert sum(1 for region in read.regions for _ in region.labelled) > number
    assert peaks_bytes[1] - peaks_bytes[0] < 100 * 8000

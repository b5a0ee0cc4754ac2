"""Counters that only rise, and the identity, through all that a trace sees: renames, frees, ends, rotations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from tracer.metrics import series
from tracer.metrics.series import OTHER, Series, Totals
from tracer.model import Account, Label, Labelled, Parent, Process, Region, Session, Toucher
from tracer.proc.shmem import PAGE_BYTES

SERVICE = "/system.slice/php8.2-fpm.service"
UNIT = "php8.2-fpm.service"


def process(row: int, command: str = "php-fpm: pool www", cgroup: str | None = SERVICE) -> Process:
    return Process(row, 800 + row, 5, "php-fpm", command, 1, None, cgroup=cgroup)


MASTER = process(1, "php-fpm: master process")


class Did(NamedTuple):
    """What a process did to a region, in pages."""

    who: Process
    there: int = 0
    freed: int = 0
    texts: Sequence[tuple[str | None, int]] = ()
    """script and pages; None: unknown"""


def region(*did: Did, row: int = 1, before: int = 0, unseen: int = 0, **more: Any) -> Region:
    labelled = [
        Labelled(None if text is None else Label(text), each.who, pages * PAGE_BYTES, 1, 2)
        for each in did
        for text, pages in each.texts
    ]
    touchers = [Toucher(each.who, each.there * PAGE_BYTES, each.freed * PAGE_BYTES, None, 1, 2) for each in did]
    allocated = sum(each.there for each in did) + before + unseen
    known: dict[str, Any] = {
        "row": row, "id": f"0:1/{row}/-", "dev": 1, "ino": 100 + row, "generation": 7, "kind": "anon",
        "name": "/dev/zero", "created_ns": None, "gone_ns": None, "size_bytes": 401 * PAGE_BYTES,
        "allocated_bytes": allocated * PAGE_BYTES, "start_bytes": before * PAGE_BYTES, "peak_bytes": 0,
        "resident_bytes": None, "swapped_bytes": None, "address": None, "creator": None,
        "before_bytes": before * PAGE_BYTES, "unseen_bytes": unseen * PAGE_BYTES, "touchers": touchers,
        "mappers": [], "labelled": labelled, "hint": "opcache",
    }  # fmt: skip
    return Region(**{**known, **more})


def account(*regions: Region, parent: Process | None = MASTER, label: str | None = None) -> Account:
    known = "web1", "6.1", "0.1.0", "exact", "kprobe", [], PAGE_BYTES, 0, 10**9, False
    session = Session(*known, *[None] * 5, 0, 0, 0, [], *[None] * 3, label)
    return Account(session, [Parent(parent, list(regions))])


def pages(found: Series) -> dict[str, int]:
    """Touched pages by name."""
    return {name: size_bytes // PAGE_BYTES for name, size_bytes in found.touched_bytes.items()}


def balances(found: Sequence[Series]) -> None:
    for each in found:
        touched_bytes = sum(each.touched_bytes.values())
        there_bytes = sum(held.allocated_bytes for held in each.held.values())
        untold_bytes = each.before_bytes + each.unseen_bytes + each.moved_bytes
        assert touched_bytes + untold_bytes == there_bytes + each.freed_bytes, each


def test_a_known_answer() -> None:
    [found] = Totals().add(account(region(Did(process(2), 23, 4), Did(process(3, "cron"), 7), before=11, unseen=2)))
    assert (found.unit, found.segment) == (UNIT, "opcache")
    assert pages(found) == {"php-fpm: pool www": 27, "cron": 7}
    assert found.held == {"anon": series.Held(401 * PAGE_BYTES, 43 * PAGE_BYTES, None)}
    assert (found.before_bytes, found.unseen_bytes, found.freed_bytes) == (
        11 * PAGE_BYTES,
        2 * PAGE_BYTES,
        4 * PAGE_BYTES,
    )
    balances([found])


def test_what_is_renamed_stays_where_it_was_counted() -> None:
    totals = Totals()
    totals.add(account(region(Did(process(2, "php-fpm: master process"), 3))))
    [found] = totals.add(account(region(Did(process(2), 23))))
    assert pages(found) == {"php-fpm: master process": 3, "php-fpm: pool www": 20}


def test_pages_that_were_freed_and_touched_again_between_two_looks() -> None:
    totals = Totals()
    totals.add(account(region(Did(process(2), 23, 0, [("/a.php", 20), ("/b.php", 3)])), label="php"))
    [found] = totals.add(account(region(Did(process(2), 12, 30, [("/a.php", 5), ("/b.php", 7)])), label="php"))
    assert pages(found) == {"/a.php": 20, "/b.php": 7, "?": 15}  # nobody saw what these 15 were for
    assert found.freed_bytes == 30 * PAGE_BYTES
    balances([found])


def test_texts_that_are_empty_or_unknown() -> None:
    did = Did(process(2), 10, 0, [("", 4), (None, 6)])
    [found] = Totals().add(account(region(did), label="php"))
    assert pages(found) == {"(none)": 4, "?": 6}


def test_a_region_that_goes_is_freed_and_one_that_is_dropped_too() -> None:
    totals = Totals()
    did = Did(process(2), 23, 4)
    totals.add(account(region(did), region(Did(process(2), 7), row=2)))
    went = region(did, gone_ns=5)
    [found] = totals.add(account(went, region(Did(process(2), 7), row=2)))
    assert (pages(found), found.freed_bytes) == ({"php-fpm: pool www": 34}, 27 * PAGE_BYTES)
    assert found.held["anon"].allocated_bytes == 7 * PAGE_BYTES
    for _ in range(2):  # a rotation has dropped it
        [found] = totals.add(account(region(Did(process(2), 7), row=2)))
        assert (pages(found), found.freed_bytes) == ({"php-fpm: pool www": 34}, 27 * PAGE_BYTES)
    another = region(Did(process(2), 5), gone_ns=None, ino=999)  # whose row the one before had
    [found] = totals.add(account(another, region(Did(process(2), 7), row=2)))
    assert pages(found) == {"php-fpm: pool www": 39}
    assert totals.add(account()) == []


def test_a_process_that_a_rotation_drops_stays_counted() -> None:
    totals = Totals()
    totals.add(account(region(Did(process(2), 0, 9), Did(process(3), 5))))
    [found] = totals.add(account(region(Did(process(3), 6))))
    assert (pages(found), found.freed_bytes) == ({"php-fpm: pool www": 15}, 9 * PAGE_BYTES)
    balances([found])


def scripts(sizes: dict[str, int]) -> Account:
    return account(region(Did(process(2), sum(sizes.values()), 0, list(sizes.items()))), label="php")


def test_the_greatest_are_told_and_other_does_not_shrink() -> None:
    totals = Totals()
    sizes = {f"/{number}.php": 100 + number for number in range(50)}
    [found] = totals.add(scripts(sizes))
    assert len(found.touched_bytes) == series.GROUPS + 1
    assert pages(found)[OTHER] == sum(range(100, 130))
    assert "/30.php" in found.touched_bytes
    [found] = totals.add(scripts({**sizes, "/0.php": 5000}))  # had 100 pages in other, and comes with what is new
    assert pages(found)["/0.php"] == 4900
    assert pages(found)[OTHER] == sum(range(100, 130))
    [found] = totals.add(scripts({**sizes, "/0.php": 5000, "/new.php": 777}))
    assert pages(found)["/new.php"] == 777
    assert "/30.php" in found.touched_bytes  # it is no longer among them, and would go back


def test_there_are_never_very_many() -> None:
    totals = Totals()
    sizes: dict[str, int] = {}
    for number in range(1000):
        sizes[f"/{number}.php"] = 1000 + number * number
        [found] = totals.add(scripts(sizes))
        assert sum(pages(found).values()) == sum(sizes.values())
    assert len(found.touched_bytes) <= series.MOST_GROUPS + 1
    assert max(map(len, found.touched_bytes)) <= series.NAME_COLUMNS


def test_what_was_never_told_apart_is_forgotten() -> None:
    """A year of deploys has any number of scripts, each touched once by a worker that is dead."""
    totals = Totals()
    before = total = 0
    for day in range(13):
        texts = [(f"/{day}/{number}.php", 1 + number % 3) for number in range(2000)] + [("/index.php", 700)]
        total += sum(size for _, size in texts)
        worker = Did(process(2 + day), sum(size for _, size in texts), 0, texts)
        [found] = totals.add(account(region(worker), label="php"))
        balances([found])
        assert sum(pages(found).values()) == total
        assert pages(found)["/index.php"] == 700 * (1 + day)
        assert pages(found)[OTHER] >= before
        before = pages(found)[OTHER]
    assert sum(len(tally._touched) for tally in totals._tallies.values()) <= series.MOST_NAMES


@pytest.mark.parametrize("name", ["x" * 5000, "\x1b[31mred", "a\nb", "ä" * 500])
def test_names_are_bounded_and_printable(name: str) -> None:
    [found] = Totals().add(account(region(Did(process(2, f"{name}: x"), 7), hint=None, name=name), parent=None))
    assert found.unit == "?"
    for text in (found.segment, *found.touched_bytes):
        assert text.isprintable()
        assert len(text) <= series.NAME_COLUMNS


def test_a_process_that_calls_itself_other() -> None:
    [found] = Totals().add(account(region(Did(process(2, "other:"), 7), Did(process(3, "other"), 5))))
    assert sum(pages(found).values()) == 12
    balances([found])


def test_segments_beyond_the_greatest_are_one() -> None:
    totals = Totals()
    letters = "abcdefghijklmnopqrstuvwxyz"
    regions = [
        region(Did(process(2), 10 + row), row=row, hint=None, kind="posix", name=f"/dev/shm/{a}{b}")
        for row, (a, b) in enumerate(((a, b) for a in letters for b in letters), start=1)
    ]
    found = totals.add(account(*regions))
    assert len(found) == series.SEGMENTS + 1
    assert (found[-1].unit, found[-1].segment) == (OTHER, OTHER)
    balances(found)
    before = pages(found[-1])["php-fpm: pool www"]
    regions[0] = region(Did(process(2), 5000), row=1, hint=None, kind="posix", name="/dev/shm/aa")
    found = totals.add(account(*regions))
    balances(found)
    assert found[0].segment == "/dev/shm/aa"
    assert pages(found[0]) == {"php-fpm: pool www": 4989}
    assert (found[0].moved_bytes, found[-1].moved_bytes) == (11 * PAGE_BYTES, -11 * PAGE_BYTES)
    assert pages(found[-1])["php-fpm: pool www"] == before
    assert sum(each.freed_bytes for each in found) == 0
    assert sum(map(sum, (pages(each).values() for each in found))) == sum(range(12, 687)) + 5000
    assert len(found) == series.SEGMENTS + 2  # the one that is no longer among them stays for now
    found = totals.add(account())
    assert [(each.segment, each.held) for each in found] == [(OTHER, {})]
    balances(found)


def test_a_region_whose_use_is_known_later() -> None:
    totals = Totals()
    first = region(Did(process(2), 23), hint=None)
    second = region(Did(process(2), 7), hint=None, row=2)
    totals.add(account(first, second))
    found = totals.add(account(region(Did(process(2), 30)), second))
    balances(found)
    assert {each.segment: (pages(each), each.moved_bytes // PAGE_BYTES) for each in found} == {
        "opcache": ({"php-fpm: pool www": 7}, 23),
        "apcu": ({"php-fpm: pool www": 30}, -23),
    }


def test_a_segment_that_has_another_name_from_now_on() -> None:
    """As the unit of a pod has, whose name is known a moment later."""
    totals = Totals()
    totals.add(account(region(Did(process(2), 23, 4)), region(Did(process(2), 7), row=2)))
    pod = process(1, "php-fpm: master process", "/kubepods.slice/cri-containerd-x.scope")
    regions = region(Did(process(2), 25, 4)), region(Did(process(2), 7), row=2)
    [found] = totals.add(account(*regions, parent=pod))
    assert found.unit == "cri-containerd-x.scope"
    assert (pages(found), found.freed_bytes, found.moved_bytes) == ({"php-fpm: pool www": 36}, 4 * PAGE_BYTES, 0)
    other = process(1, "php-fpm: master process", "/kubepods.slice/cri-containerd-y.scope")
    [found] = totals.add(account(regions[1], parent=other))  # and one of its regions has been dropped
    assert (pages(found), found.freed_bytes, found.moved_bytes) == ({"php-fpm: pool www": 36}, 29 * PAGE_BYTES, 0)
    balances([found])


class World:
    """Regions in which anything happens, as a trace would tell it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.regions: dict[int, dict[int, dict[str, int]]] = {}
        self.freed: dict[tuple[int, int], int] = {}
        self.gone: set[int] = set()
        self.hidden: set[tuple[int, int]] = set()
        self.commands: dict[int, str] = {}

    def go_on(self) -> None:
        for _ in range(self.rng.randrange(40)):
            row = self.rng.choice([*self.regions, len(self.regions) + 1])
            cells = self.regions.setdefault(row, {})
            what = self.rng.random()
            if row in self.gone:
                continue
            if what < 0.7:
                who, text = self.rng.randrange(2, 9), f"/{self.rng.randrange(60)}.php"
                cells.setdefault(who, {}).setdefault(text, 0)
                cells[who][text] += self.rng.randrange(30)
                self.hidden.discard((row, who))
            elif what < 0.9 and cells:
                who = self.rng.choice(list(cells))
                for text in cells[who]:
                    pages = self.rng.randrange(cells[who][text] + 1)
                    cells[who][text] -= pages
                    self.freed[row, who] = self.freed.get((row, who), 0) + pages
            elif what < 0.93:
                self.gone.add(row)
            else:
                self.commands[self.rng.randrange(2, 9)] = f"php-fpm: pool {self.rng.choice('abcdefgh')}"

    def rotate(self) -> None:
        """What is over is dropped; rows of the account go with it."""
        self.hidden |= {(row, who) for row in self.regions for who in self.regions[row] if row in self.gone}

    def account(self, label: str | None) -> Account:
        regions = []
        for row, cells in self.regions.items():
            if cells and all((row, who) in self.hidden for who in cells):
                continue
            did = [
                Did(process(who, self.commands.get(who, "php-fpm: pool www")), sum(texts.values()),
                    self.freed.get((row, who), 0), list(texts.items()) if label else ())
                for who, texts in cells.items()
            ]  # fmt: skip
            hint = ("opcache", "apcu", None)[row % 3]
            more = {"gone_ns": 5 if row in self.gone else None, "hint": hint, "name": f"/dev/shm/x{'abcdefg'[row % 7]}"}
            regions.append(region(*did, row=row, before=row % 5, **more))
        return account(*regions, label=label)


@pytest.mark.parametrize("label", [None, "php"])
@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens(seed: int, label: str | None) -> None:
    world, totals = World(seed), Totals()
    before: dict[tuple[str, str], dict[str, int]] = {}
    for step in range(60):
        world.go_on()
        found = totals.add(world.account(label))
        balances(found)
        now = {(each.unit, each.segment): {**each.touched_bytes, "freed": each.freed_bytes} for each in found}
        assert len(now) == len(found)
        for place in now.keys() & before.keys():
            fell = {name for name, size_bytes in before[place].items() if now[place].get(name, 0) < size_bytes}
            assert not fell, (step, place)
        before = now
        if step % 7 == 6:
            world.rotate()

"""The answer: groups of what is alike, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.test_views import MASTER, account, at, make_region, process, toucher
from tracer import alike
from tracer.answer import answer, paragraph
from tracer.model import Parent, Process, Region, Window
from tracer.proc.shmem import PAGE_BYTES

ZERO = "/dev/zero"


LONG = 1 << 17
HOSTILE_RUNS = [
    "a" * LONG,
    "1a" * LONG + "g",
    "_" * LONG,
    "._" * LONG,
    "1" * LONG,
    "aB" * LONG + ".",
    "0a" * LONG + "-" * LONG,
]


@pytest.mark.parametrize("text", HOSTILE_RUNS, ids=[run[:4] for run in HOSTILE_RUNS])
def test_a_long_name_takes_no_longer_for_each_character(text: str) -> None:
    """It would be hours if each character looked at all that follow."""
    assert alike.of_region(make_region(1, kind="posix", name=f"/dev/shm/{text}"), None).startswith("/dev/shm/")
    for command in (f"/usr/bin/python3 {text}", f"{text}: x", f"postgres: a b {text}(7) x", f"x --{text}= y"):
        assert alike.of_process(process(812, command, comm="python3"))


def python(tgid: int, command: str = "python3 many.py", **fields: Any) -> Process:
    return process(tgid, command, comm="python3", **fields)


def text(*parents: Parent, **fields: Any) -> str:
    return answer(account(*parents, **fields)).text


@pytest.mark.parametrize(
    ("comm", "command", "group"),
    [
        ("php-fpm8.2", "php-fpm: pool www", "php-fpm: pool www"),
        ("postgres", "postgres: app orders [local] SELECT", "postgres: app orders"),
        ("postgres", "postgres: app orders 10.0.0.7(41234) idle in transaction", "postgres: app orders"),
        ("postgres", "postgres: parallel worker for PID 4711", "postgres: parallel worker for PID #"),
        ("python3", "/usr/bin/python3 worker.py 17 --queue a", "python3 worker.py #"),
        ("chromium", "/usr/lib/chromium/chromium --type=renderer --crashpad-handler-pid=0", "chromium --type=renderer"),
        ("worker.py", "/usr/bin/python3 /srv/worker.py 17", "python3 /srv/worker.py #"),
        ("bash", "-bash", "-bash"),
        ("Web Content", "/usr/lib/firefox/firefox -contentproc 7", "Web Content"),
        ("renamed-3", "./renamed", "renamed-#"),
        ("kworker/1:2", "", "kworker/#:#"),
        (None, None, "?"),
        ("ruby", "sidekiq 6.5.1 shop [3 of 5 busy]", "sidekiq #.#.# shop"),
        ("x", "/", "x"),
        ("x", "/ 7", "x"),
    ],
)
def test_processes_that_are_alike(comm: str | None, command: str | None, group: str) -> None:
    assert alike.of_process(process(812, command, comm=comm)) == group


def test_processes_that_are_not_alike_have_the_name_of_the_first() -> None:
    """As those that made the regions of a pool may be: a report is the same each time that it is made."""
    several = [process(812 + number, f"workload {name}") for number, name in enumerate("abcdefgh")]
    for place, first in enumerate(several):
        assert alike.called([*several[place:], *several[:place]]) == alike.of_process(first)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("/dev/shm/torch_11043_412", "/dev/shm/torch_#_#"),
        ("/memfd:shared-memory-3f9a01bc7d", "/memfd:shared-memory-#"),
        ("/dev/shm/cafe", "/dev/shm/cafe"),
        ("/SYSV0052e2c1", "/SYSV#"),
        ("/dev/shm/sem.UyrEBN", "/dev/shm/sem.#"),
        ("/dev/shm/sem.worker", "/dev/shm/sem.worker"),
        ("/dev/shm/sem.Worker", "/dev/shm/sem.Worker"),
        ("", "posix"),
    ],
)
def test_regions_that_are_alike(name: str, group: str) -> None:
    region = make_region(1, kind="posix", name=name)
    assert alike.of_region(region, python(811)) == group


def many(*touched: int, **fields: Any) -> Sequence[Region]:
    return [
        make_region(100 + n, toucher(python(811), pages), size_bytes=1 << 24, **fields)
        for n, pages in enumerate(touched)
    ]


def test_many_alike_regions() -> None:
    """Case W1: what is small in each region is much in all."""
    parent = Parent(python(811), list(many(*[1049] * 61)))
    found = text(parent, private_start_bytes=0, private_end_bytes=8 << 20, private_how="status")
    assert found == (
        "/dev/zero ×61 are new and grew to 250 MiB of 976 MiB in 41 s. By python3 many.py 250 MiB. "
        "Private memory grew by at most 8.0 MiB."
    )


@pytest.mark.parametrize(
    ("start", "peak", "end", "how", "told"),
    [
        (13, 213, 0, "status", "Private memory grew by about 200 MiB, then shrank by 213 MiB."),
        (13, 33, 13, "memory.stat", "Private memory grew by about 20.0 MiB, then shrank by 20.0 MiB."),
        (13, 33, 30, "memory.stat", "Private memory grew by 17.0 MiB."),
        (13, None, 30, "memory.stat", "Private memory grew by 17.0 MiB."),
        (13, 13, 0, "memory.stat", "16.0 KiB."),
        (None, None, None, None, "16.0 KiB."),
    ],
)
def test_private_memory(start: int | None, peak: int | None, end: int | None, how: str | None, told: str) -> None:
    """Case W2: what a process had that has ended is told, too. In MiB."""
    fields = {"start": start, "peak": peak, "end": end}
    sizes = {f"private_{name}_bytes": None if size is None else size << 20 for name, size in fields.items()}
    parent = Parent(python(811), [make_region(1, toucher(python(811), 4))])
    assert text(parent, **sizes, private_how=how).endswith(told)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({}, "the exact tier would name it: `shmtrace doctor` says what that needs."),
        ({"lost_pages": 4}, "there was no room to note it: give a larger --room."),
        ({"tier": "exact"}, "the warnings below say why."),
    ],
)
def test_what_would_see_the_unseen(fields: dict[str, Any], remedy: str) -> None:
    parent = Parent(python(811), [make_region(1, toucher(python(811), 3), unseen=4)])
    assert text(parent, **fields).startswith(f"Most was unseen: 16.0 KiB; {remedy}")


def test_a_pool_whose_workers_are_dead() -> None:
    workers = [process(1000 + n, "php-fpm: pool www", exited=20) for n in range(250)]
    opcache = make_region(1047, *(toucher(worker, 7) for worker in workers), before=11, address=0x10000000)
    assert text(Parent(process(811, MASTER), [opcache])) == (
        "opcache? grew by 6.8 MiB to 6.9 MiB of 256 MiB in 41 s. By php-fpm: pool www ×250 (all exited) 6.8 MiB."
    )


def test_several_kinds() -> None:
    others = [
        make_region(n, toucher(python(811), 100 - n), name=f"/dev/shm/{'abcde'[n]}", kind="posix") for n in range(5)
    ]
    users = [process(n, f"{name}: x", comm=name) for n, name in enumerate("pqrst", 900)]
    mixed = make_region(50, *(toucher(user, 10) for user in users), name="/dev/shm/z", kind="posix")
    assert text(Parent(python(811), [*others, mixed])) == (
        "Shared memory grew by 2.1 MiB in 41 s: /dev/shm/a 400 KiB, /dev/shm/b 396 KiB, /dev/shm/c 392 KiB, "
        "others 972 KiB. By python3 many.py 1.9 MiB, p: x 40.0 KiB, q: x 40.0 KiB, others 120 KiB."
    )


def test_all_is_gone() -> None:
    parent = Parent(python(811, exited=30), list(many(7, 5, 3, gone_ns=at(30))))
    assert text(parent) == "/dev/zero ×3 with 60.0 KiB came and went in 41 s. By python3 many.py 60.0 KiB."
    parent.regions.append(make_region(9, toucher(python(811), 4), kind="posix", name="/dev/shm/x", gone_ns=at(30)))
    assert text(parent) == (
        "4 regions with 76.0 KiB came and went in 41 s: /dev/zero ×3 60.0 KiB, /dev/shm/x 16.0 KiB. "
        "By python3 many.py 76.0 KiB."
    )


def test_a_region_took_the_place_of_another() -> None:
    """What went had more than what it grew by, and the growers more than what is there."""
    worker = process(812, "php-fpm: pool www")
    fields = {"address": 0x10000000}
    old = make_region(1, toucher(worker, 1024), before=256, gone_ns=at(20), created_ns=at(-60), **fields)
    new = make_region(2, toucher(worker, 2048), created_ns=at(20), **fields)
    assert text(Parent(process(811, MASTER), [old, new])) == (
        "opcache? is new and grew to 8.0 MiB of 256 MiB in 41 s. opcache? with 5.0 MiB went. "
        "In all, shared memory changed by +7.0 MiB. By php-fpm: pool www 12.0 MiB (4.0 MiB gone)."
    )


def test_regions_that_are_new() -> None:
    files = [
        make_region(n, toucher(python(811), 23), kind="posix", name=f"/dev/shm/x-{n}", size_bytes=23 * PAGE_BYTES)
        for n in range(2)
    ]
    assert text(Parent(python(811), files)).startswith("/dev/shm/x-# ×2 are new and grew to 184 KiB in 41 s. ")


def test_nothing_grew() -> None:
    assert text(Parent(python(811), [make_region(1, before=7)])) == "Nothing grew in 41 s: 28.0 KiB in 1 region."
    shrunk = make_region(1, before=7, start_bytes=9 * PAGE_BYTES)
    assert text(Parent(python(811), [shrunk])) == "Nothing grew in 41 s: 28.0 KiB in 1 region, -8.0 KiB."
    emptied = make_region(2)._replace(gone_ns=at(3), allocated_bytes=0, start_bytes=0, peak_bytes=13 * PAGE_BYTES)
    assert text(Parent(python(811), [emptied])) == (
        "Nothing grew in 41 s: 0 B in 0 regions; 1 region went that had had 52.0 KiB."
    )
    assert text() == ""


def test_more_is_unseen_than_seen() -> None:
    region = make_region(1, toucher(python(811), 3), unseen=4)
    assert text(Parent(python(811), [region])).startswith("Most was unseen: 16.0 KiB; ")
    region = make_region(1, toucher(python(811), 4), unseen=4)
    assert text(Parent(python(811), [region])).startswith("/dev/zero is new and grew to 32.0 KiB")


def test_a_window_of_time_has_its_growers_alone() -> None:
    found = account(Parent(python(811), list(many(7))))._replace(window=Window(at(1), at(2)))
    assert answer(found).text == "28.0 KiB touched first in this time. By python3 many.py 28.0 KiB."
    assert paragraph(found).startswith("web1, 2023-11-14 22:13:21 to 22:13:22: ")


def test_a_snapshot() -> None:
    regions = [make_region(1, before=2560), make_region(2, before=512, kind="memfd", name="/memfd:x")]
    found = text(Parent(process(811, MASTER), regions), Parent(None, [make_region(3, before=1)]), tier="proc")
    assert found == (
        "12.0 MiB of shared memory in 3 regions: apcu? 10.0 MiB, /memfd:x 2.0 MiB, /dev/zero 4.0 KiB. "
        "Made by php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf) 12.0 MiB, unknown processes 4.0 KiB."
    )


def test_one_paragraph_for_a_ticket() -> None:
    found = paragraph(account(Parent(python(811), list(many(7)))))
    assert found.startswith("web1, ")
    assert found.endswith(" in 41 s. By python3 many.py 28.0 KiB.")
    assert "\n" not in found
    assert paragraph(account()).endswith("No shared memory: none of these processes maps any, or has mapped any.")

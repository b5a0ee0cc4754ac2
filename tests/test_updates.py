"""What is told of processes and regions, from records that were laid out by hand."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest

from tracer import wire
from tracer.kernel import updates
from tracer.kernel.events import Exec, Exit, Fork, Head, RegionGone, RegionMet
from tracer.kernel.updates import KernelProcess, KernelRegion, News
from tracer.proc.shmem import RegionKey

HOSTILE = [
    pytest.param(b"\xff\xfe\x80" + b"\xc3" * 13, id="no UTF-8"),
    pytest.param("€".encode()[:2], id="cut within a character"),
    pytest.param(b"\xed\xa0\x80", id="surrogate"),
    pytest.param(b"\x1b[2J\x1b]0;x\x07\r\n", id="escape sequences"),
    pytest.param("\u202e\u200b\u0301".encode(), id="reordering, invisible, combining"),
    pytest.param(b"n" * 16, id="no NUL"),
    pytest.param(b"\0" * 16, id="only NUL"),
]
PARENT = (811, 5_210_000_000)


def process(**more: Any) -> KernelProcess:
    values = {
        "start_time_ns": 5_230_000_000,
        "parent_start_time_ns": PARENT[1],
        "began_ns": 7_000_000_001,
        "executed_ns": 0,
        "ended_ns": 0,
        "earlier_ns": 0,
        "read_ns": 0,
        "number": 3,
        "tgid": 812,
        "parent_tgid": PARENT[0],
        "kind": wire.OF_TREE,
        "title_bytes": 0,
        "exit_status": 0,
        "comm": b"php-fpm8.2",
        "title": b"",
        "earlier_comm": b"",
        "earlier_title": b"",
    }
    return KernelProcess(**{**values, **more})


def head(time_ns: int) -> Head:
    return Head(time_ns, 5_230_000_000, 812)


FORK = Fork(head(7_000_000_001), *PARENT, "php-fpm8.2", number=3, watched=False)


def test_a_child_is_told_of_once() -> None:
    told = News()
    assert told.begun([process()]) == [FORK]
    assert told.begun([process()]) == []


def test_who_executed_meanwhile_was_born_first() -> None:
    child = process(executed_ns=7_000_000_005, comm=b"ls", title_bytes=15, title=b"/bin/ls\0-l\0/x\0\0of before")
    found = News().begun([child])
    assert found == [FORK._replace(comm="ls"), Exec(head(7_000_000_005), "ls", "/bin/ls", "/bin/ls -l /x", 3)]


def test_what_it_was_in_between() -> None:
    """A shell of the name that is looked for, which had executed another program before anybody looked."""
    told = News()
    told.begun([process()])
    shell = {"earlier_ns": 7_000_000_003, "earlier_comm": b"php-fpm", "earlier_title": b"/sbin/php-fpm\0-c\0"}
    child = process(executed_ns=7_000_000_005, comm=b"ls", title_bytes=3, title=b"ls\0", **shell)
    first, last = told.begun([child])
    assert first == Exec(head(7_000_000_003), "php-fpm", "/sbin/php-fpm", "/sbin/php-fpm -c", 3)
    assert last == Exec(head(7_000_000_005), "ls", "ls", "ls", 3)
    assert told.begun([child]) == []
    assert len(told.begun([child._replace(executed_ns=7_000_000_009)])) == 1


def test_all_in_the_order_of_time() -> None:
    """Whatever their places are."""
    older = process(number=7, tgid=811, start_time_ns=PARENT[1], parent_tgid=1, parent_start_time_ns=9, began_ns=5)
    executed = older._replace(executed_ns=8_000_000_000)
    found = News().begun([process(), executed])
    assert [(type(event), event.head.tgid) for event in found] == [(Fork, 811), (Fork, 812), (Exec, 811)]


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        pytest.param({"began_ns": 0}, [], id="user space entered it"),
        pytest.param({"kind": wire.OUTSIDE_TREE, "parent_start_time_ns": 0}, [], id="a stranger"),
        pytest.param(
            {"kind": wire.WATCHED, "parent_start_time_ns": 0, "executed_ns": 8}, [Exec], id="watched since its exec"
        ),
        pytest.param({"kind": wire.WATCHED}, [Fork], id="a child of one that is watched"),
        pytest.param({"parent_start_time_ns": 0}, [Fork], id="where all are of the tree"),
    ],
)
def test_what_is_told_of_whom(more: dict[str, Any], kinds: list[type]) -> None:
    assert [type(event) for event in News().begun([process(**more)])] == kinds


def test_who_is_watched_is_told_so() -> None:
    assert News().begun([process(kind=wire.WATCHED)]) == [FORK._replace(watched=True)]


def test_the_end() -> None:
    """A title that was told already is older than what user space has read since."""
    told = News()
    told.begun([process(executed_ns=8, title_bytes=3, title=b"ls\0")])
    assert told.number(812, 5_230_000_000) == 3
    end = process(executed_ns=8, title_bytes=3, title=b"ls\0", ended_ns=9)
    assert told.ended(end) == Exit(head(9), "php-fpm8.2", "", None)
    assert told.number(812, 5_230_000_000) is None


def test_a_title_that_was_read_at_the_end() -> None:
    told = News()
    told.begun([process()])
    title = b"php-fpm: pool www  \0 that was longer once"
    end = process(ended_ns=9, title_bytes=19, title=title, exit_status=wire.EXITED | wire.OOM_KILLED | 3 << 8)
    assert told.ended(end) == Exit(head(9), "php-fpm8.2", "php-fpm: pool www", 3 << 8, True)


def test_a_title_of_who_ended_before_its_fork_was_heard_of() -> None:
    told = News()
    end = process(ended_ns=9, title_bytes=11, title=b"pool: five\0")
    told.begun([end])
    assert told.ended(end).command == "pool: five"


def test_a_place_has_another_after_it() -> None:
    told = News()
    told.begun([process()])
    told.ended(process(ended_ns=9))
    assert told.begun([process(start_time_ns=11, began_ns=12)]) == [FORK._replace(head=Head(12, 11, 812))]


def test_whether_a_parent_is_lacking() -> None:
    told = News()
    parent = process(number=7, tgid=811, start_time_ns=PARENT[1], parent_start_time_ns=0)
    assert told.lacks_a_parent([process()])
    assert not told.lacks_a_parent([process(parent_start_time_ns=0)])
    assert not told.lacks_a_parent([process(), parent])
    told.know(parent)
    assert not told.lacks_a_parent([process()])


@pytest.mark.parametrize(
    ("title_bytes", "title", "titles"),
    [
        (0, b"what was there before", ("", "")),
        (256, b"java\0" + b"x" * 251, ("java", "java " + "x" * 251)),  # as long as there is room for
        (257, b"java\0" + b"x" * 251, ("java", "java " + "x" * 251 + "…")),
        (2**32 - 1, b"x" * 256, ("x" * 256 + "…", "x" * 256 + "…")),
    ],
)
def test_titles(title_bytes: int, title: bytes, titles: tuple[str, str]) -> None:
    assert process(title_bytes=title_bytes, title=title).titles() == titles


def region(*, mapped: tuple[int, int, int] = (0, 0, 0), made: tuple[int, int, int] = (0, 0, 0), **more: Any) -> bytes:
    """mapped, made: when, and start time and tgid of whom."""
    values = {"gone_us": 0, "huge": 0, "deep": 0, "name_bytes": 8, "name": b"dev/zero, and what was there", **more}
    return struct.pack(
        "=QII16Q8I64s",
        *(1047, 0x3A9C21F0, 1),
        *(0xFFFF, 256 << 20, 23, 4, 31, 2, values["gone_us"], 256 << 20, 29, 4, 5, 0),
        *(made[0], made[1], mapped[0], mapped[1]),
        *(made[2], mapped[2], 9, values["huge"], 0, values["name_bytes"], values["deep"], 0, values["name"]),
    )


def met(raw: bytes) -> list[Any]:
    return updates.met(KernelRegion.unpack(raw))


MAPPED = (7_000_000_001, 5_230_000_000, 812)
MET = RegionMet(
    Head(*MAPPED), RegionKey(1, 1047, 0x3A9C21F0), 9, 256 << 20, False, False, "dev/zero", made=None, of_tree=True
)


def test_a_region_that_was_mapped() -> None:
    assert met(region(mapped=MAPPED)) == [MET]


def test_a_region_that_was_made() -> None:
    made = (6_000_000_001, 5_210_000_000, 811)
    assert met(region(mapped=MAPPED, made=made)) == [MET._replace(made=Head(*made))]


def test_a_region_that_came_and_went() -> None:
    assert met(region(mapped=MAPPED, gone_us=23)) == [MET, RegionGone(9)]


def test_a_file_that_nobody_mapped() -> None:
    assert met(region(gone_us=23)) == [RegionGone(9)]
    assert met(region()) == []


def test_a_name_that_has_all_the_room() -> None:
    (found,) = met(region(mapped=MAPPED, huge=1, name_bytes=64, deep=1, name=b"x" * 64))
    assert (found.name, found.huge, found.deep) == ("x" * 64, True, True)


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile_text_becomes_text(raw: bytes) -> None:
    found = [
        updates.text(raw),
        *process(title_bytes=256, title=raw * 16).titles(),
        KernelRegion.unpack(region(name=raw * 4, name_bytes=2**32 - 1)).name,
    ]
    for text in found:
        assert text.encode("utf-8").decode("utf-8") == text
        assert "\0" not in text


def test_bytes_that_are_no_text_can_be_told() -> None:
    assert updates.text(b"a\xff\0b") == "a\\xff"


@pytest.mark.parametrize(
    ("kernel", "major", "minor"),
    [(1, 0, 1), (8 << 20 | 1, 8, 1), (259 << 20 | 0xFFFFF, 259, 0xFFFFF), (0xFFF << 20 | 256, 0xFFF, 256)],
)
def test_device_numbers(kernel: int, major: int, minor: int) -> None:
    assert updates.user_dev(kernel) == os.makedev(major, minor)


def test_a_key_as_the_kernel_side_has_it() -> None:
    assert updates.region_key(1047, 0x3A9C21F0, 8 << 20 | 300) == RegionKey(os.makedev(8, 300), 1047, 0x3A9C21F0)
    assert updates.region_key(1047, 0, 1) == RegionKey(os.makedev(0, 1), 1047, None)

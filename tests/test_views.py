"""What a person and a program read, of accounts made by hand.

The reports are compared with tests/golden/ as a whole. SHMTRACE_REFRESH_GOLDEN=1 writes these files anew: the diff is
for the eye.
"""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.schema import validate
from tracer import formatting, guess, status
from tracer.model import Account, Creator, OomKill, Parent, Process, Region, Session, Toucher, charged
from tracer.proc.shmem import PAGE_BYTES
from tracer.status import Status
from tracer.views import json as document
from tracer.views import report, status_line

pytestmark = pytest.mark.usefixtures("in_utc")

GOLDEN = Path(__file__).parent / "golden"
BEGAN_S = 1_700_000_000  # 22:13:20 UTC
BALANCE = re.compile(r"^balance (\d+) pages = (\d+) touched \+ (\d+) before \+ (-?\d+) unseen$", re.MULTILINE)
MASTER = "php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)"

HOSTILE = [
    pytest.param("\x1b[2J\x1b[31m\x1b]0;title\x07", id="escape sequences"),
    pytest.param("\x9b31m", id="8 bit escape sequence"),
    pytest.param("one\rtwo\nthree\ttwo\x0b\x0c\x85", id="lines"),
    pytest.param("\x7f\x08\x08\x00", id="delete and backspace"),
    pytest.param("\u202egpj.exe\u2066\u200f", id="reordering"),
    pytest.param("a\u200bb\u2060c\ufeffd\u00ad", id="invisible"),
    pytest.param("a\u2028b\u2029c", id="line and paragraph separators"),
    pytest.param("\ud800x\udcff", id="lone surrogates"),
    pytest.param("\ue000\U000f0000\U0010ffff", id="private and no characters"),
    pytest.param("php-fpm: 池 www \uff57\uff49\uff44\uff45 한국어", id="wide"),
    pytest.param("e\u0301" * 50 + "a" + "\u0336\u20dd" * 50, id="combining"),
    pytest.param("👩‍👩‍👧‍👦" * 30, id="joined"),
    pytest.param("日本語" * 40, id="long and wide"),
    pytest.param("x" * 5000, id="long"),
    pytest.param("", id="empty"),
]


def at(seconds: float) -> int:
    return int((BEGAN_S + seconds) * 1e9)


def process(tgid: int, command: str = "php-fpm: pool www", exited: float | None = None, **fields: Any) -> Process:
    exited_ns = None if exited is None else at(exited)
    values = {"row": tgid, "comm": "php-fpm8.2", "parent": 811, "exited_ns": exited_ns, **fields}
    return Process(tgid=tgid, start_time_ns=tgid * 10_000_000, command=command, **values)


def toucher(
    who: Process, pages: int, faults: int | None = None, freed: int = 0, made_for: Mapping[Process, int] | None = None
) -> Toucher:
    """made_for: pages by process."""
    first_ns, last_ns = (at(1.000001), at(40.9)) if pages else (None, None)
    made = [(process, pages * PAGE_BYTES) for process, pages in (made_for or {}).items()]
    return Toucher(who, pages * PAGE_BYTES, freed * PAGE_BYTES, faults, first_ns, last_ns, made)


def make_region(ino: int, *touchers: Toucher, before: int = 0, unseen: int = 0, **fields: Any) -> Region:
    """In pages; it holds what was touched, what was before and what is unseen."""
    allocated_bytes = sum(toucher.touched_bytes for toucher in touchers) + (before + unseen) * PAGE_BYTES
    generation = fields.get("generation", 0x3A9C21F0)
    values = {
        "row": ino,
        "id": f"0:1/{ino}/{'-' if generation is None else f'{generation:08x}'}",
        "dev": 1,
        "ino": ino,
        "generation": 0x3A9C21F0,
        "kind": "anon",
        "name": "/dev/zero",
        "created_ns": None,
        "gone_ns": None,
        "size_bytes": 256 << 20,
        "allocated_bytes": allocated_bytes,
        "start_bytes": before * PAGE_BYTES,
        "peak_bytes": allocated_bytes,
        "resident_bytes": allocated_bytes,
        "swapped_bytes": 0,
        "address": 0x7F1000000000,
        "creator": None,
        "before_bytes": before * PAGE_BYTES,
        "unseen_bytes": unseen * PAGE_BYTES,
        "touchers": list(touchers),
        "mappers": [],
    }
    return Region(**{**values, **fields})


def account(*parents: Parent, **fields: Any) -> Account:
    values = {
        "version": "0.1.0",
        "host": "web1",
        "kernel": "6.1.0-56-amd64",
        "page_bytes": PAGE_BYTES,
        "tier": "faults",
        "mechanism": "tracepoint",
        "blind_to": ["pages made by write(2)", "processes outside the traced tree"],
        "started_ns": at(0),
        "ended_ns": at(41.2),
        "complete": True,
        "sum_of_rss_bytes": 1_181_116_006,
        "private_start_bytes": None,
        "private_end_bytes": None,
        "private_how": None,
        "shmem_total_bytes": 1_395_864_371,
        "lost_events": 0,
        "lost_pages": 0,
        "lost_probes": 0,
        "warnings": [],
        "self_cpu_seconds": 0.41,
        "self_rss_bytes": 131_000_000,
        "attach_seconds": 0.31,
    }
    return Account(Session(**{**values, **fields}), list(parents))


def php_fpm() -> Account:
    """The main job: a pool whose workers come and go, and that was reloaded."""
    master = process(811, MASTER, parent=1)
    old = process(700, MASTER, parent=1, exited=12.5)
    made = Creator(master, "traced")
    first, second, third = process(812, exited=20), process(813, "php-fpm: pool api"), process(814)
    low = 0x10000000
    return account(
        Parent(
            master,
            [
                make_region(
                    1047,
                    toucher(second, 30_000, 30_412),
                    toucher(first, 20_787, 21_003),
                    toucher(third, 5_359, 9_999_999),
                    toucher(process(815), 0, 1203),
                    toucher(master, 0, 17),
                    before=1129,
                    unseen=40,
                    creator=made,
                    address=low,
                    created_ns=at(-3600),
                    swapped_bytes=2 << 20,
                    mappers=[811, 813, 814],
                ),
                make_region(1048, before=12, creator=made, size_bytes=32 << 20, peak_bytes=9 << 20),
                make_region(1046, toucher(master, 1, 1), creator=made, size_bytes=4096),
                make_region(
                    901,
                    toucher(process(701, exited=12), 9_000, 9_001),
                    creator=Creator(old, "inferred"),
                    address=low,
                    gone_ns=at(13),
                    resident_bytes=None,
                ),
                make_region(902, creator=Creator(old, "inferred"), gone_ns=at(13)),
            ],
        ),
        Parent(
            None,
            [make_region(5, before=9, kind="memfd", name="/memfd:pulseaudio", size_bytes=None, generation=None)],
        ),
        warnings=["the ledger is full: the rest is unseen; make it bigger with --room (40)"],
        lost_pages=40,
        lost_probes=2,
    )


def exact() -> Account:
    """The main job where no fault is counted, and whoever made a page is there, of the tree or not."""
    master = process(811, MASTER, parent=1)
    made = Creator(master, "traced")
    first, second, third = process(812, exited=20), process(813, "php-fpm: pool api"), process(814)
    kernel_thread = process(39, "", comm="khugepaged", parent=2, outside_tree=True)
    outsider = process(4711, "cat /proc/812/mem", comm="cat", parent=4000, outside_tree=True)
    unknown = Process(5000, 5000, 0, None, "", None, None)
    return exactly(
        Parent(
            master,
            [
                make_region(
                    1047,
                    toucher(second, 30_000),
                    toucher(first, 20_787, freed=5),
                    toucher(kernel_thread, 512, made_for={second: 700, first: 3}),
                    toucher(outsider, 7),
                    toucher(unknown, 1),
                    toucher(third, 0, freed=9),
                    before=1129,
                    creator=made,
                    address=0x10000000,
                    swapped_bytes=2 << 20,
                    mappers=[811, 813, 814],
                ),
                make_region(1048, toucher(third, 0, freed=70), creator=made, size_bytes=32 << 20, peak_bytes=9 << 20),
                make_region(1046, toucher(master, 1), creator=made, size_bytes=4096),
                make_region(
                    1049,
                    toucher(process(900, "db-backup", comm="db-backup", parent=811), 3, made_for={third: 3}),
                    creator=Creator(outsider, "shmget"),
                    kind="sysv",
                    name="/SYSV0052e2c1",
                    size_bytes=1 << 20,
                ),
            ],
        )
    )


def exactly(*parents: Parent, **fields: Any) -> Account:
    return account(*parents, **{"tier": "exact", "mechanism": "fentry", "blind_to": [], **fields})


def more_than_fits() -> Account:
    """Parents, regions and processes beyond what is listed one by one."""
    touchers = [toucher(process(2000 + i, f"worker {i}"), 100 - i, 200 - i) for i in range(15)]
    master = process(811, "master", comm="server", parent=1)
    regions = [make_region(100, *touchers, kind="posix", name="/dev/shm/" + "long" * 20)]
    regions += [make_region(101 + i, before=50 - i, kind="sysv", name=f"/SYSV{i:08x}") for i in range(30)]
    others = [Parent(process(3000 + i, "other", comm="other"), [make_region(500 + i, before=1)]) for i in range(21)]
    return account(Parent(master, regions), *others)


def snapshot() -> Account:
    """From /proc alone: nothing is known of who touched what."""
    master = process(900, "/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql", comm="postgres", parent=1)
    made = Creator(master, "inferred")
    return account(
        Parent(
            master,
            [
                make_region(21, before=36_000, creator=made, size_bytes=144 << 20, mappers=[900, 901]),
                make_region(
                    3, before=1, kind="sysv", name="/SYSV0052e2c1", creator=Creator(master, "shmget"), size_bytes=56
                ),
                make_region(
                    22, before=256, kind="posix", name="/dev/shm/PostgreSQL.1", creator=made, size_bytes=1 << 20
                ),
            ],
        ),
        tier="proc",
        mechanism="",
        blind_to=["who touched the pages"],
        attach_seconds=None,
    )


def ended() -> Account:
    """A command, reported after its end: everything is gone, and has its last account."""
    command = process(4000, "make test", comm="make", parent=1, exited=40)
    child = process(4001, "cc1 x.c", comm="cc1", parent=4000, exited=39)
    return account(
        Parent(command, [make_region(31, toucher(child, 33, 40), creator=Creator(child, "traced"), gone_ns=at(39.5))]),
        sum_of_rss_bytes=0,
    )


def hostile() -> Account:
    """Everybody is called something that wants to be more than text."""
    names = [str(value) for parameter in HOSTILE[:13] for value in parameter.values]
    touchers = [toucher(process(50 + i, name, comm="\x1b[2J\xad" * 4), 20 - i, i) for i, name in enumerate(names)]
    master = process(4_194_303, "\x1b]0;" + names[4], comm="\x01" * 15, exited=3)
    regions = [
        make_region(
            70 + i, *touchers, kind="posix", name=f"/dev/shm/{name}", creator=Creator(touchers[i].process, "traced")
        )
        for i, name in enumerate(names)
    ]
    return account(Parent(master, regions))


def nothing() -> Account:
    return account()


def hostile_exact() -> Account:
    """The same from outside the tree, and in the memory of each other."""
    names = [str(value) for parameter in HOSTILE[:13] for value in parameter.values]
    strangers = [process(4_194_290 + i, name, comm=name, outside_tree=True) for i, name in enumerate(names)]
    touchers = [toucher(who, 20, made_for={who: 1 << 30, strangers[-1]: 1}) for who in strangers]
    master = process(811, "master", comm="server", parent=1)
    regions = [make_region(70, *touchers[:6]), make_region(71, *touchers[6:])]
    return exactly(Parent(master, regions))


ACCOUNTS = [php_fpm, exact, hostile_exact, more_than_fits, snapshot, ended, hostile, nothing]


def compare_with_golden(name: str, rendered: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SHMTRACE_REFRESH_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(rendered + "\n", encoding="utf-8")
    assert rendered + "\n" == path.read_text(encoding="utf-8")


# ---- the report ----


@pytest.mark.parametrize("make", ACCOUNTS)
def test_reports(make: Callable[[], Account]) -> None:
    compare_with_golden(f"{make.__name__}.txt", report.render(make()))


@pytest.mark.parametrize(
    ("status", "code", "signal_name", "ending"),
    [
        (None, None, None, "exited"),
        (0, 0, None, "exited"),
        (3 << 8, 3, None, "status 3"),
        (9, None, "SIGKILL", "SIGKILL"),
        (128 | 11, None, "SIGSEGV", "SIGSEGV"),  # with a core dump
        (77, None, "signal 77", "signal 77"),
        (-(2**62), 0, None, "exited"),  # of a damaged capture
    ],
)
def test_how_a_process_ended(status: int | None, code: int | None, signal_name: str | None, ending: str) -> None:
    ended = process(812, exited=20, exit_status=status)
    assert (ended.exit_code, ended.exit_signal, ended.ending) == (code, signal_name, ending)
    text = report.render(account(Parent(process(811, MASTER), [make_region(1, toucher(ended, 7))])))
    assert f"{ending} " in text


def test_who_was_killed_for_want_of_memory() -> None:
    victim = process(812, exited=20, exit_status=9, oom_killed=True)
    assert "OOM kill " in report.render(account(Parent(process(811, MASTER), [make_region(1, toucher(victim, 7))])))


def test_over_more_than_a_day_times_have_their_day() -> None:
    """Of an armed trace, or of a service: 22:13 may be of any of them."""
    began_ns = at(0) - 9 * 86400 * 10**9
    lasting = php_fpm()
    lasting = lasting._replace(session=lasting.session._replace(started_ns=began_ns))
    rendered = report.render(lasting)
    assert " in 9.0 days" in rendered
    assert re.search(r"exited 14 Nov 22:1\d$", rendered, re.MULTILINE)
    assert not re.search(r"\d:\d\d:\d\d", rendered)
    assert max(map(formatting.width, rendered.split("\n"))) <= 80


def test_oom_kills_are_a_paragraph_above_the_answer() -> None:
    found = account(Parent(process(811, MASTER), [make_region(1, toucher(process(812), 7))]))
    kill = OomKill(
        at(7), None, 977, "stress " * 12, None, "/a", "/b" * 90, 1 << 20, 7 << 20, 0, 0, 5 << 20, 0, 5 << 20, 0
    )
    killed, answered, rest = report.render(found._replace(ooms=[kill])).split("\n\n", 2)
    assert killed.startswith("OOM kill at ")
    assert killed.replace("\n", " ").endswith("the shared pages stay.")
    assert report.render(found) == f"{answered}\n\n{rest}"
    assert max(map(len, killed.split("\n"))) <= 80


@pytest.mark.parametrize("make", ACCOUNTS)
def test_reports_have_80_columns(make: Callable[[], Account]) -> None:
    lines = [line for line in report.render(make()).split("\n") if not line.startswith("warning: ")]
    assert max(map(formatting.width, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize(
    ("text", "columns", "shortened"),
    [
        ("/dev/shm/torch_11043_412", 24, "/dev/shm/torch_11043_412"),
        ("/dev/shm/torch_11043_412", 15, "/dev/sh…043_412"),
        ("/dev/shm/torch_11043_412", 4, "/…12"),
        ("/dev/shm/torch_11043_412", 2, "/…"),
        ("/dev/shm/torch_11043_412", 1, "…"),
        ("/dev/shm/torch_11043_412", 0, ""),
        ("日本語日本語", 7, "日本…語"),
        ("日本語日本語", 8, "日…本語"),
    ],
)
def test_shortened_in_the_middle(text: str, columns: int, shortened: str) -> None:
    assert formatting.shorten(text, columns) == shortened


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["comm", "command", "region"])
def test_a_stranger_cannot_write_on_the_terminal(name: str, place: str) -> None:
    plain = {"comm": "x", "command": "x", "region": "x"}
    rendered, expected = (render_named(**names) for names in ({**plain, place: name}, plain))
    assert {unicodedata.category(character)[0] for character in rendered.replace("\n", "")}.isdisjoint("C")
    assert max(map(formatting.width, rendered.split("\n"))) <= 80
    # the answer may take more lines
    assert rendered.partition("\n\n")[2].count("\n") == expected.partition("\n\n")[2].count("\n")
    rendered.encode()


def render_named(comm: str, command: str, region: str) -> str:
    who, maker = (
        process(812, command, exited=1, comm=comm),
        process(813, command, exited=2, comm=comm, outside_tree=True),
    )
    touchers = toucher(who, 7, made_for={maker: 1 << 30}), toucher(maker, 6, made_for={who: 1})
    found = make_region(1, *touchers, creator=Creator(maker, "inferred"), kind="posix", name=region)
    return report.render(account(Parent(who, [found])))


@pytest.mark.parametrize("make", [make for make in ACCOUNTS if make is not snapshot])
def test_the_balance_is_the_sum_of_all(make: Callable[[], Account]) -> None:
    allocated, touched, before, unseen = map(int, BALANCE.findall(report.render(make()))[0])
    assert allocated == touched + before + unseen
    assert allocated == sum(region.allocated_bytes for region in make().regions) // PAGE_BYTES


@pytest.mark.parametrize("make", [exact, hostile_exact])
def test_what_is_not_counted_is_not_shown(make: Callable[[], Account]) -> None:
    assert "faults" not in report.render(make())


def test_what_is_not_counted_is_not_shown_of_the_rest() -> None:
    touchers = [toucher(process(2000 + i, f"worker-{chr(97 + i)}"), 100 - i) for i in range(15)]
    shown = report.render(exactly(Parent(process(811), [make_region(1, *touchers)])))
    (rest,) = re.findall(r"^ .* …5 more", shown, re.MULTILINE)
    assert rest.split() == ["1.7", "MiB", "32%", "…5", "more"]


def test_more_than_a_handful_of_processes_that_are_alike_share_a_row() -> None:
    master, other = process(811, MASTER), process(700, "cron")
    workers = [process(2000 + i, exited=20 if i < 4 else None) for i in range(6)]
    touchers = [
        toucher(workers[0], 23, 30, freed=3, made_for={master: 7, other: 2}),
        *(toucher(worker, 7, None) for worker in workers[1:]),
        toucher(other, 11, 12, freed=1, made_for={master: 7}),
    ]
    lines = report.render(account(Parent(master, [make_region(1, *touchers)]))).split("\n")
    first = lines.index("        PID  touched share  faults process")
    assert lines[first + 1 : first + 8] == [
        "         ×6  232 KiB   84%      30 php-fpm: pool www  4 exited",
        "            28.0 KiB for 811 php-fpm: maste…m/php-fpm.conf)",
        "            8.0 KiB for 700 cron",
        "        700 44.0 KiB   16%      12 cron",
        "            28.0 KiB for 811 php-fpm: maste…m/php-fpm.conf)",
        "                 0 B    0%         unseen",
        "    freed: 12.0 KiB of 2000 php-fpm: pool www, 4.0 KiB of 1 more",
    ]
    few = report.render(account(Parent(master, [make_region(1, *touchers[:5])])))
    assert "×5" not in "\n".join(few.split("\n\n")[1:])


def test_more_than_a_handful_of_regions_that_are_alike_share_a_table() -> None:
    """Whoever made them, if those are alike, too; what is gone by itself."""
    backends = [process(1000 + i, f"postgres: app orders 10.0.0.{i}(4711) idle", comm="postgres") for i in range(8)]
    segments = [
        make_region(
            10 + i,
            toucher(backend, 23 + i, 30),
            kind="posix",
            name=f"/dev/shm/PostgreSQL.{i}23",
            creator=Creator(backend, "traced"),
            gone_ns=at(20 + i) if i < 6 else None,
            swapped_bytes=PAGE_BYTES if i == 6 else 0,
        )
        for i, backend in enumerate(backends)
    ]
    parents = [Parent(backend, [segment]) for backend, segment in zip(backends, segments)]
    lines = report.render(account(*parents)).split("\n\n")[1].split("\n")
    assert lines == [
        "postgres ×8  postgres: app orders",
        "  dynamic shared memory?  posix 256 MiB, allocated 120 KiB, +120 KiB in 41 s",
        "      id 0:1/17/3a9c21f0",
        "        PID  touched share  faults process",
        "       1007  120 KiB  100%      30 postgres: app orders 10.0.0.7(4711) idle",
        "                 0 B    0%         unseen",
        "  dynamic shared memory?  posix 256 MiB, allocated 116 KiB, +116 KiB in 41 s",
        "      4.0 KiB swapped, id 0:1/16/3a9c21f0",
        "        PID  touched share  faults process",
        "       1006  116 KiB  100%      30 postgres: app orders 10.0.0.6(4711) idle",
        "                 0 B    0%         unseen",
        "  dynamic shared memory? ×6  posix 1.5 GiB, had 612 KiB when they went",
        "      22:13:40 to 22:13:45",
        "    largest 112 KiB  /dev/shm/PostgreSQL.523  0:1/15/3a9c21f0",
        "        PID  touched share  faults process",
        "         ×6  612 KiB  100%     180 postgres: app orders",
        "                 0 B    0%         unseen",
    ]


def test_a_stranger_that_has_exited() -> None:
    """Both are said, and neither is cut."""
    stranger = process(4711, "cp x /dev/shm", exited=20, outside_tree=True)
    shown = report.render(exactly(Parent(process(811), [make_region(1, toucher(stranger, 7))])))
    (row,) = re.findall(r"^ +4711 .*", shown, re.MULTILINE)
    assert "exited 22:13:40" in row
    assert "…" not in row


def test_a_count_that_is_not_known_leaves_its_column() -> None:
    touchers = [toucher(process(812, exited=20), 8, 9), toucher(process(813, exited=20), 7, None)]
    shown = report.render(account(Parent(process(811), [make_region(1, *touchers)])))
    assert len({line.index("exited 22") for line in shown.split("\n") if "exited 22" in line}) == 1


def test_unseen_by_a_tier_that_is_blind_to_nothing() -> None:
    """By a loss, which the warnings tell."""
    shown = report.render(exactly(Parent(process(811), [make_region(1, toucher(process(812), 7), unseen=2)])))
    assert " + 2 unseen" in shown
    assert "unseen may be" not in shown


def test_a_snapshot_has_no_balance() -> None:
    assert "balance" not in report.render(snapshot())


# ---- values to text ----


@pytest.mark.parametrize(
    ("size_bytes", "formatted"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (4096, "4.0 KiB"),
        (102_300, "99.9 KiB"),
        (102_360, "100 KiB"),
        (1023 * 1024, "1023 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**2, "1.0 MiB"),
        (int(81.2 * 1024**2), "81.2 MiB"),
        (1024**3 - 1, "1.0 GiB"),
        (2_097_152_000, "2.0 GiB"),
        (1024**4, "1.0 TiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_format_bytes(size_bytes: int, formatted: str) -> None:
    assert formatting.format_bytes(size_bytes) == formatted
    assert formatting.format_change(size_bytes) == f"+{formatted}"


def test_format_a_loss() -> None:
    assert formatting.format_change(-4096) == "-4.0 KiB"
    assert formatting.format_change(-5 * 1024**3) == formatting.format_bytes(-5 * 1024**3) == "-5.0 GiB"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("php-fpm: pool www", "php-fpm: pool www"),
        ("größe 池 e\u0301", "größe 池 e\u0301"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b", "\\x9b"),
        ("a\r\n\tb\0", "a\\x0d\\x0a\\x09b\\x00"),
        ("\u202eabc", "\\x202eabc"),
        ("\u2066\u200b\ufeff", "\\x2066\\x200b\\xfeff"),
        ("\u2028\u2029", "\\x2028\\x2029"),
        ("\ud800", "\\xd800"),
        ("\U000e0041", "\\xe0041"),
    ],
)
def test_printable(raw: str, shown: str) -> None:
    assert formatting.printable(raw) == shown


@pytest.mark.parametrize(
    ("shown", "columns"),
    [
        ("", 0),
        ("abc", 3),
        ("größe", 5),
        ("池", 2),
        ("\uff57", 2),
        ("한국어", 6),
        ("e\u0301", 1),
        ("a\u0336\u20dd", 1),
        ("ลี่", 1),
        ("❤\ufe0f", 1),
    ],
)
def test_width(shown: str, columns: int) -> None:
    assert formatting.width(shown) == columns


@pytest.mark.parametrize(
    ("raw", "columns", "fitted"),
    [
        ("abc", 4, "abc"),
        ("abc", 3, "abc"),
        ("abc", 2, "a…"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
        ("abc", -7, ""),
        ("", 0, ""),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("日本語", 2, "…"),
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
    ],
)
def test_fit(raw: str, columns: int, fitted: str) -> None:
    assert formatting.fit(raw, columns) == fitted


@pytest.mark.parametrize(
    ("text", "columns", "shortened"),
    [
        ("/usr/lib/chromium/chromium --type=renderer", 42, "/usr/lib/chromium/chromium --type=renderer"),
        ("/usr/lib/chromium/chromium --type=renderer", 41, "chromium --type=renderer"),
        ("/usr/lib/chromium/chromium --type=renderer", 20, "chromium --type=ren…"),
        ("/usr/lib/chromium/chromium", 20, "/usr/lib/…m/chromium"),
        ("php-fpm: master process (/etc/x.conf)", 20, "php-fpm: …tc/x.conf)"),
        ("/ x y z", 4, "/ x…"),
    ],
)
def test_a_shortened_command(text: str, columns: int, shortened: str) -> None:
    assert formatting.shorten_command(text, columns) == shortened


@pytest.mark.parametrize("name", HOSTILE)
def test_what_fits_fits(name: str) -> None:
    shown = formatting.printable(name)
    for columns in range(100):
        fitted = formatting.fit(shown, columns)
        assert formatting.width(fitted) <= columns
        assert fitted == shown or shown.startswith(fitted[:-1])


# ---- guesses ----


@pytest.mark.parametrize(
    ("comm", "fields", "expected"),
    [
        ("php-fpm8.2", {"address": 0x10000000}, "opcache?"),
        ("php-fpm8.4", {"address": 0x559240000000}, "opcache?"),
        ("php-fpm8.4", {"address": 0x7F1000000000}, "apcu?"),
        ("php-fpm8.2", {"address": None}, "apcu?"),
        # of arm64: 48 bits, as distributions have it, and 39
        ("php-fpm8.4", {"address": 0xAAAAE0000000}, "opcache?"),
        ("php-fpm8.4", {"address": 0xFFFF80000000}, "apcu?"),
        ("php-fpm8.4", {"address": 0x5580000000}, "opcache?"),
        ("php-fpm8.4", {"address": 0x7F80000000}, "apcu?"),
        ("php-fpm8.4", {"address": 1 << 48}, "apcu?"),
        ("php-fpm8.2", {"address": 0x10000000, "size_bytes": 4096}, "scoreboard?"),
        ("php", {"kind": "memfd"}, None),
        ("postgres", {}, "shared buffers?"),
        ("postgres", {"kind": "hugetlb"}, "shared buffers?"),
        ("postgres", {"kind": "posix", "name": "/dev/shm/PostgreSQL.1804289383"}, "dynamic shared memory?"),
        ("postgres", {"kind": "posix", "name": "/dev/shm/else"}, None),
        ("postgres", {"kind": "sysv", "name": "/SYSV0052e2c1"}, "interlock?"),
        ("nginx", {}, "zone?"),
        ("nginx", {"size_bytes": 4096}, "counters?"),
        ("nginx", {"hint": 'limit_req zone "perip"'}, 'limit_req zone "perip"?'),
        ("nginx", {"hint": "\x1b[2J"}, "zone?"),  # as no trace has written it
        ("nginx", {"hint": "x" * 81}, "zone?"),
        ("apache2", {"size_bytes": 98304}, "scoreboard?"),
        ("apache2", {"address": 0x2AAA00000000}, "opcache?"),
        ("apache2", {}, "apcu?"),
        ("uwsgi", {}, "cache?"),
        ("uwsgi", {"size_bytes": 1 << 19}, None),
        ("java", {"kind": "memfd", "name": "/memfd:java_heap"}, "heap?"),
        ("java", {"kind": "memfd", "name": "/memfd:other"}, None),
        ("httpd", {}, None),
        (None, {}, None),
    ],
)
def test_guesses_end_in_a_question_mark(comm: str | None, fields: dict[str, Any], expected: str | None) -> None:
    assert guess.guess(make_region(1, **fields), process(811, comm=comm)) == expected
    assert expected is None or expected.endswith("?")


def test_nothing_is_guessed_for_nobody() -> None:
    assert guess.guess(make_region(1), None) is None


# ---- the document ----


@pytest.mark.parametrize("make", ACCOUNTS)
def test_the_schema(make: Callable[[], Account]) -> None:
    found = validate("".join(document.render(make())))
    for parent in found["parents"]:
        assert {*parent["regions"]} <= {region["id"] for region in found["regions"]}


@pytest.mark.parametrize("make", ACCOUNTS)
def test_every_region_of_a_document_balances(make: Callable[[], Account]) -> None:
    for region in json.loads("".join(document.render(make())))["regions"]:
        touched_bytes = sum(toucher["touched_bytes"] for toucher in region["touchers"])
        assert region["allocated_bytes"] == touched_bytes + region["before_bytes"] + region["unseen_bytes"]


WEB, CRON, THREADS = "/system.slice/web.service", "/system.slice/cron.service", "/"


@pytest.mark.parametrize(
    ("touchers", "cgroups"),
    [
        ([(WEB, 23, 0, {})], {WEB: 23, None: 12}),
        ([(WEB, 23, 0, {}), (WEB, 7, 3, {}), (CRON, 31, 0, {})], {WEB: 30, CRON: 31, None: 12}),
        # made in the memory of another
        ([(THREADS, 23, 0, {WEB: 17, CRON: 1})], {WEB: 17, THREADS: 5, CRON: 1, None: 12}),
        ([(WEB, 23, 5, {WEB: 17})], {WEB: 23, None: 12}),
        # of which some were given back, nobody knows whose
        ([(THREADS, 23, 5, {WEB: 17})], {THREADS: 6, None: 29}),
        ([(THREADS, 23, 5, {WEB: 28})], {None: 35}),
        ([(None, 23, 0, {})], {None: 35}),
    ],
)
def test_a_page_is_charged_to_its_first_touchers_cgroup(
    touchers: list[tuple[str | None, int, int, dict[str, int]]], cgroups: dict[str | None, int]
) -> None:
    rows = [
        toucher(
            process(10 + number, cgroup=cgroup),
            pages,
            freed=freed,
            made_for={process(90 + place, cgroup=where): made for place, (where, made) in enumerate(others.items())},
        )
        for number, (cgroup, pages, freed, others) in enumerate(touchers)
    ]
    found = charged(make_region(1, *rows, before=9, unseen=3))
    assert {whose and whose.cgroup: size_bytes // PAGE_BYTES for whose, size_bytes in found} == cgroups
    assert [size for _, size in found] == sorted((size for _, size in found), reverse=True)


def charges(creator: str | None, *cgroups: str | None) -> list[str]:
    rows = [toucher(process(10 + number, cgroup=cgroup), 23 - number) for number, cgroup in enumerate(cgroups)]
    made = Creator(process(9, cgroup=creator), "inferred")
    shown = report.render(account(Parent(made.process, [make_region(1, *rows, before=9, creator=made)])))
    return [line for line in shown.split("\n") if (line.startswith("    ") and " to " in line) or "made in" in line]


def test_who_is_charged_is_told_where_it_is_another() -> None:
    assert charges(WEB, WEB, WEB) == []
    assert charges(WEB) == []
    assert charges(WEB, None) == []
    assert charges(None, WEB, None) == []
    assert charges(None, WEB, CRON) == ["    made in ?; charged 92.0 KiB to web.service, 88.0 KiB to cron.service"]
    assert charges(WEB, CRON) == ["    made in web.service; charged 92.0 KiB to cron.service"]
    container = f"/docker/{'0123456789abcdef' * 4}"
    several = charges(WEB, CRON, container, "/x/\x1b[2J" + "y" * 200, WEB)
    assert several == [
        "    made in web.service; charged 92.0 KiB to cron.service",
        "      88.0 KiB to 0123456789ab, 164 KiB to …2 more",
    ]
    assert max(map(formatting.width, charges("/" + "字" * 99, *[f"/{number}{'字' * 99}" for number in range(9)]))) <= 80


def test_a_process_of_another_pid_namespace_is_named_by_both_numbers() -> None:
    master = process(4312, MASTER, ns_tgid=1)
    worker = process(4_194_303, exited=20, ns_tgid=4_194_302)
    made = Creator(master, "inferred")
    rows = [toucher(worker, 23, 4, freed=1, made_for={master: 7}), toucher(process(812), 7, 3)]
    shown = report.render(account(Parent(master, [make_region(1, *rows, creator=made)])))
    assert "\n\nphp-fpm8.2 4312 (1)  php-fpm: master" in shown
    assert "    made by 4312 (1) (inferred)" in shown
    assert "    4194303 92.0 KiB   77%       4 (4194302) php-fpm: pool www  exited 22:13:40" in shown
    assert "28.0 KiB for 4312 (1) php-fpm: maste…m/php-fpm.conf)" in shown
    assert "freed: 4.0 KiB of 4194303 (4194302) php-fpm" in shown
    assert max(map(formatting.width, shown.split("\n"))) <= 80


@pytest.mark.parametrize(
    ("grown", "private", "how", "said"),
    [
        (7001, 101, "memory.stat", "Private memory grew by 404 KiB."),
        (7001, 101, "status", "Private memory grew by at most 404 KiB."),
        (7001, -101, "status", ""),
        (0, 7001, "memory.stat", "Private memory grew by 27.3 MiB."),
        (0, 0, "memory.stat", ""),
        (0, None, None, ""),
    ],
)
def test_what_grew(grown: int, private: int | None, how: str | None, said: str) -> None:
    master = process(811, MASTER, parent=1)
    rows = [toucher(process(812), grown)] if grown else []
    opcache = make_region(1047, *rows, before=11, address=0x10000000)
    gone = make_region(901, toucher(process(701), 9_000), gone_ns=at(13))
    found = account(
        Parent(master, [opcache, gone]),
        private_start_bytes=None if private is None else 10_007 * PAGE_BYTES,
        private_end_bytes=None if private is None else (10_007 + private) * PAGE_BYTES,
        private_how=how,
    )
    shown = report.render(found)
    words = " ".join(shown.partition("\n\n")[0].split())
    gone = "apcu? with 35.2 MiB came and went"
    grew = f"opcache? grew by 27.3 MiB to 27.4 MiB of 256 MiB in 41 s. {gone}."
    went = f"{gone} in 41 s."
    assert words.startswith(grew if grown else went)
    assert re.findall(r"Private memory [^.]*[.]\d*[^.]*[.]|Private memory [^.]*[.]", words) == ([said] if said else [])
    assert max(map(formatting.width, shown.split("\n"))) <= 80
    told = re.findall(r"^private memory .*", shown, re.MULTILINE)
    if private == 7001:
        exact = "private memory 66.4 MiB, +27.3 MiB"
        assert told == [
            exact
            if how == "memory.stat"
            else "private memory at most 66.4 MiB, +27.3 MiB; pages shared by forks count for each"
        ]
    assert bool(told) == (private is not None)


@pytest.mark.parametrize(
    ("unix_ns", "written"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20.000000Z"),
        (1_700_000_000_123_456_999, "2023-11-14T22:13:20.123456Z"),
        (1_700_000_000_999_999_999, "2023-11-14T22:13:20.999999Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
    ],
)
def test_times_are_rfc_3339(unix_ns: int | None, written: str | None) -> None:
    found = json.loads(
        "".join(document.render(account(Parent(None, [make_region(1, created_ns=unix_ns, gone_ns=unix_ns)]))))
    )
    assert (found["regions"][0]["created"], found["regions"][0]["gone"]) == (written, written)


def test_a_process_of_which_only_the_pid_is_known() -> None:
    stranger = Process(4711, 4711, 0, None, "", None, None)
    found = json.loads("".join(document.render(account(Parent(stranger, [])))))
    assert found["parents"][0]["process"] == {
        "host": None,
        "tgid": 4711,
        "ns_tgid": None,
        "start_time_ns": None,
        "comm": None,
        "command": "",
        "parent": None,
        "started": None,
        "exited": None,
        "exit_code": None,
        "exit_signal": None,
        "oom_killed": False,
        "cgroup": None,
        "unit": None,
        "container": None,
        "pod": None,
        "namespace": None,
        "pod_name": None,
        "container_name": None,
        "in_tree": True,
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_text_goes_through_a_document_unchanged(name: str) -> None:
    rendered = "".join(
        document.render(account(Parent(process(1, name, comm=name), [make_region(1, kind="posix", name=name)])))
    )
    assert rendered.isascii()
    assert rendered.replace("\n", "").isprintable()
    found = json.loads(rendered)
    assert found["parents"][0]["process"]["comm"] == found["parents"][0]["process"]["command"] == name
    assert found["regions"][0]["name"] == name


# ---- the live line ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        """What one sees of a single line: what was written last, on top of what was written before."""
        shown = ""
        for part in self.getvalue().split("\r"):
            shown = part + shown[len(part) :]
        return shown


STATUS = Status(41.2, 9, 3, 234_881_024, 230_162_432, "812 php-fpm: pool www", 81 << 20)


def test_the_live_line() -> None:
    assert status.render(STATUS) == (
        "41 s · processes 9 · regions 3 · 224 MiB allocated, +220 MiB · most by 812 php-fpm: pool www 81.0 MiB"
    )
    assert status.render(STATUS._replace(grown_bytes=-4096, grower=None)) == (
        "41 s · processes 9 · regions 3 · 224 MiB allocated, -4.0 KiB"
    )


@pytest.mark.parametrize("columns", [1, 2, 40, 80, 132, 300])
@pytest.mark.parametrize("name", HOSTILE)
def test_the_live_line_stays_on_its_line(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A character in the last column makes some terminals scroll."""
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    status_line.Line(terminal).show(status.render(STATUS._replace(grower=f"812 {name}")))
    start, line = terminal.getvalue().split("\r")
    assert start == ""
    assert formatting.width(line) == max(columns - status_line.SPARE_COLUMNS, 0)
    assert {unicodedata.category(character)[0] for character in line}.isdisjoint("C")


def test_a_shorter_live_line_leaves_nothing_of_a_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    line = status_line.Line(terminal)
    line.show(status.render(STATUS))
    line.show(status.render(STATUS._replace(grower=None)))
    assert terminal.screen().rstrip() == status.render(STATUS._replace(grower=None))
    line.say("done")
    assert terminal.screen().rstrip() == "shmtrace: done"


def test_no_live_line_without_a_terminal() -> None:
    stream = io.StringIO()
    line = status_line.Line(stream)
    line.show(status_line.ATTACHING)
    line.clear()
    assert stream.getvalue() == ""
    line.say("done")
    assert stream.getvalue() == "shmtrace: done\n"

"""What has changed between two accounts made by hand, how it is sorted, and that it fits."""

from __future__ import annotations

import re
import unicodedata

import pytest

from tests.test_views import HOSTILE, MASTER, account, at, make_region, process, toucher
from tracer import answer, formatting
from tracer.model import Account, Creator, Label, Labelled, OomKill, Parent, Process, Region
from tracer.proc.shmem import PAGE_BYTES
from tracer.tables import groups
from tracer.views import report, top
from tracer.views.top import GROWER_COLUMNS, REGION_COLUMNS, LineColumn, View

LOW = 0x10000000
CLOCK, EARLIER = formatting.clock(at(41.2)), formatting.clock(at(40))
MASTER_PROCESS = process(811, MASTER, parent=1)
ID = {1047: "0:1/1047/3a9c21f0 anon 256 MiB,", 1049: "0:1/1049/3a9c21f0 memfd 256 MiB,"}


def pool(*regions: Region, ended_s: float = 41.2) -> Account:
    return account(Parent(MASTER_PROCESS, list(regions)), complete=False, ended_ns=at(ended_s))


def opcache(*touchers: tuple[Process, int], **fields: int) -> Region:
    made = [toucher(who, pages) for who, pages in touchers]
    return make_region(1047, *made, before=7, creator=Creator(MASTER_PROCESS, "traced"), address=LOW, **fields)


def pages(view: View) -> tuple[dict[int, int], dict[int, int]]:
    """What regions and growers got since, by inode and by PID."""
    return (
        {row.region.ino: row.delta_bytes // PAGE_BYTES for row in view.regions},
        {row.process.tgid: row.delta_bytes // PAGE_BYTES for row in view.growers},
    )


def column(columns: list[LineColumn[top.Row]], title: str) -> LineColumn[top.Row]:
    return next(column for column in columns if column.title == title)


FIRST, SECOND = process(812), process(813, "php-fpm: pool api")
BEFORE = pool(opcache((FIRST, 23)), make_region(1048, before=12))
NOW = pool(
    opcache((FIRST, 30), (SECOND, 41)),
    make_region(1048, before=12),
    make_region(1049, toucher(SECOND, 5), kind="memfd", name="/memfd:new"),
)


def test_what_changed() -> None:
    view = top.compare(NOW, top.compare(BEFORE, None))
    assert pages(view) == ({1047: 48, 1048: 0, 1049: 5}, {812: 7, 813: 46})
    assert {row.process.tgid: row.nr_regions for row in view.growers} == {812: 1, 813: 2}


def test_of_the_first_all_is_new_but_what_was_there_before() -> None:
    assert pages(top.compare(BEFORE, None)) == ({1047: 23, 1048: 0}, {812: 23})


def test_what_was_given_back_is_negative() -> None:
    now = opcache((FIRST, 23))
    now = now._replace(touchers=[*now.touchers, toucher(SECOND, 0, freed=41)])
    view = top.compare(pool(now), top.compare(NOW, None))
    assert pages(view) == ({1047: -48}, {812: -7, 813: -46})


def test_growers_grew_what_the_regions_did() -> None:
    view = top.compare(NOW, top.compare(BEFORE, None))
    by_region, by_grower = pages(view)
    assert sum(by_region.values()) == sum(by_grower.values()) == 53
    assert sum(row.touched_bytes for row in view.growers) == sum(region.touched_bytes for region in NOW.regions)


def test_a_pid_used_again_is_another_grower() -> None:
    dead, reborn = process(812, exited=20), process(812, row=1812)._replace(start_time_ns=9)
    view = top.compare(pool(opcache((dead, 23), (reborn, 3))), top.compare(pool(opcache((dead, 23))), None))
    assert sorted((row.process.exited_ns, row.delta_bytes) for row in view.growers if row.process.exited_ns) == [
        (at(20), 0)
    ]
    assert [row.delta_bytes for row in view.growers if not row.process.exited_ns] == [3 * PAGE_BYTES]


def test_an_inode_used_again_is_another_region() -> None:
    """SysV numbers inodes by shmid, and a kernel may not tell the generation."""
    first, second = opcache((FIRST, 23), gone_ns=at(30)), opcache((SECOND, 5), row=2)
    before = top.compare(pool(opcache((FIRST, 23))), None)
    view = top.compare(pool(second, first), before)
    assert {row.region.gone_ns: row.delta_bytes for row in view.regions} == {at(30): 0, None: 5 * PAGE_BYTES}


def test_regions_that_came_and_went_without_a_page_are_left_out() -> None:
    empty = make_region(5, gone_ns=at(3))
    assert [row.region.ino for row in top.compare(pool(empty, opcache()), None).regions] == [1047]


@pytest.mark.parametrize(
    ("title", "first"), [("delta", 1047), ("allocated", 1047), ("region", 1049), ("size", 1047), ("kind", 1047)]
)
def test_regions_sorted(title: str, first: int) -> None:
    view = top.compare(NOW, top.compare(BEFORE, None))
    rows = top.sort(view.regions, column(REGION_COLUMNS, title))
    assert rows[0].region.ino == first
    assert {row.region.ino for row in rows} == {1047, 1048, 1049}


@pytest.mark.parametrize(("title", "order"), [("PID", [812, 813]), ("touched", [813, 812]), ("command", [813, 812])])
def test_growers_sorted(title: str, order: list[int]) -> None:
    view = top.compare(NOW, top.compare(BEFORE, None))
    assert [row.process.tgid for row in top.sort(view.growers, column(GROWER_COLUMNS, title))] == order


def test_the_gone_come_last_however_large() -> None:
    view = top.compare(pool(opcache((FIRST, 9000), gone_ns=at(9)), make_region(1048, before=12)), None)
    for each in REGION_COLUMNS:
        assert [row.region.ino for row in top.sort(view.regions, each)] == [1048, 1047]


def test_balance() -> None:
    unseen = make_region(1050, toucher(FIRST, 11), before=2, unseen=4)
    [row] = top.compare(pool(unseen), None).regions
    assert "balance 17 pages = 11 touched + 2 before + 4 unseen" in top.describe(row, NOW.session)
    assert top.status(top.compare(NOW, None))[1] == "balance 95 pages = 76 touched + 19 before + 0 unseen"


def test_balance_is_the_report_s() -> None:
    assert top.balance(NOW.regions, PAGE_BYTES) in report.render(NOW)


def test_a_region_described() -> None:
    touched = opcache((FIRST, 30), mappers=[811, 812])
    view = top.compare(pool(touched), top.compare(pool(opcache((FIRST, 23))), None))
    [row] = view.regions
    assert top.describe(row, NOW.session._replace(complete=True)) == [
        "opcache?  anon 256 MiB  /dev/zero",
        "region 0:1/1047/3a9c21f0",
        "allocated 148 KiB, +120 KiB since the start, delta +28.0 KiB",
        "rate +2.9 KiB/s, <1% of its size, full in > 1 d",
        f"made by 811 (traced, alive) {MASTER}",
        "mapped by 811 812",
        "balance 37 pages = 30 touched + 7 before + 0 unseen",
        "before the trace 28.0 KiB, unseen 0 B",
    ]
    [grower] = top.touchers(view, row)
    assert (grower.process, grower.touched_bytes, grower.delta_bytes) == (FIRST, 30 * PAGE_BYTES, 7 * PAGE_BYTES)


def test_who_maps_it_is_unknown_while_the_trace_runs() -> None:
    [row] = top.compare(pool(opcache()), None).regions
    assert "mapped by ?" in top.describe(row, NOW.session)
    assert "mapped by nobody" in top.describe(row, NOW.session._replace(complete=True))


# ---- by what they were doing, and where they belong ----

SERVICE, CONTAINER = "/system.slice/php8.2-fpm.service", "9ec39b91f3d7" + "0" * 52


def doing(*touched: tuple[str | None, Process, int], ino: int = 1047) -> Region:
    """A region, and what its pages are for: text (None: unknown), by whom, how many pages."""
    labelled = [
        Labelled(None if text is None else Label(text=text), who, size * PAGE_BYTES, at(1), at(2))
        for text, who, size in touched
    ]
    return make_region(ino, *(toucher(who, size) for _, who, size in touched), labelled=labelled)


def labelled(*regions: Region) -> Account:
    made = pool(*regions)
    return made._replace(session=made.session._replace(label="app:doing"))


def rows_by(view: View, by: str, of: top.RegionLine | None = None) -> list[tuple[str, int, int, int]]:
    """Name, pages touched and more than before, processes: most first."""
    rows = top.sort(top.growers(view, by, of), column(top.grower_columns(by), "touched"))
    return [
        (row.name, row.touched_bytes // PAGE_BYTES, row.delta_bytes // PAGE_BYTES, row.nr_processes)
        for row in rows
        if isinstance(row, top.GroupLine)
    ]


WAS = labelled(doing(("a", FIRST, 23), ("b", FIRST, 5)), doing(("a", FIRST, 2), ino=1049))
IS = labelled(
    doing(("a", FIRST, 23), ("a", SECOND, 7), (None, SECOND, 3), ("", FIRST, 1), ("?", FIRST, 2)),
    doing(("a", FIRST, 2), ino=1049),
)


def test_by_label() -> None:
    """One that gave all back is told once; unknown is told from a question mark."""
    view = top.compare(IS, top.compare(WAS, None))
    told = [("a", 32, 7, 2), ("?", 3, 3, 1), ("?", 2, 2, 1), ("(none)", 1, 1, 1), ("b", 0, -5, 0)]
    assert rows_by(view, "label") == told
    assert rows_by(top.compare(IS, view), "label") == [(name, size, 0, *rest) for name, size, _, *rest in told[:4]]
    assert rows_by(top.compare(WAS, None), "label") == [("a", 25, 25, 1), ("b", 5, 5, 1)]


def test_of_one_region_by_label() -> None:
    view = top.compare(IS, top.compare(WAS, None))
    [small] = [row for row in view.regions if row.region.ino == 1049]
    assert rows_by(view, "label", small) == [("a", 2, 0, 1)]
    new = top.compare(IS, top.compare(labelled(), None))
    [row] = [row for row in new.regions if row.region.ino == 1049]
    assert rows_by(new, "label", row) == [("a", 2, 2, 1)]


def test_by_unit_and_container() -> None:
    inside = process(7, cgroup=f"/docker/{CONTAINER}")
    first, second = FIRST._replace(cgroup=SERVICE), SECOND._replace(cgroup=SERVICE)
    view = top.compare(
        pool(opcache((first, 23), (second, 7), (inside, 5))), top.compare(pool(opcache((first, 20))), None)
    )
    assert rows_by(view, "unit") == [("php8.2-fpm.service", 30, 10, 2), (f"/docker/{CONTAINER}", 5, 5, 1)]
    assert rows_by(view, "container") == [("-", 30, 10, 2), ("9ec39b91f3d7", 5, 5, 1)]
    assert top.kinds(view) == ["command", "unit", "container", "process"]
    assert top.kinds(top.compare(IS, None)) == ["label", "command", "process"]


def test_changes_by_label() -> None:
    view = top.compare(IS, top.compare(WAS, None))
    told = [line.partition(" grower ")[2] for line in top.changes(view, "label") if " grower " in line]
    assert told == [
        "+28.0 KiB  2 process(es), touched 128 KiB  a",
        "-20.0 KiB  0 process(es), touched 0 B  b",
        "+12.0 KiB  1 process(es), touched 12.0 KiB  ?",
        "+8.0 KiB  1 process(es), touched 8.0 KiB  ?",
        "+4.0 KiB  1 process(es), touched 4.0 KiB  (none)",
    ]
    assert [line for line in top.changes(top.compare(IS, view), "label") if " grower " in line] == []


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("room", [12, 40, 80])
def test_hostile_labels(name: str, room: int) -> None:
    view = top.compare(labelled(doing((name, FIRST, 23))), None)
    [row] = top.growers(view, "label")
    columns = top.grower_columns("label")
    lines = [top.heading(columns, columns[0], room), *top.lines([row], columns, room), *top.changes(view, "label")]
    assert all(formatting.width(line) <= room for line in lines[:2])
    assert lines[-1].endswith(f"  {formatting.printable(name) or '(none)'}")
    for line in lines:
        assert not {unicodedata.category(character) for character in line} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


# ---- plain lines ----


def test_only_what_changed_is_told() -> None:
    before = top.compare(BEFORE, None)
    answered, *told = top.changes(before)
    assert answered.startswith(f"{CLOCK} answer opcache? grew by 92.0 KiB to 120 KiB of 256 MiB in 41 s. By ")
    assert len(told) == 3
    assert list(top.changes(top.compare(BEFORE, before))) == []
    pattern = rf"{CLOCK} (\w+) (\S+ \w+)  (.*)"
    assert [
        found.groups() for line in top.changes(top.compare(NOW, before)) if (found := re.fullmatch(pattern, line))
    ] == [
        (
            "region",
            "+192 KiB",
            f"opcache? {ID[1047]} allocated 312 KiB, +284 KiB since the start, made by 811 php-fpm8.2",
        ),
        ("region", "+20.0 KiB", f"/memfd:new {ID[1049]} allocated 20.0 KiB, +20.0 KiB since the start, made by ?"),
        ("grower", "+184 KiB", "813 alive, touched 184 KiB in 2 region(s)  php-fpm: pool api"),
        ("grower", "+28.0 KiB", "812 alive, touched 120 KiB in 1 region(s)  php-fpm: pool www"),
    ]


def test_exits_and_ends_are_told() -> None:
    before = top.compare(pool(opcache((FIRST, 23))), None)
    gone = pool(opcache((process(812, exited=40), 23), gone_ns=at(41)))
    _, region, grower = top.changes(top.compare(gone, before))
    assert "+0 B  opcache?" in region
    assert f"gone {formatting.clock(at(41))}" in region
    assert f"812 exited {EARLIER}" in grower


def test_of_many_the_rest_is_added_up() -> None:
    many = pool(opcache(*((process(1000 + number), 1 + number) for number in range(30))))
    *_, last = top.changes(top.compare(many, None))
    assert last == f"{CLOCK} grower +{formatting.format_bytes(55 * PAGE_BYTES)}  of 10 more"


# ---- room ----


def told(view: View, room: int) -> list[str]:
    return [
        top.heading(REGION_COLUMNS, column(REGION_COLUMNS, "grown"), room),
        *top.lines(view.regions, REGION_COLUMNS, room),
        top.heading(GROWER_COLUMNS, GROWER_COLUMNS[1], room),
        *top.lines(view.growers, GROWER_COLUMNS, room),
    ]


@pytest.mark.parametrize("room", [1, 5, 12, 24, 40, 79, 80, 200])
def test_lines_are_as_wide_as_there_is_room(room: int) -> None:
    for line in told(top.compare(NOW, None), room):
        assert formatting.width(line) <= room
        assert room < 24 or formatting.width(line) >= 12


@pytest.mark.parametrize(
    ("room", "titles"),
    [
        (24, "region"),
        (40, "region allocated"),
        (79, "region allocated used rate full in 5 min ▼grown"),
        (119, "region size allocated used delta rate full in 5 min ▼grown made by"),
        (199, "region kind size allocated used delta rate full in 5 min ▼grown made by"),
    ],
)
def test_columns_come_as_there_is_room(room: int, titles: str) -> None:
    heading, *_ = told(top.compare(NOW, None), room)
    assert " ".join(heading.split()) == titles


def test_at_80_columns_all_that_tells_growth_is_there() -> None:
    lines = told(top.compare(NOW, top.compare(BEFORE, None)), 79)
    assert re.split(r"\s\s+", lines[1].rstrip()) == [
        "opcache?",
        "312 KiB",
        "<1%",
        "+6.9 KiB/s",
        "10.6 h",
        "▄█",
        "+284 KiB",
    ]
    assert re.search(r"^ +813 +184 KiB +\+184 KiB +2 alive +php-fpm: pool api$", lines[-1].rstrip())


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("room", [40, 80])
def test_hostile_names(name: str, room: int) -> None:
    evil = process(812, name, comm=name)
    region = make_region(9, toucher(evil, 3), name=name, creator=Creator(evil, "traced"))
    view = top.compare(account(Parent(evil, [region]), complete=False), None)
    [row] = view.regions
    lines = told(view, room)
    assert all(formatting.width(line) <= room for line in lines)
    for line in [*lines, *top.describe(row, NOW.session), *top.changes(view), *top.status(view)]:
        assert not {unicodedata.category(character) for character in line} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


# ---- how fast, how full, since when ----


def sized(second: float, pages: int, size_bytes: int | None = 256 << 20, **fields: int) -> Account:
    """A region with so many pages that one process touched, as of a second."""
    return pool(opcache((FIRST, pages), size_bytes=size_bytes, **fields), ended_s=second)  # type: ignore[arg-type]


def watched(*accounts: Account) -> View:
    view = None
    for each in accounts:
        view = top.compare(each, view)
    assert view
    return view


def region_cells(view: View, *titles: str) -> list[str]:
    return [column(REGION_COLUMNS, title).text(view.regions[0]) for title in titles]


def test_a_rate_is_of_the_last_seconds_not_of_the_last_one() -> None:
    """7 pages came in the 41st second, and none before or after."""
    still, burst = [sized(second, 23) for second in range(1, 41)], [sized(second, 30) for second in range(41, 60)]
    rates = [region_cells(watched(*still, *burst[:number]), "rate") for number in (0, 1, 5, 19)]
    assert rates == [["."], ["+2.8 KiB/s"], ["+2.8 KiB/s"], ["."]]


def test_what_shrinks_has_a_negative_rate_and_is_not_full_soon() -> None:
    view = watched(sized(1, 23), sized(31, 900), sized(41, 500))
    assert region_cells(view, "rate", "full in") == ["-160 KiB/s", "89 min"]
    assert region_cells(watched(sized(1, 900), sized(31, 23)), "rate", "full in") == ["-117 KiB/s", "> 1 d"]


def test_full_in_is_by_the_rate_of_the_last_minutes() -> None:
    """41 pages in 300 s; 59 are free."""
    grown = [sized(second, 30 if second == 1 else 71, 137 * PAGE_BYTES) for second in (1, 301)]
    assert region_cells(watched(*grown), "full in", "used") == ["7 min", "56%"]
    assert region_cells(
        watched(*grown, *(sized(second, 71, 137 * PAGE_BYTES) for second in range(302, 700))), "full in"
    ) == ["-"]


@pytest.mark.parametrize(
    ("region", "told"),
    [
        ({"size_bytes": None}, ["?", "?"]),
        ({"size_bytes": 30 * PAGE_BYTES}, ["100%", "-"]),
        ({"size_bytes": 31 * PAGE_BYTES}, ["96%", "2 s"]),
        ({"size_bytes": 2 * PAGE_BYTES}, [">999%", "-"]),
        ({"size_bytes": 1 << 40}, ["<1%", "> 1 d"]),
        ({"size_bytes": 256 << 20, "gone_ns": at(41)}, ["<1%", "-"]),
    ],
)
def test_what_cannot_be_told_of_being_full(region: dict[str, int], told: list[str]) -> None:
    assert region_cells(watched(sized(1, 0, **region), sized(41.2, 23, **region)), "used", "full in") == told


def test_a_trend() -> None:
    """In the last half minute 3 pages, before it 41, and in the first ones none."""
    view = watched(sized(1, 23), sized(130, 23), sized(241, 23), sized(271, 64), sized(301, 67))
    assert region_cells(view, "5 min") == ["▁▁▁▁▁▁▁▁█▂"]
    assert region_cells(watched(sized(1, 23), sized(241, 23), sized(301, 23)), "5 min") == ["▁▁▁▁▁▁▁▁▁▁"]
    young = watched(sized(200, 23)._replace(session=NOW.session._replace(started_ns=at(150), ended_ns=at(200))))
    assert region_cells(young, "5 min") == ["        ▆█"]


def test_the_past_is_bounded() -> None:
    """Of a region that grows, points seconds apart; of one that stands still, its ends."""
    growing = watched(*(sized(second, second) for second in range(1, 1000)))
    [past] = growing.past.values()
    assert 60 < len(past) < 80
    assert past[-1][0] - past[0][0] <= 306e9
    [still] = watched(*(sized(second, 23) for second in range(1, 1000))).past.values()
    assert len(still) == 2
    assert growing.previous
    assert growing.previous.previous is None


def test_the_past_begins_anew_where_the_clock_was_set_back() -> None:
    view = watched(sized(300, 23), sized(301, 24), sized(100, 30), sized(107, 37))
    assert region_cells(view, "rate") == ["+4.0 KiB/s"]
    assert region_cells(watched(sized(300, 23), sized(100, 30)), "rate", "full in") == [".", "-"]


# ---- who comes first, and what belongs to it ----


def test_those_that_grow_now_come_first_and_the_dead_last() -> None:
    """By when they last touched a page, and what."""
    quiet, grows, dead, dying = process(1), process(2), process(3, exited=20), process(4, exited=40)
    touched = [
        toucher(quiet, 900)._replace(last_ns=at(31)),
        toucher(grows, 7)._replace(last_ns=at(31.3)),
        toucher(dead, 5000)._replace(last_ns=at(19)),
        toucher(dying, 5)._replace(last_ns=at(39)),
    ]
    view = top.compare(pool(make_region(1047, *touched)), None)
    assert [row.process.tgid for row in top.sort(view.growers, column(GROWER_COLUMNS, "touched"))] == [2, 4, 1, 3]
    [line] = top.growers(view, "command")
    assert (line.grows, line.ended, line.touched_bytes) == (True, False, 5912 * PAGE_BYTES)


POOL = [process(812 + number, f"php-fpm: pool {name}") for number, name in enumerate(["www"] * 4 + ["api"] * 3)]


def test_by_command_is_the_default_for_more_than_a_handful() -> None:
    views = [top.compare(pool(opcache(*((who, 3) for who in POOL[:number]))), None) for number in (0, 5, 6)]
    assert [top.by_default(view) for view in views] == ["process", "process", "command"]
    assert rows_by(views[2], "command") == [("php-fpm: pool www", 12, 12, 4), ("php-fpm: pool api", 6, 6, 2)]


def test_summed_by_process_it_is_the_same() -> None:
    """The answer, and the table by command, which are made of the sums."""
    made = pool(
        opcache(*((who, 3 + number) for number, who in enumerate(POOL))),
        doing(("a", POOL[0], 11), (None, POOL[5], 7), ino=1049),
        make_region(1050, toucher(POOL[1], 5), gone_ns=at(30)),
    )
    view = top.compare(made, None)
    assert view.answer == answer.answer(made).text
    table = groups.table(made, "command")
    told = [
        (row.texts[0], row.size_bytes // PAGE_BYTES, row.nr_processes) for row in table.rows if row.part == "touched"
    ]
    assert [(name, pages, number) for name, pages, _, number in rows_by(view, "command")] == told
    assert top.balance(view.summed.regions, PAGE_BYTES) == top.balance(made.regions, PAGE_BYTES)


def test_inside_a_grower() -> None:
    then = labelled(doing(("a", POOL[0], 7), ("b", POOL[5], 5)), doing(("a", POOL[1], 3), ino=1049))
    now = labelled(doing(("a", POOL[0], 9), ("b", POOL[5], 5), ("b", POOL[0], 4)), doing(("a", POOL[1], 3), ino=1049))
    view = watched(then, now)
    [group] = [row for row in top.growers(view, "command") if row.touched_bytes == 16 * PAGE_BYTES]
    assert group.opens == top.Opened("command", "php-fpm: pool www")
    assert top.parts(view, group.opens) == ["process", "region", "label"]

    def told(by: str, opened: top.Opened = group.opens) -> list[tuple[object, int, int]]:
        rows = top.sort(top.inside(view, opened, by), column(top.grower_columns(by), "touched"))
        return [(row.key, row.touched_bytes // PAGE_BYTES, row.delta_bytes // PAGE_BYTES) for row in rows]

    assert told("process") == [(812, 13, 6), (813, 3, 0)]
    assert told("region") == [(1047, 13, 6), (1049, 3, 0)]
    assert told("label") == [("a", 12, 2), ("b", 4, 4)]
    alone = top.Opened("process", 812)
    assert top.parts(view, alone) == ["region", "label"]
    assert told("region", alone) == [(1047, 13, 6)]
    assert top.parts(view, top.Opened("label", "a")) == ["process", "region"]
    assert told("process", top.Opened("label", "a")) == [(812, 9, 2), (813, 3, 0)]
    assert top.describe_grower(group) == [
        "command php-fpm: pool www",
        "touched 64.0 KiB, delta +24.0 KiB, by 2 process(es), 0 exited",
    ]
    [row] = [row for row in view.growers if row.key == 812]
    assert top.describe_grower(row) == [
        "812 php-fpm: pool www",
        "touched 52.0 KiB, delta +24.0 KiB, alive, child of 811",
    ]


def test_what_a_table_contains() -> None:
    view = top.compare(NOW, None)
    matching = [
        [row.region.ino for row in top.matching(view.regions, REGION_COLUMNS, text)] for text in ("OPC", "zzz", "")
    ]
    assert matching == [[1047], [], [1047, 1048, 1049]]
    assert [row.key for row in top.matching(view.growers, GROWER_COLUMNS, "pool API")] == [813]


def test_what_is_clicked_on() -> None:
    heading = top.heading(REGION_COLUMNS, REGION_COLUMNS[0], 79)
    for title in ("allocated", "full in", "grown"):
        found = top.column_at(REGION_COLUMNS, 79, heading.index(title) + 2)
        assert found
        assert found.title == title
    assert top.column_at(REGION_COLUMNS, 79, 79) is None


@pytest.mark.parametrize("room", [1, 20, 79, 80, 200])
def test_the_answer_in_two_lines(room: int) -> None:
    view = top.compare(pool(*(opcache((who, 3), row=who.row) for who in POOL), make_region(3, name="x" * 200)), None)
    lines = top.headline(view, room)
    assert 1 <= len(lines) <= 2
    assert all(formatting.width(line) <= room for line in lines)
    assert room == 1 or view.answer.startswith(" ".join(lines).rstrip("…"))
    assert top.headline(top.compare(pool(), None), 80) == [answer.NO_ANSWER]


def test_an_oom_kill_has_a_line_above_it() -> None:
    """It hides no growth; where lines are plain it is told once."""
    session = pool(opcache((POOL[0], 3), row=1))
    first = top.compare(session, None)
    kill = OomKill(at(7), None, 977, "stress\x1b[2J", None, "/a", "/b" * 90, 1 << 20, *[None] * 7)
    killed = session._replace(session=session.session._replace(nr_ooms=1), ooms=[kill])
    view = top.compare(killed, first)
    line, *lines = top.headline(view, 80)
    assert lines == top.headline(first, 80)
    assert line.startswith(f"OOM kill at {formatting.clock(at(7))}: stress\\x1b[2J (PID 977) in /b/b")
    assert formatting.width(line) <= 80
    assert [text for text in top.changes(view) if "OOM kill" in text] == [
        f"{formatting.clock(killed.session.ended_ns)} {' '.join(view.kills)}"
    ]
    assert list(top.changes(top.compare(killed, view))) == []


def test_what_ascii_shows_takes_the_same_room() -> None:
    lines = told(top.compare(NOW, None), 80)
    plain = [line.translate(top.ASCII) for line in lines]
    assert all(line.isascii() for line in plain)
    assert [len(line) for line in plain] == [len(line) for line in lines]
    assert "vgrown" in plain[0]
    assert "#" in plain[1]

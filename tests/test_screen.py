"""The live tables, driven by keys, of accounts made by hand."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable
from typing import Any, Callable

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input, OptionList, Static

from tests.test_top import BEFORE, FIRST, IS, NOW, POOL, SECOND, WAS, doing, labelled, opcache, pool
from tests.test_views import HOSTILE, account, at, make_region, process, toucher
from tracer.formatting import format_bytes, printable
from tracer.model import Account, Creator, Parent
from tracer.proc.shmem import PAGE_BYTES
from tracer.views import top, top_screen
from tracer.views.top_screen import Help, TableWidget, Top

Driven = Pilot[Account]


WIDE = (120, 24)  # where there is a column delta
CELL = re.compile(r"\s+(?![KMGT]iB\b|B\b)")


def cells(line: str) -> list[str]:
    """The words of a line, a number and its unit being one."""
    return CELL.split(line.strip())


ATTACHING = "attaching to 33 processes …"


MANY = pool(
    opcache(*((who, 3 + number) for number, who in enumerate(POOL))),
    make_region(1048, before=12),
    make_region(1049, toucher(POOL[0], 5), name="/memfd:gone", gone_ns=at(30)),
)
"""More growers than are shown by process."""


class Fed(Top):
    """Fed with accounts by the test."""

    def __init__(self, first: Account | None, by: str | None = None, ascii_only: bool = False) -> None:
        self.accounts: asyncio.Queue[Account | None] = asyncio.Queue()
        self.stopped = 0
        self.frames: list[list[str]] = []
        if first:
            self.accounts.put_nowait(first)
        super().__init__(ATTACHING, self.accounts.get, self._count, by, ascii_only)

    def _count(self) -> None:
        self.stopped += 1

    def _display(self, screen: Screen, renderable: Any) -> None:
        """Keep what is painted, as lines of text."""
        super()._display(screen, renderable)
        strips = screen._compositor.render_strips()
        self.frames.append(["".join(segment.text for segment in strip).rstrip() for strip in strips])

    async def feed(self, now: Account, pilot: Driven) -> None:
        self.accounts.put_nowait(now)
        await pilot.pause()
        await pilot.pause()

    def about(self, selector: str) -> list[str]:
        """What stands in it, a line each."""
        return str(self.screen_stack[0].query_one(selector, Static).render()).splitlines()

    def lines(self, table: str) -> list[str]:
        found = self.screen_stack[0].query_one(f"#{table} OptionList", OptionList)
        return [str(option.prompt) for option in found.options]

    def highlighted(self, table: str) -> int | None:
        return self.screen_stack[0].query_one(f"#{table} OptionList", OptionList).highlighted

    @property
    def inside(self) -> bool:
        return self.screen_stack[0].query_one("#region").display


def driven(
    script: Callable[[Fed, Driven], Awaitable[None]],
    first: Account | None = BEFORE,
    size: tuple[int, int] = (80, 24),
    by: str | None = None,
    ascii_only: bool = False,
) -> Fed:
    """Run a script of keys."""

    async def run() -> Fed:
        app = Fed(first, by, ascii_only)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await script(app, pilot)
        return app

    return asyncio.run(run())


def test_deltas_come_with_every_account() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await app.feed(NOW, pilot)
        assert [cells(line)[4] for line in app.lines("regions")] == ["+192 KiB", "+20.0 KiB", "."]
        assert [cells(line)[:3] for line in app.lines("growers")] == [
            ["813", "184 KiB", "+184 KiB"],
            ["812", "120 KiB", "+28.0 KiB"],
        ]
        assert app.about("#balance") == ["balance 95 pages = 76 touched + 19 before + 0 unseen"]
        await app.feed(NOW, pilot)
        assert [cells(line)[4] for line in app.lines("regions")] == [".", ".", "."]

    driven(script, size=WIDE)


def test_sort() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        assert "▼grown" in app.about("#regions .heading")[0]
        await pilot.press("s", "s")
        assert app.about("#regions .heading")[0].startswith("▼region")
        assert [cells(line)[0] for line in app.lines("regions")] == ["/memfd:new", "apcu?", "opcache?"]
        await pilot.press("S", "S")
        assert app.lines("regions")[0].startswith("opcache?")
        await pilot.press("tab", "S")
        assert "▼PID" in app.about("#growers .heading")[0]
        assert [cells(line)[0] for line in app.lines("growers")] == ["812", "813"]

    driven(script, NOW, size=WIDE)


def test_pause() -> None:
    """What comes meanwhile is not shown, and not lost: the delta is still that of the last interval."""

    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("p")
        before = app.lines("regions")
        await app.feed(pool(opcache((FIRST, 25))), pilot)
        await app.feed(NOW, pilot)
        assert app.lines("regions") == before
        assert app.about("#where")[0].startswith("paused")
        await pilot.press("p")
        assert cells(app.lines("regions")[0])[4] == "+184 KiB"
        assert not app.about("#where")[0].startswith("paused")

    driven(script, size=WIDE)


def test_look_into_a_region_and_back() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        assert not app.inside
        await pilot.press("enter")
        assert app.inside
        await app.feed(NOW, pilot)
        assert app.about("#about") == top.describe(top.compare(NOW, top.compare(BEFORE, None)).regions[0], NOW.session)
        assert "balance 78 pages = 71 touched + 7 before + 0 unseen" in app.about("#about")
        assert [cells(line)[:3] for line in app.lines("touchers")] == [
            ["813", "164 KiB", "+164 KiB"],
            ["812", "120 KiB", "+28.0 KiB"],
        ]
        await pilot.press("s")
        await pilot.press("escape")
        assert not app.inside
        await pilot.press("down", "enter", "escape")
        assert not app.inside

    driven(script)


def test_by_the_next_of_what_there_is() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await app.feed(IS, pilot)
        assert app.about("#growers .heading")[0].split() == ["PID", "▼touched", "delta", "regions", "state", "command"]
        await pilot.press("b")
        assert app.about("#growers .heading")[0].split() == ["▼touched", "delta", "processes", "exited", "label"]
        assert [cells(line) for line in app.lines("growers")] == [
            ["128 KiB", "+28.0 KiB", "2", "0", "a"],
            ["12.0 KiB", "+12.0 KiB", "1", "0", "?"],
            ["8.0 KiB", "+8.0 KiB", "1", "0", "?"],
            ["4.0 KiB", "+4.0 KiB", "1", "0", "(none)"],
            ["0 B", "-20.0 KiB", "0", "0", "b"],
        ]
        await pilot.press("tab", "s", "down")
        assert "▼delta" in app.about("#growers .heading")[0]
        assert app.lines("growers")[-1].split()[-1] == "b"
        await pilot.press("tab", "enter")
        assert app.inside
        assert app.about("#touchers .heading")[0].split() == ["▼touched", "delta", "processes", "exited", "label"]
        assert cells(app.lines("touchers")[0]) == ["120 KiB", "+28.0 KiB", "2", "0", "a"]
        await pilot.press("b", "b")
        assert app.inside
        assert cells(app.lines("touchers")[0])[:2] == ["812", "104 KiB"]

    driven(script, WAS)


def test_by_label_from_the_start() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        assert cells(app.lines("growers")[0]) == ["100 KiB", "+100 KiB", "1", "0", "a"]
        await pilot.press("b", "b")
        assert cells(app.lines("growers")[0])[:2] == ["812", "120 KiB"]

    driven(script, WAS, by="label")


def test_the_region_looked_into_may_go() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("enter")
        await app.feed(pool(), pilot)
        assert app.inside
        assert "balance 30 pages = 23 touched + 7 before + 0 unseen" in app.about("#about")
        await pilot.press("escape")
        assert app.lines("regions") == []
        await pilot.press("enter", "s", "tab", "s")
        assert not app.inside

    driven(script)


def test_the_row_stays_chosen_wherever_it_goes() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("down")
        assert app.lines("regions")[1].startswith("/memfd:new")
        later = pool(opcache((FIRST, 30)), make_region(1049, toucher(SECOND, 900), kind="memfd", name="/memfd:new"))
        await app.feed(later, pilot)
        assert app.lines("regions")[0].startswith("/memfd:new")
        assert app.highlighted("regions") == 0

    driven(script, NOW)


def test_the_first_row_is_whatever_comes_first() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await app.feed(pool(opcache((FIRST, 23)), make_region(1049, toucher(SECOND, 900))), pilot)
        assert app.highlighted("regions") == 0
        assert app.lines("regions")[1].startswith("opcache?")

    driven(script)


def test_quit_waits_for_the_account_to_be_closed() -> None:
    final = NOW._replace(session=NOW.session._replace(complete=True))

    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("q")
        assert app.stopped == 1
        assert app.about("#where")[0].startswith("ending")
        await app.feed(final, pilot)

    assert driven(script).return_value == final


def test_control_c_is_quit() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("question_mark", "ctrl+c")
        assert app.stopped == 1

    driven(script)


def test_help() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        await app.feed(NOW, pilot)
        assert cells(app.lines("regions")[0])[4] == "+192 KiB"
        await pilot.press("x")
        assert not isinstance(app.screen, Help)

    driven(script, size=WIDE)


def test_what_goes_wrong_with_the_trace_ends_it() -> None:
    async def fail() -> None:
        raise ValueError("no more room")

    async def run() -> Top:
        app = Top(ATTACHING, fail, lambda: None)
        async with app.run_test() as pilot:
            await pilot.pause()
        return app

    app = asyncio.run(run())
    assert app.return_value is None
    assert app.follower
    assert isinstance(app.follower.error, ValueError)


@pytest.mark.parametrize("size", [(40, 10), (20, 5), (10, 3), (1, 1), (200, 60)])
def test_any_size(size: tuple[int, int]) -> None:
    """At the start, and resized to, wherever one is."""

    async def script(app: Fed, pilot: Driven) -> None:
        for width, height in [size, (80, 24), size]:
            await pilot.resize_terminal(width, height)
            await app.feed(NOW, pilot)
            await pilot.press("s", "enter")
            await app.feed(BEFORE, pilot)
            await pilot.press("question_mark", "x", "escape", "tab", "down", "p", "p", "tab")
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert any(line.startswith("opcache?") and line.endswith("+92.0 KiB") for line in app.lines("regions"))

    driven(script, size=size)


@pytest.mark.parametrize("name", [*HOSTILE, "[bold red]x[/]", "[/nothing]", "[@click=app.end]x[/]", ":smile: \\["])
def test_hostile_names(name: str) -> None:
    """No markup, and no other width than was reckoned with."""
    evil = process(812, name, comm=name)
    region = make_region(9, toucher(evil, 3), name=name, creator=Creator(evil, "traced"))
    told = account(Parent(evil, [region]), complete=False)

    async def script(app: Fed, pilot: Driven) -> None:
        await app.feed(told, pilot)
        [line] = app.lines("regions")
        assert name.startswith("[") <= line.startswith(name[:12])
        await pilot.press("enter")
        assert "balance 3 pages = 3 touched + 0 before + 0 unseen" in app.about("#about")
        svg = app.export_screenshot()
        assert "\x1b" not in svg

    driven(script, told)


@pytest.mark.parametrize("name", [*HOSTILE, "[bold red]x[/]", "[/nothing]", "[@click=app.end]x[/]", ":smile: \\["])
def test_hostile_labels(name: str) -> None:
    told = labelled(doing((name, FIRST, 23)))

    async def script(app: Fed, pilot: Driven) -> None:
        await app.feed(told, pilot)
        [line] = app.lines("growers")
        assert re.split(CELL, line, maxsplit=4)[-1].startswith(printable(name)[:4].strip() or "(none)")
        await pilot.press("enter")
        assert cells(app.lines("touchers")[0])[:3] == ["92.0 KiB", ".", "1"]
        assert "\x1b" not in app.export_screenshot()

    driven(script, told, by="label")


def test_of_many_growers_the_first_are_shown() -> None:
    many = pool(opcache(*((process(1000 + number), 1 + number) for number in range(top_screen.MAX_ROWS + 23))))

    async def script(app: Fed, pilot: Driven) -> None:
        *shown, last = app.lines("growers")
        assert len(shown) == top_screen.MAX_ROWS
        assert cells(shown[0])[1] == format_bytes((top_screen.MAX_ROWS + 23) * PAGE_BYTES)
        assert last.startswith("…23 more")
        await pilot.press("tab", "end")
        assert app.query_one("#growers", TableWidget).chosen is not None

    driven(script, many, by="process")


def test_what_goes_wrong_in_drawing_is_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no traceback is shown, which would have all variables in it."""

    async def following() -> Account | None:
        return BEFORE

    monkeypatch.setattr(Top, "run", functools.partialmethod(App.run, headless=True))
    monkeypatch.setattr(top, "status", lambda _: {}["gone"])
    with pytest.raises(KeyError, match="gone"):
        top_screen.show(ATTACHING, following, lambda: None, "process")
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err


# ---- before the first account, and between two frames ----


def test_what_it_attaches_to_is_said_until_there_is_an_account() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        assert app.frames
        for frame in app.frames:
            assert [line for line in frame[:-1] if line] == [ATTACHING]
        await pilot.press("s", "b", "slash", "enter", "p", "p", "escape")
        await app.feed(NOW, pilot)
        assert app.lines("regions")[0].startswith("opcache?")
        assert ATTACHING not in app.frames[-1]
        await pilot.press("enter")
        assert app.inside

    driven(script, None)


def test_what_is_told_to_end_while_it_attaches_is_told_once() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("q")
        assert app.stopped == 1
        assert app.about("#where")[0].startswith("ending")
        await app.feed(NOW, pilot)
        assert app.about("#where")[0].startswith("ending · 41 s")
        assert app.stopped == 1

    driven(script, None)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_no_frame_has_a_table_without_its_rows(size: tuple[int, int]) -> None:
    """On the first account, on Enter, Esc and b, and when the terminal is resized."""

    async def script(app: Fed, pilot: Driven) -> None:
        for keys in (["enter"], ["escape"], ["tab", "enter"], ["escape"], ["b"], ["b"]):
            await pilot.press(*keys)
            await pilot.pause()
        await pilot.resize_terminal(size[0] + 23, size[1] + 7)
        await pilot.resize_terminal(size[0] - 17, size[1] - 3)
        for frame in app.frames:
            if ATTACHING in frame:
                continue
            headings = [number for number, line in enumerate(frame) if "▼" in line]
            assert headings
            assert all(frame[number + 1] for number in headings)
            assert "…" not in [line.strip() for line in frame]

    driven(script, MANY, size)


# ---- what opens, what is filtered, what is clicked ----


def test_growers_are_grouped_by_command_once_they_are_many() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        assert cells(app.lines("growers")[0])[:2] == ["812", "92.0 KiB"]
        await app.feed(MANY, pilot)
        assert [line.rstrip()[-17:] for line in app.lines("growers")] == ["php-fpm: pool api", "php-fpm: pool www"]
        await pilot.press("b")
        assert cells(app.lines("growers")[0])[:2] == ["818", "36.0 KiB"]
        assert app.about("#balance")[-1] == top_screen.NO_LABELS
        await pilot.press("b")
        assert [cells(line)[0] for line in app.lines("growers")] == ["96.0 KiB", "92.0 KiB"]

    driven(script)


def test_look_into_a_grower_and_back() -> None:
    """A command, one of its processes, one of its regions; each Esc leads to where Enter was."""

    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("tab", "down", "enter")
        assert app.about("#about_grower") == [
            "command php-fpm: pool www",
            "touched 92.0 KiB, delta +92.0 KiB, by 4 process(es), 0 exited",
        ]
        assert [cells(line)[0] for line in app.lines("part0")] == ["812", "815", "814", "813"]
        assert [cells(line)[4:] for line in app.lines("part1")] == [["opcache?", "1047"], ["apcu?", "1049"]]
        assert not app.query_one("#part2").display
        await pilot.press("down", "enter")
        assert app.about("#about_grower")[0] == "815 php-fpm: pool www"
        assert [cells(line) for line in app.lines("part0")] == [["24.0 KiB", "+24.0 KiB", "opcache?", "1047"]]
        await pilot.press("enter")
        assert app.inside
        assert app.about("#about")[1] == "region 0:1/1047/3a9c21f0"
        await pilot.press("escape")
        assert app.about("#about_grower")[0] == "815 php-fpm: pool www"
        await pilot.press("escape")
        assert app.about("#about_grower")[0] == "command php-fpm: pool www"
        await pilot.press("escape", "escape", "escape")
        assert not app.query_one("#grower").display
        assert app.query_one("#growers", TableWidget).chosen == app.query_one("#growers", TableWidget)._shown[1]

    driven(script, MANY)


def test_labels_of_a_grower() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("tab", "enter")
        assert [cells(line)[-1] for line in app.lines("part1")] == ["a", "?", "(none)"]

    driven(script, IS, by="process")


def test_filter() -> None:
    """What is typed is no key, whatever it is; on the level of an opened row there is another filter."""

    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("slash", *"POOL Api")
        assert [cells(line)[0] for line in app.lines("growers")] == ["813"]
        assert app.lines("regions") == []
        assert app.about("#where")[0].startswith("filter POOL Api · ")
        await app.feed(NOW, pilot)
        assert app.lines("regions") == []
        await pilot.press("escape")
        assert len(app.lines("regions")) == 3
        await pilot.press("slash", *"opc", "enter")
        assert [line[:8] for line in app.lines("regions")] == ["opcache?"]
        assert isinstance(app.focused, top_screen.Rows)
        await pilot.press("enter")
        assert app.inside
        assert len(app.lines("touchers")) == 2
        await pilot.press("escape")
        assert not app.inside
        assert len(app.lines("regions")) == 1
        await pilot.press("escape")
        assert len(app.lines("regions")) == 3
        assert not app.about("#where")[0].startswith("filter")
        assert app.stopped == 0

    driven(script, NOW)


@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_hostile_filter(name: str) -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        await pilot.press("slash")
        app.query_one("#filter", Input).value = name
        await app.feed(NOW, pilot)
        assert app.lines("regions") == []
        assert printable(name)[:20] in app.about("#where")[0].replace("\n", "")

    driven(script, NOW, size=WIDE)


def test_a_click_on_a_heading_sorts_by_it() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        heading = app.about("#regions .heading")[0]
        await pilot.click("#regions .heading", offset=(heading.index("rate"), 0))
        assert "▼rate" in app.about("#regions .heading")[0]
        await pilot.click("#growers .heading", offset=(1, 0))
        assert "▼PID" in app.about("#growers .heading")[0]
        await app.feed(BEFORE, pilot)
        assert "▼rate" in app.about("#regions .heading")[0]

    driven(script, NOW)


def test_where_the_terminal_has_ascii_alone() -> None:
    async def script(app: Fed, pilot: Driven) -> None:
        assert "vgrown" in app.about("#regions .heading")[0]
        assert app.lines("regions")[0].isascii()
        assert "#" in app.lines("regions")[0]

    driven(script, NOW, ascii_only=True)

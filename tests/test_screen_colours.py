"""What top writes to a terminal is legible on any background: measured in its escape codes, in every state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.emulator import Screen, contrast
from tests.live.terminal import Terminal, on_terminal

LEGIBLE = 4.5  # WCAG 2.1, AA
PROGRAM = """
import asyncio
from tests.test_screen import ATTACHING, MANY
from tests.test_top import labelled
from tracer.views import top_screen

fed, told = [None], []

async def following():
    while not told:
        await asyncio.sleep(0.7 if fed else 0.05)
        if fed:
            fed.clear()
            return MANY
    return MANY._replace(session=MANY.session._replace(complete=True))

assert top_screen.show(ATTACHING, following, lambda: told.append(1), None).session.complete
"""


@contextmanager
def playing(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Iterator[Terminal]:
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    with on_terminal([sys.executable, "-c", PROGRAM]) as terminal:
        yield terminal


class Watched:
    """What a terminal shows now."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.screen = Screen()
        self._nr_fed = 0

    def wait_until(self, is_there: Callable[[Screen], bool], what: str) -> None:
        def shows(seen: str) -> bool:
            self.screen.feed(seen[self._nr_fed :])
            self._nr_fed = len(seen)
            return is_there(self.screen)

        self.terminal.wait_until(shows, what)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda screen: any(text in line for line in screen.lines()), text)


@pytest.mark.parametrize(
    "environment", [{}, {"COLORTERM": "truecolor"}, {"NO_COLOR": "1"}, {"TERM": "xterm"}], ids=lambda each: str(each)
)
def test_all_text_is_legible(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """The tables, a region, a grower, the filter and the help."""
    with playing(monkeypatch, **environment) as terminal:
        watched = Watched(terminal)
        for keys, text in [
            ("", "attaching to 33 processes"),
            ("", "php-fpm: pool api"),
            ("\r", "mapped by ?"),
            ("\x1b", "▼grown"),
            ("\t\r", "process(es), 0 exited"),
            ("\x1b", "▼grown"),
            ("b", "--label php or postgres"),
            ("/", "rows that contain"),
            ("opc", "filter opc"),
            ("\r", "Open"),
            ("?", "any key closes it"),
            ("x", "▼grown"),
        ]:
            terminal.type(keys)
            watched.wait_for(text)
            for character, style in watched.screen.cells.values():
                if not character.isspace():
                    assert contrast(style, is_light=True) >= LEGIBLE, (character, style)
                    assert contrast(style, is_light=False) >= LEGIBLE, (character, style)
        terminal.type("q")
        assert terminal.finish() == 0


def test_the_cursor_is_seen_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row is reversed, and no other but the headings."""

    def reversed_lines(screen: Screen) -> list[str]:
        lines = screen.lines()
        styles = {number: screen.cells[number, 0][1] for number, line in enumerate(lines) if line.strip()}
        return [lines[number].split()[0] for number, style in styles.items() if style.is_reversed]

    with playing(monkeypatch, NO_COLOR="1") as terminal:
        watched = Watched(terminal)
        for keys, first_words in [
            ("", ["region", "opcache?", "▼touched"]),
            ("\x1b[B", ["region", "apcu?", "▼touched"]),
            ("\t", ["region", "▼touched", "96.0"]),
        ]:
            terminal.type(keys)
            watched.wait_until(lambda screen, words=first_words: reversed_lines(screen) == words, str(first_words))  # type: ignore[misc]
        terminal.type("q")
        assert terminal.finish() == 0


def test_contrast_is_measured() -> None:
    """Black on white has 21; and what top wrote before, in grey 253, has less than 1.5 on white."""
    screen = Screen()
    screen.feed("\x1b[2;1Ha\x1b[38;5;253;49mb\x1b[0;38;2;1;120;212mc\x1b[0;7;1md\x1b[0;2me\x1b[93mf")
    assert screen.lines() == ["", "abcdef"]
    styles = [screen.cells[1, column][1] for column in range(6)]
    assert [round(contrast(style, is_light=True), 1) for style in styles] == [21.0, 1.4, 4.5, 21.0, 4.0, 1.1]
    assert [round(contrast(style, is_light=False), 1) for style in styles] == [21.0, 15.0, 4.6, 21.0, 5.2, 4.9]

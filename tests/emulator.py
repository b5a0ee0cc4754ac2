"""A terminal, as far as top writes to one: what stands in each cell, and in which colours."""

from __future__ import annotations

import re
from typing import NamedTuple, Union

from tracer.formatting import width

Colour = Union[int, tuple[int, int, int]]
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
SIXTEEN = [
    *[(0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229)],
    *[(127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255), (255, 0, 255), (0, 255, 255), WHITE],
]
"""xterm's own."""
TOKEN = re.compile(r"\x1b\[([\d;?<>=$]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[()].|\x1b[^\[\]]|(.)", re.DOTALL)


class Style(NamedTuple):
    """None: the terminal's own colour."""

    text: Colour | None = None
    behind: Colour | None = None
    is_bold: bool = False
    is_dim: bool = False
    is_reversed: bool = False


class Screen:
    """The cells that were written to, by line and column, both from 0."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], tuple[str, Style]] = {}
        self._line = self._column = 0
        self._style = Style()

    def feed(self, written: str) -> None:
        for found in TOKEN.finditer(written):
            numbers, command, character = found.groups()
            if command == "m":
                self._style = _styled(self._style, [int(number or 0) for number in numbers.split(";")])
            elif command == "H":
                line, _, column = numbers.partition(";")
                self._line, self._column = int(line or 1) - 1, int(column or 1) - 1
            elif character == "\r":
                self._column = 0
            elif character == "\n":
                self._line += 1
            elif character and character.isprintable():
                self.cells[self._line, self._column] = character, self._style
                if width(character) == 2:
                    self.cells.pop((self._line, self._column + 1), None)
                self._column += width(character)

    def lines(self) -> list[str]:
        last = max((line for line, _ in self.cells), default=-1)
        return [
            "".join(text for (at, _), (text, _) in sorted(self.cells.items()) if at == line) for line in range(last + 1)
        ]


def _styled(style: Style, numbers: list[int]) -> Style:
    rest = iter(numbers)
    for number in rest:
        if number == 0:
            style = Style()
        elif number in (1, 2, 7):
            style = style._replace(**{{1: "is_bold", 2: "is_dim", 7: "is_reversed"}[number]: True})
        elif number in (38, 48):
            field = "text" if number == 38 else "behind"
            colour: Colour = next(rest) if next(rest) == 5 else (next(rest), next(rest), next(rest))
            style = style._replace(**{field: colour})
        elif number in (39, 49):
            style = style._replace(**{"text" if number == 39 else "behind": None})
        elif number // 10 in (3, 9):
            style = style._replace(text=number % 10 + 8 * (number > 40))
        elif number // 10 in (4, 10):
            style = style._replace(behind=number % 10 + 8 * (number > 50))
    return style


def contrast(style: Style, is_light: bool) -> float:
    """The ratio of WCAG 2.1, from 1 to 21, on a terminal that is black on white, or white on black."""
    text = _rgb(style.text, BLACK if is_light else WHITE)
    behind = _rgb(style.behind, WHITE if is_light else BLACK)
    if style.is_reversed:
        text, behind = behind, text
    if style.is_dim:
        text = tuple((one + other) // 2 for one, other in zip(text, behind))
    darker, lighter = sorted([_luminance(text), _luminance(behind)])
    return (lighter + 0.05) / (darker + 0.05)


def _rgb(colour: Colour | None, own: tuple[int, ...]) -> tuple[int, ...]:
    if colour is None:
        return own
    if isinstance(colour, tuple):
        return colour
    if colour < 16:
        return SIXTEEN[colour]
    if colour >= 232:
        return (8 + 10 * (colour - 232),) * 3
    steps = (0, 95, 135, 175, 215, 255)
    cube = colour - 16
    return steps[cube // 36], steps[cube // 6 % 6], steps[cube % 6]


def _luminance(colour: tuple[int, ...]) -> float:
    linear = [part / 3294.6 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))

"""Paired rounds: every variant once a round, each time in another order, compared within the round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

ROUNDS = 9


class Spread(NamedTuple):
    """The median, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def run_rounds(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each variant measured, round by round."""
    names = list(variants)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            measured[name].append(variants[name]())
    return measured


def print_table(title: str, unit: str, measured: Mapping[str, Sequence[float]], goals: Mapping[str, str]) -> None:
    """One row a variant; ratios are to the first one, of the same round."""
    base = next(iter(measured.values()))
    print(f"\n{title}; {len(base)} rounds, median [quartiles]")
    print(f"  {'':<40}{unit:>22}{'ratio':>22}  goal")
    for name, values in measured.items():
        low, median, high = Spread.of(values)
        figures = f"{median:.3g} [{low:.3g} {high:.3g}]" if high < 100 else f"{median:.0f} [{low:.0f} {high:.0f}]"
        ratio = ""
        if values is not base:
            low, median, high = Spread.of([value / other for value, other in zip(values, base)])
            ratio = f"{median:.2f} [{low:.2f} {high:.2f}]"
        print(f"  {name:<40}{figures:>22}{ratio:>22}  {goals.get(name, '')}".rstrip())

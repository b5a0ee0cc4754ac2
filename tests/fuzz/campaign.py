"""Many inputs of one fuzzer: how they ended, and those that did not end well, kept."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import re
import time
import warnings
from collections import Counter
from pathlib import Path
from unittest import SkipTest

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.errors import Flaky, HypothesisWarning

from tests.fuzz import harness
from tests.fuzz.harness import HANG, Ended, Fuzzer, Given

SEEDS = Path(__file__).parent / "seeds"
SMALLER = 100  # inputs that are tried for a smaller one than the first that did not end well
MAX_HANGS = 3  # each takes as long as hundreds that end well


def told(failures: dict[str, Path]) -> list[str]:
    """What did not end well, with the command that runs it again."""
    return [f"{what}\n    ./bootstrap fuzz --again {path}" for what, path in failures.items()]


class _NotWellError(Exception):
    """Tells hypothesis to look for a smaller input that raises it."""


class Campaign:
    """Of one fuzzer."""

    def __init__(self, fuzzer: Fuzzer, kept: Path) -> None:
        """kept: the directory for the inputs that do not end well, made for the first of them."""
        self._fuzzer = fuzzer
        self._kept = kept
        self.ended: Counter[str] = Counter()
        """how many inputs, by how"""
        self.failures: dict[str, Path] = {}
        """by what was not well, the smallest input that shows it"""
        self.peak_bytes = 0
        self.slowest_s = 0.0
        self._until_s = math.inf
        fuzzer.warm()
        gc.freeze()  # or each child would copy all that its collector looks at

    @property
    def tried(self) -> int:
        return sum(self.ended.values())

    @property
    def over(self) -> bool:
        """There is no more time, or hangs are all that it would be spent on."""
        return time.monotonic() > self._until_s or self.ended[HANG] >= MAX_HANGS

    def again(self) -> None:
        """The inputs in the repository, which once did not end well."""
        for path in sorted((SEEDS / self._fuzzer.name).glob("*.json")):
            given = json.loads(path.read_text())["input"]
            ended = self._one(given)
            if not ended.well:
                self._keep(given, ended)

    def random(self, seed: str, examples: int, until_s: float = math.inf) -> None:
        """So many inputs, the same of the same seed; and more where one does not end well, for a smaller one.

        until_s: of time.monotonic(), when this is over all the same.
        """
        self._until_s = until_s
        last = self.tried + examples
        for part in range(examples):
            if self.tried >= last or self.over:
                break
            self._part(f"{self._fuzzer.name} {seed} {part}", last - self.tried)

    def _part(self, seed: str, examples: int) -> None:
        """Up to the first that does not end well in a way not seen before, and the smallest that was found for it."""
        looking, tried = "", 0
        shown: set[str] = set()  # inputs that show what is looked for, as JSON: the last of them hypothesis runs again

        def each(given: Given) -> None:
            nonlocal looking, tried
            if self.over:
                raise SkipTest
            text = json.dumps(given)
            if tried < SMALLER and text not in shown:
                ended = harness.run(self._fuzzer, given) if looking else self._one(given)
                tried += bool(looking)
                what = f"{ended.how}: {ended.what}"
                if not ended.well and (what == looking if looking else what not in self.failures):
                    if not shown or len(text) <= min(map(len, shown)):
                        self._keep(given, ended)
                    looking = what
                    shown.add(text)
                if ended.how == HANG:  # smaller ones would take as long
                    tried = SMALLER
            if text in shown:
                raise _NotWellError

        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
        settings = hypothesis.settings(
            max_examples=examples,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )
        with warnings.catch_warnings(), contextlib.suppress(_NotWellError, SkipTest, Flaky):  # it may be well now
            warnings.simplefilter("ignore", HypothesisWarning)  # inputs may be large
            hypothesis.seed(number)(settings(hypothesis.given(self._fuzzer.inputs)(each)))()

    def _one(self, given: Given) -> Ended:
        ended = harness.run(self._fuzzer, given)
        self.ended[ended.how] += 1
        self.peak_bytes = max(self.peak_bytes, ended.peak_bytes)
        self.slowest_s = max(self.slowest_s, ended.seconds)
        return ended

    def _keep(self, given: Given, ended: Ended) -> None:
        what = f"{ended.how}: {ended.what}"
        self._kept.mkdir(parents=True, exist_ok=True)
        path = self._kept / f"{re.sub(r'[^a-zA-Z0-9]+', '_', f'{self._fuzzer.name} {what}')[:100]}.json"
        head = {"fuzzer": self._fuzzer.name, "ended": what, "detail": ended.detail.splitlines()}
        path.write_text(json.dumps({**head, "input": given}, indent=1))
        self.failures[what] = path

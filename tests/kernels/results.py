"""What the tests came to under each kernel: pytest's own record, added up into a table."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

TIERS = ("kprobe", "fentry", "faults")
NO_TIER = "-"
COLUMNS = (("kprobe", "exact by kprobe"), ("fentry", "exact by fentry"), ("faults", "faults"))
UNSEEN_PAGES, EXPECTED_SKIP = "unseen_pages", "expected_skip"  # properties of a test
GUEST = "guest"  # in place of a tier: what is wrong with the guest, not with a test in it
MESSAGE_LENGTH = 200


class Case(NamedTuple):
    """A test that has run, or was skipped."""

    name: str
    tier: str
    outcome: str
    """passed, failed or skipped"""
    message: str
    """why it failed or was skipped"""
    unseen_pages: int | None
    seconds: float
    expected_skip: str = ""
    """A reason to skip it that tests/skips.py expects there, where it ran all the same."""


class Result(NamedTuple):
    subject: tuple[str, ...]
    """What was tested, a name for each of the table's first columns."""
    cases: list[Case]
    complaints: list[str]
    """Of the guest itself."""
    seconds: float

    @property
    def failed(self) -> bool:
        return bool(self.complaints or failed(self.cases))


class Row(NamedTuple):
    subject: tuple[str, ...]
    tier: str
    passed: int
    failed: int
    skipped: int
    unseen_pages: int | None
    """None where no test says."""
    seconds: float


def tier_of(name: str) -> str:
    """The first parameter in a test's name, if it is a tier."""
    first = name.partition("[")[2].rstrip("]").partition("-")[0]
    return first if first in TIERS else NO_TIER


def read_cases(junit: str) -> list[Case]:
    cases = []
    for element in ElementTree.fromstring(junit).iter("testcase"):  # noqa: S314 # pytest has written it
        name, outcome, message = element.attrib["name"], "passed", ""
        for child in element:
            if child.tag in ("failure", "error"):
                outcome, message = "failed", child.attrib.get("message", "")
            elif child.tag == "skipped":
                outcome, message = "skipped", child.attrib.get("message", "")
        notes = {note.attrib["name"]: note.attrib["value"] for note in element.iter("property")}
        unseen_pages = int(notes[UNSEEN_PAGES]) if UNSEEN_PAGES in notes else None
        full_name = f"{element.attrib['classname'].rpartition('.')[2]}::{name}"
        seconds = float(element.attrib["time"])
        expected_skip = notes.get(EXPECTED_SKIP, "")
        cases.append(Case(full_name, tier_of(name), outcome, message, unseen_pages, seconds, expected_skip))
    return cases


def add_up(result: Result) -> list[Row]:
    """A row for each tier that was tested, and one for the guest if it failed."""
    rows = []
    for tier in (*TIERS, NO_TIER):
        cases = [case for case in result.cases if case.tier == tier]
        unseen = [case.unseen_pages for case in cases if case.unseen_pages is not None]
        counts = Counter(case.outcome for case in cases)
        if cases:
            rows.append(
                Row(
                    result.subject,
                    tier,
                    counts["passed"],
                    counts["failed"],
                    counts["skipped"],
                    sum(unseen) if unseen else None,
                    sum(case.seconds for case in cases),
                )
            )
    if result.complaints:
        rows.append(Row(result.subject, GUEST, 0, len(result.complaints), 0, None, result.seconds))
    return rows


def first_line(message: str) -> str:
    line = message.strip().partition("\n")[0]
    return line if len(line) <= MESSAGE_LENGTH else line[: MESSAGE_LENGTH - 1] + "…"


def failed(cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.outcome == "failed"]


def describe(case: Case) -> str:
    return f"{case.name}: {first_line(case.message)}"


def failures(result: Result) -> list[str]:
    """A line for each."""
    lines = [*map(first_line, result.complaints), *map(describe, failed(result.cases))]
    return [f"{' '.join(result.subject)}: {line}" for line in lines]


def reasons(results: Iterable[Result], reason_of: Callable[[Case], str]) -> list[str]:
    """A line for each, with how many tests have it, and where."""
    where: dict[str, Counter[str]] = {}
    for result in results:
        for case in result.cases:
            if reason := first_line(reason_of(case)):
                place = " ".join((*result.subject, *([case.tier] if case.tier != NO_TIER else [])))
                where.setdefault(reason, Counter())[place] += 1
    return [
        f"{reason} ({', '.join(f'{place}: {count}' for place, count in places.items())})"
        for reason, places in where.items()
    ]


def meant(kernel: str) -> str:
    """The kernel that one stands in for, or itself."""
    return kernel.rpartition("(for ")[2].rstrip(")")


def found(results: Iterable[Result], before: str, kept: Collection[str]) -> str:
    """JSON: by kernel and tier, how many tests passed and failed, and how many pages were unseen.

    before: the same as it was; of these kernels it is kept.
    """
    rows = {name: row for name, row in json.loads(before).items() if meant(name.rsplit(" ", 1)[0]) in kept}
    rows |= {
        f"{' '.join(row.subject)} {row.tier}": [row.passed, row.failed, row.unseen_pages]
        for result in results
        for row in add_up(result)
    }
    return json.dumps(rows, indent=1) + "\n"


def markdown(record: str) -> str:
    """The table in docs/tiers-and-limits.md, of what found() wrote."""
    rows: dict[str, dict[str, str]] = {}
    for name, (passed, failures, unseen_pages) in json.loads(record).items():
        kernel, tier = name.rsplit(" ", 1)
        text = f"{passed} passed, {unseen_pages} pages unseen" if passed or failures else "the kernel has none"
        rows.setdefault(kernel, {})[tier] = f"{failures} failed, {text}" if failures else text
    head = ["kernel", *(title for _, title in COLUMNS)]
    lines = [head, ["---"] * len(head)]
    lines += [[kernel, *(tiers.get(tier, "not run") for tier, _ in COLUMNS)] for kernel, tiers in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(heads: Sequence[str], results: Sequence[Result]) -> str:
    """Names to the left, numbers to the right; below, why tests were skipped, and what failed."""
    lines = [(*heads, "tier", "passed", "failed", "skipped", "unseen pages", "seconds")]
    for row in (row for result in results for row in add_up(result)):
        unseen = "-" if row.unseen_pages is None else str(row.unseen_pages)
        counts = map(str, (row.passed, row.failed, row.skipped))
        lines.append((*row.subject, row.tier, *counts, unseen, f"{row.seconds:.0f}"))
    widths = [max(map(len, column)) for column in zip(*lines)]
    names = len(heads) + 1
    text = [
        "  ".join(
            cell.ljust(width) if number < names else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    ]
    for title, notes in (
        ("skipped:", reasons(results, lambda case: case.message if case.outcome == "skipped" else "")),
        ("no longer skipped, see tests/skips.py:", reasons(results, lambda case: case.expected_skip)),
        ("failed:", [line for result in results for line in failures(result)]),
    ):
        if notes:
            text += ["", title, *(f"  {note}" for note in notes)]
    return "\n".join(text)

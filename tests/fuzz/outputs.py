"""What must be true of whatever shmtrace prints, whosever names are in it.

What is wrong is the first line of a message, and the same for all inputs that it is wrong for.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from typing import Any
from xml.etree import ElementTree

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # what moves the cursor, hides, reorders or begins a line
FORMULA = re.compile(r"[=+@\t\r-]")
NEGATIVE = {
    "grown_bytes",
    "private_grown_bytes",
    "private_peak_grown_bytes",
    "allocated_change_bytes",
    "touched_change_bytes",
}
OVERDRAWN = "more pages were counted than are allocated"
"""Changes may be less than nothing; sizes and counts may not."""


def terminal(text: str) -> None:
    """No character but a newline does anything."""
    hidden = {c for c in set(text) - {"\n"} if unicodedata.category(c) in HIDDEN}
    assert not hidden, f"what hides or moves is printed\n{hidden}"


def document(text: str) -> Any:
    """JSON as its standard has it, with no character that a terminal or a browser takes for a command."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert text.isascii(), "JSON is not ASCII"
    return json.loads(text, parse_constant=refuse)


def cells(text: str) -> list[list[str]]:
    """CSV: as many cells in each row as in its heading, and none that a spreadsheet would run."""
    terminal(text.replace("\r\n", "\n"))
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert rows, "no heading"
    assert {len(row) for row in rows} == {len(rows[0])}, "rows of different lengths"
    run = [cell for row in rows for cell in row if FORMULA.match(cell) and not re.fullmatch(r"-?\d+", cell)]
    assert not run, f"a spreadsheet would run it\n{run}"
    return rows


def cell(text: str) -> str:
    """How a text stands in CSV: what is hidden as its code, and an apostrophe before what would be a formula."""
    shown = (f"\\x{ord(c):02x}" if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c for c in text)
    return "'" * bool(re.match(r"[=+@'\t\r-]", text)) + "".join(shown)


def folded(text: str) -> int:
    """A line a stack, with one count; their sum."""
    terminal(text)
    total = 0
    for line in text.splitlines():
        frames, _, count = line.rpartition(" ")
        assert re.fullmatch(r"\d+", count), f"no count\n{line!r}"
        assert frames, f"no frame\n{line!r}"
        assert all(frames.split(";")), f"an empty frame\n{line!r}"
        total += int(count)
    return total


def page(text: str) -> None:
    """HTML that loads nothing, and in which names are data: no more scripts than the page's own."""
    hidden = {c for c in set(text) - {"\n", "\t"} if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    assert not hidden, f"what hides or moves is in the page\n{hidden}"
    assert "alert(1)</script>" not in text, "a name has become a script"
    assert len(re.findall(r"(?i)<script", text)) == len(re.findall(r"(?i)</script", text)), "scripts do not end"


def flame_graph(text: str) -> None:
    """SVG that loads nothing, in which names are texts: one script, the program's own."""
    terminal(text)
    elements = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()]  # noqa: S314
    assert set(elements) == {"svg", "style", "rect", "text", "title", "script"}, "a name has become an element"
    assert elements.count("script") == 1, "a name has become a script"


def compressed(text: str) -> None:
    """Bytes that gzip wrote, read as if they were text."""
    assert text.startswith("\x1f\\x8b\x08"), "not of gzip"


def balance(report: Any) -> None:
    """Of report --json: every page is of somebody, and nothing is less than nothing."""
    for region in report["regions"]:
        touched = sum(toucher["touched_bytes"] for toucher in region["touchers"])
        parts = touched + region["other_times_bytes"] + region["before_bytes"] + region["unseen_bytes"]
        assert region["allocated_bytes"] == parts, f"it does not balance\n{region}"
        charged = sum(share["bytes"] for share in region["charged"])
        assert region["allocated_bytes"] == charged, f"not all is charged, or more\n{region}"
    ids = [region["id"] for region in report["regions"]]
    assert sorted(ids) == sorted(each for parent in report["parents"] for each in parent["regions"])
    if not any(OVERDRAWN in warning for warning in report["warnings"]):
        nothing_negative(report, "")


def nothing_negative(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            nothing_negative(item, key)
    elif isinstance(value, list):
        for item in value:
            nothing_negative(item, name)
    elif isinstance(value, (int, float)) and name not in NEGATIVE:
        assert value >= 0, f"{name} is less than nothing\n{value}"

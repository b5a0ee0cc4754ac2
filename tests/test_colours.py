"""Colour is for terminals only, changes no character of a report, and what strangers name themselves gets none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.terminal import on_terminal
from tests.test_views import HOSTILE
from tracer import formatting
from tracer.views import report as reports

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))
REPORTS = [path for path in GOLDEN if re.search("^balance ", path.read_text(), re.MULTILINE)]
PROGRAM = """
import sys
from tests.test_views import account, make_region, process, toucher, Parent
from tracer.cli import output
region = make_region(1047, toucher(process(812), 23), before=7, unseen=5)
output.report(account(Parent(process(811, "php-fpm: master"), [region])), as_json="--json" in sys.argv)
"""


def bare(painted: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", painted)


def painted_lines(report: str, colour: str) -> list[str]:
    return [bare(line) for line in reports.paint(report).split("\n") if line.startswith(colour)]


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_a_report_is_the_same_without(path: Path) -> None:
    report = path.read_text()
    assert bare(reports.paint(report)) == report


@pytest.mark.parametrize("path", REPORTS, ids=[path.stem for path in REPORTS])
def test_processes_with_regions_are_bold(path: Path) -> None:
    """They stand at the left and before the footer, which an empty line precedes."""
    report = path.read_text()
    headings = [
        block.split("\n")[0] for block in report.split("\n\n") if block.startswith(block.lstrip()) and "\n  " in block
    ]
    assert painted_lines(report, reports.BOLD) == [line for line in headings if not line.startswith("ps would")]


def test_what_is_to_be_seen_is_yellow() -> None:
    lines = [
        "            20.0 KiB   14%      23 unseen",
        "               512 B   14% unseen",
        "           -20.0 KiB  -14%         unseen",
        "                 0 B    0%         unseen",
        "        812 20.0 KiB   14%      23 unseen",
        "warning: something was lost",
        "unseen may be write(2);",
        "  or huge pages",
        "private memory at most 0 B, -15.6 MiB, peak 207 MiB; pages shared by forks count",
        "  for each",
    ]
    assert painted_lines("\n".join(lines), reports.YELLOW) == [*lines[:3], lines[5]]
    assert painted_lines("\n".join(lines), reports.BOLD) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers(name: str) -> None:
    report = f"{formatting.printable(name)} 811\n  {formatting.printable(name)}  anon"
    assert bare(reports.paint(report)) == report


def seen(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> str:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    with on_terminal([sys.executable, "-c", PROGRAM, *arguments]) as terminal:
        assert terminal.finish() == 0
    assert "23" in terminal.seen or "92.0K" in terminal.seen
    return terminal.seen


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports.BOLD in seen(monkeypatch)
    assert "\x1b" not in seen(monkeypatch, NO_COLOR="1")
    assert "\x1b" not in seen(monkeypatch, TERM="dumb")
    assert "\x1b" not in seen(monkeypatch, "--json")
    assert reports.BOLD in seen(monkeypatch, NO_COLOR="")


def test_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    output = subprocess.check_output([sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[1])
    assert b"\x1b" not in output
    assert b"unseen" in output

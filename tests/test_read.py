"""shmtrace read, as far as it goes without root: its arguments, and the bar."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from tests.test_cli import fail
from tracer import cli
from tracer.cli import options, output
from tracer.kernel import host

PARAMETER = cli.main.commands["read"].params[0]
CONTEXT = click.Context(cli.main.commands["read"])
PAGE_BYTES = 4096


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("0-1", 0, 1),
        ("5-4099", 5, 4099),
        ("4K-20K", 4 << 10, 20 << 10),
        ("4k-1m", 4 << 10, 1 << 20),
        ("0-2G", 0, 2 << 30),
        ("1T-2T", 1 << 40, 2 << 40),
        ("0x1000-0x5000", 0x1000, 0x5000),
        ("0X1f-4K", 0x1F, 4 << 10),
        ("p23-p30", 23 * PAGE_BYTES, 30 * PAGE_BYTES),
        ("P0-p1", 0, PAGE_BYTES),
    ],
)
def test_ranges(text: str, start: int, end: int) -> None:
    assert options.byte_range(CONTEXT, PARAMETER, text) == (start, end)


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "5", "5-", "-5", "5-5", "6-5", "1-2-3", "a-b", "1.5K-2K", "4KB-8KB", "4Q-8Q", "0x-0x5", "x1-x5"),
        *(
            "p1-5",
            "1-p5",
            "p1-p1",
            "p-p5",
            "p4K-p8K",
            "p0x1-p0x5",
            "pp1-pp5",
            " 1-5",
            "1 -5",
            "\u0663-\u0665",
            "²-³",
            "1_0-2_0",
        ),
        *("0-9223372036854775808", "0-" + "9" * 5000, "p0-p9223372036854775807", "\x1b[2J-5", "1-5\n"),
    ],
)
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(
        click.BadParameter, match=r"is not a range: write 4K-20K, 0x1000-0x5000 or, in pages, p1-p5$"
    ) as error:
        options.byte_range(CONTEXT, PARAMETER, text)
    assert error.value.message.isprintable()
    assert len(error.value.message) < 200


def test_arguments_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "missing_capabilities", lambda bpf: [])
    more = ": `shmtrace read --help` says more"
    assert fail("read") == (2, f"Missing argument 'REGION'{more}")
    assert fail("read", "x", "--hex", "--strings") == (
        2,
        f"--hex and --strings exclude each other: give one of them{more}",
    )
    assert fail("read", "x", "--range", "9-1")[0] == 2
    gone = "there is no process 999999999: `shmtrace snapshot` lists processes with regions"
    assert fail("read", "999999999:7f1000000000") == (1, gone)


def test_without_the_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "missing_capabilities", lambda bpf: ["CAP_SYS_ADMIN"])
    status, line = fail("read", "x", "-o", str(tmp_path / "dump"))
    assert status == 1
    assert line.startswith("this process lacks CAP_SYS_ADMIN: ")
    assert not list(tmp_path.iterdir())


# ---- the bar ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Whose clock goes on by 0.4 s whenever it is asked."""
    clock = iter(number * 0.4 for number in range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    shown = Terminal()
    monkeypatch.setattr(output, "sys", SimpleNamespace(stderr=shown))
    return shown


def test_a_bar_comes_after_a_second_and_goes_to_the_end(terminal: Terminal) -> None:
    items = output.watched([23, 7, 41, 29], lambda item: item, 100)
    assert [next(items), next(items), next(items)] == [23, 7, 41]
    assert terminal.getvalue() == ""
    assert next(items) == 29
    assert "71%" in terminal.getvalue()
    assert list(items) == []
    assert "100%" in terminal.getvalue()


def test_no_bar_for_what_is_quick(terminal: Terminal) -> None:
    assert list(output.watched([50, 50], lambda item: item, 100)) == [50, 50]
    assert terminal.getvalue() == ""


def test_no_bar_where_none_is_wanted(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(output.watched([10] * 10, lambda item: item, 100, shown=False)) == [10] * 10
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    assert list(output.watched([10] * 10, lambda item: item, 100)) == [10] * 10
    assert terminal.getvalue() == ""

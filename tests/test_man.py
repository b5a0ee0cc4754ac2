"""The man page is what the commands say of themselves, and roff that man takes without a warning.

`python3 man/generate.py` writes it anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from man.generate import PAGE, paragraphs, render, roff
from tracer import cli

SECTIONS = [
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "EXAMPLES",
    "COMMANDS",
    "EXIT STATUS",
    "ENVIRONMENT",
    "FILES",
    "SEE ALSO",
]


def shown() -> str:
    """The page as man shows it, on lines as long as they need."""
    environment = {**os.environ, "MANWIDTH": "500", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"}
    command = ["man", "--warnings", "-E", "ascii", "-P", "cat", "-l", str(PAGE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout


def test_it_is_current() -> None:
    assert PAGE.read_text() == render(), "write it anew with `python3 man/generate.py`"


def test_it_has_every_section_command_and_option() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^\.SH (.*)$", page, re.MULTILINE) == SECTIONS
    assert re.findall(r"^\.SS shmtrace (.*)$", page, re.MULTILINE) == list(cli.main.commands)
    for command in cli.main.commands.values():
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert roff(option) in page


@pytest.mark.skipif(not shutil.which("man"), reason="man is not installed")
def test_man_shows_it() -> None:
    text = shown()
    for line in (
        "shmtrace - who grew the shared memory",
        "shmtrace read [OPTIONS] REGION",
        "shmtrace -p nginx -p php-fpm -d 60  two process trees, one minute",
        "-p, --process NAME|PID|PIDFILE|TMPFS",
    ):
        assert f" {line}\n" in text


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_mandoc_takes_it() -> None:
    done = subprocess.run(["mandoc", "-Tlint", "-W", "warning", str(PAGE)], capture_output=True, text=True)
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]  # the version says enough
    assert not complaints


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("-p \\b `x-y`", "\\-p \\eb \\fBx\\-y\\fR"),
        (".begins", "\\&.begins"),
        ("'begins", "\\&'begins"),
        ("…", "\\[u2026]"),
    ],
)
def test_text_is_no_roff(text: str, line: str) -> None:
    assert roff(text) == line


def test_what_is_to_be_left_as_it_is() -> None:
    text = "One\nline.\n\n\b\na  b\n.c\n\nLast."
    assert list(paragraphs(text)) == ["One", "line.", ".PP", ".EX", "a  b", "\\&.c", ".EE", ".PP", "Last."]

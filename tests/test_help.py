"""What --help says, of all commands alike: what it is for, examples, and options that mean the same everywhere."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator

import click
import pytest

from tracer import cli

COMMANDS = {name: command for name, command in cli.main.commands.items() if not command.hidden}
EVERYWHERE = {"-p": "--process", "-a": "--all", "-o": "--output", "-d": "--duration", "-i": "--interval"}
"""Short options have one long form, whatever the command."""


def examples(command: click.Command) -> list[str]:
    """The lines that are left as they are."""
    return [
        line
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n")
        if paragraph.startswith("\b")
        for line in paragraph.splitlines()[1:]
    ]


def options(name: str) -> Iterator[click.Option]:
    return (parameter for parameter in COMMANDS[name].params if isinstance(parameter, click.Option))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_is_for_and_shows_how(name: str) -> None:
    assert (COMMANDS[name].help or "").partition("\n\n")[0].endswith(".")
    shown = examples(COMMANDS[name])
    assert shown
    alike = ("shmtrace ", 'eval "$(shmtrace ', "sqlite3 ")
    assert all(line.startswith(alike) for line in shown)
    assert any(f"shmtrace {name}" in line for line in shown) or name == "trace"


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_of_options_there_are(name: str) -> None:
    """Up to where what it is for begins, two blanks on."""
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--"}
    for line in examples(COMMANDS[name]):
        words = shlex.split(line.split("  ")[0])
        mine = words[: words.index("--") + 1] if "--" in words else words
        for other in ("&&", "|"):
            mine = mine[: mine.index(other)] if other in mine else mine
        assert {word for word in mine if word.startswith("-")} <= known, line


def test_an_option_means_the_same_everywhere() -> None:
    """Of a capture -p takes no pidfile and no tmpfs, which are of the host."""
    seen: dict[str, tuple[str, tuple[object, ...]]] = {}
    for name in COMMANDS:
        for option in options(name):
            metavar = "NAME|PID" if option.metavar and option.metavar.startswith("NAME|PID|") else option.metavar
            kind = (option.opts[-1], option.is_flag, option.multiple, metavar)
            for word in option.opts:
                other, before = seen.setdefault(word, (name, kind))
                assert before == kind, f"{word} of {name} is not that of {other}"


def test_short_options_are_the_same_everywhere() -> None:
    for name in COMMANDS:
        for option in options(name):
            assert option.help, f"{option.opts} of {name}"
            if option.opts[0] in EVERYWHERE:
                assert option.opts == [option.opts[0], EVERYWHERE[option.opts[0]]]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_a_whole_sentence_for_each(name: str) -> None:
    line = f"  {name:{max(map(len, COMMANDS))}}  {COMMANDS[name].get_short_help_str()}"
    assert line.endswith(".")
    assert not line.endswith("...")
    assert len(line) <= 78  # of 80, as click has it

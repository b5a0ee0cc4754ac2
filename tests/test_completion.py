"""Completion, by click's own scripts: what each shell is told, and what it makes of that where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem
from click.testing import CliRunner

from tracer import cli
from tracer.cli import options
from tracer.proc.procfs import Proc

CHECKOUT = Path(__file__).parent.parent
SHELLS = ["bash", "zsh", "fish"]


@pytest.fixture
def _processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a host that has some, and some of strangers."""
    names = [
        "php-fpm8.2",
        "php-fpm8.2",
        "postgres",
        "a b",
        "x\n$(id)",
        "`id`",
        "-rf",
        "c++",
        "(sd-pam)",
        "\x1b[2J",
        "php:",
    ]
    for tgid, name in enumerate([*names, "kworker"], 100):
        folder = tmp_path / str(tgid)
        folder.mkdir()
        (folder / "stat").write_bytes(f"{tgid} ({name}) S 1 ".encode() + b"0 " * 17 + b"7 0\n")
        (folder / "cmdline").write_bytes(b"" if name == "kworker" else b"/usr/sbin/x\0")
    monkeypatch.setattr(options, "Proc", lambda: Proc(str(tmp_path)))


def answer(*words: str, told: str = "bash") -> list[str]:
    """What the shell's function is told of the last word."""
    environment = {"_SHMTRACE_COMPLETE": f"{told}_complete", "COMP_WORDS": " ".join(words)}
    environment["COMP_CWORD"] = str(len(words) - 1) if told != "fish" else words[-1]
    result = CliRunner().invoke(cli.main, [], prog_name="shmtrace", env=environment)
    assert not result.exception or isinstance(result.exception, SystemExit)
    return [line for line in result.output.splitlines() if line]


def values(*words: str) -> list[str]:
    return [line.partition(",")[2] for line in answer(*words)]


@pytest.mark.usefixtures("_processes")
@pytest.mark.parametrize(
    "before", [["shmtrace", "-p"], ["shmtrace", "snapshot", "-p"], ["shmtrace", "read", "--process"]]
)
def test_names_of_processes(before: list[str]) -> None:
    assert values(*before, "ph") == ["php-fpm8.2"]
    assert values(*before, "") == ["php-fpm8.2", "postgres"]
    assert values(*before, "nothing") == []
    assert answer(*before, "/run/php/f") == ["file,/run/php/f"]


@pytest.mark.usefixtures("_processes")
def test_names_reach_every_shell() -> None:
    assert answer("shmtrace", "-p", "ph", told="zsh") == ["plain", "php-fpm8.2", "_"]
    assert answer("shmtrace", "-p", "ph", told="fish") == ["plain,php-fpm8.2"]


def test_commands_and_options() -> None:
    assert set(values("shmtrace", "")) == set(cli.main.commands)
    assert values("shmtrace", "sn") == ["snapshot"]
    assert values("shmtrace", "read", "--h") == ["--hex", "--help"]
    assert values("shmtrace", "completion", "z") == ["zsh"]
    assert answer("shmtrace", "read", "x", "-o", "du") == ["file,du"]


def test_it_is_quick() -> None:
    began = time.monotonic()
    found = options.process_names(None, None, "")  # type: ignore[arg-type]
    assert all(isinstance(item, CompletionItem) for item in found)
    assert time.monotonic() - began < 2.0  # 20 ms for 500 processes


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts(shell: str) -> None:
    result = CliRunner().invoke(cli.main, ["completion", shell], prog_name="shmtrace")
    assert result.exit_code == 0
    assert f"_SHMTRACE_COMPLETE={shell}_complete" in result.output
    if program := shutil.which(shell):
        check = ["--no-execute"] if shell == "fish" else ["-n"]
        subprocess.run([program, *check], input=result.output, text=True, check=True)


def test_no_such_shell() -> None:
    result = CliRunner().invoke(cli.main, ["completion", "csh"], prog_name="shmtrace")
    assert result.exit_code == 2
    assert "'csh' is not one of 'bash', 'zsh', 'fish'" in result.output


ASK = {
    "bash": """
        eval "$(shmtrace completion bash)"
        complete -p shmtrace >/dev/null || exit
        COMP_WORDS=(shmtrace sna) COMP_CWORD=1
        _shmtrace_completion shmtrace
        echo "${COMPREPLY[@]}"
    """,
    "zsh": """
        autoload -Uz compinit && compinit -u -d $TMPDIR/dump
        eval "$(shmtrace completion zsh)"
        _describe() { print -rl -- ${(P)3} }
        words=(shmtrace sna) CURRENT=2
        _shmtrace_completion
    """,
    "fish": """
        shmtrace completion fish | source
        complete --do-complete "shmtrace sna"
    """,
}


@pytest.mark.parametrize("shell", SHELLS)
def test_in_the_shell_itself(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if not program:
        pytest.skip(f"{shell} is not installed")
    shmtrace = tmp_path / "shmtrace"
    shmtrace.write_text(f"#!{sys.executable}\nfrom tracer.cli import main\nmain(prog_name='shmtrace')\n")
    shmtrace.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT), "HOME": str(tmp_path)}
    environment["TMPDIR"] = str(tmp_path)
    done = subprocess.run([program, "-c", ASK[shell]], env=environment, capture_output=True, text=True, timeout=60)
    assert re.split(r"[\s:]", done.stdout)[0] == "snapshot", done

"""README.md and docs/ are true: every command in them runs or parses, every output is what comes, every file is there.

A block of ```console holds `$ command` lines, which may go on in `> ` lines, and their output. They are run by a shell
where the captures of tests/captures lie; SHMTRACE_REFRESH_GOLDEN=1 writes what comes into the documents. Those of
```console live trace a php-fpm, and are compared but for their numbers. The lines of ```sh have to parse.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import fleets, recorded
from tests.captures import NAMES, load
from tests.kernels.matrix import FOUND
from tests.kernels.results import markdown
from tests.live.fpm import running_fpm, script_names
from tests.test_layers import ROAD
from tracer.cli import main

CHECKOUT = Path(__file__).parents[1]
README, TIERS = CHECKOUT / "README.md", CHECKOUT / "docs/tiers-and-limits.md"
USERS = [README, *sorted((CHECKOUT / "docs").rglob("*.md"))]
ALL = [*USERS, CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "SECURITY.md"]
REFRESH = os.environ.get("SHMTRACE_REFRESH_GOLDEN") == "1"

CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
LIVE = re.compile(r"(?<=^```console live\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
SH = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*\n(?:> .*\n)*)", re.MULTILINE)
KERNELS = re.compile(r"(?<=<!-- kernels -->\n\n).*?(?=\n\n<!-- /kernels -->)", re.DOTALL)

SHMTRACE = f'#!/bin/sh\nPYTHONPATH="{CHECKOUT}" exec "{sys.executable}" -m tracer "$@"\n'
SQLITE3 = f"""#!{sys.executable}
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):
    print(*("" if value is None else value for value in row), sep="|")
"""

by_document = pytest.mark.parametrize("document", USERS, ids=lambda path: path.name)
by_any_document = pytest.mark.parametrize("document", ALL, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the captures, shmtrace, and sqlite3 if there is none."""
    folder = tmp_path_factory.mktemp("docs")
    for name in NAMES:
        load(name, folder / f"{name}.capture")
    recorded.with_stacks(folder / "stacks.capture")
    recorded.pool(folder / "monday.capture")
    recorded.pool(folder / "friday.capture", more_pages=40, moved=True)
    recorded.of_host(folder / "host.capture")
    recorded.of_tmpfs(folder / "tmpfs.capture")
    recorded.with_oom(folder / "oom.capture")
    recorded.with_pods(folder / "pods.capture")
    (folder / "hosts").mkdir()
    fleets.make(folder / "hosts", hosts=12, planted=3)
    programs = {"shmtrace": SHMTRACE} if shutil.which("sqlite3") else {"shmtrace": SHMTRACE, "sqlite3": SQLITE3}
    for name, text in programs.items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    return folder


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TZ": "UTC", "COLUMNS": "80", "NO_COLOR": "1"}


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


def rerun(block: str, run: Callable[[str], str]) -> str:
    """A block as it should be."""
    text = ""
    for command in COMMAND.findall(block):
        output = run(command.replace("\n> ", "\n"))
        text += f"$ {command}{output}" + "\n" * bool(output and not output.endswith("\n"))
    return text


def settle(document: Path, old: str, new: str) -> None:
    if REFRESH:
        document.write_text(new)
    else:
        assert old == new


@by_document
def test_what_is_printed_is_what_comes(document: Path, folder: Path) -> None:
    text = document.read_text()
    settle(document, text, CONSOLE.sub(lambda block: rerun(block[0], lambda command: run(command, folder)), text))


def masked(text: str) -> str:
    """But for numbers, how wide they are, and the tier of the host."""
    text = re.sub(r"tier \w+( by \w+)?", "tier T", text)
    text = re.sub(r"[-+]?\d[\d.:]*( [KMGT]?i?B\b)?", "N", text)
    return re.sub(r"[ \t]+", " ", text)


@pytest.mark.bpf
@pytest.mark.needs("php-fpm*")
@pytest.mark.parametrize(
    "document", [path for path in USERS if LIVE.search(path.read_text())], ids=lambda path: path.name
)
def test_what_is_traced_looks_like_that(document: Path, folder: Path) -> None:
    text = document.read_text()
    with running_fpm(400) as fpm:

        def trace(command: str) -> str:
            """Of this php-fpm, not of all that the host may run; it is asked for scripts all the while."""
            done = threading.Event()

            def ask() -> None:
                for name in script_names(400):
                    if done.is_set():
                        break
                    fpm.ask(name)
                    time.sleep(0.01)

            asking = threading.Thread(target=ask)
            asking.start()
            try:
                return run(command.replace("-p php-fpm", f"-p {fpm.tgid}"), folder)
            finally:
                done.set()
                asking.join()

        new = LIVE.sub(lambda block: rerun(block[0], trace), text)
    if masked(text) != masked(new):
        settle(document, masked(text), new if REFRESH else masked(new))


def sh_commands(document: Path) -> Iterator[list[str]]:
    """Each simple command of its ```sh blocks, in words."""
    for line in "".join(SH.findall(document.read_text())).replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        simple: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|()"):
                yield simple
                simple = []
            else:
                simple.append(word)


def parse(words: list[str]) -> None:
    """As shmtrace does before it does anything. Raises click's errors."""
    words = words[: next((place for place, word in enumerate(words) if word in (">", ">>")), len(words))]
    with main.make_context("shmtrace", words, resilient_parsing=False) as context:
        name, command, rest = main.resolve_command(context, [*context.protected_args, *context.args])
        assert command
        command.make_context(name, rest, parent=context).close()


@by_any_document
def test_what_is_not_run_parses(document: Path) -> None:
    own = re.findall(r'^"(\w+) "', (CHECKOUT / "bootstrap").read_text(), re.MULTILINE)
    assert {"test", "pyz", "bench"} <= set(own)
    for words in sh_commands(document):
        if words[:1] == ["shmtrace"] or (words[:1] == ["./bootstrap"] and words[1] not in own):
            parse(words[1:])


def test_the_readme_is_short_and_has_every_command() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 165
    told = {words[1] for words in sh_commands(README) if words[:1] == ["shmtrace"]}
    assert {"schema", *main.commands} - {"trace", "schema"} <= told
    assert {"-p", "--"} <= told


@by_any_document
def test_what_is_linked_and_named_is_there(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []
    files = re.findall(r"\b(?:tracer|bpf|tests|docs|man|pyz|vagrant)/[\w/.-]*\.(?:py|c|h|sql|md|json|sh)\b", text)
    assert [file for file in files if not (CHECKOUT / file).exists()] == []
    for file, function in re.findall(r"`([\w/]+\.(?:py|c|h)):\s+([\w.]+)\(\)`", text):
        *owner, name = function.split(".")
        source = (CHECKOUT / file).read_text()
        assert re.search(rf"\b{name}\(", source), f"{file} has no {name}()"
        assert all(f"class {each}" in source for each in owner), f"{file} has no {owner}"


@by_any_document
def test_lines_are_of_120_columns(document: Path) -> None:
    lines = LIVE.sub("", CONSOLE.sub("", document.read_text())).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_the_road_is_that_of_the_layers() -> None:
    text = (CHECKOUT / "docs/architecture.md").read_text()
    assert " ".join(ROAD) in " ".join(text.split())


def test_the_table_of_kernels_is_what_the_matrix_found() -> None:
    text = TIERS.read_text()
    settle(TIERS, text, KERNELS.sub(lambda _: markdown(FOUND.read_text()), text))
    assert KERNELS.search(text)


def test_a_row_a_kernel_a_column_a_tier() -> None:
    record = '{"5.10 kprobe": [7, 0, 0], "5.10 faults": [5, 2, 31], "7.3 (for 7.2) fentry": [9, 0, 0]}'
    assert markdown(record).splitlines()[2:] == [
        "| 5.10 | 7 passed, 0 pages unseen | not run | 2 failed, 5 passed, 31 pages unseen |",
        "| 7.3 (for 7.2) | not run | 9 passed, 0 pages unseen | not run |",
    ]

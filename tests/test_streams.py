"""Every command that needs no root, where the caller's standard files and environment are not what one would wish."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import captures

CHECKOUT = Path(__file__).parent.parent
SHMTRACE = [sys.executable, "-m", "tracer"]
HOSTILE, OTHER = "hostile.capture", "labels.capture"
TEXTS = [
    ["--help"],
    ["--version"],
    ["top", "--help"],
    ["completion", "bash"],
    ["report", HOSTILE],
    ["report", HOSTILE, "--by", "process"],
    ["report", OTHER, "--by", "script"],
    ["diff", HOSTILE, OTHER],
]
DOCUMENTS = [
    ["report", HOSTILE, "--json"],
    ["report", HOSTILE, "--csv"],
    ["report", HOSTILE, "--by", "process", "--json"],
    ["diff", HOSTILE, OTHER, "--csv"],
    ["html", HOSTILE, "-o", "-"],
    ["export", HOSTILE, "--format", "folded"],
    ["export", HOSTILE, "--format", "speedscope"],
    ["export", HOSTILE, "--format", "svg"],
    ["export", HOSTILE, "--format", "pprof"],
]
ASCII = {"PYTHONIOENCODING": "ascii:strict"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two captures."""
    directory = tmp_path_factory.mktemp("captures")
    for name in (HOSTILE, OTHER):
        captures.load(Path(name).stem, directory / name)
    return directory


def run(folder: Path, *arguments: str, script: str = 'exec "$@"', **environment: str) -> tuple[int, bytes, str]:
    """(exit status, what it printed, what it said) of shmtrace, run by these words of sh."""
    paths = [str(folder / word) if word.endswith(".capture") else word for word in arguments]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *SHMTRACE, *paths],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@functools.cache
def usual(folder: Path, *arguments: str) -> tuple[int, bytes, str]:
    """As nearly everywhere."""
    return run(folder, *arguments, PYTHONIOENCODING="utf-8")


@pytest.mark.parametrize("arguments", TEXTS, ids=" ".join)
@pytest.mark.parametrize("environment", [ASCII, C_LOCALE], ids=["ascii", "C"])
def test_what_the_encoding_has_not_is_escaped(folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
    status, printed, said = run(folder, *arguments, **environment)
    _, in_unicode, told = usual(folder, *arguments)
    assert (status, said) == (0, told.encode("ascii", "backslashreplace").decode())
    assert printed == in_unicode.decode().encode("ascii", "backslashreplace")


@pytest.mark.parametrize("arguments", DOCUMENTS, ids=" ".join)
def test_documents_are_unicode_whatever_the_encoding(folder: Path, arguments: list[str]) -> None:
    expected = usual(folder, *arguments)
    assert expected[0] == 0
    assert run(folder, *arguments, **ASCII) == expected
    if "--json" in arguments:
        json.loads(expected[1])


@pytest.mark.parametrize("arguments", [*TEXTS[:5], *DOCUMENTS[1::2]], ids=" ".join)
def test_a_full_disk(folder: Path, arguments: list[str]) -> None:
    line = "shmtrace: the output cannot be written (No space left on device): redirect it to another place\n"
    warned = usual(folder, *arguments)[2]
    assert run(folder, *arguments, script='exec "$@" >/dev/full') == (1, b"", warned + line)


@pytest.mark.parametrize("arguments", [TEXTS[0], TEXTS[4], DOCUMENTS[0]], ids=" ".join)
def test_a_reader_that_has_gone(folder: Path, arguments: list[str]) -> None:
    script = 'mkfifo gone && { head -c 1 <gone & } && exec 3>gone && echo >&3 && wait; rm gone; exec "$@" >&3'
    assert run(folder, *arguments, script=script) == (141, b"\n", "")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('exec "$@" >&-', "shmtrace: standard output is closed: redirect it, if only to /dev/null\n"),
        (
            'exec "$@" >&- <&-',
            "shmtrace: standard output is closed: redirect it, if only to /dev/null\n",
        ),
        ('exec "$@" >&- 2>&-', ""),
        (
            'exec "$@" 1</dev/null',
            "shmtrace: the output cannot be written (Bad file descriptor): redirect it to another place\n",
        ),
    ],
)
def test_nowhere_to_print_to(folder: Path, script: str, expected: str) -> None:
    for arguments in TEXTS[0], TEXTS[4]:
        assert run(folder, *arguments, script=script) == (1, b"", expected)


@pytest.mark.parametrize(
    "script", ['exec "$@" 2>&-', 'exec "$@" 2>/dev/full', 'exec "$@" <&- 2>&-', 'exec "$@" 2</dev/null']
)
def test_nowhere_to_say_it_to(folder: Path, script: str) -> None:
    """The status stays what it is."""
    assert run(folder, "report", "absent", script=script) == (1, b"", "")
    assert run(folder, "frobnicate", script=script) == (2, b"", "")
    assert run(folder, "report", HOSTILE, script=script) == usual(folder, "report", HOSTILE)


ODD = {
    "no environment": 'exec env -i PYTHONPATH="$PYTHONPATH" PYTHONIOENCODING=utf-8 "$@"',
    "no home": 'unset HOME; exec "$@"',
    "a terminal of no kind": 'TERM=nonsense exec "$@"',
    "no room on the screen": 'COLUMNS=1 LINES=x exec "$@"',
    "no locale": 'LC_ALL=xx_XX.nonsense PYTHONIOENCODING=utf-8 exec "$@"',
    "no temporary directory": 'TMPDIR=/nonexistent exec "$@"',
    "no directory": 'mkdir gone && cd gone && rmdir ../gone && exec "$@"',
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_environment(folder: Path, odd: str) -> None:
    for arguments in TEXTS[4], TEXTS[6], DOCUMENTS[0]:
        assert run(folder, *arguments, script=ODD[odd]) == usual(folder, *arguments)
    assert run(folder, "--help", script=ODD[odd])[0] == 0


@pytest.mark.parametrize("zone", ["nonsense", ":/etc/passwd", "x" * 5000])
def test_a_time_zone_that_is_none(folder: Path, zone: str) -> None:
    for arguments in TEXTS[4], ["report", HOSTILE, "--by", "time", "--since", "+0s"], DOCUMENTS[0]:
        status, printed, said = run(folder, *arguments, TZ=zone)
        assert (status, said) == (0, "")
        assert printed


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\udcff", "x" * 200])
def test_a_name_makes_one_line(folder: Path, name: str) -> None:
    status, printed, said = run(folder, "report", name)
    assert (status, printed) == (1, b"")
    assert said.endswith(" is not there: `shmtrace record` makes one\n")
    assert said.rstrip("\n").isprintable()

"""The examples of docs/captures.md of a capture read with sqlite3 alone, on one that was recorded.

What they say is known, and the account says the same. Of a pool that is recorded anew, times and PIDs are others.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.captures import load
from tracer import account
from tracer.account import Account, Window
from tracer.capture.capture import Capture

DOCUMENT = Path(__file__).parents[1] / "docs/captures.md"
QUERY = re.compile(r"^\$ sqlite3 php_fpm\.capture (\".*?\")$", re.MULTILINE | re.DOTALL)
FROM_23_56 = Window(1_795_650_960 * 10**9, 1_795_651_020 * 10**9)  # the recorded pool began to fill at 23:55:57

pytestmark = pytest.mark.usefixtures("in_utc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return load("php_fpm", tmp_path / "php_fpm.capture")


def examples() -> list[str]:
    """The queries, as a shell would hand them to sqlite3."""
    queries = QUERY.findall(DOCUMENT.read_text())
    assert len(queries) == 4
    return [shlex.split(query.replace("\n> ", "\n"))[0] for query in queries]


WHO_GREW, BIGGEST, DEAD, PER_MINUTE = examples()


def ask(path: Path, query: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def read(path: Path, window: Window = account.ALL_TIME) -> Account:
    with Capture.open(path) as capture:
        return account.read(capture, window)


def touched(found: Account, living: bool = False) -> dict[int, int]:
    """Bytes by tgid; of regions that are there."""
    sums: dict[int, int] = {}
    for region in found.regions:
        for toucher in region.touchers:
            if toucher.touched_bytes and not (living and region.gone_ns):
                tgid = toucher.process.tgid
                sums[tgid] = sums.get(tgid, 0) + toucher.touched_bytes
    return sums


def test_who_grew_it_between_23_56_and_23_57(path: Path) -> None:
    found = ask(path, WHO_GREW)
    assert {tgid: size for tgid, _, size in found} == touched(read(path, FROM_23_56))
    assert sum(size for _, _, size in found) < sum(touched(read(path)).values())
    assert found[0][:2] == (18797, "php-fpm: pool www")
    assert [size for _, _, size in found] == sorted((size for _, _, size in found), reverse=True)


def test_the_biggest_region(path: Path) -> None:
    biggest = max(
        (region for region in read(path).regions if not region.gone_ns), key=lambda region: region.allocated_bytes
    )
    assert biggest.creator
    assert ask(path, BIGGEST) == [
        ("anon", "/dev/zero", biggest.allocated_bytes, biggest.creator.process.tgid),
    ]
    assert biggest.creator.process.tgid == 18610


def test_who_is_dead_and_has_pages(path: Path) -> None:
    found = ask(path, DEAD)
    document = read(path)
    dead = {
        toucher.process.tgid for region in document.regions for toucher in region.touchers if toucher.process.exited_ns
    }
    assert {tgid: size for tgid, _, _, size in found} == {
        tgid: size for tgid, size in touched(document, living=True).items() if tgid in dead
    }
    assert [tgid for tgid, *_ in found] == [18747, 18744, 18746, 18745]
    assert {exited for _, _, exited, _ in found} == {"2026-11-25 23:56:01"}


def test_growth_per_minute(path: Path) -> None:
    found = ask(path, PER_MINUTE)
    assert [minute for minute, _ in found] == ["2026-11-25 23:55", "2026-11-25 23:56"]
    assert found[1][1] == sum(touched(read(path, FROM_23_56)).values())
    assert sum(size for _, size in found) == sum(touched(read(path)).values())


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="sqlite3 is not installed")
@pytest.mark.parametrize("query", examples(), ids=["who", "biggest", "dead", "minutes"])
def test_by_the_command(query: str, path: Path) -> None:
    done = subprocess.run(["sqlite3", path, query], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.splitlines() == ["|".join(map(str, row)) for row in ask(path, query)]

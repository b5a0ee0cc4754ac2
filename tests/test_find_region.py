"""By which words a region is found, and what is offered where one is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recorded import shmtrace
from tests.schema import validate
from tests.test_account import SESSION, put_process, put_region
from tests.test_views import HOSTILE
from tracer import account, find_region
from tracer.capture.capture import Capture
from tracer.formatting import printable

ADDRESS = 0x7F1000000000


@pytest.fixture
def capture() -> Iterator[Capture]:
    """Two regions of PHP's, one of a name, and one that has the same number as another, as SysV's may."""
    with Capture() as capture:
        capture.insert("session", **SESSION)
        php = put_process(capture, 2472, comm="php-fpm8.2")
        other = put_process(capture, 2473, comm="other")
        opcache = put_region(capture, 23, ino=11, parent=php, address=0x40000000)
        apcu = put_region(capture, 41, ino=12, parent=php, address=ADDRESS)
        named = put_region(capture, 7, ino=13, parent=other, name="/dev/shm/cache", kind="posix", generation=None)
        again = put_region(capture, 5, ino=13, parent=other, name="/SYSV00000000", kind="sysv", generation=0x3A9C21F0)
        for region, process, address, pages in (
            (opcache, php, 0x40000000, 97),
            (apcu, php, ADDRESS, 53),
            (apcu, other, ADDRESS + (1 << 30), 53),
            (named, other, ADDRESS, 1),
            (again, other, ADDRESS + 4096, 31),
        ):
            capture.insert("mapping", region=region, process=process, address=address, first_page=0, pages=pages)
        yield capture


def found(capture: Capture, word: str) -> list[tuple[int, int | None]]:
    return [
        (each.region.ino, each.region.generation)
        for each in find_region.find(find_region.known(account.read(capture)), capture, word)
    ]


@pytest.mark.parametrize(
    ("word", "regions"),
    [
        ("0:1/11/00000005", [(11, 5)]),
        ("0:1/13/3a9c21f0", [(13, 0x3A9C21F0)]),
        ("0:1/13/-", [(13, None)]),
        ("0:1/13", []),
        ("13", [(13, None), (13, 0x3A9C21F0)]),
        ("opcache? 11", [(11, 5)]),
        ("/SYSV#", [(13, 0x3A9C21F0)]),
        ("0:1/11/5", []),
        ("opcache?", [(11, 5)]),
        ("opcache", [(11, 5)]),
        ("apcu", [(12, 5)]),
        ("opc", []),
        ("", []),
        ("?", []),
        ("/dev/shm/cache", [(13, None)]),
        ("cache", []),
        ("/dev/zero", [(12, 5), (11, 5)]),
        ("2472:40000000", [(11, 5)]),
        ("2472:0x40060FFF", [(11, 5)]),
        ("2472:40061000", []),
        ("2472:3fffffff", []),
        (f"2472:{ADDRESS:x}", [(12, 5)]),
        (f"2473:{ADDRESS + (1 << 30) + 7:x}", [(12, 5)]),
        (f"2473:{ADDRESS + 4095:x}", [(13, None)]),
        (f"2473:{ADDRESS + 4096:x}", [(13, 0x3A9C21F0)]),
        ("2474:40000000", []),
        ("2472:ffffffffffffffff", []),
        ("99999999999999999999:40000000", []),
        ("2472:" + "f" * 5000, []),
    ],
)
def test_words(capture: Capture, word: str, regions: list[tuple[int, int | None]]) -> None:
    assert found(capture, word) == regions


@pytest.mark.parametrize(
    ("word", "tgid"),
    [
        ("2472:7f10", 2472),
        ("2472:0X7F10", 2472),
        ("0:1/11/00000005", None),
        ("2472", None),
        ("2472:", None),
        (":7f10", None),
        ("opcache?", None),
        ("2472:7f10 ", None),
        ("²:7", None),
    ],
)
def test_what_is_a_process_and_an_address(word: str, tgid: int | None) -> None:
    assert find_region.tgid_of(word) == tgid


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("opcash", "did you mean opcache?"),
        ("/dev/shm/cach", "did you mean /dev/shm/cache"),
        ("0:1/12/00000004", "did you mean 0:1/12/00000005 or 0:1/11/00000005"),
        ("nonsense", "ask me"),
    ],
)
def test_what_was_meant(capture: Capture, word: str, hint: str) -> None:
    names = find_region.names(find_region.known(account.read(capture)))
    assert find_region.did_you_mean(word, names, "ask me").startswith(hint)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_known_as_it_is_and_as_it_is_printed(capture: Capture, name: str) -> None:
    name = "/memfd:" + name.encode(errors="backslashreplace").decode()
    put_region(capture, 3, ino=99, name=name)
    assert found(capture, name) == found(capture, printable(name)) == [(99, 5)]
    assert find_region.did_you_mean(name, [name], "").isprintable()


# ---- a part of a capture ----


@pytest.fixture
def servers(tmp_path: Path) -> Path:
    """A pool with a worker that exited, whose child lives; a database that maps a region of the pool; one by itself."""
    path = tmp_path / "servers.capture"
    with Capture(path) as capture:
        capture.insert(
            "session", **{**SESSION, "sum_of_rss_bytes": 4711, "private_start_bytes": 7, "private_end_bytes": 9}
        )
        php = put_process(capture, 811, comm="php-fpm8.2", command="php-fpm: master")
        worker = put_process(capture, 812, comm="php-fpm8.2", command="php-fpm: pool www", parent=php, exited_ns=7)
        child = put_process(capture, 813, comm="sh", command="sh -c convert", parent=worker)
        postgres = put_process(capture, 900, comm="postgres", command="postgres: checkpointer")
        alone = put_process(capture, 999, comm="cron")
        opcache = put_region(capture, 23, ino=11, parent=php, creator=php, address=0x40000000, creator_how="traced")
        scratch = put_region(capture, 7, ino=12, name="/dev/shm/scratch", kind="posix")
        put_region(capture, 5, ino=13, parent=alone, name="/memfd:cron", kind="memfd")
        capture.insert("mapping", region=opcache, process=postgres, address=0x40000000, first_page=0, pages=23)
        for region, pages, process in ((opcache, 19, worker), (scratch, 7, child)):
            capture.insert("extent", region=region, start=0, end=pages, process=process, first_ns=3, last_ns=4)
            capture.insert("sample", region=region, time_ns=3, allocated_bytes=4096)
        capture.insert("usage", region=opcache, process=worker, faults=29, freed_pages=1)
        capture.insert("unmapped", kind="tmpfs", name="/dev/shm", reach="/dev/shm", allocated_bytes=4096)
    return path


@pytest.mark.parametrize(
    ("options", "inodes"),
    [
        (["--region", "opcache"], [11]),
        (["--region", "opcache", "--region", "/memfd:cron"], [11, 13]),
        (["--region", "0:1/13/00000005"], [13]),
        (["--region", "900:40000000"], [11]),
        (["-p", "php-fpm"], [11, 12]),
        (["-p", "^postgres: check"], [11]),
        (["-p", "813"], [12]),
        (["-p", "81"], "no process of the capture matches 81: "),
        (["-p", "cron", "-p", "sh"], [12, 13]),
        (["-p", "php-fpm", "--region", "/dev/shm/scratch"], [12]),
        (["-p", "postgres", "--region", "/dev/shm/scratch"], "postgres uses none of these regions: "),
        (["--region", "opcahe"], "no region of the capture is called opcahe: did you mean opcache?"),
        (["-p", "posgres"], "no process of the capture matches posgres: did you mean postgres?"),
        (["-p", "("], "-p '(' is not a regular expression"),
        (["-p", ""], "-p '' would match every process"),
        (["--region", "12"], [12]),
        (["--region", ""], "no region of the capture is called : "),
    ],
)  # fmt: skip
def test_a_part_of_a_capture(options: list[str], inodes: list[int] | str, servers: Path) -> None:
    done = shmtrace("report", servers, "--json", *options)
    if isinstance(inodes, str):
        assert done.exit_code == 1
        assert done.stderr.startswith(f"shmtrace: {inodes}")
        return
    document = validate(done.stdout)
    assert sorted(region["ino"] for region in document["regions"]) == inodes
    for region in document["regions"]:
        touched = sum(toucher["touched_bytes"] for toucher in region["touchers"])
        assert touched + region["before_bytes"] + region["unseen_bytes"] == region["allocated_bytes"]


def test_a_part_knows_nothing_of_the_whole(servers: Path) -> None:
    part = json.loads(shmtrace("report", servers, "--json", "--region", "opcache").stdout)
    assert (part["sum_of_rss_bytes"], part["private_end_bytes"], part["unmapped"]) == (None, None, [])
    (region,) = part["regions"]
    whole = json.loads(shmtrace("report", servers, "--json").stdout)
    assert (whole["sum_of_rss_bytes"], len(whole["unmapped"])) == (4711, 1)
    assert region in whole["regions"]


@pytest.mark.parametrize("by", ["region", "process", "command,time", "time"])
def test_every_table_is_of_the_part(by: str, servers: Path) -> None:
    rows = json.loads(shmtrace("report", servers, "--json", "--region", "opcache", "--by", by).stdout)["rows"]
    name = "touched_bytes" if by in ("region", "process", "time") else "allocated_bytes"
    assert sum(row[name] for row in rows if row.get("part", "touched") == "touched") == 19 * 4096


@pytest.mark.parametrize("form", ["folded", "speedscope", "perfetto", "csv"])
def test_every_export_is_of_the_part(form: str, servers: Path) -> None:
    whole = shmtrace("export", servers, "--format", form).stdout
    part = shmtrace("export", servers, "--format", form, "--region", "opcache", "-p", "php-fpm").stdout
    assert "/dev/shm/scratch" in whole
    assert "/dev/shm/scratch" not in part
    assert "/dev/zero" in part or "opcache" in part


def test_a_page_is_of_the_part(servers: Path, tmp_path: Path) -> None:
    assert shmtrace("html", servers, "-o", tmp_path / "page.html", "--region", "/dev/shm/scratch").exit_code == 0
    text = (tmp_path / "page.html").read_text()
    assert "/dev/shm/scratch" in text
    assert "opcache?" not in text

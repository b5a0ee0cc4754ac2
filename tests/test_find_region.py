"""By which words a region is found, and what is offered where one is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.test_account import SESSION, put_process, put_region
from tests.test_views import HOSTILE
from tracer import find_region
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
    return [(each.region.ino, each.region.generation) for each in find_region.find(capture, word)]


@pytest.mark.parametrize(
    ("word", "regions"),
    [
        ("0:1/11/00000005", [(11, 5)]),
        ("0:1/13/3a9c21f0", [(13, 0x3A9C21F0)]),
        ("0:1/13/-", [(13, None)]),
        ("0:1/13", []),
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
    ("word", "close"),
    [
        ("opcash", ["opcache?"]),
        ("/dev/shm/cach", ["/dev/shm/cache"]),
        ("0:1/12/00000004", ["0:1/12/00000005", "0:1/11/00000005"]),
        ("nonsense", []),
    ],
)
def test_what_was_meant(capture: Capture, word: str, close: list[str]) -> None:
    assert find_region.close_to(capture, word)[: len(close) or None] == close


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_known_as_it_is_and_as_it_is_printed(capture: Capture, name: str) -> None:
    name = "/memfd:" + name.encode(errors="backslashreplace").decode()
    put_region(capture, 3, ino=99, name=name)
    assert found(capture, name) == found(capture, printable(name)) == [(99, 5)]
    assert all(close.isprintable() for close in find_region.close_to(capture, name))

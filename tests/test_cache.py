"""Compiled programs that were kept: believed where they are root's and whole, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracer.kernel import cache as caches
from tracer.kernel.cache import Cache

KEY = "4f" * 32
CONTENT = bytes(range(240))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    found = Cache(tmp_path / "cache" / "shmtrace")
    found.write(KEY, CONTENT)
    return found


def test_what_was_written_is_read(cache: Cache) -> None:
    assert cache.read(KEY) == CONTENT
    assert cache.read("5e" * 32) is None
    assert cache.warnings == []


def test_it_is_for_its_owner_alone(cache: Cache) -> None:
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    assert (cache.directory / KEY).stat().st_mode & 0o777 == 0o600


def test_one_is_replaced_whole(cache: Cache) -> None:
    other = b"x" * 16
    cache.write(KEY, other)
    assert cache.read(KEY) == other
    assert [path.name for path in cache.directory.iterdir()] == [KEY]


@pytest.mark.parametrize("at", [0, 40, 64, 65, 100, -1])
def test_one_bit(cache: Cache, at: int) -> None:
    raw = bytearray((cache.directory / KEY).read_bytes())
    raw[at] ^= 1
    (cache.directory / KEY).write_bytes(raw)
    assert cache.read(KEY) is None
    assert cache.warnings == [f"{cache.directory / KEY} is not used: it is damaged, or from another kernel"]


def test_what_is_of_another_key(cache: Cache) -> None:
    """It is whole, and has been given this name."""
    (cache.directory / KEY).rename(cache.directory / KEY[::-1])
    assert cache.read(KEY[::-1]) is None
    assert len(cache.warnings) == 1


@pytest.mark.parametrize("left", [0, 1, 64, 65, 200])
def test_a_part(cache: Cache, left: int) -> None:
    os.truncate(cache.directory / KEY, left)
    assert cache.read(KEY) is None
    assert len(cache.warnings) == 1


@pytest.mark.parametrize("what", [".", KEY])
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_what_others_may_write_to(cache: Cache, what: str, mode: int) -> None:
    (cache.directory / what).chmod(mode)
    assert cache.read(KEY) is None
    (warning,) = cache.warnings
    assert "other users could have written it" in warning


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to another user")
@pytest.mark.parametrize("what", [".", KEY])
def test_what_is_of_another(cache: Cache, what: str) -> None:
    os.chown(cache.directory / what, 65534, -1)
    assert cache.read(KEY) is None
    assert len(cache.warnings) == 1


def test_a_link(cache: Cache, tmp_path: Path) -> None:
    (cache.directory / KEY).rename(tmp_path / "elsewhere")
    (cache.directory / KEY).symlink_to(tmp_path / "elsewhere")
    assert cache.read(KEY) is None
    assert len(cache.warnings) == 1


def test_a_pipe_keeps_nobody_waiting(cache: Cache) -> None:
    (cache.directory / KEY).unlink()
    os.mkfifo(cache.directory / KEY, 0o600)
    assert cache.read(KEY) is None


def test_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "shmtrace")
    cache.write(KEY, CONTENT)
    assert cache.read(KEY) is None


def test_of_many_the_oldest_go(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MOST_KEPT", 3)
    os.utime(cache.directory / KEY, ns=(7, 7))
    for number in range(3):
        cache.write(f"{number}", CONTENT)
    assert cache.read(KEY) is None
    assert [cache.read(f"{number}") for number in range(3)] == [CONTENT] * 3


def test_a_directory_in_it_is_left_alone(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MOST_KEPT", 1)
    (cache.directory / "kernels").mkdir()
    cache.write("0", CONTENT)
    assert sorted(path.name for path in cache.directory.iterdir()) == ["0", "kernels"]

"""A cache of compiled programs and kernel layouts, owned by root, plus what is shipped with this program.

Whoever can write the cache could run any code in the kernel. So a directory or file that another user owns or may write
is ignored, and so is content whose hash does not match.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tracer.shipped import shipped

CACHE = Path("/var/cache/shmtrace")
COMPILED = "compiled"
MAX_BYTES = 4 << 20
MOST_KEPT = 200  # a kernel takes about 30; the oldest files are removed


class Cache:
    """A directory with one file per key."""

    def __init__(self, directory: Path = CACHE) -> None:
        self.directory = directory
        self.warnings: list[str] = []
        """What was ignored, and why."""

    def read(self, key: str) -> bytes | None:
        """The content of a key, from the cache or shipped. None: missing, or not trusted."""
        return self._read(key) or _shipped(key)

    def _read(self, key: str) -> bytes | None:
        try:
            with self._opened() as directory:
                self._need_own(directory)
                file = os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
                with open(file, "rb") as opened:
                    self._need_own(file)
                    return unpack(key, opened.read(MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.warnings.append(f"{self.directory / key} is not used: {error}")
            return None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield directory
        finally:
            os.close(directory)

    def _need_own(self, descriptor: int) -> None:
        """Raises ValueError where another user owns the file or directory, or may write it."""
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("other users could have written it")

    def write(self, key: str, content: bytes) -> None:
        """Store the content of a key, if possible; errors are ignored, since it only saves time later."""
        with contextlib.suppress(OSError, ValueError):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._opened() as directory:
                self._need_own(directory)
            fresh = self.directory / f".{key}-{os.getpid()}"
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pack(key, content))
            fresh.replace(self.directory / key)
            kept = sorted(filter(Path.is_file, self.directory.iterdir()), key=lambda path: path.stat().st_mtime)
            for path in kept[:-MOST_KEPT]:
                path.unlink()


def pack(key: str, content: bytes) -> bytes:
    """Prefix the content with a hash of key and content."""
    return hashlib.sha256(key.encode() + content).hexdigest().encode() + b"\n" + content


def unpack(key: str, raw: bytes) -> bytes:
    """Check and remove the hash. Raises ValueError where it does not match."""
    digest, _, content = raw.partition(b"\n")
    if digest != hashlib.sha256(key.encode() + content).hexdigest().encode():
        raise ValueError("it is damaged, or from another kernel")
    return content


def _shipped(key: str) -> bytes | None:
    place = shipped(COMPILED) / key
    return unpack(key, place.read_bytes()) if place.is_file() else None

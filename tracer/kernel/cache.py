"""What was made before, for the next time: compiled programs, layouts. Root's alone, or what came with this program.

Whoever could write there could run anything in the kernel: a directory, or a file, that is another's or that others may
write to is not believed, nor is one whose content is not what it was.
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
MOST_KEPT = 200  # of each kernel some 30; the oldest go


class Cache:
    """A directory of contents, by key."""

    def __init__(self, directory: Path = CACHE) -> None:
        self.directory = directory
        self.warnings: list[str] = []
        """what was not believed"""

    def read(self, key: str) -> bytes | None:
        """None: it is not there, or not to be believed."""
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
        """Raises ValueError."""
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others could have written it")

    def write(self, key: str, content: bytes) -> None:
        """As far as that can be done: it is only for the next time."""
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
    """With what tells whether it is whole, and of this key."""
    return hashlib.sha256(key.encode() + content).hexdigest().encode() + b"\n" + content


def unpack(key: str, raw: bytes) -> bytes:
    """Raises ValueError."""
    digest, _, content = raw.partition(b"\n")
    if digest != hashlib.sha256(key.encode() + content).hexdigest().encode():
        raise ValueError("it is not whole, or of another kernel")
    return content


def _shipped(key: str) -> bytes | None:
    place = shipped(COMPILED) / key
    return unpack(key, place.read_bytes()) if place.is_file() else None

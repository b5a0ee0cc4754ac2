"""Finds files shipped with the program, in the package directory or in the archive that it runs from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable


def shipped(name: str) -> Path | Traversable:
    """A file by its path in the package."""
    package = Path(__file__).parent
    if package.is_dir():
        return package / name
    from importlib import resources  # slow to import, and only needed in an archive

    return resources.files("tracer") / name

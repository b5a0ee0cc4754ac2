"""The files that come with the program: in its directory, or in an archive that is run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable


def shipped(name: str) -> Path | Traversable:
    """By its path in the package."""
    package = Path(__file__).parent
    if package.is_dir():
        return package / name
    from importlib import resources  # takes as long to import as all else of this

    return resources.files("tracer") / name

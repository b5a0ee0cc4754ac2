"""The name of the bcc package, by the distribution in os-release."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

OS_RELEASE = Path("/etc/os-release"), Path("/usr/lib/os-release")
MAX_BYTES = 1 << 16
BCC = {
    "debian": "apt-get install python3-bpfcc",
    "ubuntu": "apt-get install python3-bpfcc",
    "fedora": "dnf install python3-bcc",
    "rhel": "dnf install python3-bcc",
    "centos": "dnf install python3-bcc",
    "amzn": "dnf install python3-bcc",
    "suse": "zypper install python3-bcc",
    "arch": "pacman -S python-bcc",
    "alpine": "apk add py3-bcc",
}
"""The command that installs bcc, by ID or ID_LIKE. PyPI's "bcc" is another project."""


def install_bcc(places: Sequence[Path] = OS_RELEASE) -> str:
    """A command, or a sentence where the distribution is not known."""
    return next((BCC[name] for name in _names(places) if name in BCC), "install your distribution's package of bcc")


def _names(places: Sequence[Path]) -> list[str]:
    """The values of ID, then of ID_LIKE (os-release(5))."""
    found: dict[str, str] = {}
    for place in places:
        try:
            with place.open("rb") as file:
                lines = file.read(MAX_BYTES).decode(errors="replace").splitlines()
        except OSError:
            continue
        for key, _, value in (line.partition("=") for line in lines):
            found.setdefault(key.strip(), value)
        break
    try:
        words = [word for key in ("ID", "ID_LIKE") for word in shlex.split(found.get(key, ""))]
    except ValueError:  # an unbalanced quote
        return []
    return [name.lower() for word in words for name in word.split()]

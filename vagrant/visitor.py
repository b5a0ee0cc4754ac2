"""Asks a php-fpm for one script after another, each once: its opcache grows for some minutes.

    python3 -m vagrant.visitor SOCKET DIRECTORY     in the checkout; the scripts are written into DIRECTORY

The scripts and the client are those of the tests.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.live.fpm import request, script_names, write_script

SCRIPTS = 1500  # some 100 MB of opcache; Debian's php-fpm has 128
PAUSE_SECONDS = 0.25


def visit(address: Path, directory: Path) -> None:
    for number, name in enumerate(script_names(SCRIPTS)):
        if not (directory / name).exists():
            write_script(directory / name, number)
    for name in script_names(SCRIPTS):
        request(address, directory / name)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    visit(*map(Path, sys.argv[1:]))

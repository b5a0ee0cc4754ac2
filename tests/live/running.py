"""A program of the tests' own, which ends with the block."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PATIENCE_SECONDS = 60.0


@contextmanager
def running(
    command: Sequence[object], number: signal.Signals = signal.SIGKILL, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """number: the signal that ends it. options: of Popen; there is no standard input, unless they say so."""
    with subprocess.Popen(list(map(str, command)), **{"stdin": subprocess.DEVNULL, **options}) as process:
        try:
            yield process
        finally:
            process.send_signal(number)
            try:
                process.wait(PATIENCE_SECONDS)
            finally:
                process.kill()

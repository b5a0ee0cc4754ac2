"""A server of the tests' own, which ends with the block."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PATIENCE_SECONDS = 60.0


@contextmanager
def server(
    command: Sequence[object], number: signal.Signals = signal.SIGTERM, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """number: the signal that ends it."""
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, **options) as process:
        try:
            yield process
        finally:
            process.send_signal(number)
            try:
                process.wait(PATIENCE_SECONDS)
            finally:
                process.kill()

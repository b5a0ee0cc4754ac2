"""Requests to a real php-fpm, with its opcache cold and warm, while somebody watches or not, or it is armed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from tests.bench.observers import NOBODY, SHMTRACE, Starter, started
from tests.bench.rounds import print_table, run_rounds
from tests.live.fpm import running_fpm, script_names

SCRIPTS = 500
WARM_PASSES = 20  # a warm request takes little
ARMED = "shmtrace arm -p"
CLIENTS = 4
OPTIONS: dict[str, list[str]] = {
    "shmtrace -p": [],
    "shmtrace -p, --label php": ["--label", "php"],
    "shmtrace -p, --label php:file": ["--label", "php:file"],
}


@contextlib.contextmanager
def armed(tgid: int) -> Iterator[None]:
    subprocess.run([*SHMTRACE, "arm", "-p", str(tgid)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([*SHMTRACE, "disarm"], check=True, capture_output=True)


def us_a_request(options: list[str] | None, warm: bool, is_armed: bool = False) -> float:
    """options: of shmtrace; None: no shmtrace is running."""
    with running_fpm(SCRIPTS, max_requests=10**6) as fpm, contextlib.ExitStack() as stack:
        if warm:
            fpm.ask_for(script_names(SCRIPTS), CLIENTS)
        if options is not None:
            command = [*SHMTRACE, "--json", "-p", str(fpm.tgid), *options]
            stack.enter_context(started(Starter("shmtrace", sys.executable, command, b"tracing", {})))
        if is_armed:
            stack.enter_context(armed(fpm.tgid))
        names = script_names(SCRIPTS) * (WARM_PASSES if warm else 1)
        began = time.monotonic()
        fpm.ask_for(names, CLIENTS)
        return (time.monotonic() - began) / len(names) * 1e6


def bench(rounds: int) -> None:
    for warm in (False, True):
        variants: dict[str, Callable[[], float]] = {NOBODY.name: partial(us_a_request, None, warm)}
        variants[ARMED] = partial(us_a_request, None, warm, is_armed=True)
        variants.update({name: partial(us_a_request, options, warm) for name, options in OPTIONS.items()})
        state = f"warm, {WARM_PASSES} times" if warm else "cold"
        title = f"{SCRIPTS} requests to php-fpm by {CLIENTS} clients, opcache {state}"
        print_table(title, "µs a request", run_rounds(variants, rounds), {})

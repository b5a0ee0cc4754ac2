"""Programs that run beside each other."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

SAID_LINES = 20


class NoResultError(Exception):
    """Why there is no result: what failed and, where one is known, its remedy; then what a program said of it."""


@asynccontextmanager
async def started(*command: str, **options: Any) -> AsyncIterator[Process]:
    """Runs it meanwhile, and no longer, even if this process is killed."""
    process = await asyncio.create_subprocess_exec("setpriv", "--pdeathsig", "KILL", *command, stdin=DEVNULL, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # its own kill() may reap it, and asyncio then wonders who did
        await process.wait()


async def run(*command: str, **options: Any) -> str:
    """What it says. Raises NoResultError with the last line of that, and below it with some more."""
    async with started(*command, stdout=PIPE, stderr=STDOUT, **options) as process:
        said = (await process.communicate())[0].decode(errors="replace")
    if process.returncode:
        lines = said.splitlines()[-SAID_LINES:] or ["nothing"]
        raise NoResultError("\n".join([f"{command[0]} ended with {process.returncode}: {lines[-1]}", *lines[:-1]]))
    return said

"""What the programs are compiled for under a kernel that is not running: it is booted, and asked what it would load.

The host then compiles, in seconds. Emulated, LLVM takes a minute for each variant.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from tests.kernels.commands import NoResultError
from tests.kernels.guest import Logs, run_in_guest
from tests.kernels.initramfs import Kernel
from tests.kernels.userlands import CHECKOUT, Userland
from tracer.errors import ShmtraceError
from tracer.kernel.bytecode import Wanted
from tracer.kernel.cache import CACHE, Cache
from tracer.prepare import Variant, compile_all

SAY_VARIANTS = """
import json
from pathlib import Path
from tracer import prepare
from tracer.kernel.cache import Cache
print(json.dumps(prepare.of_kernel(Cache(Path("/nowhere")))))
"""
BOOT_SECONDS = 600.0


async def variants_of(kernel: Kernel, userland: Userland) -> list[Variant]:
    """All that a kernel may be asked for. Raises NoResultError."""
    with tempfile.TemporaryDirectory(prefix="shmtrace-layout-") as scratch:
        logs = Logs(Path(scratch, "output"), Path(scratch, "console"))
        command = [userland.python, "-c", SAY_VARIANTS]
        shares = userland.shares(CHECKOUT)
        status = await run_in_guest(kernel, command, CHECKOUT, shares, logs, BOOT_SECONDS, userland.root)
        said = logs.output.read_text()
        if status:
            raise NoResultError(f"{kernel.release} does not say its layout: {said.strip()}")
        return [Variant(title, Wanted(*wanted)) for title, wanted in json.loads(said.strip().splitlines()[-1])]


async def compile_for(kernel: Kernel, userland: Userland) -> None:
    """Into the cache that a guest finds in its root. Raises NoResultError."""
    cache = Cache(userland.root / CACHE.relative_to("/"))
    wanted = await variants_of(kernel, userland)
    try:
        await asyncio.to_thread(list, compile_all(wanted, cache))
    except ShmtraceError as error:
        raise NoResultError(f"cannot compile for {kernel.release}: {error}") from None

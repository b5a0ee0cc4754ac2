"""What the programs are compiled for under a kernel that is not running: it is booted, and asked its layout.

The host then compiles, in seconds. Emulated, LLVM takes a minute for each variant.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.kernels.commands import NoResultError
from tests.kernels.guest import Logs, run_in_guest
from tests.kernels.initramfs import Kernel
from tests.kernels.userlands import CHECKOUT
from tracer.errors import ShmtraceError
from tracer.kernel import tiers
from tracer.kernel.cache import Cache
from tracer.kernel.fields import KernelLayout
from tracer.prepare import Variant, compile_all, variants

SAY_LAYOUT = """
from pathlib import Path
from tracer.kernel import tiers
from tracer.kernel.cache import Cache
print(tiers.layout(Cache(Path("/nowhere"))).dump().decode())
"""
BOOT_SECONDS = 600.0


async def layout_of(kernel: Kernel) -> KernelLayout:
    """Raises NoResultError."""
    with tempfile.TemporaryDirectory(prefix="shmtrace-layout-") as scratch:
        logs = Logs(Path(scratch, "output"), Path(scratch, "console"))
        status = await run_in_guest(kernel, [sys.executable, "-c", SAY_LAYOUT], CHECKOUT, [], logs, BOOT_SECONDS)
        said = logs.output.read_text()
        if status:
            raise NoResultError(f"{kernel.release} does not say its layout: {said.strip()}")
        return KernelLayout.load(said.strip().splitlines()[-1].encode())


def variants_of(layout: KernelLayout) -> list[Variant]:
    """All that a kernel may be asked for; one of a distribution has fexit."""
    return [
        variant
        for tier in tiers.TIERS
        if not tiers.absent(tier, tiers.points(tier, layout)) or not tier.functions
        for variant in variants(layout, tier, fexit=bool(tier.functions))
    ]


async def compile_for(kernel: Kernel) -> None:
    """Into the host's own cache, which a guest that runs over the host's file system reads. Raises NoResultError."""
    wanted = variants_of(await layout_of(kernel))
    try:
        await asyncio.to_thread(list, compile_all(wanted, Cache()))
    except ShmtraceError as error:
        raise NoResultError(f"cannot compile for {kernel.release}: {error}") from None

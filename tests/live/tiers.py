"""The tiers a test can ask for, and how it has them: a test's first parameter says which, kprobe, fentry or faults."""

from __future__ import annotations

from tests.live.reports import patched
from tracer import kernel
from tracer.btf import Btf, BtfError
from tracer.kernel import Tier

TIERS = {"kprobe": kernel.KPROBE, "fentry": kernel.FENTRY, "faults": kernel.FAULTS}
_NAMES = {"kprobe": "KPROBE", "fentry": "FENTRY", "faults": "FAULTS"}


def shmtrace(tier: str) -> list[str]:
    """One that has no other tier to choose."""
    return patched(
        "from tracer import kernel", f"kernel.tiers = lambda: [kernel.{_NAMES[tier]}]; kernel.preempts = lambda: False"
    )


def why_not(tier: Tier) -> str | None:
    """Why this kernel cannot have it."""
    try:
        with Btf() as btf:
            return kernel.why_not(tier, kernel.points(tier, btf))
    except BtfError as error:
        return str(error)

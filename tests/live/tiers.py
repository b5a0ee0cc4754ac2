"""The tiers a test can ask for, and how it has them: a test's first parameter says which, kprobe, fentry or faults."""

from __future__ import annotations

from tests.live.reports import patched
from tracer import kernel
from tracer.cache import Cache
from tracer.errors import ShmtraceError
from tracer.kernel import Tier

TIERS = {"kprobe": kernel.KPROBE, "fentry": kernel.FENTRY, "faults": kernel.FAULTS}
_NAMES = {"kprobe": "KPROBE", "fentry": "FENTRY", "faults": "FAULTS"}


def shmtrace(tier: str, *statements: str) -> list[str]:
    """One that has no other tier to choose, and runs these statements first."""
    only = f"kernel.tiers = lambda: [kernel.{_NAMES[tier]}]; kernel.preempts = lambda: False"
    return patched("from tracer import kernel", only, *statements)


def why_not(tier: Tier) -> str | None:
    """Why this kernel cannot have it."""
    try:
        return kernel.why_not(tier, kernel.points(tier, kernel.layout(Cache())))
    except ShmtraceError as error:
        return str(error)

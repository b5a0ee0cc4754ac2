"""The tiers a test can ask for, and how it has them: a test's first parameter says which, kprobe, fentry or faults."""

from __future__ import annotations

from tests.live.reports import patched
from tracer.errors import ShmtraceError
from tracer.kernel import tiers
from tracer.kernel.cache import Cache
from tracer.kernel.tiers import Tier

TIERS = {"kprobe": tiers.KPROBE, "fentry": tiers.FENTRY, "faults": tiers.FAULTS}
_NAMES = {"kprobe": "KPROBE", "fentry": "FENTRY", "faults": "FAULTS"}


def shmtrace(tier: str, *statements: str) -> list[str]:
    """One that has no other tier to choose, and runs these statements first."""
    only = f"tiers.tiers = lambda: [tiers.{_NAMES[tier]}]; host.preempts = lambda: False"
    patient = "from tracer.record import trace; trace.PATIENCE_S = 60"  # in a guest, on CPUs that have other work
    return patched("from tracer.kernel import host, tiers", only, patient, *statements)


def why_not(tier: Tier) -> str | None:
    """Why this kernel cannot have it."""
    try:
        return tiers.why_not(tier, tiers.layout(Cache()))
    except ShmtraceError as error:
        return str(error)

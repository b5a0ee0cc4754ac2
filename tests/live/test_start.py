"""How a trace starts: by bytes that were kept, without bcc; and what becomes of those that are not to be believed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.reports import trace
from tests.live.tiers import shmtrace
from tests.live.workload import stepped

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]

NOT_USED = re.compile(r"/kept/[0-9a-f]{64} is not used: ")
COMPILERS = re.compile(r"libbcc|libLLVM|libclang")
MOST_KB = 64 << 10
"""of the process that traces; LLVM alone takes twice that"""


def keeping(tier: str, directory: Path, *statements: str) -> list[str]:
    """A shmtrace that keeps there what it has compiled."""
    where = f"Cache.__init__.__defaults__ = (pathlib.Path({str(directory)!r}),)"
    return shmtrace(tier, "import pathlib", "from tracer.kernel.cache import Cache", where, *statements)


@pytest.fixture(scope="module")
def compiled(tier: str, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first start has left."""
    directory = tmp_path_factory.mktemp("compiled") / "kept"
    grown(keeping(tier, directory), program, directory.parent)
    assert len(list(directory.iterdir())) == 2  # programs, and the kernel's layout
    return directory


def grown(line: list[str], program: Path, directory: Path) -> tuple[list[str], str, int]:
    """Its warnings after it has seen what it must; its maps, and the most that it had in memory, in KiB."""
    notes = directory / f"notes-{len(list(directory.iterdir()))}"
    with stepped(program, "grown", notes) as workload:
        workload.wait_for("running")
        with trace("-p", workload.tgid, shmtrace=line) as tracing:
            maps = Path(f"/proc/{tracing.process.pid}/maps").read_text()
            status = Path(f"/proc/{tracing.process.pid}/status").read_text()
            workload.go()
            workload.wait_for("grown")
            report = tracing.stop()
    (region,) = report["regions"]
    assert sum(toucher["touched_bytes"] for toucher in region["touchers"]) == 28 * 4096
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found
    return report["warnings"], maps, int(found[1])


def test_a_second_start_needs_no_compiler(tier: str, compiled: Path, program: Path, tmp_path: Path) -> None:
    """It has neither bcc nor LLVM in it, and could not have."""
    (tmp_path / "bcc.py").write_text("raise ImportError('there is none')\n")
    without_bcc = keeping(tier, compiled, f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    warnings, maps, kb = grown(without_bcc, program, tmp_path)
    assert warnings == []
    assert not COMPILERS.search(maps)
    assert kb < MOST_KB


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def rename(path: Path) -> None:
    """What was made for another kernel has this one's name."""
    raw = path.read_bytes()
    path.write_bytes(hashlib.sha256(b"of another" + raw[65:]).hexdigest().encode() + raw[64:])


SPOILED: dict[str, Callable[[Path], None]] = {
    "one bit": flip,
    "another's name": rename,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "another's": lambda path: os.chown(path, 65534, -1),
    "other users may write": lambda path: path.chmod(0o666),
    "in another's directory": lambda path: os.chown(path.parent, 65534, -1),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_is_not_to_be_believed_is_made_anew(
    tier: str, how: str, compiled: Path, program: Path, tmp_path: Path
) -> None:
    """A line says so, and the trace is as any other."""
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o700)
    for path in compiled.iterdir():
        (kept / path.name).write_bytes(path.read_bytes())
        (kept / path.name).chmod(0o600)
    for path in list(kept.iterdir()):
        SPOILED[how](path)
    warnings, _, _ = grown(keeping(tier, kept), program, tmp_path)
    assert warnings
    assert all(NOT_USED.search(warning) for warning in warnings)

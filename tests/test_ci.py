"""What CI runs, with a bootstrap that only says what it was asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / ".ci" / "run"
ARM64 = "test --kernels --arm64 --smoke 6.12-arm64-16k"
STAGES = [f"./bootstrap {stage}" for stage in ("test --setup", "test", "test --kernels", ARM64)]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("none", [(stage, 0) for stage in STAGES]),
        ("test", [(STAGES[0], 0), (STAGES[1], 7)]),
        ("test --kernels", [(STAGES[0], 0), (STAGES[1], 0), (STAGES[2], 7)]),
        (ARM64, [*((stage, 0) for stage in STAGES[:3]), (STAGES[3], 7)]),
    ],
)
def test_each_stage_says_what_it_took(tmp_path: Path, broken: str, expected: list[tuple[str, int]]) -> None:
    """Also the one that fails, which is the last."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(RUN, tmp_path / ".ci")
    bootstrap = tmp_path / "bootstrap"
    bootstrap.write_text(f'#!/bin/sh\n[ "$SHMTRACE_REQUIRE_BPF" = 1 ] || exit 9\n[ "$*" != "{broken}" ] || exit 7\n')
    bootstrap.chmod(0o755)
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True)
    found = re.findall(r"^ci: (.+): \d+ s, status (\d+)$", done.stdout, re.MULTILINE)
    assert [(stage, int(status)) for stage, status in found] == expected
    assert done.returncode == expected[-1][1]

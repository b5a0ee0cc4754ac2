"""A workload whose names are what an attacker would choose, traced for real."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.live.reports import ROOT, SHMTRACE
from tracer.proc.shmem import PAGE_BYTES

COMM = b"\x1b[31m=1+1\n<b>\xff"
ARGUMENT = b"<script>alert(1)</script>\x1b]0;x\x07 \xe2\x80\xaegpj\xff\n@SUM(1)" + b"x" * 4096
MEMFD = b"=cmd|\x1b[2J\n<img src=x>\xe2\x80\xae\xfe"
# 17 pages by the command itself, and 6 by a child of it that has ended
WORKLOAD = f"""
import ctypes, mmap, os
libc = ctypes.CDLL(None)
libc.prctl(15, {COMM!r}, 0, 0, 0)
fd = libc.memfd_create({MEMFD!r}, 0)
os.ftruncate(fd, 31 * 4096)
pool = mmap.mmap(fd, 31 * 4096)
for page in range(17):
    pool[page * 4096] = 1
child = os.fork()
if not child:
    for page in range(20, 26):
        pool[page * 4096] = 1
    os._exit(0)
os.waitpid(child, 0)
"""
pytestmark = pytest.mark.bpf


def run(*arguments: str | bytes | Path) -> str:
    return subprocess.run([*SHMTRACE, *arguments], cwd=ROOT, capture_output=True, check=True, encoding="utf-8").stdout


def test_names_that_strangers_chose(tmp_path: Path) -> None:
    """Each view is harmless, has the pages at the right place, and the names can be told."""
    path = tmp_path / "hostile.capture"
    workload = tmp_path / "workload.py"
    workload.write_text(WORKLOAD)
    run("record", "-o", path, "--", sys.executable, workload, ARGUMENT)
    document: dict[str, Any] = json.loads(run("report", path, "--json"))
    (region,) = (region for region in document["regions"] if region["kind"] == "memfd")
    touched = sorted(toucher["touched_bytes"] // PAGE_BYTES for toucher in region["touchers"])
    assert touched == [6, 17]
    assert region["allocated_bytes"] == 23 * PAGE_BYTES
    assert "=cmd|" in region["name"]
    assert "<img src=x>" in region["name"]
    for toucher in region["touchers"]:
        assert "=1+1" in toucher["process"]["comm"]
        assert "<script>alert(1)</script>" in toucher["process"]["command"]
    for view in (["report"], ["report", "--by", "process"], ["report", "--csv"], ["export", "--format", "folded"]):
        text = run(view[0], path, *view[1:])
        bad = [c for c in text if c not in "\r\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
        assert not bad, view
        assert "=1+1" in text or "<script>" in text or "=cmd|" in text, view
    page = run("html", path, "-o", "-")
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    assert "\x1b" not in page
    assert "alert(1)" in page

"""The README's table of kernels is made of what the matrix found, not typed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.kernels.matrix import FOUND
from tests.kernels.results import markdown

README = Path(__file__).parents[1] / "README.md"
TABLE = re.compile(r"(?<=<!-- kernels -->\n\n).*?(?=\n\n<!-- /kernels -->)", re.DOTALL)


def test_the_table_of_kernels_is_what_the_matrix_found() -> None:
    text, wanted = README.read_text(), markdown(FOUND.read_text())
    if os.environ.get("SHMTRACE_REFRESH_GOLDEN") == "1":
        README.write_text(TABLE.sub(lambda _: wanted, text))
    found = TABLE.search(README.read_text())
    assert found
    assert found[0] == wanted


def test_a_row_a_kernel_a_column_a_tier() -> None:
    record = '{"5.10 kprobe": [7, 0, 0], "5.10 faults": [5, 2, 31], "7.3 (for 7.2) fentry": [9, 0, 0]}'
    assert markdown(record).splitlines()[2:] == [
        "| 5.10 | 7 passed, 0 pages unseen | not run | 2 failed, 5 passed, 31 pages unseen |",
        "| 7.3 (for 7.2) | not run | 9 passed, 0 pages unseen | not run |",
    ]

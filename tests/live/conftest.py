"""The workloads, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.live.reports")

from tests.live.workload import build  # noqa: E402


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("workloads"))

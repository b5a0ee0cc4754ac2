"""The road the data goes, a folder a stage: a module imports only what stands before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tracer"
ROAD = """
    errors wire clock address shipped formatting conditions status cgroup proc kernel capture hints labels sql
    unmapped model binaries record sessions account guess alike merge window growth tables answer find_region
    triggers views prepare doctor demo service metrics cli __main__
""".split()  # noqa: SIM905, a line each tells no more
"""Folders and modules. Inside a folder modules import each other as they need, but in no circle."""
PIECE = ("views/hexdump.py", "proc")  # what is read of a region goes to the eye without a capture
NEVER = {"tables": {"proc", "kernel", "record"}, "views": {"proc", "kernel", "record"}, "record": {"cli"}}
ONLY_IN = {
    "bcc": {"kernel/compiler.py"},
    "click": {"cli"},
    "textual": {"views/top_screen.py"},
    "prometheus_client": {"metrics"},
    "ctypes": {"proc", "kernel", "doctor.py"},
    "duckdb": {"views/parquet.py"},
}
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports; of ours with the name that is asked of it, as in tracer.record.trace.Trace."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def stage(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__.py"])
def test_imports_go_back_along_the_road(name: str) -> None:
    own = {module.split(".")[1] for module in imports(MODULES[name]) if module.startswith("tracer.")}
    own = {there for there in own if (name, there) != PIECE}
    ahead = {there for there in own if there in ROAD and ROAD.index(there) > ROAD.index(stage(name))}
    assert not ahead | (NEVER.get(stage(name), set()) & own)


@pytest.mark.parametrize("name", MODULES)
def test_what_one_place_alone_may_import(name: str) -> None:
    theirs = {module.split(".")[0] for module in imports(MODULES[name])}
    assert all(ONLY_IN[module] & {name, stage(name)} for module in theirs & set(ONLY_IN))

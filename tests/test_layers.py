"""The road the data goes: a module imports only what stands before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROAD = """
    errors command signals wire clock budget packages shipped cache elf btf layout promptly bounded leases mounts
    procfs bpf ring perf kernel events news ledger journal verify capture lives regions blocks bytecode loader
    compiler probes symbols targets sources labelling adopting closing keeping stacks private trace snapshot contents
    sparse account moments labels places tables timeline rollup belonging deeds groups touches diff views views.text
    views.json views.live views.table views.changes views.stacks views.perfetto references views.dump views.top
    views.screen views.pictures views.html tools experiment demo prepare doctor cli.streams cli.options cli.output
    cli.wanted cli.tracing cli.looking cli.host cli __main__
""".split()  # noqa: SIM905, a list of 31 lines tells no more

# The only modules that may import these.
PLACE = {"bcc": "compiler", "click": "cli"}

PACKAGE = Path(__file__).parent.parent / "tracer"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""By name on the road; the package itself, which everything may import, is the empty name."""


def imports(name: str) -> Iterator[str]:
    """Every module that the module imports, anywhere in it: "tracer.x", or somebody else's."""
    path = MODULES[name]
    package = ["tracer", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner.removeprefix("tracer.") in MODULES else source


def test_every_module_is_on_the_road() -> None:
    assert set(MODULES) <= {"", *ROAD}


@pytest.mark.parametrize("name", [name for name in ROAD if name in MODULES])
def test_imports_go_back_along_the_road(name: str) -> None:
    before = {"tracer", *(f"tracer.{module}" for module in ROAD[: ROAD.index(name)])}
    ahead = {module for module in imports(name) if module.split(".")[0] == "tracer"} - before
    assert not ahead, f"{name} stands before {sorted(ahead)} on the road"


def test_the_package_itself_imports_nothing() -> None:
    assert not list(imports(""))


@pytest.mark.parametrize("name", MODULES)
def test_bcc_and_click_keep_their_place(name: str) -> None:
    for module in imports(name):
        assert PLACE.get(module.split(".")[0], name) in (name, name.split(".")[0])

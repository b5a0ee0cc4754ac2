"""What is compiled beforehand: all that a trace may ask for, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer import labels, prepare
from tracer.errors import ShmtraceError
from tracer.kernel import bytecode, tiers
from tracer.kernel.bytecode import Bytecode, Wanted
from tracer.kernel.cache import Cache
from tracer.kernel.fields import KernelLayout
from tracer.kernel.probes import STACKS

LAYOUT = KernelLayout({"OFF_TASK_MM": 1184}, {})
VARIANTS = prepare.variants(LAYOUT, tiers.FAULTS, fexit=False)


def test_whatever_is_asked_for_is_there() -> None:
    prepared = {tuple(variant.wanted.flags) for variant in VARIANTS}
    for source in (*labels.READY.values(), labels.parse("app:some_text+8")):
        assert {(), (STACKS,), source.flags, (*source.flags, STACKS)} <= prepared


def test_nothing_is_there_twice() -> None:
    assert len({variant.wanted.key() for variant in VARIANTS}) == len(VARIANTS)
    assert len({variant.title for variant in VARIANTS}) == len(VARIANTS)


def test_a_title_is_what_a_user_would_write() -> None:
    assert [variant.title for variant in VARIANTS[:4]] == [
        "faults",
        "faults --stacks",
        "faults --label php",
        "faults --label php --stacks",
    ]


def test_what_is_kept_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Wanted] = []

    def compile_one(wanted: Wanted) -> Bytecode:
        asked.append(wanted)
        return Bytecode("libbcc.so.0.26.0", [], {})

    monkeypatch.setattr(Wanted, "compile", compile_one)
    monkeypatch.setattr(bytecode, "installed_compiler", lambda: None)
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        assert sorted(prepare.compile_all(VARIANTS, cache)) == sorted(VARIANTS)
    assert len(asked) == len(VARIANTS)


def test_where_nothing_can_be_compiled_the_first_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_wanted: Wanted) -> Bytecode:
        raise ShmtraceError("no bcc", "install it")

    monkeypatch.setattr(Wanted, "compile", refuse)
    with pytest.raises(ShmtraceError, match="no bcc"):
        list(prepare.compile_all(VARIANTS, Cache(tmp_path / "cache")))

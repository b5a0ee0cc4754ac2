"""How often it is looked whether a condition holds, and what wakes who waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.test_conditions import PRESSURE
from tracer import triggers
from tracer.conditions import parse
from tracer.errors import ShmtraceError
from tracer.record.targets import Lasting, Targets
from tracer.triggers import Fired, Pressure, Watch, wait_for

NOBODY = Lasting([], everything=False)


class Host:
    """A clock that only looking, searching and resting moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, look_s: float, search_s: float) -> None:
        self.now_s = self.used_s = self.searching_s = self.looking_s = 0.0
        self.searches_at_s: list[float] = []
        self.loses_regions = False
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time, "process_time", lambda: self.used_s)
        monkeypatch.setattr(triggers, "_woken", lambda _pressures, rest_s: self.rest(rest_s))
        monkeypatch.setattr(Watch, "search", lambda watch: self.search(watch, search_s))
        monkeypatch.setattr(Watch, "look", lambda watch: self.look(watch, look_s))

    def rest(self, rest_s: float) -> None:
        self.now_s += rest_s

    def work(self, seconds: float) -> float:
        self.now_s += 2 * seconds  # there is other work, too
        self.used_s += seconds
        return seconds

    def search(self, watch: Watch, seconds: float) -> None:
        watch.has_lost = False
        self.searches_at_s.append(self.now_s)
        self.searching_s += self.work(seconds)

    def look(self, watch: Watch, seconds: float) -> Fired | None:
        watch.has_lost = self.loses_regions
        self.looking_s += self.work(seconds)
        return None

    def wait(self, seconds: float) -> None:
        assert not wait_for([parse("a > 1%")], NOBODY, [], lambda _: None, lambda: self.now_s > seconds)


def test_a_small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at each second, searched for each minute."""
    host = Host(monkeypatch, look_s=0.0005, search_s=0.05)
    host.wait(3600)
    assert 3500 < host.looking_s / 0.0005 <= 3601
    assert 57 < len(host.searches_at_s) <= 61
    assert host.used_s < 0.002 * 3600


def test_what_is_quickly_searched_is_searched_often(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, look_s=0.0005, search_s=0.001)
    host.wait(3600)
    assert 320 < len(host.searches_at_s) <= 361


@pytest.mark.parametrize("loses_regions", [False, True])
def test_a_large_host(monkeypatch: pytest.MonkeyPatch, loses_regions: bool) -> None:
    """A hundredth of the time for looks, and one for searches, even if regions are lost all the time."""
    host = Host(monkeypatch, look_s=0.5, search_s=5.0)
    host.loses_regions = loses_regions
    host.wait(36_000)
    assert 0 < host.looking_s < 0.01 * 36_000
    assert 0 < host.searching_s < 0.01 * 36_000 + 5.0


def test_a_lost_region_is_searched_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, look_s=0.0005, search_s=0.05)
    host.loses_regions = True
    host.wait(60)
    assert 5 < host.searches_at_s[1] < 7


# ---- memory pressure ----


def test_pressure_by_what_can_be_read(tmp_path: Path) -> None:
    """No file but the kernel's wakes anybody."""
    path = tmp_path / "memory"
    path.write_bytes(PRESSURE)
    low, high = Pressure(parse("pressure > 12.33%"), path), Pressure(parse("pressure > 12.34%"), path)
    assert (low.holds, high.holds) == (True, False)
    path.unlink()
    assert not low.holds
    assert low.fired(Targets(frozenset(), ())).said == "processes waited for memory during more than 12.33% of 10 s"


def test_a_kernel_without_pressure(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with pytest.raises(ShmtraceError, match=r"this kernel does not measure memory pressure .*: boot it with psi=1"):
        Pressure(parse("pressure > 1%"), path)


def test_a_trigger_that_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(PRESSURE)

    def refuse(_fd: int, _text: bytes) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "write", refuse)
    with Pressure(parse("pressure > 1%"), path) as pressure:
        assert pressure.fd is None
        assert pressure.holds

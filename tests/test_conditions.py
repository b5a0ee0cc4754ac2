"""What --when takes for a condition, and when one holds."""

from __future__ import annotations

import pytest

from tracer.conditions import FORMS, Check, Condition, Reading, parse, stalled_percent

M = 1 << 20


@pytest.mark.parametrize(
    ("text", "what", "percent", "size_bytes", "over_s"),
    [
        ("opcache > 80%", "opcache", 80.0, None, None),
        ("opcache>80%", "opcache", 80.0, None, None),
        ("  opcache  >  80.25 %  ", "opcache", 80.25, None, None),
        ("opcache > 0%", "opcache", 0.0, None, None),
        ("opcache > 99.999%", "opcache", 99.999, None, None),
        ("opcache > 900M", "opcache", None, 900 * M, None),
        ("opcache > 900m", "opcache", None, 900 * M, None),
        ("opcache +50M/min", "opcache", None, 50 * M, 60),
        ("opcache+50m / MIN", "opcache", None, 50 * M, 60),
        ("opcache + 3K/s", "opcache", None, 3 << 10, 1),
        ("opcache +2T/h", "opcache", None, 2 << 40, 3600),
        ("shmem +100M/min", "shmem", None, 100 * M, 60),
        ("SHMEM > 4G", "shmem", None, 4 << 30, None),
        ("pressure > 10%", "pressure", 10.0, None, None),
        ("Pressure>0.5%", "pressure", 0.5, None, None),
        ("/dev/shm/a > 80% > 7%", "/dev/shm/a > 80%", 7.0, None, None),
        ("/dev/shm/c++ +1M/s", "/dev/shm/c++", None, M, 1),
        ('limit_req zone "a\\nb"? > 1K', 'limit_req zone "a\\nb"?', None, 1024, None),
        ("/memfd:a\n\t > 1%", "/memfd:a", 1.0, None, None),
        ("812:0x7f3a5000 > 1%", "812:0x7f3a5000", 1.0, None, None),
        ("pressure? > 1G", "pressure?", None, 1 << 30, None),
        ("2 > 8388607T", "2", None, 8388607 << 40, None),
    ],
)
def test_conditions(text: str, what: str, percent: float | None, size_bytes: int | None, over_s: int | None) -> None:
    assert parse(text) == Condition(text, what, percent, size_bytes, over_s)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ">", "opcache", "> 80%", " > 80%", "+1M/s", "80%", "opcache 80%", "opcache >", "opcache > %"),
        *(
            "opcache >= 80%",
            "opcache < 80%",
            "opcache > 80 percent",
            "opcache > -1%",
            "opcache > 1e9",
            "opcache > 1.5G",
        ),
        *("opcache > NaN%", "opcache > nan", "opcache > inf", "opcache > ²%", "opcache > ٣%", "opcache > 1_0%"),
        *("opcache > 0", "opcache > 9223372036854775808", "opcache > 8388608T", f"opcache > {'9' * 5000}"),
        *("opcache +80%", "opcache +80%/min", "opcache +1M", "opcache +1M/", "opcache +1M/d", "opcache +1M/5min"),
        *("opcache +0M/min", "opcache +1M/s/s", "opcache > 1M/s", "opcache -1M/s", f"opcache +{'9' * 19}/s"),
        *("pressure > 10M", "pressure +10M/s", "pressure +10%/s", f"{'a' * 9000} > 1%"),
    ],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="is not a condition: write 'opcache > 80%'") as caught:
        parse(text)
    assert str(caught.value).endswith(FORMS)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["opcache > 100%", "opcache > 999%", "pressure > 100.0%"])
def test_what_never_holds(text: str) -> None:
    with pytest.raises(ValueError, match="never holds"):
        parse(text)


@pytest.mark.parametrize("text", ["opcache > 80", "shmem > 4096", "2 > 9223372036854775807"])
def test_what_has_no_unit(text: str) -> None:
    """80 bytes are hardly ever meant."""
    with pytest.raises(ValueError, match="has no unit: write 'opcache > 80%'"):
        parse(text)


def test_shmem_has_no_size() -> None:
    with pytest.raises(ValueError, match="write 'shmem > 4G'"):
        parse("shmem > 80%")


def held(text: str, *readings: tuple[float, int] | tuple[float, int, int]) -> list[bool]:
    check = Check(parse(text))
    return [check.holds(Reading(*reading)) for reading in readings]


def test_a_share_of_the_size() -> None:
    """More than it, not as much."""
    assert held("a > 80%", (0, 79, 100), (1, 80, 100), (2, 81, 100)) == [False, False, True]
    assert held("a > 80%", (0, 81, 102), (1, 1 << 62, (1 << 62) + 5)) == [False, True]
    assert held("a > 0%", (0, 0, 0), (1, 0, 7), (2, 1, 7)) == [False, False, True]
    assert held("a > 1%", (0, 1 << 40)) == [False]  # of no size that is known


def test_a_size() -> None:
    assert held("a > 7K", (0, 7168), (1, 7169), (2, 0)) == [False, True, False]


def test_growth_within_the_time() -> None:
    """From the lowest reading of the last minute, however soon it comes."""
    assert held("a +100/min", (0, 1000), (1, 1099), (2, 1100)) == [False, False, True]
    assert held("a +100/min", (0, 1000), (30, 900), (31, 999), (32, 1000)) == [False, False, False, True]
    assert held("a +100/min", (0, 5000)) == [False]  # what there was before


def test_growth_that_takes_longer() -> None:
    """A hundred in two minutes are fifty in one."""
    rising = [(second, second) for second in range(0, 600, 7)]
    assert held("a +61/min", *rising) == [False] * len(rising)
    assert True in held("a +60/min", *rising)


def test_growth_between_two_looks_that_lie_further_apart() -> None:
    """It was as fast as that on the average, or not."""
    assert held("a +10/s", (0, 0), (1.5, 14)) == [False, False]
    assert held("a +10/s", (0, 0), (1.5, 15)) == [False, True]
    assert held("a +10/s", (0, 0), (100, 999), (200, 1999)) == [False, False, True]


def test_growth_after_a_fall() -> None:
    """What was given back and comes again has grown."""
    assert held("a +100/min", (0, 500), (10, 0), (20, 99), (30, 100)) == [False, False, False, True]


def test_an_hour_is_remembered() -> None:
    """And no more of it than an hour."""
    check = Check(parse("a +1T/h"))
    for second in range(10_000):
        assert not check.holds(Reading(second, second))
    assert len(check._lows) == 3601
    for second in range(10_000, 20_000):
        assert not check.holds(Reading(second, 20_000 - second))
    assert len(check._lows) == 1


PRESSURE = b"some avg10=12.34 avg60=0.52 avg300=0.10 total=354793\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=1\n"


def test_pressure() -> None:
    assert stalled_percent(PRESSURE) == 12.34
    assert stalled_percent(b"some avg10=100.00 avg60=") == 100.0


@pytest.mark.parametrize("text", [b"", b"full avg10=1.00 ", b"some avg10=nan avg60", b"some avg10=-1.00 ", b"\xff"])
def test_no_pressure(text: bytes) -> None:
    assert stalled_percent(text) is None

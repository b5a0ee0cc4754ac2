"""Labels by process and time, from events that were made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tracer import sources, wire
from tracer.capture import Capture
from tracer.events import Absent, Head, Label
from tracer.labelling import Labelling
from tracer.procfs import Proc

NONE, UNREADABLE = Absent.NONE, Absent.UNREADABLE


class KernelSide:
    """Stands for the probes: its map holds what it was given."""

    def __init__(self) -> None:
        self.labels = _Map()


class _Map(dict):  # type: ignore[type-arg]
    def __missing__(self, key: bytes) -> None:
        return None

    def insert(self, key: bytes, value: bytes) -> bool:
        return self.setdefault(key, value) is value

    def __delitem__(self, key: bytes) -> None:
        self.pop(key, None)


def told(tgid: int, since_us: int, *texts: str | Absent, lost_us: int = 0) -> Label:
    return Label(Head(0, 0, tgid), since_us, lost_us, (*texts, *[""] * (wire.MAX_TEXTS - len(texts))))


@pytest.fixture
def capture() -> Capture:
    return Capture()


@pytest.fixture
def labelling(capture: Capture) -> Labelling:
    return Labelling(capture, KernelSide(), Proc(), sources.parse("app:doing"))  # type: ignore[arg-type]


@pytest.fixture
def text_at(capture: Capture, labelling: Labelling) -> Callable[[int, int], str | None]:
    def text(tgid: int, when_us: int) -> str | None:
        row = labelling.at(tgid, when_us)
        if row is None:
            return "?"
        return str(capture.rows("SELECT text FROM label WHERE id = ?", (row,))[0][0])

    return text


TextAt = Callable[[int, int], str]


def test_it_lasts_until_the_next(labelling: Labelling, text_at: TextAt) -> None:
    labelling.heard(told(812, 100, "a"))
    labelling.heard(told(812, 200, "b"))
    labelling.heard(told(813, 150, "c"))
    labelling.heard(told(812, 300, NONE))
    times = [99, 100, 199, 200, 299, 300, 10**9]
    assert [text_at(812, when) for when in times] == ["?", "a", "a", "b", "b", "None", "None"]
    assert [text_at(813, when) for when in times] == ["?", "?", "c", "c", "c", "c", "c"]


def test_threads_may_tell_out_of_order(labelling: Labelling, text_at: TextAt) -> None:
    labelling.heard(told(812, 200, "b"))
    labelling.heard(told(812, 100, "a"))
    assert [text_at(812, when) for when in (99, 100, 199, 200)] == ["?", "a", "a", "b"]


def test_what_could_not_be_told_is_unknown(labelling: Labelling, text_at: TextAt) -> None:
    labelling.heard(told(812, 100, "a"))
    labelling.heard(told(812, 300, "b", lost_us=200))
    labelling.heard(told(812, 400, UNREADABLE))
    labelling.heard(told(812, 500, "b"))
    assert [text_at(812, when) for when in (199, 200, 299, 300, 400, 500)] == ["a", "?", "?", "b", "?", "b"]


@pytest.mark.parametrize("end", [Labelling.ended, lambda labelling, _: labelling.finish()])
def test_a_loss_that_lasts_to_the_end(
    end: Callable[[Labelling, int], None], labelling: Labelling, text_at: TextAt
) -> None:
    site = sources.Site(sources.parse("app:doing"), (8,), (1, 2), Proc().root, {}, file_is_string=False)
    labelling._enter(812, site)
    labelling.heard(told(812, 100, "a"))
    values = list(wire.LABEL.unpack(site.pack()))
    values[2 * wire.MAX_TEXTS] = 150
    labelling._probes.labels[wire.TGID.pack(812)] = wire.LABEL.pack(*values)
    end(labelling, 812)
    assert [text_at(812, when) for when in (149, 150, 10**9)] == ["a", "?", "?"]


def test_another_life_of_a_pid(labelling: Labelling, text_at: TextAt) -> None:
    labelling.heard(told(812, 100, "a"))
    labelling.begin(812, 500)
    assert [text_at(812, when) for when in (499, 500)] == ["a", "?"]


def test_the_same_words_are_one_row(capture: Capture, labelling: Labelling) -> None:
    for tgid, text in ((812, "a"), (813, "b"), (814, "a"), (812, "b")):
        labelling.heard(told(tgid, 100 + tgid, text))
    assert [tuple(row) for row in capture.rows("SELECT text FROM label")] == [("a",), ("b",)]


def test_there_is_an_end_to_what_is_kept(
    capture: Capture, labelling: Labelling, text_at: TextAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.labelling.MAX_LABELS", 3)
    monkeypatch.setattr("tracer.labelling.MAX_MOMENTS", 6)
    for number, text in enumerate("abcdabc"):
        labelling.heard(told(812, 100 * number, text))
    assert [text_at(812, 100 * number) for number in range(7)] == ["?", "?", "?", "?", "a", "b", "c"]
    assert len(capture.rows("SELECT * FROM label")) == 3
    assert labelling.warnings == [
        "more than 3 different labels: the others are ?",
        "812 has said more than 6 things: its labels of long ago are ?",
    ]


def test_no_program_had_it(labelling: Labelling) -> None:
    labelling.finish()
    assert labelling.warnings == ["no process had what --label app:doing reads: all labels are ?"]

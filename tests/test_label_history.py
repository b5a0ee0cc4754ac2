"""Labels by process and time, from events that were made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tracer import labels, wire
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.kernel.events import Absent, LabelRead
from tracer.labels import Source
from tracer.proc import procfs
from tracer.proc.procfs import Proc
from tracer.proc.shmem import FileKey
from tracer.record.label_history import LabelHistory
from tracer.record.label_sites import Site

NONE, UNREADABLE = Absent.NONE, Absent.UNREADABLE


class KernelSide:
    """Stands for the probes: its map holds what it was given."""

    def __init__(self) -> None:
        self.labels = _Map()
        self.uprobes: dict[int, tuple[str, str, int]] = {}
        self.refuses = ""

    def attach_uprobe(self, program: str, path: Path, offset: int) -> int:
        if program == self.refuses:
            raise ShmtraceError(f"a uprobe on {path} is refused", "take another label")
        number = max(self.uprobes, default=0) + 1
        self.uprobes[number] = program, str(path), offset
        return number

    def detach_uprobe(self, number: int) -> None:
        del self.uprobes[number]


class Programs:
    """Stands for the sources: which program each process runs, or what is wrong with it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.running: dict[int, str] = {}

    def find(self, tgid: int) -> Site | None:
        path = self.running.get(tgid)
        if not path:
            return None
        if not path.startswith("/"):
            raise ShmtraceError(path)
        mapping = procfs.Mapping(0, 4096, False, 0, 1, len(path), path)
        functions = {program: 16 * number for number, program in enumerate(self._source.functions, 1)}
        addresses = tuple(8 * number for number, _ in enumerate(self._source.texts, 1))
        return Site(self._source, addresses, mapping, FileKey(1, hash(path), 0, 0), functions, file_is_string=False)

    @contextmanager
    def opened(self, site: Site, tgid: int) -> Iterator[Path]:
        if self.running.get(tgid) != site.mapping.path:
            raise FileNotFoundError
        yield Path(site.mapping.path)


class _Map(dict):  # type: ignore[type-arg]
    def __missing__(self, key: bytes) -> None:
        return None

    def insert(self, key: bytes, value: bytes) -> bool:
        return self.setdefault(key, value) is value

    def __delitem__(self, key: bytes) -> None:
        self.pop(key, None)


def told(tgid: int, since_us: int, *texts: str | Absent, lost_us: int = 0) -> LabelRead:
    return LabelRead(tgid, since_us, lost_us, (*texts, *[""] * (wire.MAX_TEXTS - len(texts))))


@pytest.fixture
def capture() -> Capture:
    return Capture()


def made(capture: Capture, name: str) -> LabelHistory:
    probes: Any = KernelSide()
    found = LabelHistory(capture, probes, Proc(), labels.parse(name))
    found._sources = Programs(labels.parse(name))  # type: ignore[assignment]
    return found


@pytest.fixture
def labelling(capture: Capture) -> LabelHistory:
    return made(capture, "app:doing")


def runs(labelling: LabelHistory, *tgids: int, program: str = "/bin/app") -> None:
    """Or what is wrong with the program."""
    programs: Any = labelling._sources
    for tgid in tgids:
        programs.running[tgid] = program
        labelling.adopt(tgid)


def labelled(labelling: LabelHistory) -> list[int]:
    """The tgids that the kernel side knows of."""
    return sorted(wire.TGID.unpack(key)[0] for key in labelling._probes.labels)  # type: ignore[attr-defined]


@pytest.fixture
def text_at(capture: Capture, labelling: LabelHistory) -> Callable[[int, int], str | None]:
    def text(tgid: int, when_us: int) -> str | None:
        row = labelling.at(tgid, when_us)
        if row is None:
            return "?"
        return str(capture.rows("SELECT text FROM label WHERE id = ?", (row,))[0][0])

    return text


TextAt = Callable[[int, int], str]


def test_it_lasts_until_the_next(labelling: LabelHistory, text_at: TextAt) -> None:
    labelling.heard(told(812, 100, "a"))
    labelling.heard(told(812, 200, "b"))
    labelling.heard(told(813, 150, "c"))
    labelling.heard(told(812, 300, NONE))
    times = [99, 100, 199, 200, 299, 300, 10**9]
    assert [text_at(812, when) for when in times] == ["?", "a", "a", "b", "b", "None", "None"]
    assert [text_at(813, when) for when in times] == ["?", "?", "c", "c", "c", "c", "c"]


def test_whether_it_was_one_all_the_time(labelling: LabelHistory) -> None:
    labelling.heard(told(812, 100, "a"))
    labelling.heard(told(812, 200, "b"))
    labelling.heard(told(812, 300, "a"))
    spans = [(0, 99), (99, 100), (100, 199), (100, 200), (100, 300), (300, 10**9)]
    assert [labelling.is_one(812, *span) for span in spans] == [True, False, True, False, False, True]
    assert labelling.is_one(813, 0, 10**9)


def test_threads_may_tell_out_of_order(labelling: LabelHistory, text_at: TextAt) -> None:
    labelling.heard(told(812, 200, "b"))
    labelling.heard(told(812, 100, "a"))
    assert [text_at(812, when) for when in (99, 100, 199, 200)] == ["?", "a", "a", "b"]


def test_what_could_not_be_told_is_unknown(labelling: LabelHistory, text_at: TextAt) -> None:
    labelling.heard(told(812, 100, "a"))
    labelling.heard(told(812, 300, "b", lost_us=200))
    labelling.heard(told(812, 400, UNREADABLE))
    labelling.heard(told(812, 500, "b"))
    assert [text_at(812, when) for when in (199, 200, 299, 300, 400, 500)] == ["a", "?", "?", "b", "?", "b"]


@pytest.mark.parametrize("end", [LabelHistory.ended, lambda labelling, _: labelling.finish()])
def test_a_loss_that_lasts_to_the_end(
    end: Callable[[LabelHistory, int], None], labelling: LabelHistory, text_at: TextAt
) -> None:
    runs(labelling, 812)
    labelling.heard(told(812, 100, "a"))
    values = list(wire.LABEL.unpack(labelling._probes.labels[wire.TGID.pack(812)]))
    values[2 * wire.MAX_TEXTS] = 150
    labelling._probes.labels[wire.TGID.pack(812)] = wire.LABEL.pack(*values)
    end(labelling, 812)
    assert [text_at(812, when) for when in (149, 150, 10**9)] == ["a", "?", "?"]


def test_another_life_of_a_pid(labelling: LabelHistory, text_at: TextAt) -> None:
    labelling.heard(told(812, 100, "a"))
    labelling.begin(812, 500)
    assert [text_at(812, when) for when in (499, 500)] == ["a", "?"]


def test_the_same_words_are_one_row(capture: Capture, labelling: LabelHistory) -> None:
    for tgid, text in ((812, "a"), (813, "b"), (814, "a"), (812, "b")):
        labelling.heard(told(tgid, 100 + tgid, text))
    assert [tuple(row) for row in capture.rows("SELECT text FROM label")] == [("a",), ("b",)]


def test_there_is_an_end_to_what_is_kept(
    capture: Capture, labelling: LabelHistory, text_at: TextAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.record.label_history.MAX_LABELS", 3)
    monkeypatch.setattr("tracer.record.label_history.MAX_MOMENTS", 6)
    for number, text in enumerate("abcdabc"):
        labelling.heard(told(812, 100 * number, text))
    assert [text_at(812, 100 * number) for number in range(7)] == ["?", "?", "?", "?", "a", "b", "c"]
    assert len(capture.rows("SELECT * FROM label")) == 3
    assert labelling.warnings == [
        "more than 3 different labels: the others are ?",
        "812 has had more than 6 labels: its oldest are ?",
    ]


def test_no_program_had_it(labelling: LabelHistory) -> None:
    labelling.finish()
    assert labelling.warnings == ["no process had what --label app:doing reads: all labels are ?"]


def test_why_a_program_has_none(labelling: LabelHistory) -> None:
    """Once for each, and not for all that anybody may have; at the start only if there is nothing else."""
    assert labelling.doubt is None
    for number in (1, 1, 2, 3):
        runs(labelling, 900 + number, program=f"app{number} has no symbol")
    assert labelling.doubt == "app1 has no symbol: its labels are ?"
    assert labelling.warnings == [f"app{number} has no symbol: its labels are ?" for number in (1, 2, 3)]
    runs(labelling, 812)
    assert labelling.doubt is None
    assert labelled(labelling) == [812]
    for number in range(1, 100):
        runs(labelling, 900 + number, program=f"app{number} has no symbol")
    assert labelling.warnings[9:] == [
        "app10 has no symbol: its labels are ?",
        "more programs lack what --label app:doing reads: their labels are ?",
    ]
    labelling.finish()
    assert len(labelling.warnings) == 11


def test_one_that_has_nothing_to_be_read(labelling: LabelHistory, text_at: TextAt) -> None:
    """As long as there is nothing: a page of it may just have been elsewhere."""
    warning = "/bin/app has nothing readable at doing: its labels are ?"
    runs(labelling, 812, 813)
    assert labelling.warnings == []
    labelling.heard(told(812, 100, UNREADABLE))
    assert labelling.warnings == [warning]
    labelling.heard(told(813, 200, NONE))
    labelling.heard(told(812, 300, UNREADABLE))
    assert labelling.warnings == []
    runs(labelling, 814, program="/bin/other")
    labelling.heard(told(814, 100, UNREADABLE))
    labelling.ended(814)
    assert labelling.warnings == [warning.replace("app", "other")]
    assert [text_at(812, when) for when in (100, 300)] == ["?", "?"]
    assert text_at(813, 200) == "None"


def test_who_has_no_path_where_one_should_be(capture: Capture) -> None:
    """It is not believed, and others that run the same are."""
    labelling = made(capture, "php")
    runs(labelling, 812, 813, program="/bin/php")
    labelling.begin(814, 50, parent_tgid=812)
    labelling.heard(told(812, 100, "Standard input code", NONE, NONE))
    labelling.heard(told(813, 100, "/srv/x.php", "/x.php", NONE))
    labelling.heard(told(814, 100, "/srv/y.php", "/y.php", NONE))
    assert labelled(labelling) == [813, 814]
    assert labelling.at(812, 100) is None
    rows = [labelling.at(tgid, 100) for tgid in (813, 814)]
    assert [capture.rows("SELECT script FROM label WHERE id = ?", (row,))[0][0] for row in rows] == [
        "/srv/x.php",
        "/srv/y.php",
    ]
    assert labelling.warnings == [
        "/bin/php had 'Standard input code' instead of a path in sapi_globals: its labels are ?"
    ]


def test_uprobes_last_as_long_as_somebody_runs_the_program(capture: Capture) -> None:
    labelling = made(capture, "php:file")
    probes: Any = labelling._probes
    runs(labelling, 812, 813, program="/bin/php")
    runs(labelling, 814, program="/opt/php")
    hooks = {(program, path) for program, path, _ in probes.uprobes.values()}
    assert hooks == {(hook, path) for hook in labels.READY["php:file"].functions for path in ("/bin/php", "/opt/php")}
    assert len(probes.uprobes) == 4
    labelling.begin(815, 100, parent_tgid=812)
    labelling.ended(812)
    labelling.ended(814)
    assert {path for _, path, _ in probes.uprobes.values()} == {"/bin/php"}
    labelling.begin(813, 200)  # executes another program
    labelling.adopt(813)
    assert len(probes.uprobes) == 2
    runs(labelling, 813, program="")
    labelling.ended(815)
    assert not probes.uprobes
    assert labelling.warnings == []


def test_a_uprobe_that_is_refused(capture: Capture) -> None:
    """None is left, and nothing is read of a program that would have one text of its label too few."""
    labelling = made(capture, "php:file")
    probes: Any = labelling._probes
    probes.refuses = "php_request_over"
    runs(labelling, 812, 813, program="/bin/php")
    assert not probes.uprobes
    assert not labelled(labelling)
    assert labelling.doubt == "a uprobe on /bin/php is refused: its labels are ?"
    probes.refuses = ""
    runs(labelling, 814, program="/bin/php")
    assert labelled(labelling) == [814]


def test_more_programs_than_one_can_mind(labelling: LabelHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracer.record.label_history.MAX_BINARIES", 3)
    for number in range(5):
        runs(labelling, 812 + number, program=f"/bin/app{number}")
    assert labelled(labelling) == [812, 813, 814]
    assert labelling.warnings == [f"/bin/app{n} exceeds the limit of 3 programs: its labels are ?" for n in (3, 4)]
    labelling.ended(812)
    runs(labelling, 820, program="/bin/app9")
    assert labelled(labelling) == [813, 814, 820]


def test_moments_that_no_word_asks_for_are_forgotten(labelling: LabelHistory, text_at: TextAt) -> None:
    """What is asked for is the same as before, and what comes later starts from the newest."""
    for number in range(100):
        labelling.heard(told(812, 10 * number, f"label {number}"))
        labelling.heard(told(813, 10 * number, f"label {number}"))
    words = [(812, 75), (812, 79), (812, 500), (813, 3)]
    before = [text_at(*word) for word in words]
    rows = labelling.needed(words, alive=[812])
    assert rows == {labelling.at(812, 75), labelling.at(812, 500), labelling.at(812, 10**6), labelling.at(813, 3)}
    assert [text_at(*word) for word in words] == before == ["label 7", "label 7", "label 50", "label 0"]
    assert labelling.is_one(812, 75, 79)
    assert not labelling.is_one(812, 79, 500)
    assert text_at(812, 10**6) == "label 99"
    assert [len(times_us) for times_us, _ in labelling._moments.values()] == [3, 1]
    labelling.prune(rows)
    assert len(labelling._rows) == 4
    labelling.heard(told(812, 2000, "label 7"))  # known still
    labelling.heard(told(812, 3000, "label 8"))  # entered anew
    assert labelling.at(812, 2000) == labelling.at(812, 75)
    assert text_at(812, 3000) == "label 8"

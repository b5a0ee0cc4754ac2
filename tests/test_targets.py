"""Which processes are meant by a name, a PID, a pidfile."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.errors import ShmtraceError
from tracer.proc.procfs import ProcessStat
from tracer.record import targets
from tracer.record.targets import NoPidfileError, Targets


def process(tgid: int, parent: int, comm: str, title: str = "") -> ProcessStat:
    return ProcessStat(tgid, parent, comm, tgid * 10_000_000, title, title)


HOST = {
    found.tgid: found
    for found in [
        process(1, 0, "systemd", "/sbin/init"),
        process(2, 0, "kthreadd"),
        process(30, 2, "phpd-worker"),  # a kernel thread: no title
        process(700, 1, "sshd", "sshd: /usr/sbin/sshd -D"),
        process(811, 1, "php-fpm8.2", "php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)"),
        process(812, 811, "php-fpm8.2", "php-fpm: pool www"),
        process(813, 811, "php-fpm8.2", "php-fpm: pool api"),
        process(814, 813, "convert", "convert"),
        process(815, 814, "php", "php"),
        process(900, 1, "postgres", "/usr/lib/postgresql/15/bin/postgres"),
        process(901, 900, "postgres", "postgres: 15/main: walwriter"),
    ]
}


def roots(*words: str) -> list[int]:
    return targets.parse(words).roots(HOST)


# ---- words ----


def test_words(tmp_path: Path) -> None:
    pidfile = tmp_path / "fpm.pid"
    pidfile.write_text("811\n")
    assert targets.parse(["php-fpm", "700", str(pidfile), "^sshd$"]) == Targets(
        frozenset([700, 811]), (re.compile("php-fpm"), re.compile("^sshd$"))
    )


def test_no_words() -> None:
    assert targets.parse([]) == Targets(frozenset(), ())


@pytest.mark.parametrize("text", ["811", "811\n", "  811  \n", "811\n5432\n/var/lib/postgresql\n"])
def test_pidfiles(text: str, tmp_path: Path) -> None:
    pidfile = tmp_path / "postmaster.pid"
    pidfile.write_text(text)
    assert targets.parse([str(pidfile)]).tgids == {811}


@pytest.mark.parametrize(
    ("content", "shown"),
    [(b"", "''"), (b"\n811\n", "''"), (b"-811\n", "'-811'"), (b"0x32b", "'0x32b'"), ("²".encode(), "'²'")],
)
def test_pidfiles_without_a_pid(content: bytes, shown: str, tmp_path: Path) -> None:
    pidfile = tmp_path / "fpm.pid"
    pidfile.write_bytes(content)
    with pytest.raises(ShmtraceError) as raised:
        targets.parse([str(pidfile)])
    assert str(raised.value) == f"pidfile {pidfile} holds no PID, but {shown}: name the process or its PID"
    assert not isinstance(raised.value, NoPidfileError)  # which one would wait for


def test_a_pidfile_of_rubbish_makes_a_short_line(tmp_path: Path) -> None:
    pidfile = tmp_path / "fpm.pid"
    pidfile.write_bytes(b"\xff\x1b[2J" * 1000)
    with pytest.raises(ShmtraceError, match="holds no PID") as raised:
        targets.parse([str(pidfile)])
    message = str(raised.value).replace(str(pidfile), "")
    assert len(message) < 300
    assert "\x1b" not in message


def test_pidfiles_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "fpm.pid"
    with pytest.raises(NoPidfileError) as raised:
        targets.parse([str(missing)])
    assert str(raised.value) == f"pidfile {missing}: No such file or directory: is the service running?"


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_is_no_pidfile(kind: str, tmp_path: Path) -> None:
    """A FIFO would wait for its writer, and /dev/zero has no end."""
    path = tmp_path / kind
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ShmtraceError) as raised:
        targets.parse([str(path)])
    assert str(raised.value) == f"pidfile {path} is not a regular file: name the process or its PID"


def test_no_more_of_a_pidfile_is_read_than_a_pid(tmp_path: Path) -> None:
    pidfile = tmp_path / "fpm.pid"
    pidfile.write_text("811\n")
    os.truncate(pidfile, 1 << 40)
    assert targets.parse([str(pidfile)]).tgids == {811}
    pidfile.write_bytes(b"9" * 5000)  # more digits than Python makes a number of
    assert len(targets.parse([str(pidfile)]).tgids) == 1


def test_a_number_that_no_process_has() -> None:
    assert roots("9" * 5000) == []


@pytest.mark.parametrize("word", ["[", "php-fpm(", "*", "a{99999999999}", "(" * 50_000])
def test_words_that_are_no_expression(word: str) -> None:
    with pytest.raises(ShmtraceError, match=r"is not a regular expression \(.+\): escape it with \\$"):
        targets.parse([word])


def test_an_empty_word_is_not_everything() -> None:
    with pytest.raises(ShmtraceError, match="would match every process"):
        targets.parse(["php-fpm", ""])


def test_a_digit_of_no_number_is_a_name() -> None:
    assert targets.parse(["²"]) == Targets(frozenset(), (re.compile("²"),))


# ---- processes ----


@pytest.mark.parametrize(
    ("word", "matched"),
    [
        ("php-fpm", [811]),  # its workers come with it
        ("php", [30, 811]),
        ("pool", [812, 813]),  # by title
        ("pool www", [812]),
        ("^php$", [815]),
        ("post", [900]),
        ("walwriter", [901]),
        ("POST", []),
        ("conf", [811]),
        ("812", [812]),
        ("99999", []),
        (".", [1, 2]),
    ],
)
def test_roots(word: str, matched: list[int]) -> None:
    assert roots(word) == matched


def test_roots_of_several_words() -> None:
    assert roots("813", "postgres", "814") == [813, 900]


def test_what_is_excluded_is_no_root() -> None:
    assert targets.parse(["php-fpm"]).roots(HOST, excluded=[1, 811]) == [812, 813]


def test_everything() -> None:
    everything = targets.parse([])._replace(everything=True)
    assert everything.roots(HOST) == [1, 2]
    assert everything.match("", "")
    assert targets.tree(HOST, everything.roots(HOST)) == [1, 2, 700, 811, 900, 30, 812, 813, 901, 814, 815]


def test_match() -> None:
    found = targets.parse(["php-fpm", "811"])
    assert found.match("php-fpm8.2", "")
    assert found.match("x", "php-fpm: pool www")
    assert not found.match("x", "y")
    assert not found.match("811", "811")


@pytest.mark.parametrize(
    ("word", "names"), [("php-fmp", ["php-fpm8.2"]), ("postgers", ["postgres"]), ("xyzzy", []), ("phpd-worker9", [])]
)
def test_what_comes_close(word: str, names: list[str]) -> None:
    assert targets.parse([word]).close_to(HOST)[:1] == names


# ---- trees ----


def test_tree() -> None:
    assert targets.tree(HOST, [811, 900]) == [811, 900, 812, 813, 901, 814, 815]
    assert targets.tree(HOST, [813, 811]) == [813, 811, 814, 812, 815]
    assert targets.tree(HOST, [99999]) == []


def test_a_circle_has_an_end() -> None:
    """PIDs are reused between two reads of /proc."""
    circle = {8: process(8, 9, "a"), 9: process(9, 8, "b")}
    assert targets.tree(circle, [8]) == [8, 9]
    assert targets.parse(["a"]).roots(circle) == []


def test_a_long_line_of_processes() -> None:
    """Each the child of the one before: nobody looks along it once for each."""
    line = {tgid: process(tgid, tgid - 1, "x") for tgid in range(2, 30_011)}
    assert targets.parse(["x"]).roots(line) == [2]
    assert targets.tree(line, [2]) == list(line)


@pytest.mark.parametrize(
    ("words", "letters"),
    [
        (["php-fpm"], [b"php-fpm"]),
        (["php-fpm8.2", "^postgres: writer$"], [b"php-fpm8", b"postgres:"]),
        (["ab+"], [b"ab"]),
        (["php", "ngin?x"], []),
        (["php|nginx"], []),
        (["(php)"], []),
        (["ph*p"], []),
        (["php[78]"], []),
        (["p{2}"], []),
        ([".."], []),
        ([r"\w"], []),
        (["größe"], []),
    ],
)
def test_letters_that_a_match_must_have(words: list[str], letters: list[bytes]) -> None:
    found = targets.parse(words)
    assert list(found.letters()) == letters
    assert found._replace(everything=True).letters() == ()


@given(text=st.text("ab-.^$+ *?|(x", max_size=8), title=st.text("ab- x", max_size=12))
def test_what_matches_has_the_letters(text: str, title: str) -> None:
    try:
        found = targets.pattern(text)
    except ShmtraceError:
        return
    letters = Targets(frozenset(), (found,)).letters()
    if found.search(title):
        assert all(each in title.encode() for each in letters)


# ---- for a long time ----


def test_a_pid_stands_for_who_had_it_first() -> None:
    lasting = targets.Lasting(["811", "sshd"], everything=False)
    assert lasting.now(HOST) == Targets(frozenset([811]), (re.compile("sshd"),))
    assert lasting.now({}) == Targets(frozenset(), (re.compile("sshd"),))
    assert lasting.now({811: HOST[811]._replace(start_time_ns=9)}).tgids == frozenset()
    assert lasting.now(HOST).tgids == {811}
    assert lasting.may_come


def test_a_pidfile_is_read_anew(tmp_path: Path) -> None:
    pidfile = tmp_path / "fpm.pid"
    lasting = targets.Lasting([str(pidfile)], everything=False)
    assert lasting.now(HOST) == Targets(frozenset(), ())
    pidfile.write_text("811\n")
    assert lasting.now(HOST).tgids == {811}
    pidfile.write_text("")  # it is about to be written
    assert lasting.now(HOST).tgids == frozenset()
    pidfile.write_text("900\n")
    assert lasting.now(HOST).tgids == {900}
    assert lasting.may_come
    assert not targets.Lasting(["811", "900"], everything=False).may_come


def test_a_tmpfs_for_a_long_time() -> None:
    assert targets.Lasting(["/dev/shm"], everything=False).now(HOST).tmpfs
    with pytest.raises(ShmtraceError, match="give it alone"):
        targets.Lasting(["/dev/shm", "811"], everything=False)


@pytest.mark.parametrize("word", ["(", "", "/etc/passwd"])
def test_a_word_that_is_none_is_told_at_once(word: str) -> None:
    with pytest.raises(ShmtraceError, match=r"is not a regular expression|would match every process|holds no PID"):
        targets.Lasting([word], everything=False)

"""A fleet: the captures of many hosts in one SQLite file, that sqlite3 can open; fleet.sql documents it.

Its tables are made of those of schema.sql, whatever these are, so that a capture's queries are a fleet's, too.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from tracer.capture import verify
from tracer.capture.capture import FLEET_ID, SCHEMA_VERSION, UNSUMMED, Capture, read_header
from tracer.errors import ShmtraceError
from tracer.shipped import shipped

LAYOUT_VERSION = 2  # of fleet.sql
VERSION = SCHEMA_VERSION << 8 | LAYOUT_VERSION
SAYS = f"PRAGMA application_id = {FLEET_ID}; PRAGMA user_version = {VERSION};"
MAX_BYTES = 1 << 52  # of a capture: so the sums of a thousand are integers of SQL
TOTALS = """
SELECT total(allocated_bytes) FROM region UNION ALL SELECT total(start_bytes) FROM region
UNION ALL SELECT (SELECT page_bytes FROM session) * total("end" - start) FROM extent
UNION ALL SELECT (SELECT page_bytes FROM session) * total(pages) FROM touched"""
MAX_HOST = 255  # characters; the kernel keeps 64 bytes. Every row has it.

More = Mapping[str, Mapping[int, tuple[Any, ...]]]
"""By table and id, what a fleet knows of a row besides what the capture has."""
Inode = tuple[int, int, Optional[int]]
"""dev, ino, generation"""


class Fleet(Capture):
    """An open fleet, to read. What is read is of the latest captures of each host.

    Where these have pages of different sizes, all are read as if they had the smallest: a page of 16 KiB as four.
    """

    is_fleet = True
    host_column = "host"
    _sizes: Sequence[int]
    """Of a page: the smallest, and the largest."""

    @classmethod
    def open(cls, path: Path, whole: bool = True) -> Fleet:
        """Open one as Capture.open() does."""
        fleet = super().open(path, whole)
        with fleet._temporary():
            # by its key a row is found at once; of a condition SQLite would make such a table for each query
            fleet._db.execute("CREATE TEMP TABLE counted (id INTEGER PRIMARY KEY, page_bytes INTEGER)")
            fleet._db.execute("INSERT INTO temp.counted SELECT id, page_bytes FROM main.session WHERE latest")
            [fleet._sizes] = fleet.rows("SELECT min(page_bytes), max(page_bytes) FROM temp.counted")
            for table in fleet.tables():
                fleet._show(table, [fleet._shown(table, column) for column in fleet.columns(table)])
        return fleet

    @staticmethod
    def layout() -> str:
        """The statements that create an empty fleet."""
        return _layout()

    @staticmethod
    def _version(path: Path) -> int:
        version, application = read_header(path)
        if application != FLEET_ID:
            raise ShmtraceError(f"{path} is no merged file", "`shmtrace merge` makes one")
        if version != VERSION:
            raise ShmtraceError(f"another version of shmtrace has merged {path}", "merge the captures anew")
        return SCHEMA_VERSION

    def _readable(self, table: str) -> str:
        if table == "host_sample":  # of one host each: no sum of all is in it
            return "0"
        return f"{'id' if table == 'session' else 'session'} IN (SELECT id FROM temp.counted)"  # noqa: S608

    def _shown(self, table: str, column: str) -> str:
        least, most = self._sizes
        if least == most:
            return super()._shown(table, column)
        if table == "session":  # its lost_pages are of whatever size
            return f"{least} AS page_bytes" if column == "page_bytes" else f'"{column}"'
        if not verify.counts_pages(column):
            return super()._shown(table, column)
        larger = f"(SELECT page_bytes / {least} FROM temp.counted WHERE id = session)"  # noqa: S608
        return f'"{column}" * {larger} AS "{column}"'

    def count_older(self) -> int:
        [(count,)] = self.rows("SELECT count(*) FROM main.session WHERE latest IS NOT 1")
        return int(count)


def is_fleet(path: Path) -> bool:
    """Whether a file begins like a fleet. Raises OSError."""
    try:
        return read_header(path)[1] == FLEET_ID
    except ShmtraceError:
        return False


def open_any(path: Path, whole: bool = True) -> Capture:
    """Open a capture or a fleet, as Capture.open() does."""
    with contextlib.suppress(OSError):  # opening it says more
        if is_fleet(path):
            return Fleet.open(path, whole)
    return Capture.open(path, whole)


# ---- its tables ----


@functools.lru_cache(maxsize=1)
def _layout() -> str:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(Capture.layout())
        made = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = [_table(db, name, sql) for name, sql in made]
    return f"{' '.join(tables)} {shipped('capture/fleet.sql').read_text()}"


def _table(db: sqlite3.Connection, name: str, sql: str) -> str:
    """The statement for a table of a capture, with host and session in front."""
    references = _references(db, name)
    columns = ["host TEXT NOT NULL", "session INTEGER NOT NULL REFERENCES session"]
    if name == "session":
        columns = ["id INTEGER PRIMARY KEY"]
    key: dict[int, str] = {}
    for _, column, kind, required, default, place in db.execute(f"PRAGMA table_info({name})"):
        is_id = column == "id"
        if place and not is_id:
            key[place] = column
        parts = [f'"{column}" {kind}', "PRIMARY KEY" * is_id, "NOT NULL" * bool((required or place) and not is_id)]
        parts += ["" if default is None else f"DEFAULT {default}"]
        parts += [f"REFERENCES {references[column]}" if column in references else ""]
        columns.append(" ".join(filter(None, parts)))
    if key:
        first, *others = (key[place] for place in sorted(key))
        columns.append(f"PRIMARY KEY ({', '.join([*['session'] * (first not in references), first, *others])})")
    rowid = " WITHOUT ROWID" if "WITHOUT ROWID" in sql.upper() or (key and "id" not in key.values()) else ""
    return f"CREATE TABLE {name} ({', '.join(columns)}){rowid};"


def _references(db: sqlite3.Connection, table: str) -> dict[str, str]:
    """The tables that columns refer to, by column."""
    return {column: to for _, _, to, column, *_ in db.execute(f"PRAGMA foreign_key_list({table})")}


def _names(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA table_info({table})")]


# ---- a new one ----


class NoRoomError(ShmtraceError):
    """A fleet cannot be written."""


class Columns(NamedTuple):
    """The columns of a table."""

    of_capture: Sequence[str]
    of_fleet: Sequence[str]
    references: Mapping[str, str]
    """the tables that columns refer to"""


class Writer:
    """A new fleet in an empty file, as a context manager. It is complete once finish() has been called."""

    def __init__(self, path: Path) -> None:
        self._nr_sessions = 0
        with _room():
            self._db = sqlite3.connect(path, isolation_level=None)
            # nobody else sees the file, and if anything fails it is thrown away
            for setting in ("journal_mode = MEMORY", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
                self._db.execute(f"PRAGMA {setting}")
            self._db.executescript(f"{_layout()} {SAYS}")
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            db.executescript(Capture.layout())
            self._tables = {
                name: Columns(_names(db, name), _names(self._db, name), _references(db, name))
                for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            }
        self._last = {name: 0 for name, columns in self._tables.items() if "id" in columns.of_capture}
        """the highest id of each table"""

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction: all is written, or nothing."""
        with _room():
            self._db.execute("BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def add(self, capture: Capture, host: str, more: More) -> int:
        """Add all rows of a capture, or none, and return its row in the table session.

        more: what the columns of fleet.sql have, in their order, by id in the capture. Raises NoRoomError, and
        ShmtraceError if the capture is damaged.
        """
        for _, _, missing, *_ in capture.each_sound("PRAGMA foreign_key_check(extent)"):
            raise capture.damaged(f"table extent refers to a {missing} that does not exist")
        for (size_bytes,) in capture.each_sound(TOTALS):
            if size_bytes > MAX_BYTES:
                raise capture.damaged("it has more memory than any host")
        numbers = {table: capture.numbered(table, last) for table, last in self._last.items()}
        whose = {"host": host, "session": self._nr_sessions + 1}
        with self._writing():
            try:
                for table in self._tables:
                    self._add_rows(table, capture, whose, {name: number for name, (number, _) in numbers.items()}, more)
            except sqlite3.IntegrityError as error:  # rows that no sound file has, as two of one key
                raise capture.damaged(str(error)) from None
        self._last = {table: last for table, (_, last) in numbers.items()}
        self._nr_sessions += 1
        return self._nr_sessions

    def _add_rows(
        self, table: str, capture: Capture, whose: Mapping[str, Any], numbers: Mapping[str, str], more: More
    ) -> None:
        """numbers: for each table with ids, the new id as SQL, with {} for the old one."""
        columns = self._tables[table]
        values = [":session"] if table == "session" else [":host", ":session"]
        for column in columns.of_capture:
            to = table if column == "id" else columns.references.get(column)
            value = ":host" if table == "session" and column == "host" else f'"{column}"'
            values.append(numbers[to].format(value) if to else value)
        summed = f"(SELECT {', '.join(columns.of_capture)} FROM touched UNION ALL {UNSUMMED})"  # noqa: S608
        source = summed if table == "touched" else table
        added = more.get(table, {})
        query = f"SELECT {', '.join([*values, *['id'] * bool(added)])} FROM {source}"  # noqa: S608
        with contextlib.closing(capture.each_sound(query, whose)) as found:
            rows = (row[:-1] + added[row[-1]] for row in found) if added else found
            names = columns.of_fleet[: len(values) + len(next(iter(added.values()), ()))]
            marks = ", ".join("?" * len(names))
            told = ", ".join(f'"{name}"' for name in names)
            self._db.executemany(f"INSERT INTO {table} ({told}) VALUES ({marks})", rows)  # noqa: S608

    def regions(self, sessions: Collection[int]) -> dict[int, set[Inode]]:
        """Which regions these sessions have."""
        found: dict[int, set[Inode]] = {session: set() for session in sessions}
        for session, *inode in self._db.execute("SELECT session, dev, ino, generation FROM region") if found else ():
            if session in found:
                found[session].add(tuple(inode))
        return found

    def finish(self, latest: Iterable[int], renamed: Mapping[int, str]) -> None:
        """Note which sessions are the latest of their hosts, and the hosts of those that have other ones than add() was
        told. Raises NoRoomError.
        """
        with self._writing():
            self._db.executemany("UPDATE session SET latest = 1 WHERE id = ?", [(row,) for row in latest])
            self._db.execute("CREATE TEMP TABLE renamed (id INTEGER PRIMARY KEY, name TEXT)")
            self._db.executemany("INSERT INTO renamed VALUES (?, ?)", renamed.items())
            for table in self._tables if renamed else ():
                session = "id" if table == "session" else "session"
                self._db.execute(
                    f"UPDATE {table} SET host = (SELECT name FROM renamed WHERE renamed.id = {table}.{session}) "  # noqa: S608
                    f"WHERE {session} IN (SELECT id FROM renamed)"
                )


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """SQLite's errors become NoRoomError."""
    try:
        yield
    except (sqlite3.Error, MemoryError) as error:
        remedy = f"make room in {tempfile.gettempdir()}, or set TMPDIR to another directory"
        raise NoRoomError(f"there is no room to merge ({error})", remedy) from None

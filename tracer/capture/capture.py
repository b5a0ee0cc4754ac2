"""A capture: everything a report needs, in one SQLite file that sqlite3 can open; schema.sql documents its tables.

Every trace writes one, into a temporary file unless the user names one, and every account is read from one. So a live
view and a later report use the same code.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import struct
import textwrap
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, TypeVar

from tracer.capture import carry, journal, migrations, verify
from tracer.capture.carry import Needed
from tracer.errors import ShmtraceError
from tracer.shipped import shipped

APPLICATION_ID = 0x73686D74  # "shmt"
FLEET_ID = 0x73686D66  # "shmf": of many captures, as fleet.py makes it
SCHEMA_VERSION = 8
REMEDY = "`shmtrace record` makes one"
MIN_SAMPLES = 1000  # keep_small() keeps at least so many
BUSY_SECONDS = 10.0  # how long a reader waits for the trace to commit, and the trace's last commit for readers
SAYS = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
COMMIT_SECONDS = 0.1  # how long a commit during the trace waits for readers before it is put off
# https://sqlite.org/fileformat.html#the_database_header: magic, write and read version, user_version, application_id.
HEADER = struct.Struct(">16s2xBB40xI4xI28x")
MAGIC = b"SQLite format 3\0"
WAL = 2
LIMIT_LENGTH = 0  # SQLITE_LIMIT_LENGTH of sqlite3.h
# Limits for readers, since a capture may be hostile. The largest views of a capture of a million extents take a tenth
# of these steps.
MAX_ROW_BYTES = 1 << 20  # a stack of 127 frames takes a tenth
STEPS, STEPS_A_BYTE = 50_000_000, 40
HEAP_BYTES, HEAP_A_BYTE = 128 << 20, 4
STEPS_AT_ONCE = 1_000_000
MAX_REASON = 200  # characters
LOCKED = "database is locked"  # SQLITE_BUSY; sqlite3 has had the code since Python 3.11
HISTORY = ("exec", "sample", "host_sample")  # no account is read from these tables
DAMAGE = (sqlite3.Error, UnicodeDecodeError, MemoryError)  # how reading a damaged file fails

# For GROUP BY SQLite would sort: extents come in the order of pages, not of touchers. That takes twice the time.
ADD_UP = """
INSERT INTO temp.sums SELECT {key}, "end" - start, {times} FROM extent WHERE {where}
ON CONFLICT (key) DO UPDATE SET pages = pages + excluded.pages"""
SPAN = """,
  first_ns = min(ifnull(first_ns, excluded.first_ns), ifnull(excluded.first_ns, first_ns)),
  last_ns = max(ifnull(last_ns, excluded.last_ns), ifnull(excluded.last_ns, last_ns))
"""

OF_ALL = {
    "private_start_bytes",
    "private_end_bytes",
    "private_peak_bytes",
    "private_how",
    "sum_of_rss_bytes",
    "nr_ooms",
}
"""Columns of the session that are sums over all processes."""

LABEL_AND_PROCESS = "ifnull(label, 0) << 32 | ifnull(process, 0)"
"""Of an extent, or of a row of touched. SQLite groups by one integer faster than by two columns: in two thirds."""
SUM_UP = f"""
INSERT INTO touched SELECT region, process, label, sum("end" - start), min(first_ns), max(last_ns) FROM extent
WHERE region = ? GROUP BY {LABEL_AND_PROCESS}"""  # noqa: S608
UNSUMMED = f"""
SELECT region, process, label, sum("end" - start) AS pages, min(first_ns) AS first_ns, max(last_ns) AS last_ns
FROM extent WHERE region NOT IN (SELECT region FROM touched) GROUP BY region, {LABEL_AND_PROCESS}"""  # noqa: S608
"""What sum_up() would write of the regions that it was not called for."""
NOT_SUMMED = """
SELECT 1 FROM region WHERE id NOT IN (SELECT region FROM touched) AND EXISTS (SELECT 1 FROM extent WHERE region = id)
LIMIT 1"""
WRONG_SUMS = f"""
SELECT region FROM (
  SELECT 1 AS side, region, process, label, pages, first_ns, last_ns FROM touched
  UNION ALL
  SELECT -1, region, process, label, sum("end" - start), min(first_ns), max(last_ns) FROM extent
  WHERE region IN (SELECT region FROM touched) GROUP BY region, {LABEL_AND_PROCESS})
GROUP BY region, process, label, pages, first_ns, last_ns HAVING sum(side) <> 0 LIMIT 1"""  # noqa: S608

ExtentRow = tuple[int, int, int, Optional[int], Optional[int], Optional[int], Optional[int]]
"""(region, start page, end page, process, first_ns, last_ns, label), as in the table extent."""
Opened = TypeVar("Opened", bound="Capture")


class Capture:
    """An open capture, as a context manager. Rows are passed as keyword arguments named like the columns.

    Leaving the context commits and closes. On an exception, what is not committed yet is rolled back.
    """

    _db: sqlite3.Connection
    _held: int | None = None
    """A descriptor that says that this process writes the file."""
    is_fleet = False
    """It is of many hosts: its rows have host and session."""
    host_column = "NULL"
    """What says of which host a row is, as SQL; NULL: there is but one."""

    def __init__(self, path: Path | None = None, max_bytes: int | None = None) -> None:
        """Create a capture; there must be no file at `path`. None: a temporary file. Raises ShmtraceError.

        max_bytes: the size that keep_small() aims at by thinning samples.
        """
        self._path, self._is_read = path, False
        self.remarks: list[str] = []
        """Remarks about how the file could be read."""
        self._max_bytes = max_bytes
        self._connect()
        self._db.executescript(f"BEGIN; {_schema()} {SAYS} COMMIT; BEGIN")  # all in one transaction

    def _connect(self) -> None:
        """Create the file, and open it to write. Raises ShmtraceError."""
        self._made: dict[Path, os.stat_result] = {}  # as they were created
        try:
            # the journal is created here so that no other user can
            for made in (self._path, journal.path_of(self._path)) if self._path else ():
                _create(made)
                self._made[made] = made.stat()
            self._held = journal.hold(self._path) if self._path else None
        except (ShmtraceError, OSError):
            self._remove_own()
            raise
        # "": a temporary file, unlinked at once
        self._begin(sqlite3.connect(self._path or "", timeout=COMMIT_SECONDS, isolation_level=None))
        # The trace never waits for the disk. A commit survives the end of the trace, but not a crash of the host.
        self._db.execute("PRAGMA synchronous = OFF")
        # The journal keeps its name and is empty between commits, so that nobody can put another file in its place.
        self._db.execute("PRAGMA journal_mode = TRUNCATE")

    def is_in_place(self) -> bool:
        """Whether the file has its name still. SQLite writes none that was moved or deleted."""
        return not self._path or self._is_own(self._path)

    def _is_own(self, made: Path) -> bool:
        """Whether a file that was created here is there still."""
        try:
            return os.path.samestat(made.lstat(), self._made[made])
        except (OSError, KeyError):
            return False

    def put_back(self) -> None:
        """Write a file that was moved or deleted anew, with all that it had, and go on in that.

        Raises ShmtraceError where that cannot be done; it can be tried again.
        """
        before, made, held = self._db, self._made, self._held
        # all at once: while the new file has a journal of this name, SQLite would play it back into the old one
        rows = carry.read_all(before)
        self._remove_own()  # the journal may be there still
        try:
            self._connect()
            self._db.executescript(f"BEGIN; {_schema()} {SAYS}")
            carry.write_all(self._db, rows)
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db is not before:
                self._db.close()
                self._db = before
            self._remove_own()
            if self._held != held:
                self._let_go(self._held)
            self._made, self._held = made, held
            if isinstance(error, sqlite3.Error):
                raise ShmtraceError(f"{self._path} cannot be written ({error})", "free disk space") from None
            raise
        before.close()
        self._let_go(held)
        self._db.execute("BEGIN")

    def _remove_own(self) -> None:
        """Remove what is left of the files that were created here."""
        for made in filter(self._is_own, self._made):
            made.unlink()

    @classmethod
    def open(cls: type[Opened], path: Path, whole: bool = True) -> Opened:
        """Open an existing capture to read, as it is at this moment. Writes nothing anywhere.

        The file may be hostile, so it is checked first. Raises ShmtraceError where it is missing, unreadable, damaged,
        or no capture.

        whole: False if all that is read from it is the account of all time. What that does not read is not checked:
        the tables of HISTORY, and the extents if is_summed().
        """
        capture = cls.__new__(cls)
        capture._path, capture._is_read, capture._max_bytes = path, True, None
        try:
            version = cls._version(path)
            db, remark = journal.connect(path, BUSY_SECONDS)
        except FileNotFoundError:
            raise ShmtraceError(f"{path} is not there", REMEDY) from None
        except PermissionError:
            owner = "only its owner may read a capture: run as that user"
            raise ShmtraceError(f"{path} may not be read", owner) from None
        except OSError as error:
            raise ShmtraceError(f"{path} cannot be read ({error.strerror})", REMEDY) from None
        except DAMAGE as error:  # found while the journal is played back
            raise capture._damaged_by(error) from None
        capture.remarks = [remark] if remark else []
        capture._begin(db)
        try:
            limit_heap([path])
            capture._guard(path.stat().st_size)
            if not capture.rows("SELECT 1 FROM sqlite_master LIMIT 1"):
                raise _empty(path)
            schema = cls.layout()
            capture._check(schema + migrations.undoing(version, schema), whole or version < SCHEMA_VERSION)
            if version < SCHEMA_VERSION:
                capture._begin(migrations.migrated(db, version, schema))
                db.close()
                capture._guard(path.stat().st_size)
        except BaseException as error:
            capture.__exit__(type(error), error)
            raise
        return capture

    @staticmethod
    def layout() -> str:
        """The statements that create an empty file."""
        return _schema()

    @staticmethod
    def _version(path: Path) -> int:
        """The schema version of a file. Raises OSError, and ShmtraceError where it is no capture that can be read."""
        version, application = read_header(path)
        if application == FLEET_ID:
            raise ShmtraceError(f"{path} holds captures of many hosts", "only report, diff and html take it")
        if application != APPLICATION_ID:
            raise ShmtraceError(f"{path} is an SQLite file, but not a capture", REMEDY)
        if version not in (*migrations.RENAMED, SCHEMA_VERSION):
            raise ShmtraceError(
                f"{path} has schema {version}, and this shmtrace reads {min(migrations.RENAMED)} to {SCHEMA_VERSION}",
                "use the shmtrace that made it, or a newer one",
            )
        return version

    def count_older(self) -> int:
        """How many captures of a fleet are read as if they were not there."""
        return 0

    def fill(self, path: Path) -> None:
        """Begin with all that another capture has, whose rows keep their ids. Raises ShmtraceError as open() does."""
        self._db.execute("COMMIT")
        with Capture.open(path) as other:
            other._db.backup(self._db)
        self._db.execute("BEGIN")

    def forget_region(self, region: int) -> None:
        """Delete all that names a region."""
        for table in self.tables():
            key = "id" if table == "region" else "region"
            if key in self.columns(table):
                self._db.execute(f"DELETE FROM {table} WHERE {key} = ?", (region,))  # noqa: S608

    def _check(self, schema: str, whole: bool) -> None:
        """schema: the statements that create an empty capture of this version. Raises ShmtraceError."""
        most = None if self.is_fleet else 1
        damage = verify.damage(self._db, schema, () if whole else ("extent", *HISTORY), most)
        if not (damage or whole or self.is_summed()):
            damage = verify.damage(self._db, schema, HISTORY, most)
        if damage:
            raise self.damaged(damage)

    def _guard(self, size_bytes: int) -> None:
        """Limit what reading may take, and begin the transaction that all reading is part of."""
        db = self._db
        db.text_factory = lambda raw: raw.decode(errors="backslashreplace")
        for setting in ("temp_store = MEMORY", "trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
            db.execute(f"PRAGMA {setting}")
        if hasattr(db, "setlimit"):  # since Python 3.11
            db.setlimit(LIMIT_LENGTH, MAX_ROW_BYTES)
        left = iter(range((STEPS + STEPS_A_BYTE * size_bytes) // STEPS_AT_ONCE))
        db.set_progress_handler(lambda: next(left, None) is None, STEPS_AT_ONCE)
        db.execute("BEGIN")

    def _begin(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.row_factory = sqlite3.Row

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None = None, *_: object) -> None:
        try:
            if not self._is_read:
                self._end(whole=kind is None)
            elif isinstance(error, DAMAGE):
                raise self._damaged_by(error) from None
        finally:
            self._db.close()
            self._let_go(self._held)

    @staticmethod
    def _let_go(held: int | None) -> None:
        if held is not None:
            os.close(held)

    def _end(self, whole: bool) -> None:
        """Write what is left. Raises ShmtraceError or sqlite3.Error where that fails."""
        if not whole:
            with contextlib.suppress(sqlite3.Error):  # the first error says more
                self._db.execute("ROLLBACK")
            return
        self._db.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
        if not self.commit():
            raise ShmtraceError(
                f"{self._path} lacks the end of the trace: another program kept reading it",
                "what was committed before is in it",
            )
        self._db.execute("PRAGMA journal_mode = DELETE")

    def _damaged_by(self, error: BaseException) -> ShmtraceError:
        if isinstance(error, UnicodeDecodeError):  # the message of an SQLite error quotes text of the file
            return self.damaged("SQLite's message about it is not UTF-8")
        if str(error) == LOCKED:
            return ShmtraceError(f"another program holds {self._path}", "close it, or read a copy of the file")
        return self.damaged(str(error) or "reading it takes too much memory")

    def damaged(self, reason: str) -> ShmtraceError:
        """The error for a damaged capture. The reason may quote text of the file."""
        said = textwrap.shorten(reason, MAX_REASON, placeholder="…")
        return ShmtraceError(f"{self._path} is damaged: {said}", "`sqlite3 FILE .recover` shows what is left of it")

    def commit(self) -> bool:
        """Commit. False: a reader is in the way, so it is done with the next commit."""
        try:
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if str(error) != LOCKED:
                raise
            return False
        self._db.execute("BEGIN")
        return True

    def keep_small(self) -> bool:
        """Thin out samples if the capture is too large. Returns whether it is small enough, or will be.

        Every second sample goes, but never the newest. Old samples are thinned repeatedly, and end up further apart.
        """
        if self._max_bytes is None:
            return True
        if self.used_bytes() < self._max_bytes:
            return True
        if self._db.execute("SELECT count(*) FROM sample").fetchone()[0] < MIN_SAMPLES:
            return False
        for table, of in (("sample", "PARTITION BY region"), ("host_sample", "")):
            rank = f"row_number() OVER ({of} ORDER BY time_ns DESC)"
            key = "(region, time_ns)" if of else "time_ns"
            columns = key.strip("()")
            self._db.execute(
                f"DELETE FROM {table} WHERE {key} IN "  # noqa: S608
                f"(SELECT {columns} FROM (SELECT {columns}, {rank} AS rank FROM {table}) WHERE rank % 2 = 0)"
            )
        return True

    def used_bytes(self) -> int:
        """What of the file is in use."""
        pages, unused, page_bytes = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - unused) * page_bytes)

    def choose(self, known: Needed, since_ns: int) -> Needed:
        """Note what is still needed when the trace goes on, for copy() and drop_others(); returns its rows.

        known: rows that the trace itself needs. since_ns: CLOCK_REALTIME; what has ended later is needed, too.
        """
        return carry.choose(self._db, known, since_ns)

    def copy(self, path: Path, since_ns: int | None = None) -> None:
        """Copy all, or with since_ns what was chosen, into a new file of mode 0600. All of it is committed before.

        Raises ShmtraceError if there is a file at `path`, or it cannot be written, or a reader is in the way: there is
        no new file then.
        """
        if not self.commit():
            raise ShmtraceError(f"another program is reading {self._path}", "close it")
        _create(path)
        try:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as new:
                new.executescript(f"PRAGMA journal_mode = OFF; BEGIN; {_schema()} {SAYS} COMMIT")
            self._db.execute("COMMIT")  # nothing can be attached within a transaction
            try:
                self._db.execute("ATTACH ? AS new", (str(path),))
                self._db.execute("PRAGMA new.journal_mode = OFF")
                self._db.execute("PRAGMA new.synchronous = OFF")
                self._db.execute("BEGIN")
                carry.copy(self._db, "new", carry.ALL if since_ns is None else carry.NEEDED, since_ns or 0)
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                with contextlib.suppress(sqlite3.OperationalError):  # it was not attached
                    self._db.execute("DETACH new")
                self._db.execute("BEGIN")
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, sqlite3.Error):
                raise ShmtraceError(f"{path} cannot be written ({error})", "free disk space") from None
            raise

    def back_up(self, path: Path) -> None:
        """Copy an open capture into a new file of mode 0600, as it is. Raises ShmtraceError and sqlite3.Error."""
        _create(path)
        with contextlib.closing(sqlite3.connect(path)) as new:
            self._db.backup(new)

    def drop_others(self, since_ns: int) -> None:
        """Delete what choose() did not choose."""
        carry.drop_others(self._db, since_ns)

    def reopen(self) -> None:
        """Make a complete capture one of a trace that goes on."""
        carry.reopen(self._db)

    def insert(self, table: str, **row: Any) -> int:
        """Insert a row and return its id."""
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" for _ in row)
        cursor = self._db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608
        return cursor.lastrowid or 0

    def insert_all(self, table: str, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Insert many rows of the same columns; each replaces a row with the same primary key."""
        marks = ", ".join("?" for _ in columns.split(", "))
        self._db.executemany(f"REPLACE INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608

    def empty(self, table: str) -> None:
        """Delete all rows of a table."""
        self._db.execute(f"DELETE FROM {table}")  # noqa: S608

    def update(self, table: str, row_id: int, **row: Any) -> None:
        """Change some columns of a row."""
        names = ", ".join(f"{name} = ?" for name in row)
        self._db.execute(f"UPDATE {table} SET {names} WHERE rowid = ?", (*row.values(), row_id))  # noqa: S608

    def update_all(self, table: str, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Update many rows, each given as the values of these columns and then the id."""
        names = ", ".join(f"{name} = ?" for name in columns.split(", "))
        self._db.executemany(f"UPDATE {table} SET {names} WHERE rowid = ?", rows)  # noqa: S608

    def replace_extents(self, region: int, start: int, end: int, rows: Iterable[ExtentRow]) -> None:
        """Replace the extents of pages [start, end).

        Extents that reach beyond this range are split, and the rest stays.
        """
        first = self._db.execute(
            "SELECT coalesce(max(start), ?2) FROM extent WHERE region = ?1 AND start <= ?2", (region, start)
        ).fetchone()[0]
        rest = []
        for row in self._db.execute(
            'SELECT * FROM extent WHERE region = ? AND start >= ? AND start < ? AND "end" > ?',
            (region, first, end, start),
        ):
            _, row_start, row_end, *whose = row
            rest += [(region, row_start, start, *whose)] if row_start < start else []
            rest += [(region, end, row_end, *whose)] if row_end > end else []
        self._db.execute(
            'DELETE FROM extent WHERE region = ? AND start >= ? AND start < ? AND "end" > ?',
            (region, first, end, start),
        )
        self.insert_all("extent", 'region, start, "end", process, first_ns, last_ns, label', [*rest, *rows])

    def pages(self, region: int) -> int:
        """How many pages of a region have an extent."""
        found = self._db.execute('SELECT sum("end" - start) FROM extent WHERE region = ?', (region,)).fetchone()
        return int(found[0] or 0)

    def sum_up(self, regions: Iterable[int]) -> None:
        """Write the sums of the extents of these regions. No extent of theirs may change from then on."""
        self._db.executemany(SUM_UP, ((region,) for region in regions))

    def is_summed(self) -> bool:
        """Whether it has sums of all extents. If the trace still runs, was cut off or had no time, it does not."""
        return not self.rows(NOT_SUMMED)

    def verify_sums(self) -> None:
        """Hold the sums against the extents. Raises ShmtraceError if they differ."""
        for (region,) in self.each(WRONG_SUMS):
            raise ShmtraceError(
                f"{self._path} is damaged: the sums of region {region} are not those of its extents",
                "`sqlite3 FILE 'DELETE FROM touched'` removes all sums; a report then reads the extents",
            )

    def add_stacked(self, rows: Iterable[tuple[int, int, int, int]]) -> None:
        """Add to counts of pages, given as (region, process, stack, pages). Pages may be negative."""
        self._db.executemany(
            "INSERT INTO stacked (region, process, stack, pages) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (region, process, stack) DO UPDATE SET pages = pages + excluded.pages",
            rows,
        )

    def rows(self, query: str, values: Mapping[str, Any] | tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        return self._db.execute(query, values).fetchall()

    def each(self, query: str, values: Mapping[str, Any] | tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query one by one, as plain tuples, for large results."""
        cursor = self._db.cursor()
        cursor.row_factory = None
        return cursor.execute(query, values)

    def each_sound(
        self, query: str, values: Mapping[str, Any] | tuple[Any, ...] = ()
    ) -> Generator[tuple[Any, ...], None, None]:
        """The same, for whoever writes another database meanwhile. Raises ShmtraceError where this one is damaged."""
        try:
            yield from self.each(query, values)
        except DAMAGE as error:
            raise self._damaged_by(error) from None

    def numbered(self, table: str, last: int) -> tuple[str, int]:
        """Number the rows of a table anew, in the order of their ids, without gaps.

        last: the last number before. Returns the new id as SQL, with {} for the old one, and the last number.
        """
        [(count, most)] = self.rows(f"SELECT count(*), max(id) FROM {table}")  # noqa: S608
        if count == (most or 0):
            return f"{{}} + {last}", last + count
        with self._temporary():
            self._db.execute(f"CREATE TEMP TABLE number_of_{table} (old INTEGER PRIMARY KEY, new INTEGER)")
            self._db.execute(
                f"INSERT INTO temp.number_of_{table} SELECT id, row_number() OVER (ORDER BY id) + ? FROM {table}",  # noqa: S608
                (last,),
            )
        return f"(SELECT new FROM temp.number_of_{table} WHERE old = {{}})", last + count  # noqa: S608

    def sums(self, key: str, where: str, values: Mapping[str, Any], times: bool = False) -> Iterator[tuple[Any, ...]]:
        """Sum up extents by an integer key: (key, pages, first_ns, last_ns) in the order of keys.

        The times are NULL unless `times` is set. Take all of them before you ask for other sums.
        """
        add_up = ADD_UP.format(key=key, where=where, times="first_ns, last_ns" if times else "NULL, NULL")
        with self._temporary():
            self._db.execute(
                "PRAGMA temp.cache_size = -65536"
            )  # KiB; by label and process this saves a fourth of the time
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS sums (key INTEGER PRIMARY KEY, pages, first_ns, last_ns)")
            self._db.execute("DELETE FROM temp.sums")
            self._db.execute(add_up + SPAN if times else add_up, values)
        return self.each("SELECT * FROM temp.sums ORDER BY key")

    def narrow(self, regions: Iterable[int]) -> None:
        """From now on read as if there were only these regions, by row, and nothing were known of the host.

        Temporary views stand before the tables of the same names. Of the session, what was measured of all processes
        together is NULL then.
        """
        with self._temporary():
            self._db.execute("CREATE TEMP TABLE chosen (id INTEGER PRIMARY KEY)")
            self._db.executemany("INSERT INTO temp.chosen VALUES (?)", [(row,) for row in regions])
            for table in self.tables():
                columns = self.columns(table)
                of = {"region": "id", "unmapped": "NULL", "oom": "NULL"}.get(
                    table, "region" if "region" in columns else None
                )
                where = f"{of} IN (SELECT id FROM temp.chosen)" if of else ""  # noqa: S608
                shown = (f'NULL AS "{name}"' if name in OF_ALL else self._shown(table, name) for name in columns)
                self._show(table, shown, where)

    def tables(self) -> list[str]:
        """The names of its tables; a file may have others besides, as ANALYZE makes them."""
        return verify.tables(self.layout())

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns."""
        return [row["name"] for row in self.rows(f"PRAGMA main.table_info({table})")]

    def _readable(self, _table: str) -> str:
        """A condition that the rows of a table meet that can be read; empty: all can."""
        return ""

    def _shown(self, _table: str, column: str) -> str:
        """What is read as a column."""
        return f'"{column}"'

    def _show(self, table: str, columns: Iterable[str], where: str = "") -> None:
        """Put a temporary view before a table. where: a condition for its rows, besides _readable()."""
        conditions = " AND ".join(filter(None, (self._readable(table), where))) or "1"
        self._db.execute(f"DROP VIEW IF EXISTS temp.{table}")
        view = f"SELECT {', '.join(columns)} FROM main.{table} WHERE {conditions}"  # noqa: S608
        self._db.execute(f"CREATE TEMP VIEW {table} AS {view}")

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[None]:
        """Within it, temporary tables and views can be made."""
        self._db.execute("PRAGMA query_only = OFF")
        try:
            yield
        finally:
            self._db.execute(f"PRAGMA query_only = {self._is_read:d}")


def limit_heap(paths: Iterable[Path]) -> None:
    """Limit the memory that SQLite takes by what these files need together, unless it is limited already.

    The limit is the whole process's, and can only be lowered: https://sqlite.org/pragma.html#pragma_hard_heap_limit. So
    whoever reads several captures names them all before the first is opened.
    """
    size_bytes = 0
    for path in paths:
        with contextlib.suppress(OSError):  # opening it says more
            size_bytes += path.stat().st_size
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        if db.execute("PRAGMA hard_heap_limit").fetchone() == (0,):  # before SQLite 3.31 there is no such limit
            db.execute(f"PRAGMA hard_heap_limit = {HEAP_BYTES + HEAP_A_BYTE * size_bytes}")


def is_capture(path: Path) -> bool:
    """Whether a file begins like a capture, of whatever schema. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        header = file.read(HEADER.size)
    return len(header) == HEADER.size and HEADER.unpack(header)[0::4] == (MAGIC, APPLICATION_ID)


def read_header(path: Path) -> tuple[int, int]:
    """(user_version, application_id) of an SQLite file, read before SQLite opens it, which may create files next to it.

    Raises OSError, and ShmtraceError where the file is none.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ShmtraceError(f"{path} is not a regular file", REMEDY)
        header = os.read(fd, HEADER.size)
    finally:
        os.close(fd)
    if not header:
        raise _empty(path)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ShmtraceError(f"{path} cannot be read as a capture (it is not an SQLite file)", REMEDY)
    _, writing, reading, version, application = HEADER.unpack(header)
    if application in (APPLICATION_ID, FLEET_ID) and WAL in (writing, reading):
        raise ShmtraceError(f"{path} is in WAL mode", "`PRAGMA journal_mode = DELETE` in sqlite3 changes that")
    return version, application


def _schema() -> str:
    """The statements that create an empty capture."""
    return shipped("capture/schema.sql").read_text()


def _empty(path: Path) -> ShmtraceError:
    return ShmtraceError(f"{path} is empty", "it was cut off before anything was recorded; record another")


def need_place(path: Path) -> None:
    """Raises ShmtraceError if no capture can be made at `path`. Leaves nothing there."""
    for each in (path, journal.path_of(path)):
        _create(each)
        each.unlink()


def _create(path: Path) -> None:
    """Create an empty file that only its owner may read. Raises ShmtraceError, also where a file exists."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise ShmtraceError(f"{path} is there already", "name another, or remove it") from None
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be written ({error.strerror})", "name another place") from None

"""Statements of one shape, whatever their values."""

from __future__ import annotations

import time

import pytest

from tracer.sql import shape


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("", ""),
        ("  \n", ""),
        ("SELECT abalance FROM pgbench_accounts WHERE aid = 17", "SELECT abalance FROM pgbench_accounts WHERE aid = ?"),
        ("UPDATE t1 SET a2 = a2 + 5, b='it''s'", "UPDATE t1 SET a2 = a2 + ?, b=?"),
        ("UPDATE t SET a = -5 WHERE b BETWEEN -1 AND +2", "UPDATE t SET a = ? WHERE b BETWEEN ? AND ?"),
        ("SELECT a -1, a - 1 FROM t", "SELECT a -?, a - ? FROM t"),
        ("SELECT * FROM t WHERE id IN (1, 2,3 , 4)", "SELECT * FROM t WHERE id IN (?)"),
        (r"INSERT INTO t VALUES (1,'a'),(2,E'\'x'), (.5e-3, 0x1F)", "INSERT INTO t VALUES (?)"),
        ("SELECT $1, $$ it's $$ || $fn$ $$ $fn$", "SELECT $1, ? || ?"),
        ('SELECT "a 1"."b""2" FROM "T3" -- 17', 'SELECT "a 1"."b""2" FROM "T3"'),
        ("/* 17 */ SELECT\n\t1", "SELECT ?"),
        ("SELECT 'not to its end…", "SELECT ?"),
        ("SELECT a FROM t WHERE b = 12…", "SELECT a FROM t WHERE b = ?…"),
        ("SELECT /* not to its end…", "SELECT"),
        ("sélect ñ1 FROM \x1b[2J", "sélect ñ1 FROM \x1b[?J"),
    ],
)
def test_shapes(statement: str, expected: str) -> None:
    assert shape(statement) == expected
    assert shape(expected) == expected


@pytest.mark.parametrize("text", ["'", "$a$", "/*", "(?), ", "E'\\", '"', "- ", "a1"])
def test_time_grows_with_the_statement(text: str) -> None:
    """As nobody's server sends it; a capture's texts are short, but who knows who wrote it."""
    began_s = time.monotonic()
    shape(text * 20_000)
    assert time.monotonic() - began_s < 10

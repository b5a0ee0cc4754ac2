"""Captures that were recorded before this schema: they open, say what they said, and stay as they are."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.captures import DIRECTORY, load, load_of_schema
from tracer import account
from tracer.capture import migrations
from tracer.capture.capture import SCHEMA_VERSION, Capture
from tracer.errors import ShmtraceError
from tracer.views import json

KEPT = [(version, name) for version in migrations.RENAMED for name in ("cut_off", "exact", "labels")]


def document(path: Path) -> str:
    with Capture.open(path) as capture:
        return "".join(json.render(account.read(capture)))


def test_every_schema_before_this_one_is_kept() -> None:
    assert list(migrations.RENAMED) == list(range(3, SCHEMA_VERSION))
    assert sorted(path.parent.name for path in DIRECTORY.glob("*/schema.sql")) == [
        f"schema_{version}" for version in migrations.RENAMED
    ]


@pytest.mark.parametrize(("version", "name"), KEPT)
def test_it_says_what_it_said(version: int, name: str, tmp_path: Path) -> None:
    old = load_of_schema(version, name, tmp_path / "old")
    before = old.read_bytes()
    assert document(old) == document(load(name, tmp_path / "new"))
    assert old.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("ALTER TABLE region ADD COLUMN size_bytes", "table region is not that of a capture"),
        ("DROP TABLE behalf", "table behalf is missing"),
        ("UPDATE region SET vss_bytes = 'x'", "invalid region.vss_bytes"),
        ("UPDATE region SET top = 99", "table region refers to a process that does not exist"),
        ("CREATE VIEW made_for AS SELECT 1", "there is already another table or index with this name: made_for"),
    ],
)
def test_one_that_is_damaged(statement: str, reason: str, tmp_path: Path) -> None:
    old = load_of_schema(3, "exact", tmp_path / "old")
    with sqlite3.connect(old) as database:
        database.execute(statement)
    with pytest.raises(ShmtraceError, match="old is damaged: ") as raised, Capture.open(old):
        pass
    assert reason in str(raised.value)

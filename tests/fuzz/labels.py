"""Texts that strangers chose, in every place of a capture that has any: in each view they come out as texts."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz import captures
from tests.fuzz.harness import Fuzzer, Given
from tests.fuzz.values import sql, texts

FILE = captures.FILE
PLACES = [
    *(("process", "comm"), ("process", "command"), ("process", "cgroup"), ("region", "name"), ("exec", "command")),
    *(("label", "script"), ("label", "request"), ("label", "file"), ("stack", "frames"), ("session", "warnings")),
    *(("session", "host"), ("session", "kernel"), ("session", "blind_to")),
]
WHOLE = {("process", "command"): "command", ("region", "name"): "name", ("process", "comm"): "comm"}
"""Those that a CSV of processes or regions has as they are, by its column."""

inputs = st.fixed_dictionaries(
    {
        "capture": st.sampled_from(["labels of a pool", "stacks", "hostile", "labels"]),
        "place": st.sampled_from(PLACES),
        "text": texts,
        "command": captures.commands,
    }
)


def write(given: Given, directory: Path) -> None:
    table, column = given["place"]
    with captures.changing(captures.put(given, directory)) as database:
        database.execute(f"UPDATE {table} SET {column} = {sql(given['text'])}")


FUZZER = Fuzzer("labels", inputs, captures.give, 120, write, captures.check, captures.warm)

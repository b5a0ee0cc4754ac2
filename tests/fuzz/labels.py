"""Texts that strangers chose, in every place of a capture that has any: in each view they come out as texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import captures, outputs
from tests.fuzz.harness import Fuzzer, Given
from tests.fuzz.values import sql, texts

PLACES = {
    ("process", "command"): ["command", "parent_command", "creator_command"],
    ("process", "comm"): ["comm"],
    ("process", "cgroup"): ["cgroup", "cgroups"],
    ("cgroup", "namespace"): ["namespace"],
    ("cgroup", "pod"): ["pod_name"],
    ("cgroup", "container"): ["container_name"],
    ("region", "name"): ["name"],
    ("label", "script"): ["script"],
    ("label", "request"): ["request"],
    ("label", "file"): ["file"],
    ("exec", "command"): [],
    ("stack", "frames"): [],
    ("session", "warnings"): [],
    ("session", "host"): ["host"],
    ("session", "kernel"): ["kernel"],
    ("session", "blind_to"): [],
}
"""Columns of a capture, each with those of CSV and JSON that have the same texts."""

NAMES = """
INSERT INTO cgroup SELECT DISTINCT cgroup, 'shop', 'web', 'app' FROM process WHERE cgroup IS NOT NULL"""

inputs = st.fixed_dictionaries(
    {
        "capture": st.sampled_from(["labels of a pool", "stacks", "hostile", "labels"]),
        "place": st.sampled_from(list(map(list, PLACES))),
        "text": texts,
        "command": captures.commands,
    }
)


def write(given: Given, directory: Path) -> None:
    table, column = given["place"]
    with captures.changing(captures.put(given, directory)) as database:
        database.execute(NAMES)
        database.execute(f"UPDATE {table} SET {column} = {sql(given['text'])}")


def check(given: Given, directory: Path, stdout: str) -> None:
    """Besides what is true of all output: the text is what it was, and so are the figures."""
    captures.check(given, directory, stdout)
    command, text = given["command"], given["text"]
    columns = PLACES[tuple(given["place"])]
    if command[0] == "diff":  # another capture's are in it, too
        return
    if "--json" in command:
        found = _values(json.loads(stdout), columns)
        assert found <= {text, "", None}, f"a text is another in JSON\n{found}"
    elif "--csv" in command and text:
        heading, *rows = outputs.cells(stdout)
        found = {row[heading.index(column)] for row in rows for column in columns if column in heading}
        assert found <= {outputs.cell(text), ""}, f"a text is another in CSV\n{found}"
    if given["capture"] != "stacks" and "--since" not in command:
        allocated_bytes = captures.allocated_bytes(given["capture"])
        if command[-1] == "folded":
            assert outputs.folded(stdout) == allocated_bytes
        elif command == ["report", captures.FILE, "--json"]:
            assert sum(region["allocated_bytes"] for region in json.loads(stdout)["regions"]) == allocated_bytes


def _values(document: Any, keys: list[str]) -> set[Any]:
    """What stands under any of these names, anywhere in a document."""
    if isinstance(document, list):
        return {value for item in document for value in _values(item, keys)}
    if not isinstance(document, dict):
        return set()
    found = {value for key, value in document.items() if key in keys}
    return found | {value for item in document.values() for value in _values(item, keys)}


FUZZER = Fuzzer("labels", inputs, captures.give, 120, write, check, captures.warm)

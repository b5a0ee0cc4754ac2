"""Every document that --json prints is as the JSON Schema says, and has no property that the schema does not tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.captures import NAMES, load
from tests.recorded import of_host, of_tmpfs, shmtrace, with_labels, with_oom, with_stacks
from tests.schema import SCHEMA_FILE, validate
from tracer.views.json import SCHEMA

TABLES = ["region", "process", "unit", "container", "time"]


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA_FILE.read_text()))
    assert json.loads(SCHEMA_FILE.read_text())["title"] == SCHEMA


def test_the_command_prints_it() -> None:
    assert shmtrace("schema").stdout == SCHEMA_FILE.read_text()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [[], ["--until", "+1h"], *(["--by", by] for by in TABLES)], ids=" ".join)
def test_what_a_report_says(options: list[str], name: str, tmp_path: Path) -> None:
    assert validate(shmtrace("report", load(name, tmp_path / name), "--json", *options).stdout)["schema"] == SCHEMA


@pytest.mark.parametrize("kind", ["file", "script", "request", "directory", "label"])
def test_what_a_table_by_label_says(kind: str, tmp_path: Path) -> None:
    assert validate(shmtrace("report", with_labels(tmp_path / "x"), "--json", "--by", kind).stdout)["rows"]


def test_what_a_table_of_what_nobody_maps_says(tmp_path: Path) -> None:
    assert len(validate(shmtrace("report", of_host(tmp_path / "x"), "--json", "--by", "unmapped").stdout)["rows"]) == 4
    assert len(validate(shmtrace("report", tmp_path / "x", "--json").stdout)["unmapped"]) == 4


def test_what_a_report_of_a_tmpfs_says(tmp_path: Path) -> None:
    document = validate(shmtrace("report", of_tmpfs(tmp_path / "x"), "--json").stdout)
    assert document["tmpfs"] == "/dev/shm"
    assert document["shmem_rest_bytes"] is None
    assert [row["name"] for row in document["unmapped"]] == ["/dev/shm/gone", "/dev/shm"]


def test_what_a_report_of_oom_kills_says(tmp_path: Path) -> None:
    document = validate(shmtrace("report", with_oom(tmp_path / "x"), "--json").stdout)
    assert document["nr_ooms"] == 9
    assert [(kill["tgid"], kill["process"] and kill["process"]["tgid"]) for kill in document["ooms"]] == [
        (812, 812),
        (977, None),
    ]
    assert [(row["process"]["tgid"], row["touched_bytes"]) for row in document["ooms"][0]["touched"]] == [
        (812, 21 * 4096)
    ]
    assert document["ooms"][0]["unnamed_bytes"] == 26 * 4096
    assert document["answer"]["text"].startswith("OOM kill at ")


def test_what_a_table_by_stack_says(tmp_path: Path) -> None:
    assert validate(shmtrace("report", with_stacks(tmp_path / "x"), "--json", "--by", "stack").stdout)["rows"]


@pytest.mark.parametrize("others", ["cut_off", "exact", "hostile"])
def test_what_a_diff_says(others: str, tmp_path: Path) -> None:
    a, b = load("php_fpm", tmp_path / "a"), load(others, tmp_path / "b")
    assert validate(shmtrace("diff", a, b, "--json").stdout)["regions"]


@pytest.mark.bpf
@pytest.mark.parametrize("arguments", [["trace", "--json", "--", "true"], ["snapshot", "-a", "--json"]], ids=" ".join)
def test_what_is_said_of_this_host(arguments: list[str]) -> None:
    line = [sys.executable, "-m", "tracer", *arguments]
    validate(subprocess.run(line, cwd=SCHEMA_FILE.parents[2], stdout=subprocess.PIPE, text=True, check=True).stdout)


def test_every_property_is_described() -> None:
    """But those that are described where they are defined."""

    def missing(schema: Any, path: str) -> list[str]:
        found = []
        for name, item in schema.get("properties", {}).items():
            if not {"description", "$ref", "const", "enum"} & set(item):
                found.append(f"{path}.{name}")
            found += missing(item, f"{path}.{name}") + missing(item.get("items", {}), f"{path}.{name}[]")
        return found

    definitions = json.loads(SCHEMA_FILE.read_text())["$defs"]
    assert [path for name, definition in definitions.items() for path in missing(definition, name)] == []

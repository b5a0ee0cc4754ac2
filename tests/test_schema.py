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
from tests.recorded import shmtrace, with_labels, with_stacks
from tracer import labels
from tracer.views.json import SCHEMA

SCHEMA_FILE = Path(__file__).parent.parent / "tracer" / "views" / "schema.json"
TABLES = ["region", "process", "unit", "container", "time"]


def strict(schema: Any) -> Any:
    """The schema, but that what it does not tell is not allowed."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {**closed, **{name: strict(item) for name, item in schema.items()}}


VALIDATOR = jsonschema.Draft202012Validator(strict(json.loads(SCHEMA_FILE.read_text())))


def validate(output: str) -> Any:
    document = json.loads(output)
    kind = f"by_{document['by']}" if "by" in document else "account"
    kind = {"by_diff": "diff", **{f"by_{name}": "by_label" for name in labels.KINDS}}.get(kind, kind)
    # against its own part of the schema, whose errors say more than anyOf's
    errors = sorted(
        VALIDATOR.evolve(schema={**VALIDATOR.schema, "anyOf": [{"$ref": f"#/$defs/{kind}"}]}).iter_errors(document)
    )
    assert not errors, [(error.json_path, error.message[:200]) for error in errors[0].context or errors][:3]
    return document


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA_FILE.read_text()))
    assert json.loads(SCHEMA_FILE.read_text())["title"] == SCHEMA


def test_the_command_prints_it() -> None:
    assert shmtrace("schema").stdout == SCHEMA_FILE.read_text()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [[], ["--until", "+1h"], *(["--by", by] for by in TABLES)], ids=" ".join)
def test_what_a_report_says(options: list[str], name: str, tmp_path: Path) -> None:
    assert validate(shmtrace("report", load(name, tmp_path / name), "--json", *options).stdout)["schema"] == SCHEMA


@pytest.mark.parametrize("kind", ["file", "script", "request", "label"])
def test_what_a_table_by_label_says(kind: str, tmp_path: Path) -> None:
    assert validate(shmtrace("report", with_labels(tmp_path / "x"), "--json", "--by", kind).stdout)["rows"]


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

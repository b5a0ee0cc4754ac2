"""Holds a document of --json against the JSON Schema in the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA_FILE = Path(__file__).parent.parent / "tracer" / "views" / "schema.json"


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
    """The document, which is as the schema says and has no property that the schema does not tell."""
    document = json.loads(output)
    kind = f"by_{document['by']}" if "by" in document else "account"
    kind = "diff" if kind == "by_diff" else kind if kind in VALIDATOR.schema["$defs"] else "by_group"
    # against its own part of the schema, whose errors say more than anyOf's
    errors = sorted(
        VALIDATOR.evolve(schema={**VALIDATOR.schema, "anyOf": [{"$ref": f"#/$defs/{kind}"}]}).iter_errors(document)
    )
    assert not errors, [(error.json_path, error.message[:200]) for error in errors[0].context or errors][:3]
    return document

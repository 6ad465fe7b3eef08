"""Schemas of the resources that targets write, made strict."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"


def strict(schema):
    """The schema, where an object takes no field that it does not list.

    Only where the schema describes values: a branch of `oneOf` and its like lists what it asks about, not all.
    """
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        closed.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            closed[name] = strict(schema[name])
    return closed


@pytest.fixture(scope="session")
def check():
    """`check(manifest)`: it is as the schema of its kind has it, down to the last field."""
    found = {}
    for path in SCHEMAS.glob("*.json"):
        schema = strict(json.loads(path.read_text()))
        Draft202012Validator.check_schema(schema)
        (kind,) = schema["properties"]["kind"]["enum"]
        found[kind] = Draft202012Validator(schema)
    assert set(found) >= {"DestinationRule", "VirtualService", "HTTPRoute", "BackendTrafficPolicy"}

    def check_one(manifest):
        # As a cluster would read it.
        manifest = yaml.safe_load(yaml.safe_dump(manifest))
        errors = [f"{'.'.join(map(str, e.path))}: {e.message}" for e in found[manifest["kind"]].iter_errors(manifest)]
        assert not errors, errors

    return check_one

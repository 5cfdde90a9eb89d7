"""The client knows the actions of its version without the server's modules: a file contains the catalogue."""

import json
import os
from pathlib import Path
from typing import Any, Final

from commands.actions import CATALOGUE, Action

FILE: Final = Path(__file__).parent.parent.parent / "nexmdm" / "client" / "actions.json"
WRITE: Final = "WRITE_ACTIONS"
"""If this is set in the environment, the test writes the file again."""


def described(action: type[Action]) -> dict[str, Any]:
    schema = action.model_json_schema()
    required = schema.get("required", [])
    return {
        "name": action.name,
        "description": schema["description"].partition("\n")[0],
        "parameters": {
            name: kind(field, optional=name not in required) for name, field in schema.get("properties", {}).items()
        },
        "expires_in_seconds": action.expires_in_seconds,
    }


def kind(field: dict[str, Any], *, optional: bool) -> str:
    """Return in words what a parameter may be."""
    (one,) = [found for found in field.get("anyOf", [field]) if found.get("type") != "null"]
    words = {"string": "text", "integer": "whole number", "object": "object", "boolean": "true or false"}[one["type"]]
    if "minimum" in one:
        words += f" from {one['minimum']} to {one['maximum']}"
    return words + (", optional" if optional else "")


def test_the_clients_actions_are_those_of_the_catalogue() -> None:
    expected = [described(action) for action in CATALOGUE.values()]
    if os.environ.get(WRITE):
        FILE.write_text(json.dumps(expected, indent=2) + "\n")
    assert json.loads(FILE.read_text()) == expected, f"{WRITE}=1 writes the file anew"

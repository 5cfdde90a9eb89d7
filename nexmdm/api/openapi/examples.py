"""The examples of the OpenAPI document, from examples.json.

All examples were recorded from real requests. tests/api/test_examples.py sends the requests again and compares the
answers. The parts of examples.json are:

- `operations`: the examples of each operation, by operation id. `body` is the request body, and `answer` is the answer.
  If the name of an example contains `=`, the name is the query of the request.
- `path`: example values of the parameters in paths.
- `problems`: one example of problem details for each error code.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

FILE: Final = Path(__file__).with_suffix(".json")
_ALL: Final[Json] = json.loads(FILE.read_text(encoding="utf-8"))
PATH: Final[Mapping[str, str]] = _ALL["path"]
OPERATIONS: Final[Mapping[str, Mapping[str, Json]]] = _ALL["operations"]
PROBLEMS: Final[Mapping[str, Json]] = _ALL["problems"]


def shown(operation_id: str, part: str) -> Json:
    """Return the examples of an operation in the form of OpenAPI. `part` is `body` or `answer`."""
    named = OPERATIONS.get(operation_id, {}).items()
    return {name: _summary(one) | {"value": one[part]} for name, one in named if part in one}


def _summary(example: Json) -> Json:
    return {"summary": example["summary"]} if "summary" in example else {}

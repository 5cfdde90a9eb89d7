"""The examples of the OpenAPI document. All were recorded from real runs, and tests/api/test_examples.py runs them
again.

In examples.json, `operations` has the examples of each operation: `body` is the request (a name with `=` in it is the
query), `answer` the response. `path` has the values in paths, `problems` an error for each code.
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
    """Return an operation's examples in OpenAPI's form. `part` is `body` or `answer`."""
    named = OPERATIONS.get(operation_id, {}).items()
    return {name: _summary(one) | {"value": one[part]} for name, one in named if part in one}


def _summary(example: Json) -> Json:
    return {"summary": example["summary"]} if "summary" in example else {}

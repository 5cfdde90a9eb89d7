"""The machine-readable forms of an answer: JSON, YAML and CSV."""

import csv
import importlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""The characters that begin a formula in a spreadsheet (OWASP, "CSV Injection")."""


def to_json(value: Any) -> str:
    """Return a value as JSON, without a newline at its end."""
    return json.dumps(value, indent=2)


def to_yaml(value: Any) -> str:
    """Return a value as YAML, in the order of its fields, without a newline at its end."""
    # Imported here, because most calls do not need it.
    text: str = importlib.import_module("yaml").safe_dump(value, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n")


def to_csv(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows as CSV, without a newline at its end.

    A cell that a spreadsheet would calculate gets an apostrophe in front.
    """
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in row] for row in rows)
    return lines.getvalue().removesuffix("\n")

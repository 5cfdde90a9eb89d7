"""Answers in formats for scripts: JSON, YAML and CSV. No text has a newline at its end."""

import csv
import importlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""The characters that begin a formula in a spreadsheet (OWASP, "CSV Injection")."""


def to_json(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(value, indent=2)


def to_yaml(value: Any) -> str:
    """Return a value as YAML. The fields keep their order."""
    # Imported here, because most calls do not need it.
    text: str = importlib.import_module("yaml").safe_dump(value, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n")


def to_csv(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows as CSV.

    A cell that begins with a character of FORMULA gets an apostrophe in front of it.
    """
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in row] for row in rows)
    return lines.getvalue().removesuffix("\n")

"""The result of a run as text: the kept promises, and an explanation of each missed promise."""

import textwrap
from collections.abc import Sequence
from typing import Final

from nexmdm.conformance.kit import Result

_WIDTH: Final = 110
_NAME_WIDTH: Final = 22


def table(results: Sequence[Result]) -> str:
    """Return the result as text. Its last line is the number of kept promises."""
    lines = [f"{result.scenario.name:{_NAME_WIDTH}}{'MISSED' if result.missed else 'kept'}" for result in results]
    for result in results:
        if result.missed:
            lines += ["", *_miss(result)]
    held = sum(not result.missed for result in results)
    return "\n".join([*lines, "", f"{held} of {len(results)} promises kept."])


def _miss(result: Result) -> list[str]:
    parts = [("Rule: ", result.scenario.promise), ("Seen: ", f"{result.missed}.")]
    lines = [result.scenario.name]
    for head, text in parts:
        lines += textwrap.wrap(text, _WIDTH, initial_indent=f"  {head}", subsequent_indent="        ")
    if result.output:
        lines += ["  The last lines of the agent's output:", textwrap.indent(result.output, "    ")]
    return lines

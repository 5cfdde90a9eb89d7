"""The output of an answer of the API: a list or one object."""

import shlex
from collections.abc import Callable, Sequence
from typing import Any, Final

from click import Option, get_current_context
from click.core import ParameterSource

from nexmdm.client import rows
from nexmdm.client.display import PEOPLE
from nexmdm.client.rows import Columns, Json
from nexmdm.client.session import DONE, Session
from nexmdm.client.surroundings import REACH_NAMES

Described = Callable[[Json], Json]

_NO_FILTERS: Final = (*REACH_NAMES, "form", "as_json", "watch", "limit", "newest_first")
"""Options of the verbs that print a list. These options are not filters."""


def show_list(
    session: Session,
    columns: Columns,
    found: Sequence[Json],
    *,
    more: bool,
    one: str,
    described: Described = rows.as_it_is,
) -> int:
    """Print the rows of a list. Return the exit status.

    A message follows if there are more rows, or no rows. `one` is the noun for a row. `described` adds computed fields.
    """
    if session.terminal.is_structured:
        session.terminal.value(list(found))
    else:
        session.terminal.table(columns, list(map(described, found)))
    if not found and session.terminal.form in PEOPLE:
        session.terminal.hint(none(one))
    if more:
        session.terminal.hint(f"There are more than these {len(found)}. To see more, use --limit.")
    return DONE


def none(one: str) -> str:
    """Return the message that the list is empty. The message names the filter options of the call."""
    context = get_current_context()
    chosen = [
        _option(param.opts[0], context.params[param.name or ""])
        for param in context.command.params
        if isinstance(param, Option)
        and param.name not in _NO_FILTERS
        and context.get_parameter_source(param.name or "") == ParameterSource.COMMANDLINE
    ]
    return f"No {one} matches {' and '.join(chosen)}." if chosen else f"There is no {one}."


def _option(name: str, value: Any) -> str:
    return f"{name} {shlex.quote(value)}" if isinstance(value, str) else name


def show(session: Session, row: Json) -> int:
    """Print one object of the API. Return the exit status."""
    session.terminal.fields(row)
    return DONE


def given(**values: Any) -> Json:
    """Return the arguments that are not None, by name."""
    return {name: value for name, value in values.items() if value is not None}

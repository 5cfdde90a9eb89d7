"""The display of an answer of the API by a verb: a list, or one row."""

from collections.abc import Callable, Sequence
from typing import Any

from nexmdm.client import rows
from nexmdm.client.rows import Columns, Json
from nexmdm.client.session import DONE, Session

Described = Callable[[Json], Json]


def show_list(
    session: Session, columns: Columns, found: Sequence[Json], *, more: bool, described: Described = rows.as_it_is
) -> int:
    """Print the rows of a list, and a message if there are more."""
    if session.terminal.is_structured:
        session.terminal.value(list(found))
    else:
        session.terminal.table(columns, list(map(described, found)))
    if more:
        session.terminal.hint(f"There are more than these {len(found)}. To see more, use --limit.")
    return DONE


def show(session: Session, row: Json) -> int:
    """Print one row."""
    session.terminal.fields(row)
    return DONE


def given(**values: Any) -> Json:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}

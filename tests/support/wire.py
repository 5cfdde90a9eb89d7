"""The messages between the application and PostgreSQL, as libpq logs them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from django.db import connection

from nexmdm.common.postgresql.base import DatabaseWrapper

_SHOWN: Final = 200
_NEXT: Final = re.compile(r"^[^\t\n]*\t(?=[FB]\t\d)", re.MULTILINE)
_ASKED: Final = re.compile(r"F\t\d+\t(?:Query|Sync)\b\s*(.*)", re.DOTALL)
_COMPLETED: Final = re.compile(r'B\t\d+\tCommandComplete\t "(?!BEGIN|COMMIT|ROLLBACK)')


@dataclass(slots=True)
class Traffic:
    """The messages that PostgreSQL must answer, and the number of statements in them.

    The beginning of each message is stored. The empty message by which a pool tests a connection is included;
    statements that only begin or end a transaction do not count as statements.
    """

    messages: list[str] = field(default_factory=list)
    statements: int = 0


@contextmanager
def traffic(folder: Path) -> Iterator[Traffic]:
    """Count the messages on all connections of this process's pool; none may be in use at the start."""
    counted, traced = Traffic(), list[Any]()
    connection.ensure_connection()
    connection.close()
    taken = DatabaseWrapper.get_new_connection
    with (folder / "trace").open("w+") as file:

        def trace(one: Any) -> None:
            if one not in traced:
                traced.append(one)
                one.pgconn.trace(file.fileno())

        def take(self: DatabaseWrapper, parameters: dict[str, Any]) -> Any:
            given = taken(self, parameters)
            trace(given)
            return given

        for idle in connection.pool._pool:  # type: ignore[attr-defined]
            trace(idle)
        try:
            with patch.object(DatabaseWrapper, "get_new_connection", take):
                yield counted
        finally:
            for one in traced:
                one.pgconn.untrace()
        file.seek(0)
        lines = _NEXT.split(file.read())
    counted.messages = [" ".join(found[1].split())[:_SHOWN] for line in lines if (found := _ASKED.match(line))]
    counted.statements = sum(_COMPLETED.match(line) is not None for line in lines)

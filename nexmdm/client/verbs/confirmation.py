"""The question before a write that is hard to undo."""

import sys
from collections.abc import Sequence
from typing import Final

from nexmdm.client.display import printable
from nexmdm.client.failures import ConfirmationRequired, NotConfirmed
from nexmdm.client.rows import Json
from nexmdm.client.session import Session

SHOWN: Final = 5


def confirm(session: Session, deed: str, count: int, examples: Sequence[Json], *, one: str = "device") -> None:
    """Show the number of devices, and ask the admin to type this number.

    - `deed`: the verb in the question, such as `wipe`.
    - `examples`: some or all of the devices.
    - `one`: the noun for one row.

    Raises NotConfirmed if the admin types another text. Raises ConfirmationRequired if there is no terminal.
    """
    counted = f"1 {one}" if count == 1 else f"{count} {one}s"
    names = ", ".join(_name(row) for row in examples[:SHOWN])
    more = ", …" if count > len(examples[:SHOWN]) else ""
    question = f"{deed} {counted}: {names}{more}"
    if not (sys.stdin.isatty() and session.terminal.err.isatty()):
        raise ConfirmationRequired(f"Not done, because it is not confirmed: {question}. To confirm, add --yes.")
    session.terminal.err.write(printable(f"{question}. Type {count} to confirm: "))
    session.terminal.err.flush()
    if sys.stdin.readline().strip() != str(count):
        raise NotConfirmed("Not confirmed: nothing was done.")


def _name(row: Json) -> str:
    return str(row.get("alias") or row.get("hardware_id") or row.get("url") or row["device_id"])

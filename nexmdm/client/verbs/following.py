"""The output of one command with its deliveries, immediately or after all deliveries are settled."""

from datetime import UTC, datetime
from typing import Final, NamedTuple

from nexmdm.client import display, rows
from nexmdm.client.http_client import FleetClient, Refused, Unreachable
from nexmdm.client.rows import WORST_FIRST, Json
from nexmdm.client.session import DONE, FAILED, Session

SHOWN_DELIVERIES: Final = 100
MOST_LATE: Final = 400
"""The largest number of extra deliveries to read for each state.

Deliveries that succeeded late come last. So the client must read more rows than it shows.
"""


class Shown(NamedTuple):
    """Which deliveries to print.

    With `only_failing`, deliveries that succeeded in time are left out. `limit` is the largest number of deliveries.
    """

    only_failing: bool = False
    limit: int | None = None


WORST: Final = Shown()


def follow(session: Session, command: Json, *, seconds: int | None, shown: Shown = WORST) -> int:
    """Wait until a command is no longer open, and print it. Return the exit status.

    `command` is an object of `GET /admin/commands/{request_id}`, or the answer to the request that sent the command.
    Without `seconds`, the wait ends when the command expires.
    """
    if seconds is None:
        begin = datetime.now(UTC) if "counts" in command else rows.moment(command["issued_at"])
        left = (rows.moment(command["expires_at"]) - begin).total_seconds()
        # One second longer, because the last reading must show the command as expired.
        seconds = max(0, round(left + 1))
    try:
        with display.progress(command["device_count"]) as (step, watch):
            command = session.client.wait(command["request_id"], seconds, step=step, watch=watch)
        show_command(session, command, shown)
    except (Refused, Unreachable):
        session.terminal.hint(f"To look again: `{session.program} command {command['request_id']} --wait`.")
        raise
    if still_open := display.open_deliveries(command):
        session.terminal.complain(
            f"Waited {seconds} s. {still_open} of {command['device_count']} deliveries are still open."
        )
    return DONE if command["counts"]["succeeded"] == command["device_count"] else FAILED


def show_command(session: Session, command: Json, shown: Shown) -> None:
    """Print a command and its deliveries, the worst delivery first. CSV has only the deliveries."""
    limit = shown.limit or SHOWN_DELIVERIES
    deliveries, count = _deliveries(session.client, command, limit, only_failing=shown.only_failing)
    if session.terminal.is_structured:
        session.terminal.value(command | {"deliveries": deliveries})
        return
    if session.terminal.form != "csv":
        session.terminal.fields(command)
        session.terminal.line("")
    session.terminal.table(rows.DELIVERIES, [rows.delivery(row) for row in deliveries])
    if count > len(deliveries):
        more = f"`{session.program} command {command['request_id']} --limit {count}` shows all deliveries."
        session.terminal.hint(f"These are {len(deliveries)} of {count} deliveries. Failures come first. {more}")


def _deliveries(client: FleetClient, command: Json, limit: int, *, only_failing: bool) -> tuple[list[Json], int]:
    count = command["device_count"] - (command["counts"]["succeeded"] if only_failing else 0)
    if count > limit:
        return _worst_deliveries(client, command, limit, only_failing=only_failing), count
    found, _ = client.items(_path(command), limit, state="not_succeeded" if only_failing else None)
    return sorted(found, key=rows.delivery_rank), count


def _worst_deliveries(client: FleetClient, command: Json, limit: int, *, only_failing: bool) -> list[Json]:
    """Return up to `limit` deliveries, the worst state first. `only_failing` leaves out deliveries in the state
    `succeeded`. In this case, deliveries with the late result `succeeded` come last.
    """
    counts = command["counts"]
    spare = min(counts["late"], MOST_LATE) if only_failing else 0
    in_time: list[Json] = []
    late: list[Json] = []
    for state in WORST_FIRST[:-1] if only_failing else WORST_FIRST:
        missing = limit - len(in_time)
        if counts[state] and missing > 0:
            for row in client.items(_path(command), missing + spare, state=state)[0]:
                (late if only_failing and rows.succeeded_late(row) else in_time).append(row)
    return [*in_time, *late][:limit]


def _path(command: Json) -> str:
    return f"/admin/commands/{command['request_id']}/deliveries"

"""What an admin's client does: a function for each sub-command, which prints the answer and returns the exit status."""

import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from nexmdm.client import display, rows
from nexmdm.client.arguments import Content, Param
from nexmdm.client.display import Terminal
from nexmdm.client.http_client import FleetClient, Json, Refused, Unreachable
from nexmdm.client.session import DONE, FAILED, Session

Described = Callable[[Json], Json]

SHOWN_DELIVERIES: Final = 100
MOST_LATE: Final = 400
"""How many deliveries that succeeded late are read at most, in each state, to show others before them."""

_WORST_FIRST: Final = ("failed", "expired", "cancelled", "received", "pending", "succeeded")
_OF_WHAT_WAS_SENT: Final = ("request_id", "state", "issued_at", "expires_at", "dry_run")
_DEVICE_FILTERS: Final = (
    "status", "push", "tag", "model", "os_version", "agent_version", "not_seen_for_seconds", "q",
)  # fmt: skip
_AUDIT_FILTERS: Final = ("since", "until", "action", "device_id", "request_id", "principal", "status")


def enroll_token(session: Session) -> int:
    """Make an enrollment token and print it alone, so that a shell can capture it."""
    options, terminal = session.options, session.terminal
    body = {"label": options["label"], "max_uses": options["max_uses"], "expires_in_seconds": options["expires_in"]}
    body |= {"tags": options["tag"], "re_enroll": options["re_enroll"]}
    made = session.client.post("/admin/enrollment-tokens", _given(body))
    if terminal.as_json:
        terminal.json(made)
        return DONE
    terminal.line(made["enrollment_token"])
    phones = "1 phone can register" if made["max_uses"] == 1 else f"{made['max_uses']} phones can register"
    until = display.shown("expires_at", made["expires_at"])
    terminal.hint(f"With this token {phones} until {until}: POST {session.client.url}/v1/register")
    return DONE


def enroll_tokens(session: Session) -> int:
    """List enrollment tokens."""
    return _list(session, "/admin/enrollment-tokens", rows.TOKEN_COLUMNS, {}, described=rows.token)


def revoke_token(session: Session) -> int:
    """Revoke an enrollment token: no phone can register with it any more."""
    return _show(
        session.terminal, session.client.post(f"/admin/enrollment-tokens/{session.options['token_id']}/revoke")
    )


def devices(session: Session) -> int:
    """List devices."""
    query = {name: session.options[name] for name in _DEVICE_FILTERS}
    return _list(session, "/admin/devices", rows.DEVICE_COLUMNS, query)


def commands(session: Session) -> int:
    """List commands."""
    query = {name: session.options[name] for name in ("action", "state", "outcome", "device_id", "since", "until")}
    return _list(session, "/admin/commands", rows.COMMAND_COLUMNS, query, described=rows.command)


def audit(session: Session) -> int:
    """List the signed writes, carried out or refused."""
    query = {name: session.options[name] for name in _AUDIT_FILTERS}
    return _list(session, "/admin/audit", rows.AUDIT_COLUMNS, query, described=rows.audit_entry)


def _list(
    session: Session, path: str, columns: tuple[str, ...], query: Json, *, described: Described = rows.as_it_is
) -> int:
    found, more = session.client.items(path, session.options["limit"], **query)
    if session.terminal.as_json:
        session.terminal.json(found)
    else:
        session.terminal.table(columns, list(map(described, found)))
    if more:
        session.terminal.hint(f"There are more than these {len(found)}. To see more, use --limit.")
    return DONE


def device(session: Session) -> int:
    """Show a device."""
    return _show(session.terminal, session.client.get(f"/admin/devices/{session.options['device_id']}"))


def summary(session: Session) -> int:
    """Count the fleet."""
    return _show(session.terminal, session.client.get("/admin/summary"))


def cancel(session: Session) -> int:
    """Withdraw what is still open of a command; it is a failure if nothing was."""
    cancelled = session.client.post(f"/admin/commands/{session.options['request_id']}/cancel")
    _show(session.terminal, cancelled)
    if cancelled["cancelled"]:
        return DONE
    session.terminal.complain("No delivery was cancelled, because none was open.")
    return FAILED


def revoke(session: Session) -> int:
    """Shut a device out, and say what that withdraws."""
    return _shut_out(session, "revoke")


def retire(session: Session) -> int:
    """Shut a device out for good, and say what that withdraws."""
    return _shut_out(session, "retire")


def _shut_out(session: Session, verb: str) -> int:
    found = session.client.post(f"/admin/devices/{session.options['device_id']}/{verb}")
    _show(session.terminal, found)
    for one in found["withdrawn"]:
        session.terminal.hint(f"This withdrew the open {one['action']}: {one['request_id']}.")
        if one["may_still_run"]:
            session.terminal.hint(
                f"It may have reached the phone: {one['request_id']} may still run, and the server refuses its report."
            )
    return DONE


def reinstate(session: Session) -> int:
    """Let a device in again, and say what of it stays withdrawn."""
    found = session.client.post(f"/admin/devices/{session.options['device_id']}/reinstate")
    _show(session.terminal, found)
    for one in found.get("withdrawn", ()):
        session.terminal.hint(
            f"The revocation withdrew this {one['action']}: {one['request_id']}. Send it again if you need it."
        )
        if one["may_still_run"]:
            session.terminal.hint(f"It may have reached the phone: {one['request_id']} may still run.")
    return DONE


def change(session: Session) -> int:
    """Change or remove the alias and the tags of a device."""
    options = session.options
    path = f"/admin/devices/{options['device_id']}"
    return _show(session.terminal, session.client.patch(path, _chosen(options)))


def tag(session: Session) -> int:
    """Add a tag to devices, or remove it from them."""
    options = session.options
    return _show(session.terminal, session.client.post(f"/admin/tags/{options['tag']}", _chosen(options)))


def _chosen(options: dict[str, Any]) -> Json:
    """Return what is to be changed; None is a wish, too."""
    return {name: options[name] for name in options["wants"] if name in options}


def call(session: Session) -> int:
    """Send any request, and print its answer as JSON."""
    options = session.options
    session.terminal.json(session.client.call(options["method"], options["target"], content=options["body"].body))
    return DONE


def _show(terminal: Terminal, row: Json) -> int:
    if terminal.as_json:
        terminal.json(row)
    else:
        terminal.fields(row)
    return DONE


def send(session: Session) -> int:
    """Send a command; wait for its results if that is asked."""
    options = session.options
    body = {"action": options["action"], "params": _params(options["param"]), "target": options["target"]}
    body |= {"expires_in_seconds": options["expires_in"], "priority": options["priority"]}
    body |= {name: options[name] for name in ("dry_run", "expect_count", "supersede", "note")}
    issued = session.client.post("/admin/command", _given(body))
    if issued["dry_run"]:
        return _tell_of_dry_run(session.terminal, issued)
    if not _waits(options):
        return _show(session.terminal, issued)
    session.terminal.hint(f"Waiting for command {issued['request_id']} (devices: {issued['device_count']}) …")
    return _follow(session, issued, rows.moment(issued["issued_at"]))


def _tell_of_dry_run(terminal: Terminal, issued: Json) -> int:
    """Show what would be sent, without what only a command that was sent has."""
    if not terminal.as_json:
        terminal.line("Dry run: nothing was sent.")
        issued = {name: value for name, value in issued.items() if name not in _OF_WHAT_WAS_SENT}
    return _show(terminal, issued)


def _params(given: list[Param]) -> Json:
    return {param.name: param.value for param in given}


def command(session: Session) -> int:
    """Show a command with its deliveries; wait for its results if that is asked."""
    found = session.client.command(session.options["request_id"])
    if _waits(session.options):
        return _follow(session, found, datetime.now(UTC))
    _tell(session, found)
    return DONE


def _follow(session: Session, command: Json, now: datetime) -> int:
    """Wait until nothing of a command is open, show what became of it, and judge it."""
    seconds = session.options["timeout"]
    if seconds is None:
        left = (rows.moment(command["expires_at"]) - now).total_seconds()
        # A little more, so that the last look finds it expired.
        seconds = max(0.0, left + 1)
    try:
        with display.progress(command["device_count"]) as (step, watch):
            command = session.client.wait(command["request_id"], seconds, step=step, watch=watch)
        _tell(session, command)
    except (Refused, Unreachable):
        session.terminal.hint(f"To look again: `manage.py fleet command {command['request_id']} --wait`.")
        raise
    if still_open := display.open_deliveries(command):
        session.terminal.complain(f"Waited {seconds:.0f} s; {still_open} of {command['device_count']} are still open.")
    return DONE if command["counts"]["succeeded"] == command["device_count"] else FAILED


def _tell(session: Session, command: Json) -> None:
    deliveries, count = _deliveries(session.client, command, only_failing=session.options.get("not_succeeded", False))
    if session.terminal.as_json:
        session.terminal.json(command | {"deliveries": deliveries})
        return
    session.terminal.fields(command)
    session.terminal.line("")
    session.terminal.table(rows.DELIVERY_COLUMNS, [rows.delivery(row) for row in deliveries])
    if count > len(deliveries):
        session.terminal.hint(f"These are {len(deliveries)} of {count}; failures come first.")


def _deliveries(client: FleetClient, command: Json, *, only_failing: bool) -> tuple[list[Json], int]:
    """Return a command's deliveries, of very many those that went worst, and how many there are."""
    count = command["device_count"] - (command["counts"]["succeeded"] if only_failing else 0)
    if count > SHOWN_DELIVERIES:
        return _worst_deliveries(client, command, only_failing=only_failing), count
    state = "not_succeeded" if only_failing else None
    found, _ = client.items(_path(command), SHOWN_DELIVERIES, state=state)
    return sorted(found, key=rows.succeeded_late) if only_failing else found, count


def _worst_deliveries(client: FleetClient, command: Json, *, only_failing: bool) -> list[Json]:
    """Return the deliveries that went worst; those that succeeded late are the last of those that did not in time."""
    counts = command["counts"]
    spare = min(counts["late"], MOST_LATE) if only_failing else 0
    in_time: list[Json] = []
    late: list[Json] = []
    for state in _WORST_FIRST[:-1] if only_failing else _WORST_FIRST:
        missing = SHOWN_DELIVERIES - len(in_time)
        if counts[state] and missing > 0:
            for row in client.items(_path(command), missing + spare, state=state)[0]:
                (late if only_failing and rows.succeeded_late(row) else in_time).append(row)
    return [*in_time, *late][:SHOWN_DELIVERIES]


def _path(command: Json) -> str:
    return f"/admin/commands/{command['request_id']}/deliveries"


def delivery(session: Session) -> int:
    """Show what became of a command on one device, event by event."""
    options, terminal = session.options, session.terminal
    path = f"/admin/commands/{options['request_id']}/deliveries/{options['device_id']}"
    found = session.client.get(path)
    if terminal.as_json:
        terminal.json(found)
        return DONE
    terminal.fields({name: value for name, value in found.items() if name != "timeline"})
    terminal.line("")
    terminal.table(rows.EVENT_COLUMNS, [rows.event(row) for row in found["timeline"]])
    return DONE


def sign(session: Session) -> int:
    """Print the headers that sign a request, or the whole of it for a shell."""
    options = session.options
    content: Content = options["body"]
    headers = session.client.sign(options["method"], options["target"], content.body)
    if content.body:
        headers["Content-Type"] = "application/json"
    if session.terminal.as_json:
        session.terminal.json(headers)
    elif options["url"] is not None:
        session.terminal.line(_curl(options["method"], session.client.url + options["target"], headers, content))
    else:
        for name, value in headers.items():
            session.terminal.line(f"{name}: {value}")
    return DONE


def _curl(method: str, url: str, headers: Mapping[str, str], content: Content) -> str:
    """Return a curl command that sends exactly what was signed."""
    words = ["curl", "--silent", "--show-error", "--globoff", "--path-as-is", "--request", method, url]
    for name, value in headers.items():
        words += ["--header", f"{name}: {value}"]
    if content.body:
        words += ["--data-binary", f"@{content.name}"]
    return shlex.join(words)


def _waits(options: dict[str, Any]) -> bool:
    return options["wait"] or options["timeout"] is not None


def _given(body: Json) -> Json:
    return {name: value for name, value in body.items() if value is not None}

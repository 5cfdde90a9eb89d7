"""If a client disconnects during POST /admin/command, the server carries out the whole command or nothing."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from loadtest.fleet import enrolling
from loadtest.testbed import testbed
from loadtest.testbed.connections import Server, with_body
from loadtest.testbed.serving import wait_for
from loadtest.trust.trials import sockets
from loadtest.trust.trials.finding import Finding
from nexmdm.client.http_client import FleetClient

PHONES: Final = 3
TARGET: Final = "/admin/command"
READ_OF_THE_ANSWER: Final = (0, 0, 1, 20, 200)
"""How many bytes of the answer a client reads after a complete request, before it disconnects. The numbers are used in
turn."""

SETTINGS: Final = {"BCRYPT_ROUNDS": "4", "ADMIN_RATE_LIMIT": "100000/m", "ADMIN_READ_RATE_LIMIT": "100000/m"}


def trial(folder: Path) -> Iterator[Finding]:
    """Cut connections after each byte of a POST, and while the POST is carried out or answered."""
    with (
        testbed.standin(folder) as (_, fcm),
        testbed.served(folder / "data", **fcm, **SETTINGS) as serving,
        serving.admin() as admin,
    ):
        enrolling.enrol(admin, PHONES, with_push_tokens=True, watch=lambda: None)
        incomplete, complete = _cut(admin)
        commands = _settled(admin)
        yield Finding(
            "an incomplete POST leaves nothing",
            f"{incomplete:,} clients disconnected, one after each byte of the POST, by FIN and by RST",
            f"{sum(note.startswith('incomplete') for note in commands)} commands",
            not any(note.startswith("incomplete") for note in commands),
        )
        whole = [_is_whole(command) for notes in commands.values() for command in notes]
        yield Finding(
            "a complete POST leaves nothing, or a whole command that reaches every phone",
            f"{len(complete):,} clients disconnected while the command was carried out or answered",
            f"{len(whole)} commands, {whole.count(True)} whole and pushed to all",
            all(whole) and bool(whole),
        )
        statuses = Counter(sockets.replay(admin.url, request) for request in complete)
        counts = Counter(len(notes) for note, notes in _settled(admin).items())
        yield Finding(
            "a POST that is sent again is carried out once",
            f"the {len(complete):,} complete requests once more, with the same bytes",
            f"{statuses[200]:,} × 200, {counts.total():,} commands, {counts.total() - counts[1]} of them twice",
            statuses.total() == statuses[200] == counts[1] == counts.total(),
        )


def _cut(admin: FleetClient) -> tuple[int, list[bytes]]:
    """Cut connections. Return the number of incomplete POSTs, and the bytes of each complete POST."""
    length = len(_request(admin, "incomplete 0000"))
    moments = [(size, politely) for size in range(length) for politely in (True, False)]
    for number, (size, politely) in enumerate(moments):
        request = _request(admin, f"incomplete {number:04}")
        sockets.cut_after(admin.url, request[:size], politely=politely)
    complete = []
    for number in range(length):
        request = _request(admin, f"complete {number:04}")
        complete.append(request)
        read = READ_OF_THE_ANSWER[number % len(READ_OF_THE_ANSWER)]
        with suppress(ConnectionError):
            sockets.cut_after(admin.url, request, politely=number % 2 == 0, read=read)
    return len(moments), complete


def _request(admin: FleetClient, note: str) -> bytes:
    body = orjson.dumps({"action": "ping", "target": {"all": True}, "note": note})
    return Server.of(admin.url).head("POST", TARGET, admin.sign("POST", TARGET, body)) + with_body(body)


def _settled(admin: FleetClient) -> dict[str, list[dict[str, Any]]]:
    """Wait until no push is waiting, and return the commands by their note."""
    found: dict[str, list[dict[str, Any]]] = {}

    def pushed() -> bool:
        found.clear()
        rows, _ = admin.items("/admin/commands", 10_000)
        for row in rows:
            found.setdefault(row["note"], []).append(admin.command(row["request_id"]))
        return all(command["push"]["waiting"] == 0 for notes in found.values() for command in notes)

    with suppress(TimeoutError):
        wait_for(pushed)
    return found


def _is_whole(command: dict[str, Any]) -> bool:
    states = ("pending", "received", "succeeded", "failed", "expired", "cancelled")
    deliveries = sum(command["counts"][state] for state in states)
    return bool(command["device_count"] == deliveries == command["push"]["accepted"] == PHONES)

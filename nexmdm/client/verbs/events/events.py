"""The verb `events`, which prints the event feed."""

import random
import re
import shlex
import time
from argparse import ArgumentTypeError
from typing import Final

import rich_click as click

from nexmdm.client import arguments
from nexmdm.client.arguments import Value
from nexmdm.client.events.device_names import DeviceNames
from nexmdm.client.events.feed import NOW, OLDEST, EventFeed
from nexmdm.client.events.lines import EventPrinter
from nexmdm.client.http_client import LONGEST_WAIT_SECONDS, Refused, Unreachable, pause_before_repeat
from nexmdm.client.session import DONE, Session
from nexmdm.client.verbs import answers, shared, values
from nexmdm.client.verbs.events.event_types import TYPES

SHOWN: Final = 100
LONGEST_PAUSE_SECONDS: Final = 30.0
_OLDEST_WORD: Final = "oldest"
_EXPIRED: Final = "cursor_expired"
_MOST: Final = 1_000_000_000


def place(text: str) -> str:
    """Return a place in the event feed, in the form of the API."""
    if text == _OLDEST_WORD:
        return OLDEST
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,120}", text):
        raise ArgumentTypeError(f"must be a cursor, {NOW} or {_OLDEST_WORD}")
    return text


PLACE: Final = Value("cursor", place)


@click.command("events")
@shared.lines
@click.option(
    "--after", type=PLACE, metavar="CURSOR",
    help=(
        "Begin after this cursor, at `now` (only new events) or at `oldest` (all stored events). Default: `oldest`; "
        "with --follow: `now`."
    ),
)  # fmt: skip
@click.option(
    "--types", type=TYPES, metavar="TYPE,…",
    help="Only events of these types; device.* means all types that begin with `device.`",
)  # fmt: skip
@click.option("--device", type=values.DEVICE, metavar="DEVICE", help="Only events about this device.")
@click.option(
    "--limit", type=arguments.POSITIVE, metavar="N",
    help=f"The largest number of events to print; default {SHOWN}; with --follow, no limit.",
)  # fmt: skip
@click.option("--follow", is_flag=True, help="Print events as they happen, until Ctrl-C.")
def events(
    session: Session, after: str | None, types: str | None, device: str | None, limit: int | None, *, follow: bool
) -> int:
    """List the events of the fleet, oldest first, one event on each line.

    Standard error shows the cursor with which to continue. With --json, each line has its own `cursor`.
    """
    device_id = session.names.device_id(device) if device is not None else None
    if after is None:
        after = NOW if follow else OLDEST
    feed = EventFeed(session.client, after, answers.given(types=types, device_id=device_id))
    printer = EventPrinter(session.terminal, DeviceNames(session.client))
    if follow:
        return _follow(session, feed, printer, limit or _MOST)
    return _list(session, feed, printer, limit or SHOWN)


def _list(session: Session, feed: EventFeed, printer: EventPrinter, limit: int) -> int:
    left = limit
    while left and not (feed.caught_up or feed.is_stuck):
        found = feed.read(left)
        printer.show(found)
        left -= len(found)
    if left == limit and not session.terminal.is_structured:
        session.terminal.hint(answers.none("event"))
    if feed.is_stuck:
        session.terminal.hint("Newer events wait for an older transaction of the database, which is still open.")
    elif not feed.caught_up:
        session.terminal.hint(f"There are more than these {limit}.")
    _show_how_to_continue(session, feed)
    return DONE


def _follow(session: Session, feed: EventFeed, printer: EventPrinter, limit: int) -> int:
    """Print new events until Ctrl-C, or until `limit` events are printed.

    After the first answer, the client repeats a request if the server is busy or does not answer.
    """
    left, failures, answered = limit, 0, False
    printed = feed.after
    try:
        while left:
            try:
                found = feed.read(left, wait_seconds=LONGEST_WAIT_SECONDS)
            except (Refused, Unreachable) as trouble:
                # The first request is not repeated, because the address or the secrets may be wrong.
                pause = pause_before_repeat(trouble) if answered else None
                if pause is None:
                    raise
                _say_trouble(session, trouble, failures)
                time.sleep(max(pause, _backoff(failures)))
                failures += 1
                continue
            if failures:
                session.terminal.hint("The server answers again.")
            failures, answered = 0, True
            printer.show(found)
            left, printed = left - len(found), feed.after
    except KeyboardInterrupt:
        feed.after = printed
    except (Refused, Unreachable) as error:
        if answered and not (isinstance(error, Refused) and error.code == _EXPIRED):
            _show_how_to_continue(session, feed)
        raise
    _show_how_to_continue(session, feed)
    return DONE


def _say_trouble(session: Session, trouble: Refused | Unreachable, failures: int) -> None:
    if failures == 0:
        session.terminal.hint(f"No answer from {session.client.url}: {trouble}. Trying again until it answers.")


def _backoff(failures: int) -> float:
    """Return a pause in seconds that grows with each failure.

    A part of the pause is random, so that many clients do not return at the same moment.
    """
    longest: float = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1)


def _show_how_to_continue(session: Session, feed: EventFeed) -> None:
    if feed.after in (OLDEST, NOW):
        return
    words = [f"--after={feed.after}"] if feed.after.startswith("-") else ["--after", feed.after]
    for name in ("types", "device"):
        if session.given[name] is not None:
            words += [f"--{name}", session.given[name]]
    words += ["--follow"] if session.given["follow"] else []
    words += ["--json"] if session.terminal.is_structured else []
    session.terminal.hint(f"To continue: {session.program} events {shlex.join(words)}")

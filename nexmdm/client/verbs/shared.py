"""Options that several verbs share, and the code that calls a verb."""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import IO, Any, Final

import rich_click as click

from nexmdm.client import arguments, failures
from nexmdm.client.display import Format, Terminal
from nexmdm.client.http_client import ANSWER_SECONDS, LONGEST_WAIT_SECONDS, FleetClient, on_loopback
from nexmdm.client.names import Names
from nexmdm.client.profiles import connection
from nexmdm.client.profiles.connection import NotConnected, Wish
from nexmdm.client.profiles.memory import Memory
from nexmdm.client.profiles.profile_file import ProfileError
from nexmdm.client.session import DONE, FAILED, INTERRUPTED, READER_GONE, UNREACHABLE, WRONG_USAGE, Session
from nexmdm.client.surroundings import PANEL, REACH, REACH_NAMES, Decorator, Surroundings

Verb = Callable[..., int]

WATCH_SECONDS: Final = 2


_FORM: Final = click.option(
    "-o", "--output", "form", type=click.Choice(["table", "wide", "json", "csv", "yaml"]), default="table",
    help="The form of the answer; default: table.", panel=PANEL,
)  # fmt: skip
LINES: Final = click.option(
    "-o", "--output", "form", type=click.Choice(["table", "json"]), default="table",
    help="The form of each line: `table` (columns) or `json` (one object); default: table.", panel=PANEL,
)  # fmt: skip
JSON: Final = click.option("--json", "as_json", is_flag=True, help="The same as -o json.", panel=PANEL)
_WATCH: Final = click.option(
    "--watch", type=arguments.POSITIVE, is_flag=False, flag_value=str(WATCH_SECONDS), metavar="[SECONDS]",
    panel=PANEL,
    help=f"Show the answer again every {WATCH_SECONDS} seconds, or every SECONDS, until Ctrl-C.",
)  # fmt: skip
_WAITING: Final = (
    click.option("--wait", is_flag=True, help="Wait until every delivery is settled."),
    click.option(
        "--timeout", type=arguments.SECONDS, metavar="TIME",
        help="How long to wait (implies --wait); default: until the command expires.",
    ),
)  # fmt: skip
_LIMIT: Final = click.option(
    "--limit",
    type=arguments.POSITIVE,
    default=100,
    metavar="N",
    help="The largest number of rows to list; default 100.",
)
_BETWEEN: Final = tuple(
    click.option(name, type=arguments.MOMENT, metavar="TIME", help=f"{text}: 2h ago, yesterday, 2026-11-29, …")
    for name, text in (("--since", "From this time on"), ("--until", "Before this time"))
)
YES: Final = click.option("--yes", is_flag=True, help="Do not ask to confirm the number of devices.")


def write(run: Verb) -> Any:
    """Make a verb from a function that writes.

    The function takes a Session and its options, and returns the exit status.
    """
    return _with_last(_called(run), *REACH, _FORM, JSON)


def read(run: Verb) -> Any:
    """Make a verb from a function that only reads. The verb also gets the option `--watch`."""
    return _with_last(_called(run), *REACH, _FORM, JSON, _WATCH)


def lines(run: Verb) -> Any:
    """Make a verb from a function that prints one line at a time. Each line is text or one JSON object."""
    return _with_last(_called(run), *REACH, LINES, JSON)


def waiting(run: Verb) -> Any:
    """Add the options `--wait` and `--timeout` to a verb."""
    return _with(run, *_WAITING)


def listing(run: Verb) -> Any:
    """Add the option `--limit` to a verb."""
    return _with(run, _LIMIT)


def between(run: Verb) -> Any:
    """Add the options `--since` and `--until` to a verb."""
    return _with(run, *_BETWEEN)


def _with(run: Any, *options: Decorator) -> Any:
    for option in reversed(options):
        run = option(run)
    return run


def _with_last(run: Any, *options: Decorator) -> Any:
    """Add options that the help prints after the options of the verb.

    click stores options in reverse order.
    """
    own = run.__dict__.pop("__click_params__", [])
    _with(run, *options).__click_params__ += own
    return run


def _called(run: Verb) -> Any:
    @click.pass_context
    @functools.wraps(run)
    def call(context: click.Context, /, form: Format, as_json: bool, watch: int | None = None, **given: Any) -> None:
        terminal = terminal_of(context, "json" if as_json else form)
        wish = {name: given.pop(name) for name in REACH_NAMES}
        with _usage_errors(context):
            session = connect(surroundings(context), wish, terminal, given)
        with closing(session.client):
            work = functools.partial(run, session, **given)
            context.exit(printing(terminal, functools.partial(_run, session, work, watch)))

    return call


@contextmanager
def _usage_errors(context: click.Context) -> Iterator[None]:
    try:
        yield
    except (NotConnected, ProfileError) as error:
        sys.stderr.write(f"{error}\n")
        context.exit(WRONG_USAGE)


def terminal_of(context: click.Context, form: Format = "table") -> Terminal:
    """Return the Terminal for the output of a call."""
    return Terminal(surroundings(context).out or sys.stdout, sys.stderr, form)


def surroundings(context: click.Context) -> Surroundings:
    """Return the Surroundings of a call. During a completion by the shell, return the default Surroundings."""
    return context.find_object(Surroundings) or Surroundings()


def connect(
    around: Surroundings,
    wish: Mapping[str, str | None],
    terminal: Terminal,
    given: dict[str, Any],
    *,
    answer_seconds: float = LONGEST_WAIT_SECONDS + ANSWER_SECONDS,
) -> Session:
    """Return a session with the chosen server.

    `answer_seconds` is the longest time to wait for each part of an answer. Raises NotConnected or ProfileError.
    """
    wished = {name: wish.get(name) or around.wish.get(name) for name in REACH_NAMES}
    principal = (wished["acts_as"] or connection.UNNAMED).lower()
    chosen = connection.choose(Wish(wished["url"], principal, wished["profile"]), around.own)
    is_own = around.own is not None and chosen.url == around.own.url
    if chosen.url.startswith("http:") and not on_loopback(chosen.url) and not is_own:
        terminal.hint(f"Warning: {chosen.url} does not use TLS. The admin key and every answer are sent unencrypted.")
    client = FleetClient(
        chosen.url,
        key=chosen.key,
        secret=chosen.secret,
        host=chosen.host,
        transport=around.transport,
        repeats=True,
        answer_seconds=answer_seconds,
    )
    memory = Memory(chosen.profile, client.url)
    return Session(client, terminal, Names(client, memory), around.program, chosen.source, given)


def printing(terminal: Terminal, work: Callable[[], int]) -> int:
    """Call `work`, which prints, and return its exit status.

    Return READER_GONE if the reader of the output has ended, and FAILED if the output cannot be written.
    """
    # A character that the encoding of the output does not have is written as a question mark.
    if reconfigure := getattr(terminal.out, "reconfigure", None):
        reconfigure(errors="replace")
    try:
        status = work()
        terminal.out.flush()
    except BrokenPipeError:
        _give_up_output(terminal.out)
        return READER_GONE
    except OSError as error:
        terminal.complain(f"The answer could not be written: {error.strerror or error}")
        _give_up_output(terminal.out)
        return FAILED
    return status


def _run(session: Session, run: Callable[[], int], watch: int | None) -> int:
    """Call a verb, and return the exit status. With `watch`, call it again every `watch` seconds until Ctrl-C."""
    try:
        status = failures.outcome(session, run)
        while watch is not None and status in (DONE, UNREACHABLE):
            session.terminal.out.flush()
            time.sleep(watch)
            session.terminal.clear()
            status = failures.outcome(session, run)
        session.terminal.out.flush()
    except KeyboardInterrupt:
        return DONE
    return DONE if watch is not None and status == INTERRUPTED else status


def _give_up_output(out: IO[str]) -> None:
    """Discard the rest of the output.

    Without this, Python would try to write the rest when it ends, and would print an error.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, out.fileno())
    os.close(nowhere)

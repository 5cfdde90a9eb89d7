"""The failures of a call: the exit status and the message of each failure."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from nexmdm.auth import signing
from nexmdm.client.http_client import Refused, Unreachable, UnsendableTarget
from nexmdm.client.names import NotFound
from nexmdm.client.session import FAILED, INTERRUPTED, UNREACHABLE, WRONG_USAGE, Session
from nexmdm.client.suggestions import did_you_mean
from nexmdm.client.surroundings import PROGRAM

_ARE_THE_SECRETS_RIGHT: Final = "Check that {key} and {secret} belong to this server."
_ADVICE: Final[Mapping[str, str]] = {
    "invalid_signature": f"{_ARE_THE_SECRETS_RIGHT} The server's log contains the reason (request.refused).",
    "rate_limited": f"Requests with a wrong signature also count. {_ARE_THE_SECRETS_RIGHT}",
    "unknown_devices": (
        "`{program} devices` lists all devices, including revoked and retired devices. A revoked device gets "
        "commands after `{program} reinstate`."
    ),
    "empty_audience": "`{program} devices` lists all devices with their tags. Only active devices get commands.",
    "cursor_expired": (
        "`{program} events --after oldest` begins with the oldest event that still exists. Read the present state "
        "with `{program} devices` and `{program} commands`."
    ),
    "not_found": "`{program} devices` and `{program} commands` list the ids.",
}
"""The advice by the code of a refusal. It has an entry for each refusal whose text contains no remedy."""

_CHOICES: Final = re.compile(r"must be one of ([\w, ]+)")


class NotConfirmed(Exception):
    """The admin did not confirm a command."""


class Unfulfilled(Exception):
    """A verb, such as `send` in `nexmdm send`, could not do a part of its work. The message contains the reason and the
    remedy.
    """


class ConfirmationRequired(Exception):
    """There is no terminal to ask for confirmation. The message names the option `--yes`."""


def outcome(session: Session, run: Callable[[], int]) -> int:
    """Call `run`, and return the exit status. Print a message if `run` raised an error."""
    complain = session.terminal.complain
    try:
        status = run()
    except Refused as refused:
        complain("\n".join([_refusal(refused, session), *_as_text(refused, session.given)]))
        return FAILED
    except Unreachable as unreachable:
        complain(_silence(session, unreachable))
        return UNREACHABLE
    except (NotFound, NotConfirmed, Unfulfilled) as error:
        complain(str(error))
        return FAILED
    except ConfirmationRequired as error:
        complain(str(error))
        return WRONG_USAGE
    except UnsendableTarget as error:
        complain(f"This cannot be part of a URL: {error}.")
        return WRONG_USAGE
    except (LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        complain(f"The server does not look like NexMDM. The client cannot read the server's answer ({what}).")
        return FAILED
    except KeyboardInterrupt:
        session.terminal.hint("Interrupted. The server continues with the request that it got.")
        return INTERRUPTED
    session.names.keep()
    return status


def _refusal(refused: Refused, session: Session) -> str:
    if not refused.code:
        asked = f"Is {session.client.url} the address of a NexMDM server?"
        return f"{refused}\n{asked} Name another server with --url or --profile."
    lines = [f"Refused ({refused.status} {refused.code}): {refused}"]
    lines += [f"  {'.'.join(map(str, error['loc']))}: {error['msg']}" for error in refused.errors]
    ahead = refused.clock_ahead_seconds or 0
    if refused.code == "invalid_signature" and abs(ahead) > signing.CLOCK_TOLERANCE_SECONDS:
        lines.append(f"This machine's clock is {_apart(ahead)} the server's clock. Correct the clock that is wrong.")
    elif advice := _ADVICE.get(refused.code):
        key, secret = session.source
        lines.append(advice.format(key=key, secret=secret, program=session.program))
    elif any(error["loc"] == ["body", "target"] and "device_ids" in str(error["msg"]) for error in refused.errors):
        lines.append("Write the alias, the hardware id or the device id of each phone.")
    elif meant := _meant_action(refused, session.given.get("action")):
        lines.append(meant)
    return "\n".join(lines)


def _meant_action(refused: Refused, given: str | None) -> str:
    """Return a question with similar names if the action of the command was misspelled.

    The names come from the refusal, because a newer server may have more actions.
    """
    for error in refused.errors:
        if given and error["loc"] == ["body", "action"] and (found := _CHOICES.search(str(error["msg"]))):
            return did_you_mean(given, found[1].split(", ")).strip()
    return ""


def _as_text(refused: Refused, given: Mapping[str, Any]) -> Iterator[str]:
    """Yield advice for each parameter that the client sent as another JSON type, but that must be a text."""
    no_text = [error["loc"][-1:] for error in refused.errors if "string" in str(error["msg"])]
    for param in given.get("param") or ():
        if [param.name] in no_text and not isinstance(param.value, str):
            yield f"To send the value as text: --param {shlex.quote(f'{param.name}={json.dumps(param.text)}')}"


def _apart(ahead: float) -> str:
    return f"{round(abs(ahead) / 60)} minutes {'behind' if ahead > 0 else 'ahead of'}"


def _silence(session: Session, unreachable: Unreachable) -> str:
    start = (
        "Start the server with `make run`, or name"
        if session.program != PROGRAM
        else "Check the server's address, or name"
    )
    advice = unreachable.advice or f"Is the server running? {start} another server with --url or --profile."
    lines = [f"No answer from {session.client.url}: {unreachable}", advice]
    if unreachable.perhaps_done:
        lines.append("The server may have carried out the request. Check this before you send it again.")
    return "\n".join(lines)

"""One call of the admin's client: what a subcommand works with, and what is said when it fails."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from nexmdm.auth import signing
from nexmdm.client.display import Terminal
from nexmdm.client.http_client import FleetClient, Refused, Unreachable

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

_ARE_THE_SECRETS_RIGHT: Final = "Check that {key} and {secret} are those of this server."
_NAMED_ONE_BY_ONE: Final = "Name the phones by device id (`manage.py fleet devices` lists them)"
_ADVICE: Final[Mapping[str, str]] = {
    "invalid_signature": f"{_ARE_THE_SECRETS_RIGHT} Its log contains the reason (request.refused).",
    "rate_limited": f"Refused signatures count too. {_ARE_THE_SECRETS_RIGHT}",
    "unknown_devices": "`manage.py fleet devices` lists all devices, also revoked and retired ones.",
    "empty_audience": "`manage.py fleet devices` lists all devices with their tags. Only active ones get commands.",
    "not_found": "`manage.py fleet devices` and `manage.py fleet commands` list the ids.",
}
"""What to do about a refusal, where its own words do not say it."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a sub-command works with. `variables` are those of the environment with the admin's key and secret."""

    client: FleetClient
    terminal: Terminal
    options: dict[str, Any]
    variables: tuple[str, str]


def outcome(session: Session) -> int:
    """Run the sub-command of a session and return the exit status; say what went wrong."""
    run: Callable[[Session], int] = session.options["run"]
    try:
        return run(session)
    except Refused as refused:
        session.terminal.complain(
            "\n".join([_refusal(refused, session.variables), *_as_text(refused, session.options)])
        )
        return FAILED
    except Unreachable as unreachable:
        session.terminal.complain(_silence(session.client.url, unreachable))
        return UNREACHABLE
    except (UnicodeError, httpx.InvalidURL) as error:
        what = "it is not UTF-8" if isinstance(error, UnicodeError) else error
        session.terminal.complain(f"This cannot be part of a URL: {what}.")
        return WRONG_USAGE
    except (LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        session.terminal.complain(f"This does not look like NexMDM; its answer cannot be understood ({what}).")
        return FAILED
    except KeyboardInterrupt:
        session.terminal.hint("Interrupted. The server continues with the request that it got.")
        return INTERRUPTED


def _refusal(refused: Refused, variables: tuple[str, str]) -> str:
    lines = [f"Refused ({refused.status} {refused.code}".rstrip() + f"): {refused}"]
    lines += [f"  {'.'.join(map(str, error['loc']))}: {error['msg']}" for error in refused.errors]
    ahead = refused.clock_ahead_seconds or 0
    if refused.code == "invalid_signature" and abs(ahead) > signing.CLOCK_TOLERANCE_SECONDS:
        lines.append(f"This machine's clock is {_apart(ahead)} the server's: set the one that is wrong.")
    elif advice := _ADVICE.get(refused.code):
        key, secret = variables
        lines.append(advice.format(key=key, secret=secret))
    elif any(error["loc"] == ["body", "target"] and "device_ids" in str(error["msg"]) for error in refused.errors):
        lines.append(f"{_NAMED_ONE_BY_ONE}, and for several add --expect-count N.")
    elif any(error["loc"] == ["body", "expect_count"] for error in refused.errors):
        lines.append("Add --expect-count N.")
    return "\n".join(lines)


def _as_text(refused: Refused, options: dict[str, Any]) -> Iterator[str]:
    """Say how to send as text what was taken for JSON, where that was refused for not being text."""
    no_text = [error["loc"][-1:] for error in refused.errors if "string" in str(error["msg"])]
    for param in options.get("param") or ():
        if [param.name] in no_text and not isinstance(param.value, str):
            yield f"To send it as text: --param {shlex.quote(f'{param.name}={json.dumps(param.text)}')}"


def _apart(ahead: float) -> str:
    return f"{round(abs(ahead) / 60)} minutes {'behind' if ahead > 0 else 'ahead of'}"


def _silence(url: str, unreachable: Unreachable) -> str:
    lines = [
        f"No answer from {url}: {unreachable}",
        "Is the server running? Start it with `make run`, or name another one with --url.",
    ]
    if unreachable.perhaps_done:
        lines.append("The server may have carried out the request. Check this before you send it again.")
    return "\n".join(lines)
